"""Reductions and pooling."""

from __future__ import annotations

from ...graph import attr, ints
from ...ops import REDUCE
from ..flow import Step, rule

SUMS = frozenset({"ReduceSum", "ReduceL1", "ReduceL2", "ReduceSumSquare"})
"""A slice of zeros adds nothing to these."""


@rule(*REDUCE)
def _reduce(s: Step) -> None:
    """What is reduced may go only where it is zero and adds nothing; other axes pass."""
    rank = len(s.dims(0))
    given = s.value(1)
    s.const(1)
    axes = ints(given) if given is not None else ([] if attr(s.node, "noop_with_empty_axes", 0) else list(range(rank)))
    if axes is None:
        return
    reduced = {a % rank for a in axes} if axes or given is None else set(range(rank))
    if given is not None and not axes:
        reduced = set() if attr(s.node, "noop_with_empty_axes", 0) else set(range(rank))
    for axis in reduced:
        g = s.at(0, axis)
        if g is not None and not (g.zero and s.node.op_type in SUMS) and s.opened(0, axis) is None:
            s.coupling.veto(g, axis)
    left = [a for a in range(rank) if a not in reduced]
    to = {a: a for a in left} if attr(s.node, "keepdims", 1) else {a: k for k, a in enumerate(left)}
    s.emit(s.carry(0, to, zero=None if s.node.op_type in SUMS | {"ReduceMean", "ReduceMax", "ReduceMin"} else False))


@rule("ArgMax", "ArgMin")
def _arg(s: Step) -> None:
    rank = len(s.dims(0))
    axis = attr(s.node, "axis", 0) % rank
    s.veto(0, axis)
    left = [a for a in range(rank) if a != axis]
    s.emit(s.carry(0, {a: a if attr(s.node, "keepdims", 1) else k for k, a in enumerate(left)}, zero=False))


@rule("AveragePool", "MaxPool", "LpPool", "GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool")
def _pool(s: Step) -> None:
    """Batch and channels pass; a window of zeros is zero (padding of a MaxPool is less than any number)."""
    for k in range(len(s.node.outputs)):
        if s.node.outputs[k].name:
            s.emit(s.carry(0, {0: 0, 1: 1}, zero=None if k == 0 else False), k)


@rule("CumSum")
def _cumsum(s: Step) -> None:
    axis = ints(s.value(1)) if s.value(1) is not None else None
    s.const(1)
    if axis is None:
        return
    rank = len(s.dims(0))
    s.veto(0, axis[0] % rank)
    s.emit(s.keep(but=[axis[0]]))
