"""Operators that move elements without calculating: where each came from."""

from __future__ import annotations

from ... import graph as g
from ..step import Grads, Refused, Rule, Step
from ..terms import Term


def _reshape(s: Step) -> Grads:
    return [s.as_input(s.dy)]


def _transpose(s: Step) -> Grads:
    perm = s.attr("perm") or list(reversed(range(s.rank())))
    back = sorted(range(len(perm)), key=lambda i: perm[i])
    return [s.dy.transpose(*back)]


def _expand(s: Step) -> Grads:
    return [s.to_input(0, s.dy)]


def _tile(s: Step) -> Grads:
    """Each axis as repeats x length, summed over the repeats."""
    rank, repeats = s.rank(), s.ints(1)
    assert repeats is not None
    parts = [p for axis, n in enumerate(repeats) for p in (n, s.x.dim(axis))]
    return [s.dy.reshape(*parts).sum(range(0, 2 * rank, 2), keep=False)]


def _concat(s: Step) -> Grads:
    axis = s.attr("axis")
    if len(s.node.inputs) == 1:
        return [s.dy]
    sizes = s.tape.vector([s.input(i).dim(axis % s.rank()) for i in range(len(s.node.inputs))])
    return s.tape.ops("Split", s.dy, sizes, outputs=len(s.node.inputs), axis=axis)


def _split(s: Step) -> Grads:
    parts = [
        d if d is not None else s.tape.term(v).zeros() for d, v in zip(s.dys, s.node.outputs, strict=True)
    ]
    return [s.tape.op("Concat", *parts, axis=s.attr("axis", 0))]


def _pad(s: Step) -> Grads:
    """Constants: what was added is cut off, what was cut off is 0. Copies: each to where it came from."""
    if s.wants(2):
        raise Refused("what it fills with depends on what is differentiated by")
    axes = s.input(3) if s.has(3) else None
    mode = s.attr("mode", "constant")
    if mode == "constant":
        return [s.dy.op("Pad", s.input(1).op("Neg"), s.tape.const(0.0, s.dy), axes)]
    pads, over = s.ints(1), s.ints(3)
    assert pads is not None
    rank = s.rank()
    over = [a % rank for a in over] if over is not None else list(range(rank))
    found = s.dy
    for i, axis in enumerate(over):
        ends = pads[i], pads[i + len(over)]
        if any(ends):
            places = numbers(s.x, axis).op("Pad", s.tape.const(list(ends)), mode=mode)
            shape = s.tape.vector([s.x.dim(a) if a == axis or a in over[:i] else s.y.dim(a) for a in range(rank)])
            found = gathered(found, places, axis, rank, shape)
    return [found]


def numbers(x: Term, axis: int) -> Term:
    """0 … n - 1 for the n positions of an axis."""
    n = x.size(axis).reshape()
    return x.tape.const(0).op("Range", n, x.tape.const(1))


def gathered(dy: Term, places: Term, axis: int, rank: int, shape: Term, places_rank: int = 1) -> Term:
    """The gradient of Gather: each slice of dy added to the place that it was taken from.

    `shape` is the shape of what was taken from, of `rank` dimensions.
    """
    tape = dy.tape
    zero = tape.const(0.0, dy).op("Expand", shape)
    inner = list(range(axis, axis + places_rank))
    outer = [*range(axis), *range(axis + places_rank, rank + places_rank - 1)]
    front = [axis, *(a for a in range(rank) if a != axis)]
    target = zero.transpose(*front)
    slices = dy.transpose(*inner, *outer)
    added = target.op("ScatterND", places.ints("Unsqueeze", [-1]), slices, reduction="add")
    return added.transpose(*sorted(range(rank), key=lambda i: front[i]))


def _slice(s: Step) -> Grads:
    """Each axis: where a position went, if it went anywhere; a slice of zeros behind dy stands for the others."""
    rank, starts = s.rank(), s.input(1)
    count = g.static_shape(starts.value)
    given = s.ints(3)
    if given is None and count is None:
        raise Refused("how many axes it cuts is not known")
    axes = [a % rank for a in given] if given is not None else list(range((count or (0,))[0]))
    found, tape = s.dy, s.tape
    for i, axis in enumerate(axes):
        cut = tape.const([i]), tape.const([i + 1]), tape.const([0])
        start, end = (s.input(k).op("Slice", *cut).like(cut[0]) for k in (1, 2))
        step = s.input(4).op("Slice", *cut).like(cut[0]) if s.has(4) else None
        taken = tape.op("Slice", numbers(s.x, axis), start, end, tape.const([0]), step)
        kept = taken.op("Shape")
        none = kept.op("Expand", s.x.size(axis))
        new = tape.const(0).op("Range", kept.reshape(), tape.const(1))
        origin = none.op("ScatterElements", taken, new, axis=0)
        zeros = [0] * rank
        zeros[axis] = 1
        found = found.op("Pad", tape.const([0] * rank + zeros)).op("Gather", origin, axis=axis)
    return [found]


def _depth_to_space(s: Step) -> Grads:
    block = s.attr("blocksize")
    if s.attr("mode", "DCR") == "DCR":
        return [s.dy.op("SpaceToDepth", blocksize=block)]
    n, c, h, w = (s.x.dim(a) for a in range(4))
    if not isinstance(c, int):
        raise Refused("the number of its channels is not known")
    split = s.dy.reshape(n, c // block**2, h, block, w, block)
    return [s.as_input(split.transpose(0, 1, 3, 5, 2, 4))]


def _space_to_depth(s: Step) -> Grads:
    return [s.dy.op("DepthToSpace", blocksize=s.attr("blocksize"))]


def _trilu(s: Step) -> Grads:
    return [s.dy.op("Trilu", s.input(1) if s.has(1) else None, upper=s.attr("upper", 1))]


RULES: dict[str, Rule] = {
    "Concat": _concat,
    "DepthToSpace": _depth_to_space,
    "Expand": _expand,
    "Flatten": _reshape,
    "Pad": _pad,
    "Reshape": _reshape,
    "Slice": _slice,
    "SpaceToDepth": _space_to_depth,
    "Split": _split,
    "Squeeze": _reshape,
    "Tile": _tile,
    "Transpose": _transpose,
    "Trilu": _trilu,
    "Unsqueeze": _reshape,
}
