"""Chains of views (Reshape, Transpose, Squeeze, Expand, picking one slice …) followed up to the value they look at."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from ..compiler import graph as g
from .layouts import Axis, Leaf, axis, flat, regroup, resolve, size_of, sizes


@dataclass
class View:
    """What a value is: `base`, with these axes, seen as `dims`, times `scale`."""

    base: ir.Value
    axes: list[Axis]
    dims: list[Axis]
    scale: float = 1.0
    length: int = 0
    """How many nodes the chain has."""

    def picked(self) -> list[Leaf]:
        """The leaves of which the chain takes one slice only."""
        return [leaf for leaf in flat(self.axes) if leaf.index is not None]


def trace(value: ir.Value, *, scaled: bool = True) -> View | None:
    """Follow views (with `scaled`, factors too) up from `value` to where its data is made. None for an unknown rank."""
    chain: list[tuple[ir.Value, float]] = []
    base = value
    while (found := _upwards(base, scaled)) is not None:
        chain.insert(0, (base, found[1]))
        base = found[0]
    while (start := sizes(base)) is not None:
        axes = [axis(s) for s in start]
        dims: list[Axis] = axes
        for i, (made, _) in enumerate(chain):
            after = step(made, dims)
            if after is None:
                # Not understood: start below that node instead.
                base, chain = made, chain[i + 1 :]
                break
            dims = after
        else:
            return View(base, axes, dims, math.prod(factor for _, factor in chain), len(chain))
    return None


def opaque(value: ir.Value) -> View | None:
    """`value` as its own base."""
    dims = sizes(value)
    axes = [axis(d) for d in dims or ()]
    return None if dims is None else View(value, axes, axes)


def _upwards(value: ir.Value, scaled: bool) -> tuple[ir.Value, float] | None:
    """What a view or a scaling is applied to, and the factor."""
    node = g.producer(value, *_STEPS)
    if node is None:
        return None
    if node.op_type not in ("Mul", "Div"):
        source = node.inputs[0]
        return None if source is None or g.is_const(source) else (source, 1.0)
    for i, source in enumerate(node.inputs if scaled else ()):
        number = g.scalar(node.inputs[1 - i])
        if number is None or source is None or g.rank(source) != g.rank(value):
            continue
        if node.op_type == "Mul":
            return source, number
        if i == 0 and number != 0:
            return source, 1 / number
    return None


def step(out: ir.Value, dims: Sequence[Axis]) -> list[Axis] | None:
    """The axes of a view's output, given those of its input; None when the node isn't a view that is understood."""
    node = out.producer()
    rule = None if node is None or node.domain else _STEPS.get(node.op_type)
    return None if rule is None or node is None else rule(node, out, resolve(dims))


def _same(node: ir.Node, out: ir.Value, dims: list[Axis]) -> list[Axis]:
    return dims


def _transpose(node: ir.Node, out: ir.Value, dims: list[Axis]) -> list[Axis] | None:
    perm = g.attr(node, "perm", tuple(reversed(range(len(dims)))))
    return [dims[i] for i in perm]


def _regrouped(node: ir.Node, out: ir.Value, dims: list[Axis]) -> list[Axis] | None:
    target = sizes(out)
    return None if target is None else regroup(dims, target)


def _gather(node: ir.Node, out: ir.Value, dims: list[Axis]) -> list[Axis] | None:
    """One constant index of rank 0."""
    number, at = g.scalar(node.inputs[1]), g.attr(node, "axis", 0) % len(dims)
    if number is None or g.rank(node.inputs[1]) != 0 or not _pick(dims[at], int(number)):
        return None
    return dims[:at] + dims[at + 1 :]


def _slice(node: ir.Node, out: ir.Value, dims: list[Axis]) -> list[Axis] | None:
    """One index of one axis, which stays with size 1."""
    given = [g.ints(v) for v in node.inputs[1:]]
    if len(given) < 3 or any(v is None or len(v) != 1 for v in given):
        return None
    start, end, at, *by = (v[0] for v in given if v is not None)
    at %= len(dims)
    size = size_of(dims[at])
    if not isinstance(size, int) or by not in ([], [1]):
        return None
    first, last = (min(max(i + size * (i < 0), 0), size) for i in (start, end))
    if last - first != 1 or not _pick(dims[at], first):
        return None
    return [*dims[:at], [], *dims[at + 1 :]]


def _split(node: ir.Node, out: ir.Value, dims: list[Axis]) -> list[Axis] | None:
    """As many parts as the axis is long."""
    at = g.attr(node, "axis", 0) % len(dims)
    if size_of(dims[at]) != len(node.outputs) or not _pick(dims[at], out.index() or 0):
        return None
    return [*dims[:at], [], *dims[at + 1 :]]


def _pick(dim: Axis, index: int) -> bool:
    """Take one slice of an axis, if it is atomic and none is taken yet."""
    if len(dim) != 1 or not isinstance(dim[0].size, int) or dim[0].index is not None:
        return False
    dim[0].index = index % dim[0].size
    return True


def _expand(node: ir.Node, out: ir.Value, dims: list[Axis]) -> list[Axis] | None:
    target = sizes(out)
    if target is None:
        return None
    dims = [[] for _ in range(len(target) - len(dims))] + dims
    found: list[Axis] = []
    for dim, new in zip(dims, target, strict=True):
        old = size_of(dim)
        if old == 1 and isinstance(new, int):
            found.append([Leaf(new, repeated=True)] if new != 1 else [])
        elif old == new:
            found.append(dim)
        else:
            return None
    return found


def _tile(node: ir.Node, out: ir.Value, dims: list[Axis]) -> list[Axis] | None:
    """Repeats of axes of size 1, as an Expand makes them."""
    repeats = g.ints(node.inputs[1])
    if repeats is None or any(n != 1 and (dim or n < 1) for n, dim in zip(repeats, dims, strict=True)):
        return None
    return [[Leaf(n, repeated=True)] if n != 1 else dim for n, dim in zip(repeats, dims, strict=True)]


_STEPS: dict[str, Callable[[ir.Node, ir.Value, list[Axis]], list[Axis] | None]] = {
    "Reshape": _regrouped,
    "Flatten": _regrouped,
    "Squeeze": _regrouped,
    "Unsqueeze": _regrouped,
    "Identity": _same,
    "Transpose": _transpose,
    "Expand": _expand,
    "Gather": _gather,
    "Slice": _slice,
    "Split": _split,
    "Tile": _tile,
    "Mul": _same,
    "Div": _same,
}
LAYOUT = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Transpose"})
"""Views that keep every element once."""
