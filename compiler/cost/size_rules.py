"""How large the results of each operator are, in polynomials: what rules share, and element-wise operators.

A rule returns the dimensions of each output, None for one that it can't tell. Sources: the operators' own pages of the
ONNX specification.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import onnx_ir as ir

from .. import ops
from ..dims import Dim
from ..graph import attr
from . import bounds

if TYPE_CHECKING:
    from .sizes import Sizes

Sized = list[Dim | None] | None
"""Dimensions, None for those that a rule can't tell; None for an unknown rank."""
Rule = Callable[["Sizes", ir.Node], Sequence[Sized] | None]


def plain(dims: Sequence[Dim] | None) -> Sized:
    """The dimensions as a rule's result."""
    return None if dims is None else list(dims)


def given(node: ir.Node, index: int) -> ir.Value | None:
    """An input, None where it is left out."""
    return node.inputs[index] if index < len(node.inputs) else None


def sizes_of(sizes: Sizes, value: ir.Value | None) -> list[Dim | None] | None:
    """The elements of a vector of sizes, None for those that are not known."""
    found = sizes.elements(value)
    if found is not None:
        return list(found.reshape(-1))
    dims = sizes.dims(value)
    return [None] * dims[0] if dims is not None and len(dims) == 1 and isinstance(dims[0], int) else None


def numbers(sizes: Sizes, value: ir.Value | None) -> list[int] | None:
    """The elements of a vector that are all numbers: axes, pads, steps."""
    found = sizes.elements(value)
    if found is None:
        return None
    flat = found.reshape(-1).tolist()
    return flat if all(isinstance(x, int) for x in flat) else None


def axes_of(sizes: Sizes, node: ir.Node, index: int, rank: int) -> list[int] | None:
    """The axes that an input or the attribute of older opsets names, not negative; all where none is named."""
    value = given(node, index)
    named = numbers(sizes, value) if value is not None else attr(node, "axes")
    if value is not None and named is None:
        return None
    return list(range(rank)) if named is None else [a % rank for a in named]


def _same(sizes: Sizes, node: ir.Node) -> Sequence[Sized]:
    dims = sizes.dims(node.inputs[0])
    return [plain(dims)] * len(node.outputs)


def join(columns: Sequence[Dim]) -> Dim:
    """What dimensions that are broadcast together come to. Where a run succeeds, all but those that are 1 are equal."""
    others = list(dict.fromkeys(c for c in columns if c != 1))
    if len(others) < 2:
        return others[0] if others else 1
    sure: list[Dim] = [o for o in others if isinstance(o, int)] or [o for o in others if bounds.at_least(o, 2)]
    return min(sure, key=lambda o: len(repr(o))) if sure else bounds.maximum(others)


def broadcast(shapes: Sequence[Sequence[Dim]]) -> list[Dim]:
    """The shape that these broadcast to."""
    if len(shapes) == 2 and shapes[0] == shapes[1]:
        return list(shapes[0])
    rank = max(map(len, shapes))
    return [join(column) for column in zip(*([*[1] * (rank - len(s)), *s] for s in shapes), strict=True)]


def _broadcast(sizes: Sizes, node: ir.Node) -> Sequence[Sized] | None:
    shapes = [s for v in node.inputs if (s := sizes.dims(v)) is not None]
    return [plain(broadcast(shapes))] if shapes and len(shapes) == len(node.inputs) else None


def _reduce(sizes: Sizes, node: ir.Node) -> Sequence[Sized] | None:
    dims = sizes.dims(node.inputs[0])
    if dims is None:
        return None
    if node.op_type in ("ArgMax", "ArgMin"):
        axes: list[int] | None = [attr(node, "axis", 0) % len(dims)]
    else:
        axes = axes_of(sizes, node, 1, len(dims))
        named = numbers(sizes, given(node, 1)) or attr(node, "axes")
        if not named and axes is not None and attr(node, "noop_with_empty_axes", 0):
            return [plain(dims)]
        if axes == []:
            axes = list(range(len(dims)))
    if axes is None:
        return [[None] * len(dims)] if attr(node, "keepdims", 1) else None
    if attr(node, "keepdims", 1):
        return [[1 if i in axes else dim for i, dim in enumerate(dims)]]
    return [[dim for i, dim in enumerate(dims) if i not in axes]]


