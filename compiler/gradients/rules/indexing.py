"""Operators that take elements by index: what they took is given back, added where it was taken twice."""

from __future__ import annotations

from ..step import Grads, Refused, Rule, Step
from .views import gathered


def _gather(s: Step) -> Grads:
    rank = s.rank()
    places = s.input(1)
    return [gathered(s.dy, places, s.attr("axis", 0) % rank, rank, s.x.shape, s.rank(1)), None]


def _gather_elements(s: Step) -> Grads:
    axis = s.attr("axis", 0)
    return [s.x.zeros().op("ScatterElements", s.input(1), s.dy, axis=axis, reduction="add"), None]


def _gather_nd(s: Step) -> Grads:
    if s.attr("batch_dims", 0):
        raise Refused("it has batch dimensions")
    return [s.x.zeros().op("ScatterND", s.input(1), s.dy, reduction="add"), None]


def _top_k(s: Step) -> Grads:
    axis = s.attr("axis", -1)
    return [s.x.zeros().op("ScatterElements", s.tape.term(s.node.outputs[1]), s.dy, axis=axis, reduction="add"), None]


def _scatter_elements(s: Step) -> Grads:
    return _scattered(s, "ScatterElements", "GatherElements", {"axis": s.attr("axis", 0)})


def _scatter_nd(s: Step) -> Grads:
    return _scattered(s, "ScatterND", "GatherND", {})


def _scattered(s: Step, write: str, read: str, axis: dict[str, int]) -> Grads:
    """What was overwritten gets nothing; what was written, or added, gets what is there."""
    how, places = s.attr("reduction", "none"), s.input(1)
    if how not in ("none", "add"):
        raise Refused(f"reduction '{how}' is not covered")
    dx = s.dy
    if how == "none":
        dx = dx.op(write, places, s.input(2).zeros(), **axis)
    return [dx, None, s.dy.op(read, places, **axis)]


def _where_rows(s: Step) -> Grads:
    """Compress: as if gathered by the positions where the condition holds."""
    axis = s.attr("axis")
    if axis is None:
        raise Refused("it flattens its input")
    rank = s.rank()
    places = s.input(1).op("NonZero").reshape(-1)
    return [gathered(s.dy, places, axis % rank, rank, s.x.shape), None]


RULES: dict[str, Rule] = {
    "Compress": _where_rows,
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "GatherND": _gather_nd,
    "ScatterElements": _scatter_elements,
    "ScatterND": _scatter_nd,
    "TopK": _top_k,
}
