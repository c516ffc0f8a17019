"""Axes as lists of atomic ones, static or symbolic: what Reshape and Transpose do to them, and the way back.

An axis of a value is a list of leaves, outermost first; a Reshape splits and joins, a Transpose permutes. So whatever
chain an exporter wrote, two values hold the same data in the same order exactly when their leaves are the same.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from ..compiler import graph as g

Size = int | str


@dataclass(eq=False)
class Leaf:
    """An atomic axis. It may turn out to be made of several; then it has parts, outermost first.

    `index` is set where the chain picked one slice of it; `repeated` where an Expand made it.
    """

    size: Size
    parts: list[Leaf] = field(default_factory=list)
    index: int | None = None
    repeated: bool = False

    def leaves(self) -> Iterator[Leaf]:
        if self.parts:
            for part in self.parts:
                yield from part.leaves()
        else:
            yield self

    def split(self, outer: int, inner: int) -> None:
        self.parts = [Leaf(outer), Leaf(inner)]


Axis = list[Leaf]


def axis(size: Size) -> Axis:
    """One axis of that size. Axes of size 1 have no leaves: they may come and go."""
    return [] if size == 1 else [Leaf(size)]


def resolve(dims: Sequence[Axis]) -> list[Axis]:
    """The same axes in terms of the leaves as they are split by now."""
    return [[leaf for whole in dim for leaf in whole.leaves()] for dim in dims]


def flat(dims: Sequence[Axis]) -> list[Leaf]:
    """All leaves, outermost first."""
    return [leaf for dim in resolve(dims) for leaf in dim]


def size_of(leaves: Sequence[Leaf]) -> Size:
    """The size of an axis; a symbolic product gets a name of its own."""
    numbers = math.prod(leaf.size for leaf in leaves if isinstance(leaf.size, int))
    names = [leaf.size for leaf in leaves if isinstance(leaf.size, str)]
    if not names:
        return numbers
    return "*".join(names if numbers == 1 else [*names, str(numbers)])


def sizes(value: ir.Value) -> list[Size] | None:
    """The dimensions of `value`, names of their own for unknown ones; None for an unknown rank or an empty value."""
    dims = g.shape(value)
    if dims is None or 0 in dims:
        return None
    return [d if d is not None else f"?{id(value)}.{i}" for i, d in enumerate(dims)]


def regroup(dims: Sequence[Axis], target: Sequence[Size]) -> list[Axis] | None:
    """Distribute the leaves over axes of the target sizes, in row-major order, splitting them where needed.

    Sizes are taken from both ends; what is left in the middle belongs to the one axis that is left, whatever its symbol
    is called. None if more than one is left.
    """
    rest, wanted = flat(dims), list(target)
    front: list[Axis] = []
    back: list[Axis] = []
    while wanted:
        taken = _take(rest, wanted[0], 0)
        if taken is None:
            break
        front.append(taken)
        wanted.pop(0)
    while wanted:
        taken = _take(rest, wanted[-1], -1)
        if taken is None:
            break
        back.insert(0, taken)
        wanted.pop()
    if len(wanted) > 1 or (not wanted and rest):
        return None
    if wanted:
        size = size_of(rest)
        if isinstance(size, int) and isinstance(wanted[0], int) and size != wanted[0]:
            return None
        front.append(rest)
    return front + back


def _take(rest: list[Leaf], size: Size, end: int) -> Axis | None:
    """Remove leaves that make up `size` from one end of `rest`; None, with `rest` as it was, when there are none."""
    if isinstance(size, str):
        if rest and rest[end].size == size:
            return [rest.pop(end)]
        return None
    taken: Axis = []
    before = list(rest)
    while size > 1:
        leaf = rest[end] if rest else None
        if leaf is None or not isinstance(leaf.size, int) or (size % leaf.size and leaf.size % size):
            rest[:] = [part for whole in before for part in whole.leaves()]
            return None
        if leaf.size > size:
            outer, inner = (size, leaf.size // size) if end == 0 else (leaf.size // size, size)
            leaf.split(outer, inner)
            at = 0 if end == 0 else len(rest) - 1
            rest[at : at + 1] = leaf.parts
            continue
        rest.pop(end)
        taken.insert(0 if end else len(taken), leaf)
        size //= leaf.size
    return taken


@dataclass(frozen=True)
class Layout:
    """How to get wanted axes from a value: reshape to `cut` axes, transpose, reshape; any of these may be absent."""

    cut: tuple[int, ...] | None
    perm: tuple[int, ...] | None
    shape: tuple[int, ...] | None
    dims: tuple[Size, ...]

    @property
    def cost(self) -> int:
        """The nodes that it takes."""
        return (self.cut is not None) + (self.perm is not None) + (self.shape is not None)


def arrange(have: Sequence[Axis], want: Sequence[Axis]) -> Layout | None:
    """The shortest layout that takes axes `have` to axes `want`, or None where symbolic sizes allow none."""
    have, want = resolve(have), resolve(want)
    order = flat(want)
    rank = {leaf: i for i, leaf in enumerate(order)}
    if {*flat(have)} != {*order}:
        return None
    cut = perm = None
    if flat(have) != order:
        perm = _permutation(have, rank)
        if [leaf for i in perm for leaf in have[i]] != order:
            runs = _runs(flat(have), rank)
            cut = _target(have, runs)
            if cut is None:
                return None
            have, perm = runs, _permutation(runs, rank)
        have = [have[i] for i in perm]
    dims = tuple(size_of(d) for d in want)
    if have == want:
        return Layout(cut, perm, None, dims)
    shape = _target(have, want)
    return None if shape is None else Layout(cut, perm, shape, dims)


def _permutation(axes: Sequence[Axis], rank: Mapping[Leaf, int]) -> tuple[int, ...]:
    """Axes in the order that their first leaves are to have; those of size 1 first."""
    return tuple(sorted(range(len(axes)), key=lambda i: (rank[axes[i][0]] if axes[i] else -1, i)))


def _runs(leaves: Sequence[Leaf], rank: Mapping[Leaf, int]) -> list[Axis]:
    """The leaves as axes that stay together: neighbours that are neighbours in the wanted order, too."""
    runs: list[Axis] = []
    for leaf in leaves:
        if runs and rank[leaf] == rank[runs[-1][-1]] + 1:
            runs[-1].append(leaf)
        else:
            runs.append([leaf])
    return runs


def _target(have: Sequence[Axis], want: Sequence[Axis]) -> tuple[int, ...] | None:
    """The constant that makes a Reshape from `have` to `want`, if one does: 0 copies a size, -1 stands for one more."""
    sizes = [size_of(d) for d in want]
    same = [i < len(have) and have[i] == want[i] for i in range(len(want))]
    shape = [d if isinstance(d, int) else 0 if copied else -1 for d, copied in zip(sizes, same, strict=True)]
    return tuple(shape) if shape.count(-1) <= 1 and 0 not in sizes else None


def emit(layout: Layout, value: ir.Value, anchor: ir.Node, hint: str) -> ir.Value:
    """Insert the nodes of `layout` before `anchor`; the arranged value."""
    if layout.cut is not None:
        dims = g.shape(value) or ()
        value = _reshape(
            value, layout.cut, [dims[i] if d == 0 else d for i, d in enumerate(layout.cut)], anchor, f"{hint}_cut"
        )
    if layout.perm is not None:
        node = g.insert_before(anchor, "Transpose", [value], {"perm": layout.perm}, hint=f"{hint}_transposed")
        found = g.shape(value)
        node.outputs[0].shape = None if found is None else ir.Shape([found[i] for i in layout.perm])
        node.outputs[0].type = value.type
        value = node.outputs[0]
    return value if layout.shape is None else _reshape(value, layout.shape, layout.dims, anchor, f"{hint}_view")


def _reshape(
    value: ir.Value, target: Sequence[int], dims: Sequence[Size | None], anchor: ir.Node, hint: str
) -> ir.Value:
    graph = anchor.graph
    assert isinstance(graph, ir.Graph)
    shape = g.initializer(graph, np.array(target, np.int64), f"{hint}_shape")
    out = g.insert_before(anchor, "Reshape", [value, shape], {}, hint=hint).outputs[0]
    out.type = value.type
    known = [d if (d != -1 if isinstance(d, int) else d is not None and d.isidentifier()) else None for d in dims]
    out.shape = ir.Shape(known)
    return out
