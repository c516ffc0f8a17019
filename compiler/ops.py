"""What is true of whole families of standard ONNX operators at the pinned opset, by the specification's names.

An operator that is in none of a table's rows is unknown to whoever reads the table, and must be left alone by him.
"""

from __future__ import annotations

import onnx_ir as ir

from .graph import subgraphs

RANDOM = frozenset({
    "Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike",
})  # fmt: skip
"""Operators whose result differs between two runs."""

UNARY = frozenset({
    "Abs", "Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "BitwiseNot", "Cast", "Ceil", "Celu", "Clip", "Cos",
    "Cosh", "Elu", "Erf", "Exp", "Floor", "Gelu", "HardSigmoid", "HardSwish", "Identity", "IsInf", "IsNaN",
    "LeakyRelu", "Log", "Mish", "Neg", "Not", "Reciprocal", "Relu", "Round", "Selu", "Shrink", "Sigmoid", "Sign",
    "Sin", "Sinh", "Softplus", "Softsign", "Sqrt", "Swish", "Tan", "Tanh", "ThresholdedRelu",
})  # fmt: skip
"""Each output element depends on one element of the first input; other inputs are scalars (Clip's bounds)."""

BROADCAST = frozenset({
    "Add", "And", "BitShift", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "Div", "Equal", "Greater", "GreaterOrEqual",
    "Less", "LessOrEqual", "Max", "Mean", "Min", "Mod", "Mul", "Or", "Pow", "Sub", "Sum", "Where", "Xor",
})  # fmt: skip
"""Element-wise over all inputs with numpy's broadcasting. PRelu broadcasts one way only: not here."""

COMMUTATIVE = frozenset({"Add", "And", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "Equal", "Mul", "Or", "Xor"})
"""Two-input operators whose result is bit-equal when their inputs are swapped. Max and Min differ in NaN and -0."""

REDUCE = frozenset({
    "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd",
    "ReduceSum", "ReduceSumSquare",
})  # fmt: skip
"""Reductions with `axes` as second input, `keepdims` and `noop_with_empty_axes`."""

RESHAPE = frozenset({"Flatten", "Reshape", "Squeeze", "Unsqueeze"})
"""The elements stay in order; only the shape changes."""

EXACT = frozenset({
    "Abs", "Ceil", "CenterCropPad", "Clip", "Compress", "Concat", "DepthToSpace", "Dropout", "Expand", "Flatten",
    "Floor", "Gather", "GatherElements", "GatherND", "GlobalMaxPool", "Identity", "Max", "MaxPool", "Min", "Neg", "Pad",
    "ReduceMax", "ReduceMin", "Relu", "Reshape", "ReverseSequence", "Round", "Sign", "Slice", "SpaceToDepth", "Split",
    "Squeeze", "ThresholdedRelu", "Tile", "TopK", "Transpose", "Trilu", "Unsqueeze", "Where",
})  # fmt: skip
"""Operators whose outputs float16 holds whenever it holds their inputs: they need no rounding of their own."""

PICKS = frozenset({
    "CenterCropPad", "Compress", "DepthToSpace", "Dropout", "Expand", "Flatten", "Gather", "GatherElements", "GatherND",
    "GlobalMaxPool", "Identity", "MaxPool", "ReduceMax", "ReduceMin", "Relu", "Reshape", "ReverseSequence", "Slice",
    "SpaceToDepth", "Split", "Squeeze", "Tile", "TopK", "Transpose", "Trilu", "Unsqueeze",
})  # fmt: skip
"""Operators whose outputs are among the elements of their first input, or zero: whatever type holds it holds them."""


def is_random(node: ir.Node) -> bool:
    """Whether two runs of `node`, or of a graph inside it, may differ."""
    if node.domain == "" and (node.op_type in RANDOM or (node.op_type == "Dropout" and len(node.inputs) > 2)):
        return True
    return any(is_random(n) for g in subgraphs(node) for n in g)
