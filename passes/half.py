"""What float16 does to an operator: which only move numbers, which divide by small ones, which are never rounded."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ..compiler.graph import attr, const, const_tensor, producer, rank, subgraphs
from ..compiler.ops import EXACT
from ..compiler.quantization.packed import unpacks
from ..compiler.rounding import HALF_MAX, HALF_TINY, is_pair, is_rounded

FLOAT = ir.DataType.FLOAT

VIEWS = frozenset({
    "DepthToSpace", "Expand", "Flatten", "Gather", "Identity", "Reshape", "Slice", "SpaceToDepth", "Split", "Squeeze",
    "Tile", "Transpose", "Unsqueeze",
})  # fmt: skip
"""Operators whose numbers are all among those of their first input, which tells their range."""

SOURCES = frozenset({
    "Cast", "CastLike", "Constant", "ConstantOfShape", "DequantizeLinear", "EyeLike", "OneHot", "Range", "RandomNormal",
    "RandomNormalLike", "RandomUniform", "RandomUniformLike", "BlackmanWindow", "HammingWindow", "HannWindow",
})  # fmt: skip
"""Operators that make float32 of something else: nothing computes in float16 there, readers round what they get."""

NEVER = frozenset({
    "If", "Loop", "Scan", "SequenceMap", "STFT", "DFT", "MelWeightMatrix", "QuantizeLinear", "DynamicQuantizeLinear",
    "NonMaxSuppression", "ImageDecoder", "RoiAlign", "GridSample", "AffineGrid",
})  # fmt: skip
"""Operators that stay in float32: control flow, coordinates, quantisation scales, transforms over long signals."""

RECURRENT = frozenset({"LSTM", "GRU", "RNN"})

DATA = {
    "Resize": (0,), "Upsample": (0,), "Dropout": (0,), "OneHot": (), "TopK": (0,), "Pad": (0, 2), "Range": (),
}  # fmt: skip
"""Float inputs that are data, where others are sizes or ratios that float16 must not touch."""

SMALL_HURTS = {"Div": 1, "Reciprocal": 0, "Log": 0, "Sqrt": 0}
"""Operators whose result depends on the relative precision of a small input, and which input that is."""

SQUARING = frozenset({
    "LayerNormalization", "RMSNormalization", "InstanceNormalization", "GroupNormalization",
    "MeanVarianceNormalization", "LpNormalization", "ReduceL2", "ReduceSumSquare", "ReduceLogSumExp",
})  # fmt: skip
"""Operators that square their input on the way: it must stay below the root of float16's largest number."""

INDEX_ENDS = {"Range": (0, 1, 2), "Resize": (1, 2), "OneHot": (1,), "Upsample": (1,)}
INDEX_PATH = frozenset({
    "Add", "Sub", "Mul", "Div", "Floor", "Ceil", "Round", "Sqrt", "Pow", "Min", "Max", "Clip", "Mod", "Abs", "Neg",
    "Reciprocal", "Where", "Concat", "Reshape", "Squeeze", "Unsqueeze", "Slice", "Gather", "Identity", "Expand",
    "Split", "Transpose", "Sum", "ReduceProd", "ReduceSum", "ReduceMax", "ReduceMin", "CumSum",
})  # fmt: skip
"""Operators through which a number may become an index or a size (a Cast to integers ends the way)."""

MASK_VALUE = -16384.0
"""What a mask's "minus infinity" becomes in float16: three of them can be added, and exp() of it is 0."""

MASK_PATH = EXACT | {"Add", "Mul", "Sub", "Attention", "Softmax"}


@dataclass(frozen=True)
class Constant:
    """How float16 holds a constant.

    Attributes:
        overflow: its largest magnitude where float16 has no such number, else 0.
        vanishes: whether a number that is not zero becomes zero, in all of a small constant.
        error: the largest relative error of an element of a small constant; 0 for a large one.
    """

    overflow: float = 0.0
    vanishes: bool = False
    error: float = 0.0


SMALL = 4096
"""Elements up to which every number of a constant is looked at: epsilons, scales, masks, not weights."""


def inspect(value: ir.Value) -> Constant:
    """How float16 holds the constant `value`."""
    array = const(value)
    if array is None or not array.size:
        return Constant()
    if array.size > SMALL:
        peak = max(float(array.max()), -float(array.min()))
        return Constant(overflow=peak if peak > HALF_MAX else 0.0, vanishes=0 < peak < HALF_TINY / 2)
    size = np.abs(array[np.isfinite(array) & (array != 0)]).astype(np.float64)
    if not size.size:
        return Constant()
    half = np.minimum(size, HALF_MAX).astype(np.float16).astype(np.float64)
    inside = size <= HALF_MAX
    error = float((np.abs(half - size) / size)[inside].max(initial=0))
    return Constant(float(size.max()) if size.max() > HALF_MAX else 0.0, not half.any(), error)


