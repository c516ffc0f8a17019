"""The operators that a backend lowers one to one. `legalize` writes the others in these before lowering.

A test asserts that the table equals the lowering table of the backend: this is its public, light copy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import onnx_ir as ir

from .functions import DECODERS
from .graph import attr, nodes
from .targets import Target

COREML = frozenset({
    "Abs", "Acos", "Acosh", "Add", "AffineGrid", "And", "ArgMax", "ArgMin", "Asin", "Asinh", "Atan", "Atanh",
    "Attention", "AveragePool", "BatchNormalization", "BitShift", "BitwiseAnd", "BitwiseNot", "BitwiseOr",
    "BitwiseXor", "BlackmanWindow", "Cast", "CastLike", "Ceil", "Celu", "CenterCropPad", "Clip", "Col2Im",
    "Compress", "Concat", "Constant", "ConstantOfShape", "Conv", "ConvInteger", "ConvTranspose", "Cos", "Cosh",
    "CumSum", "DFT", "DepthToSpace", "DequantizeLinear", "Det", "Div", "Dropout", "DynamicQuantizeLinear", "Einsum",
    "Elu", "Equal", "Erf", "Exp", "Expand", "EyeLike", "Flatten", "Floor", "GRU", "Gather", "GatherElements",
    "GatherND", "Gelu", "Gemm", "GlobalAveragePool", "GlobalLpPool", "GlobalMaxPool", "Greater", "GreaterOrEqual",
    "GridSample", "GroupNormalization", "HammingWindow", "HannWindow", "HardSigmoid", "Hardmax", "Identity", "If",
    "InstanceNormalization", "IsInf", "IsNaN", "LRN", "LSTM", "LayerNormalization", "LeakyRelu", "Less",
    "LessOrEqual", "Log", "LogSoftmax", "Loop", "LpNormalization", "LpPool", "MatMul", "MatMulInteger", "Max",
    "MaxPool", "MaxUnpool", "Mean", "MeanVarianceNormalization", "Min", "Mish", "Mod", "Mul", "Neg", "Not",
    "OneHot", "Or", "PRelu", "Pad", "Pow", "QLinearConv", "QLinearMatMul", "QuantizeLinear", "RMSNormalization",
    "RNN", "Range", "Reciprocal", "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax",
    "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum", "ReduceSumSquare", "Relu", "Reshape", "Resize",
    "ReverseSequence", "RotaryEmbedding", "Round", "STFT", "Scan", "ScatterElements", "ScatterND", "Selu", "Shape",
    "Shrink", "Sigmoid", "Sign", "Sin", "Sinh", "Size", "Slice", "Softmax", "Softplus", "Softsign", "SpaceToDepth",
    "Split", "Sqrt", "Squeeze", "Sub", "Sum", "Swish", "Tan", "Tanh", "ThresholdedRelu", "Tile", "TopK",
    "Transpose", "Trilu", "Unsqueeze", "Upsample", "Where", "Xor",
}) | DECODERS  # fmt: skip

_CORE: dict[str, frozenset[str]] = {"coreml": COREML}


def core(target: Target) -> frozenset[str] | None:
    """The core set of the target's backend; None when it takes any standard operator."""
    return _CORE.get(target.backend)


REDEFINED = {"GroupNormalization": 21}
"""Operators whose meaning changed since an older opset had them, with the opset of today's meaning."""


def lacking(target: Target, opset: int | None = None) -> Callable[[ir.Node], bool] | None:
    """Tells of standard operators whether the target (ONNX: that opset) lacks them; None when it has them all."""
    found = core(target)
    if found is not None:
        return lambda node: node.op_type not in found
    return None if opset is None else lambda node: _newer(node, opset)


def unknown(model: ir.Model, target: Target) -> Iterator[tuple[ir.Node, str]]:
    """Nodes that the target can't express whatever their shapes, and why."""
    lacks = lacking(target) or (lambda _: False)
    for node in nodes(model):
        if node.domain not in ("", "edgec"):
            yield node, f"unknown domain '{node.domain}'"
        elif lacks(node):
            yield node, f"{target.name} has no such operator"


def _newer(node: ir.Node, opset: int) -> bool:
    """Whether ONNX has this operator, or what it is used for here, only after `opset`."""
    import onnx.defs

    if node.op_type == "DequantizeLinear" and opset < 21:
        stored = node.inputs[0].dtype if node.inputs[0] is not None else None
        return bool(attr(node, "block_size", 0)) or (stored is not None and stored.bitwidth < 8)
    return not onnx.defs.has(node.op_type, opset, "") or opset < REDEFINED.get(node.op_type, 0)
