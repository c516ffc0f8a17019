"""How large the results are of operators that count: only a run can tell, so each size is a symbol, with its limit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import onnx_ir as ir

from .. import dims as d
from ..graph import attr
from . import bounds
from .size_rules import Rule, Sized, given, plain

if TYPE_CHECKING:
    from .sizes import Sizes


def _top_k(sizes: Sizes, node: ir.Node) -> Sequence[Sized] | None:
    dims = sizes.dims(node.inputs[0])
    if dims is None:
        return None
    axis = attr(node, "axis", -1) % len(dims)
    k = sizes.number(node.inputs[1])
    if k is None:
        k = sizes.counted(node.outputs[0], axis, f"the `k` of TopK '{node.name}', which a run decides", dims[axis])
    return [[k if i == axis else dim for i, dim in enumerate(dims)]] * 2


def _non_zero(sizes: Sizes, node: ir.Node) -> Sequence[Sized]:
    dims = sizes.dims(node.inputs[0])
    limit = None if dims is None else d.product(dims)
    count = sizes.counted(node.outputs[0], 1, f"how many elements NonZero '{node.name}' finds", limit)
    return [[None if dims is None else max(len(dims), 1), count]]


def _compress(sizes: Sizes, node: ir.Node) -> Sequence[Sized] | None:
    dims, axis = sizes.dims(node.inputs[0]), attr(node, "axis")
    limit = None if dims is None else d.product(dims) if axis is None else dims[axis]
    if axis is not None and dims is None:
        return None
    where = 0 if axis is None or dims is None else axis % len(dims)
    count = sizes.counted(node.outputs[0], where, f"how many elements Compress '{node.name}' keeps", limit)
    return [[count] if axis is None or dims is None else [count if i == where else x for i, x in enumerate(dims)]]


def _unique(sizes: Sizes, node: ir.Node) -> Sequence[Sized] | None:
    dims, axis = sizes.dims(node.inputs[0]), attr(node, "axis")
    if dims is None:
        return None
    whole = d.product(dims) if axis is None else dims[axis]
    where = 0 if axis is None else axis % len(dims)
    count = sizes.counted(node.outputs[0], where, f"how many different ones Unique '{node.name}' finds", whole)
    first: Sized = [count] if axis is None else [count if i == where else x for i, x in enumerate(dims)]
    return [first, [count], [whole], [count]]


def _non_max_suppression(sizes: Sizes, node: ir.Node) -> Sequence[Sized]:
    boxes, scores = sizes.dims(node.inputs[0]), sizes.dims(node.inputs[1])
    most = sizes.number(given(node, 2)) if given(node, 2) is not None else 0
    limit = None
    if boxes is not None and scores is not None and most is not None:
        limit = d.product([scores[0], scores[1], bounds.minimum([most, boxes[1]])])
    why = f"how many boxes NonMaxSuppression '{node.name}' keeps"
    return [[sizes.counted(node.outputs[0], 0, why, limit), 3]]


def _image(sizes: Sizes, node: ir.Node) -> Sequence[Sized]:
    why = f"how large the picture is that ImageDecoder '{node.name}' reads"
    height, width = (sizes.counted(node.outputs[0], axis, why) for axis in (0, 1))
    return [[height, width, 1 if attr(node, "pixel_format", "RGB") == "Grayscale" else 3]]


def _string_split(sizes: Sizes, node: ir.Node) -> Sequence[Sized] | None:
    dims = sizes.dims(node.inputs[0])
    if dims is None:
        return None
    why = f"how many parts StringSplit '{node.name}' makes of the longest text"
    return [[*dims, sizes.counted(node.outputs[0], len(dims), why)], plain(dims)]


def _string_normalizer(sizes: Sizes, node: ir.Node) -> Sequence[Sized] | None:
    dims = sizes.dims(node.inputs[0])
    if dims is None or not attr(node, "stopwords"):
        return [plain(dims)]
    why = f"how many words StringNormalizer '{node.name}' keeps"
    return [[*dims[:-1], sizes.counted(node.outputs[0], len(dims) - 1, why, bounds.maximum([dims[-1], 1]))]]


RULES: dict[str, Rule] = {
    "Compress": _compress,
    "ImageDecoder": _image,
    "NonMaxSuppression": _non_max_suppression,
    "NonZero": _non_zero,
    "StringNormalizer": _string_normalizer,
    "StringSplit": _string_split,
    "TopK": _top_k,
    "Unique": _unique,
}
"""Operator → the rule for its outputs' dimensions."""