def data_inputs(node: ir.Node) -> Iterator[tuple[int, ir.Value]]:
    """The float32 inputs of a node that are data, with their positions."""
    wanted = DATA.get(node.op_type) if node.domain == "" else None
    for i, value in enumerate(node.inputs):
        if value is not None and value.dtype == FLOAT and (wanted is None or i in wanted):
            yield i, value


def float_outputs(node: ir.Node) -> list[ir.Value]:
    """The float32 outputs of a node that anybody reads."""
    return [o for o in node.outputs if o.dtype == FLOAT and o.name and (o.uses() or o.is_graph_output())]


def is_exact(node: ir.Node) -> bool:
    """Whether float16 holds the node's outputs if it holds its inputs."""
    return node.domain == "" and node.op_type in EXACT


def is_source(node: ir.Node) -> bool:
    """Whether the node makes float32 values of something that is not float32, or is part of a rounding pair."""
    if is_pair(node) or (node.domain == "" and node.op_type in SOURCES) or unpacks(node):
        return True
    return not any(True for _ in data_inputs(node))


def can_compute(node: ir.Node) -> bool:
    """Whether float16 could be the node's type at all: it has float32 outputs and is no operator that needs more."""
    never = node.domain == "" and node.op_type in NEVER
    return not never and not subgraphs(node) and bool(float_outputs(node)) and not is_source(node)


def origin(value: ir.Value) -> ir.Value:
    """Where the numbers of `value` were computed: upwards through operators that only pick and place them."""
    while (node := producer(value)) is not None and node.domain == "" and node.op_type in VIEWS:
        source = node.inputs[0]
        if source is None or const_tensor(source) is not None:
            break
        value = source
    return value


def known(value: ir.Value) -> bool:
    """Whether `value` is a constant, or rounded to float16 already."""
    return const_tensor(value) is not None or is_rounded(value)


def index_nodes(graph: ir.Graph) -> set[ir.Node]:
    """The nodes whose float results become indices or sizes: those must stay whole."""
    found: set[ir.Node] = set()
    stack: list[ir.Value | None] = []
    for node in graph:
        kind = node.outputs[0].dtype if node.op_type in ("Cast", "CastLike") else None
        if kind is not None and kind.is_integer():
            stack.append(node.inputs[0])
        for i in INDEX_ENDS.get(node.op_type, ()):
            stack.append(node.inputs[i] if i < len(node.inputs) else None)
    while stack:
        node_ = producer(stack.pop())
        if node_ is not None and node_ not in found and node_.domain == "" and node_.op_type in INDEX_PATH:
            found.add(node_)
            stack += node_.inputs
    return found


def guarded(node: ir.Node) -> set[ir.Node]:
    """`node`, whose tiny constant keeps a division from blowing up, and what divides by its result."""
    found, stack = {node}, [(node, 0)]
    while stack:
        current, depth = stack.pop()
        for out in current.outputs:
            for user, i in out.uses():
                divides = SMALL_HURTS.get(user.op_type) == i or (user.op_type == "Pow" and i == 0)
                if user not in found and depth < 4 and (divides or is_exact(user)):
                    found.add(user)
                    stack.append((user, depth + 1))
    return found


def is_mask(node: ir.Node, value: ir.Value) -> bool:
    """Whether the huge constant `value` of `node` is the minus infinity of a mask, or the bound of a Clip."""
    array = const(value)
    if array is None or array.size > 1 << 20:
        return False
    if node.op_type == "Clip" and node.inputs[0] is not value:
        return True
    huge = np.abs(array) > HALF_MAX
    if not (array[huge] < 0).all():
        return False
    seen: set[ir.Node] = set()
    stack = [(node, 0)]
    while stack:
        current, depth = stack.pop()
        if current.op_type in ("Softmax", "Attention"):
            return True
        if current in seen or depth > 12 or current.op_type not in MASK_PATH:
            continue
        seen.add(current)
        stack += [(n, depth + 1) for out in current.outputs for n, _ in out.uses()]
    return False


def variance_axes(node: ir.Node) -> list[int] | None:
    """The axes over which a normalisation takes the variance that its epsilon protects, or None where not known."""
    n = rank(node.inputs[0])
    if n is None:
        return None
    if node.op_type in ("LayerNormalization", "RMSNormalization"):
        axis = attr(node, "axis", -1)
        return list(range(axis % n, n))
    return list(range(2, n)) if node.op_type == "InstanceNormalization" else None


def half_epsilon(epsilon: float) -> float:
    """The epsilon as float16 holds it, and never zero."""
    return max(float(np.float16(epsilon)), HALF_TINY)


EPSILON_MATTERS = 2.0**-11
"""An epsilon too small for float16 is replaced by the least float16; where that changes variance + epsilon by more than
this part, half the spacing of float16 at 1, the operator stays in float32."""
