"""Reductions, softmax and running sums."""

from __future__ import annotations

import math
from collections.abc import Callable

from ..step import Grads, Rule, Step
from ..terms import Term


def axes(s: Step) -> list[int]:
    """The axes that a reduction goes over, from 0."""
    given, rank = s.ints(1), s.rank()
    if not given:
        return [] if s.attr("noop_with_empty_axes", 0) else list(range(rank))
    return sorted(a % rank for a in given)


def _kept(s: Step, found: Term) -> Term:
    """What has the output's shape, with the reduced axes as 1."""
    if s.attr("keepdims", 1) or not axes(s):
        return found
    return found.ints("Unsqueeze", axes(s))


def count(s: Step, over: list[int]) -> Term | float:
    """How many elements of the first input a reduction over these axes makes one of."""
    dims = [s.x.dim(a) for a in over]
    if all(isinstance(d, int) for d in dims):
        return float(math.prod(d for d in dims if isinstance(d, int)))
    product = s.tape.vector(dims).op("ReduceProd", keepdims=0)
    return product.op("Cast", to=int(s.x.dtype))


def _reduction(derivative: Callable[[Step, Term, Term], Term]) -> Rule:
    """By dy · dy/dx, given x and y with its reduced axes kept; dy is repeated where that isn't a whole tensor."""

    def rule(s: Step) -> Grads:
        factor = derivative(s, s.x, _kept(s, s.y))
        return [_kept(s, s.dy) * factor]

    return rule


def _sum(s: Step) -> Grads:
    return [_kept(s, s.dy).expand(s.x)]


def _mean(s: Step) -> Grads:
    return [(_kept(s, s.dy) / count(s, axes(s))).expand(s.x)]


def _extreme(s: Step) -> Grads:
    """To the elements that are the largest (smallest), in equal shares."""
    hits = s.x.equals(_kept(s, s.y)).op("Cast", to=int(s.x.dtype))
    return [_kept(s, s.dy) / hits.sum(axes(s)) * hits]


def _norm(s: Step, x: Term, y: Term) -> Term:
    return x / (y > 0).where(y, 1.0)


def _softmax(s: Step) -> Grads:
    axis = [s.attr("axis", -1)]
    product = s.dy * s.y
    return [product - s.y * product.sum(axis)]


def _log_softmax(s: Step) -> Grads:
    return [s.dy - s.y.op("Exp") * s.dy.sum([s.attr("axis", -1)])]


def _cumsum(s: Step) -> Grads:
    back = {"exclusive": s.attr("exclusive", 0), "reverse": 1 - s.attr("reverse", 0)}
    return [s.dy.op("CumSum", s.input(1), **back)]


RULES: dict[str, Rule] = {
    "CumSum": _cumsum,
    "LogSoftmax": _log_softmax,
    "ReduceL1": _reduction(lambda s, x, y: x.op("Sign")),
    "ReduceL2": _reduction(_norm),
    "ReduceLogSum": _reduction(lambda s, x, y: (1 / y.op("Exp")).expand(x)),
    "ReduceLogSumExp": _reduction(lambda s, x, y: (x - y).op("Exp")),
    "ReduceMax": _extreme,
    "ReduceMean": _mean,
    "ReduceMin": _extreme,
    "ReduceSum": _sum,
    "ReduceSumSquare": _reduction(lambda s, x, y: 2 * x),
    "Softmax": _softmax,
}
