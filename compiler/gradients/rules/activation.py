"""Functions of one element each: their derivatives, a row each."""

from __future__ import annotations

import math
from collections.abc import Callable

from ..step import Grads, Refused, Rule, Step
from ..terms import Term

Derivative = Callable[[Step, Term, Term], Term]
"""Of x and y = f(x), f'(x)."""


def _mask(condition: Term, like: Term) -> Term:
    return condition.op("Cast", to=int(like.dtype))


def _erf(s: Step, x: Term, y: Term) -> Term:
    return 2 / math.sqrt(math.pi) * (-(x * x)).op("Exp")


def _gelu(s: Step, x: Term, y: Term) -> Term:
    """Hendrycks & Gimpel 2016: x Phi(x), exactly or with tanh."""
    if s.attr("approximate", "none") == "tanh":
        root = math.sqrt(2 / math.pi)
        t = (root * (x + 0.044715 * (x * x * x))).op("Tanh")
        return 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * (root + 3 * 0.044715 * root * (x * x))
    phi = (-0.5 * (x * x)).op("Exp") * (1 / math.sqrt(2 * math.pi))
    return 0.5 * ((x * math.sqrt(0.5)).op("Erf") + 1) + x * phi


def _hard_swish(s: Step, x: Term, y: Term) -> Term:
    return (x >= 3).where(x.tape.const(1.0, x), _mask(x > -3, x) * (x * (1 / 3) + 0.5))


def _mish(s: Step, x: Term, y: Term) -> Term:
    t = x.op("Softplus").op("Tanh")
    return t + x * x.op("Sigmoid") * (1 - t * t)


def _swish(s: Step, x: Term, y: Term) -> Term:
    alpha: float = s.attr("alpha", 1.0)
    gate = (x if alpha == 1 else x * alpha).op("Sigmoid")
    return gate + (y * (1 - gate)) * alpha


def _selu(s: Step, x: Term, y: Term) -> Term:
    gamma: float = s.attr("gamma", 1.0507009873554805)
    alpha: float = s.attr("alpha", 1.6732632423543772)
    return (x > 0).where(x.tape.const(gamma, x), y + gamma * alpha)


def _hard_sigmoid(s: Step, x: Term, y: Term) -> Term:
    alpha: float = s.attr("alpha", 0.2)
    return _mask((y > 0) & (y < 1), x) * alpha


def _softsign(s: Step, x: Term, y: Term) -> Term:
    far = 1 + x.op("Abs")
    return 1 / (far * far)


def _celu(s: Step, x: Term, y: Term) -> Term:
    alpha: float = s.attr("alpha", 1.0)
    return (x > 0).where(x.tape.const(1.0, x), (x * (1 / alpha)).op("Exp"))


DERIVATIVES: dict[str, Derivative] = {
    "Abs": lambda s, x, y: x.op("Sign"),
    "Acos": lambda s, x, y: -1 / (1 - x * x).op("Sqrt"),
    "Acosh": lambda s, x, y: 1 / (x * x - 1).op("Sqrt"),
    "Asin": lambda s, x, y: 1 / (1 - x * x).op("Sqrt"),
    "Asinh": lambda s, x, y: 1 / (x * x + 1).op("Sqrt"),
    "Atan": lambda s, x, y: 1 / (x * x + 1),
    "Atanh": lambda s, x, y: 1 / (1 - x * x),
    "Celu": _celu,
    "Cos": lambda s, x, y: -x.op("Sin"),
    "Cosh": lambda s, x, y: x.op("Sinh"),
    "Elu": lambda s, x, y: (x > 0).where(x.tape.const(1.0, x), y + s.attr("alpha", 1.0)),
    "Erf": _erf,
    "Exp": lambda s, x, y: y,
    "Gelu": _gelu,
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _hard_swish,
    "LeakyRelu": lambda s, x, y: (x >= 0).where(x.tape.const(1.0, x), s.attr("alpha", 0.01)),
    "Log": lambda s, x, y: 1 / x,
    "Mish": _mish,
    "Reciprocal": lambda s, x, y: -(y * y),
    "Relu": lambda s, x, y: _mask(x > 0, x),
    "Selu": _selu,
    "Shrink": lambda s, x, y: _mask(x.op("Abs") > s.attr("lambd", 0.5), x),
    "Sigmoid": lambda s, x, y: y * (1 - y),
    "Sin": lambda s, x, y: x.op("Cos"),
    "Sinh": lambda s, x, y: x.op("Cosh"),
    "Softplus": lambda s, x, y: x.op("Sigmoid"),
    "Softsign": _softsign,
    "Sqrt": lambda s, x, y: 0.5 / y,
    "Swish": _swish,
    "Tan": lambda s, x, y: 1 + y * y,
    "Tanh": lambda s, x, y: 1 - y * y,
    "ThresholdedRelu": lambda s, x, y: _mask(x > s.attr("alpha", 1.0), x),
}


def _by(derivative: Derivative) -> Rule:
    return lambda s: [s.dy * derivative(s, s.x, s.y)]


def _clip(s: Step) -> Grads:
    """1 between the bounds and on them; a bound gets what lies beyond it."""
    dy = s.dy
    grads: list[Term | None] = [dy, None, None]
    for i, outside in ((1, "Less"), (2, "Greater")):
        if s.has(i):
            beyond = s.x.op(outside, s.input(i))
            grads[0] = beyond.where(dy.tape.const(0.0, dy), grads[0])  # type: ignore[arg-type]
            grads[i] = s.from_output(i, lambda b=beyond: dy * _mask(b, dy))  # type: ignore[misc]
    return grads


def _dropout(s: Step) -> Grads:
    if s.has(2) and s.node.inputs[2].const_value is None:  # type: ignore[union-attr]
        raise Refused("it may be in training mode")
    if s.has(2) and bool(s.node.inputs[2].const_value.numpy()):  # type: ignore[union-attr]
        raise Refused("it is in training mode")
    return [s.dy]


RULES: dict[str, Rule] = {
    **{op: _by(d) for op, d in DERIVATIVES.items()},
    "Cast": lambda s: [s.dy.like(s.x)],
    "CastLike": lambda s: [s.dy.like(s.x)],
    "Clip": _clip,
    "Dropout": _dropout,
    "Identity": lambda s: [s.dy],
    "Neg": lambda s: [-s.dy],
}
