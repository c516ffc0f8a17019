"""How large the results are of operators that give the same elements another shape."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import onnx_ir as ir

from .. import dims as d
from ..dims import Dim
from ..graph import attr
from . import bounds
from .size_rules import Rule, Sized, axes_of, given, numbers, sizes_of

if TYPE_CHECKING:
    from .sizes import Sizes


def _reshape(sizes: Sizes, node: ir.Node) -> Sequence[Sized] | None:
    source, target = sizes.dims(node.inputs[0]), sizes_of(sizes, node.inputs[1])
    if target is None:
        return None
    dims: list[Dim | None] = list(target)
    if not attr(node, "allowzero", 0):
        dims = [(source[i] if source and i < len(source) else None) if t == 0 else t for i, t in enumerate(dims)]
    if -1 in dims:
        i = dims.index(-1)
        rest = dims[:i] + dims[i + 1 :]
        dims[i] = None if source is None or None in rest else _remaining(source, [r for r in rest if r is not None])
    elif dims.count(None) == 1 and source is not None:
        dims[dims.index(None)] = _remaining(source, [r for r in dims if r is not None])
    return [dims]


def _remaining(source: Sequence[Dim], known: Sequence[Dim]) -> Dim | None:
    """What the elements of `source` leave to one more dimension beside those that are known."""
    left, taken = list(source), []
    for k in known:
        if k in left:
            left.remove(k)
        else:
            taken.append(k)
    return bounds.floor_div(d.product(left), d.product(taken))


def _flatten(sizes: Sizes, node: ir.Node) -> Sequence[Sized] | None:
    dims = sizes.dims(node.inputs[0])
    if dims is None:
        return None
    axis = attr(node, "axis", 1)
    axis += len(dims) if axis < 0 else 0
    return [[d.product(dims[:axis]), d.product(dims[axis:])]]


def _squeeze(sizes: Sizes, node: ir.Node) -> Sequence[Sized] | None:
    dims = sizes.dims(node.inputs[0])
    if dims is None:
        return None
    if given(node, 1) is None and attr(node, "axes") is None:
        # Which of them are 1 is certain for numbers alone, and for what is always larger.
        if any(not isinstance(dim, int) and not bounds.at_least(dim, 2) for dim in dims):
            return None
        return [[dim for dim in dims if dim != 1]]
    axes = axes_of(sizes, node, 1, len(dims))
    return None if axes is None else [[dim for i, dim in enumerate(dims) if i not in axes]]


def _unsqueeze(sizes: Sizes, node: ir.Node) -> Sequence[Sized] | None:
    dims = sizes.dims(node.inputs[0])
    named = numbers(sizes, given(node, 1)) if given(node, 1) is not None else attr(node, "axes")
    if dims is None or named is None:
        return None
    rank = len(dims) + len(named)
    axes, left = {a % rank for a in named}, iter(dims)
    return [[1 if i in axes else next(left) for i in range(rank)]]


def _transpose(sizes: Sizes, node: ir.Node) -> Sequence[Sized] | None:
    dims = sizes.dims(node.inputs[0])
    if dims is None:
        return None
    return [[dims[p] for p in attr(node, "perm") or range(len(dims) - 1, -1, -1)]]


def _depth_to_space(sizes: Sizes, node: ir.Node) -> Sequence[Sized] | None:
    dims, block = sizes.dims(node.inputs[0]), attr(node, "blocksize")
    if dims is None or len(dims) != 4:
        return None
    n, c, h, w = dims
    if node.op_type == "DepthToSpace":
        return [[n, bounds.floor_div(c, block**2), d.mul(h, block), d.mul(w, block)]]
    return [[n, d.mul(c, block**2), bounds.floor_div(h, block), bounds.floor_div(w, block)]]


RULES: dict[str, Rule] = {
    "DepthToSpace": _depth_to_space,
    "Flatten": _flatten,
    "Reshape": _reshape,
    "SpaceToDepth": _depth_to_space,
    "Squeeze": _squeeze,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
"""Operator → the rule for its output's dimensions."""
