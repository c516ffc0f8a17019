"""Normalisations: by fixed statistics, or by those of the input itself."""

from __future__ import annotations

from ..step import Grads, Refused, Rule, Step
from ..terms import Term, sum_to


def _column(value: Term, rank: int) -> Term:
    """[C] as [C, 1, …], to lie over axis 1 of `rank`."""
    return value.reshape(-1, *[1] * (rank - 2))


def _batch(s: Step) -> Grads:
    """y = (x - mean) / sqrt(var + eps) · scale + bias, with statistics from outside."""
    if s.attr("training_mode", 0):
        raise Refused("it is in training mode")
    dy, rank = s.dy, s.rank()
    scale, mean, var = s.input(1), s.input(3), s.input(4)
    inverse = 1 / (var + s.attr("epsilon", 1e-5)).op("Sqrt")
    factor = scale * inverse
    others = [0, *range(2, rank)]
    total = dy.sum(others, keep=False) if s.wants(2) or s.wants(3) else None
    along = None
    if s.wants(1) or s.wants(4):
        along = (dy * (s.x - _column(mean, rank))).sum(others, keep=False) * inverse
    return [
        dy * _column(factor, rank) if s.wants(0) else None,
        along if s.wants(1) else None,
        total,
        -(total * factor) if s.wants(3) and total is not None else None,
        along * factor * inverse * -0.5 if s.wants(4) and along is not None else None,
    ]


def _standard(x: Term, axes: list[int], epsilon: float, centred: bool = True) -> tuple[Term, Term]:
    """x with mean 0 (if centred) and mean square 1 over the axes, and what it was multiplied by."""
    deviation = x - x.mean(axes) if centred else x
    inverse = 1 / ((deviation * deviation).mean(axes) + epsilon).op("Sqrt")
    return deviation * inverse, inverse


def _back(d: Term, normal: Term, inverse: Term, axes: list[int], centred: bool = True) -> Term:
    """The gradient of `_standard`: without the parts of d that the mean and the scale of x take out."""
    left = d - d.mean(axes) if centred else d
    return inverse * (left - normal * (d * normal).mean(axes))


def _layer(s: Step) -> Grads:
    return _over_last(s, True)


def _rms(s: Step) -> Grads:
    return _over_last(s, False)


def _over_last(s: Step, centred: bool) -> Grads:
    dy, rank = s.dy, s.rank()
    axes = list(range(s.attr("axis", -1) % rank, rank))
    normal, inverse = _standard(s.x, axes, s.attr("epsilon", 1e-5), centred)
    return [
        _back(dy * s.input(1), normal, inverse, axes, centred) if s.wants(0) else None,
        sum_to(dy * normal, s.x, s.input(1)) if s.wants(1) else None,
        sum_to(dy, s.x, s.input(2)) if s.wants(2) else None,
    ]


def _instance(s: Step) -> Grads:
    dy, rank = s.dy, s.rank()
    axes, others = list(range(2, rank)), [0, *range(2, rank)]
    normal, inverse = _standard(s.x, axes, s.attr("epsilon", 1e-5))
    return [
        _back(dy * _column(s.input(1), rank), normal, inverse, axes) if s.wants(0) else None,
        (dy * normal).sum(others, keep=False) if s.wants(1) else None,
        dy.sum(others, keep=False) if s.wants(2) else None,
    ]


def _group(s: Step) -> Grads:
    """Over the channels of a group and all places; scale and bias are the channels'."""
    dy, rank = s.dy, s.rank()
    groups, others = s.attr("num_groups"), [0, *range(2, rank)]

    def grouped(value: Term) -> Term:
        return value.reshape(0, groups, -1)

    normal, inverse = _standard(grouped(s.x), [2], s.attr("epsilon", 1e-5))
    back = _back(grouped(dy * _column(s.input(1), rank)), normal, inverse, [2]) if s.wants(0) else None
    return [
        s.as_input(back) if back is not None else None,
        (dy * s.as_input(normal)).sum(others, keep=False) if s.wants(1) else None,
        dy.sum(others, keep=False) if s.wants(2) else None,
    ]


def _lp(s: Step) -> Grads:
    """y = x / n, n the sum of absolute values, or the root of that of squares; 0 where it is 0."""
    axis = [s.attr("axis", -1)]
    power = "ReduceL1" if s.attr("p", 2) == 1 else "ReduceL2"
    norm = s.x.ints(power, axis, keepdims=1)
    norm = (norm > 0).where(norm, 1.0)
    slope = s.x.op("Sign") if power == "ReduceL1" else s.y
    return [(s.dy - slope * (s.dy * s.y).sum(axis)) / norm]


RULES: dict[str, Rule] = {
    "BatchNormalization": _batch,
    "GroupNormalization": _group,
    "InstanceNormalization": _instance,
    "LayerNormalization": _layer,
    "LpNormalization": _lp,
    "RMSNormalization": _rms,
}
