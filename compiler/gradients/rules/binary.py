"""Element-wise operators of several inputs, with broadcasting."""

from __future__ import annotations

from functools import reduce

from ... import graph as g
from ..step import Grads, Refused, Rule, Step
from ..terms import Term


def _add(s: Step) -> Grads:
    return [s.from_output(i, lambda: s.dy) for i in range(len(s.node.inputs))]


def _sub(s: Step) -> Grads:
    return [s.from_output(0, lambda: s.dy), s.from_output(1, lambda: -s.dy)]


def _mul(s: Step) -> Grads:
    return [s.from_output(i, lambda i=i: s.dy * s.input(1 - i)) for i in (0, 1)]  # type: ignore[misc]


def _div(s: Step) -> Grads:
    b = s.input(1)
    return [s.from_output(0, lambda: s.dy / b), s.from_output(1, lambda: -(s.dy * s.y / b))]


def _pow(s: Step) -> Grads:
    """y a^(y-1), and a^y log a, which is 0 where a is."""
    a, b, power = s.x, s.input(1), g.scalar(s.node.inputs[1])

    def by_base() -> Term:
        if power == 2:
            return s.dy * (2 * a)
        if power == 1:
            return s.dy
        if power == 0.5:
            return s.dy * (0.5 / s.y)
        e = b.like(a)
        return s.dy * (e * a ** (e - 1))

    def by_exponent() -> Term:
        safe = (a > 0).where(a, 1.0)
        return s.dy * s.y * safe.op("Log")

    return [s.from_output(0, by_base), s.from_output(1, by_exponent)]


def _mean(s: Step) -> Grads:
    dy = s.dy * (1 / len(s.node.inputs))
    return [s.from_output(i, lambda: dy) for i in range(len(s.node.inputs))]


def _extreme(s: Step) -> Grads:
    """To the inputs that are the largest (smallest), in equal shares."""
    count = len(s.node.inputs)
    if count == 1:
        return [s.dy]
    hits = [s.input(i).equals(s.y).op("Cast", to=int(s.y.dtype)) for i in range(count)]
    share = s.dy / reduce(Term.__add__, hits)
    return [s.from_output(i, lambda i=i: share * hits[i]) for i in range(count)]  # type: ignore[misc]


def _prelu(s: Step) -> Grads:
    x, below = s.x, s.x < 0
    return [
        s.dy * below.where(s.input(1), 1.0) if s.wants(0) else None,
        s.from_output(1, lambda: s.dy * below.where(x, 0.0)),
    ]


def _where(s: Step) -> Grads:
    zero = s.tape.const(0.0, s.y)
    return [
        None,
        s.from_output(1, lambda: s.x.where(s.dy, zero)),
        s.from_output(2, lambda: s.x.where(zero, s.dy)),
    ]


def _mod(s: Step) -> Grads:
    """x - n y with a whole n: only the first input is covered."""
    if s.wants(1):
        raise Refused("its divisor depends on what is differentiated by")
    return [s.to_input(0, s.dy)]


RULES: dict[str, Rule] = {
    "Add": _add,
    "Div": _div,
    "Max": _extreme,
    "Mean": _mean,
    "Min": _extreme,
    "Mod": _mod,
    "Mul": _mul,
    "PRelu": _prelu,
    "Pow": _pow,
    "Sub": _sub,
    "Sum": _add,
    "Where": _where,
}
