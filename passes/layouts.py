"""Axes as lists of atomic ones, static or symbolic: what Reshape and Transpose do to them, and the way back.

An axis of a value is a list of leaves, outermost first; a Reshape splits and joins, a Transpose permutes. So whatever
chain an exporter wrote, two values hold the same data in the same order exactly when their leaves are the same.

A leaf is an object, known again in whatever value it turns up, and it may be one slice of an axis or a repeated one:
that is what recognising an attention or a group takes. To shorten one chain, sizes are enough: see `rearrange`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import onnx_ir as ir

from ..compiler import dims as d
from ..compiler import graph as g
from .rearrange import Rearrangement
from .view_steps import Step, constant_targets

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
        """The atomic axes that this one is made of by now, outermost first."""
        if self.parts:
            for part in self.parts:
                yield from part.leaves()
        else:
            yield self

    def split(self, outer: int, inner: int) -> None:
        """Cut into two of these sizes."""
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


def arrange(have: Sequence[Axis], want: Sequence[Axis]) -> tuple[Step, ...] | None:
    """The shortest chain of views that takes axes `have` to axes `want`.

    None where they are not of the same leaves, or where sizes that are no numbers leave a Reshape without a constant.
    """
    have, want = resolve(have), resolve(want)
    number = {leaf: i for i, leaf in enumerate(flat(have))}
    if number.keys() != {*flat(want)}:
        return None
    made = Rearrangement.between(
        [[number[leaf] for leaf in dim] for dim in have],
        [[number[leaf] for leaf in dim] for dim in want],
        [d.atom(leaf.size) if isinstance(leaf.size, str) else leaf.size for leaf in number],
    )
    return constant_targets(made.source, made.steps())