def _layer_norm(sizes: Sizes, node: ir.Node) -> Sequence[Sized] | None:
    dims = sizes.dims(node.inputs[0])
    if dims is None:
        return None
    axis = attr(node, "axis", -1) % len(dims)
    statistics: Sized = [*dims[:axis], *[1] * (len(dims) - axis)]
    return [plain(dims), *[statistics] * (len(node.outputs) - 1)]


def _batch_norm(sizes: Sizes, node: ir.Node) -> Sequence[Sized]:
    return [plain(sizes.dims(node.inputs[0])), *[plain(sizes.dims(node.inputs[3]))] * (len(node.outputs) - 1)]


def _attribute_shape(_: Sizes, node: ir.Node) -> Sequence[Sized]:
    return [list(attr(node, "shape"))]


def _multinomial(sizes: Sizes, node: ir.Node) -> Sequence[Sized] | None:
    dims = sizes.dims(node.inputs[0])
    return None if dims is None else [[dims[0], attr(node, "sample_size", 1)]]


def _window(sizes: Sizes, node: ir.Node) -> Sequence[Sized]:
    return [[sizes.number(node.inputs[0])]]


def _scalars(_: Sizes, node: ir.Node) -> Sequence[Sized]:
    return [[]] * len(node.outputs)


def _dynamic_quantize(sizes: Sizes, node: ir.Node) -> Sequence[Sized]:
    return [plain(sizes.dims(node.inputs[0])), [], []]


def _determinant(sizes: Sizes, node: ir.Node) -> Sequence[Sized] | None:
    dims = sizes.dims(node.inputs[0])
    return None if dims is None else [plain(dims[:-2])]


def _loss(sizes: Sizes, node: ir.Node) -> Sequence[Sized] | None:
    scores, labels = sizes.dims(node.inputs[0]), sizes.dims(node.inputs[1])
    return [plain(labels) if attr(node, "reduction", "mean") == "none" else [], plain(scores)]


RULES: dict[str, Rule] = {
    **dict.fromkeys(ops.UNARY, _same),
    **dict.fromkeys(ops.BROADCAST | {"StringConcat"}, _broadcast),
    **dict.fromkeys(ops.REDUCE | {"ArgMax", "ArgMin"}, _reduce),
    **dict.fromkeys((
        "Bernoulli", "BitCast", "CastLike", "CumProd", "CumSum", "DequantizeLinear", "Dropout", "EyeLike",
        "GroupNormalization", "Hardmax", "InstanceNormalization", "LRN", "LogSoftmax", "LpNormalization",
        "MeanVarianceNormalization", "PRelu", "QuantizeLinear", "RMSNormalization", "RandomNormalLike",
        "RandomUniformLike", "RegexFullMatch", "ReverseSequence", "RotaryEmbedding", "Scatter", "ScatterElements",
        "ScatterND", "Softmax", "TensorScatter", "Trilu",
    ), _same),
    **dict.fromkeys(("BlackmanWindow", "HammingWindow", "HannWindow"), _window),
    **dict.fromkeys(("RandomNormal", "RandomUniform"), _attribute_shape),
    **dict.fromkeys(("OptionalHasElement", "SequenceLength", "Size"), _scalars),
    **dict.fromkeys(("NegativeLogLikelihoodLoss", "SoftmaxCrossEntropyLoss"), _loss),
    "BatchNormalization": _batch_norm,
    "Det": _determinant,
    "DynamicQuantizeLinear": _dynamic_quantize,
    "LayerNormalization": _layer_norm,
    "Multinomial": _multinomial,
}  # fmt: skip
"""Operator → the rule for its outputs' dimensions."""
