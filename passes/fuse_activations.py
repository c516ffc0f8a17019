"""Activations that were exported written out become one node each."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from ..compiler import graph as g
from ..compiler.passbase import Context, Pass
from ..compiler.patterns import Const, Match, OneOf, Op, Product, Sum, Var
from ..compiler.rewriting import Made, Rule, rewrite

X = Var("x")
ZERO, ONE, LOW, HIGH = Const(0.0), Const(1.0), Const(name="low"), Const(name="high")
TOLERANCE = 1e-6


def _unary(op_type: str) -> Any:
    return lambda m: (op_type, [m["x"]], {})


def _clip(m: Match) -> Made | str:
    low, high = m.numbers.get("low", 0.0), m.numbers["high"]
    if low > high:
        return f"its lower bound {low:.6g} is above the upper one"
    graph, dtype = m.root.graph, m["x"].dtype
    assert isinstance(graph, ir.Graph) and dtype is not None
    name, kind = m.output.name, dtype.numpy()
    bounds = [g.initializer(graph, np.array(v, kind), f"{name}_{end}") for end, v in (("low", low), ("high", high))]
    return "Clip", [m["x"], *bounds], {}


def _hard_sigmoid(m: Match) -> Made | str:
    scale, slope, shift, high = (m.numbers.get(k, 1.0) for k in ("scale", "slope", "shift", "high"))
    if slope == 1 and shift == 0:
        return ""
    if not math.isclose(scale * high, 1.0, rel_tol=TOLERANCE):
        return f"its greatest value is {scale * high:.6g}, not 1"
    return "HardSigmoid", [m["x"]], {"alpha": slope * scale, "beta": shift * scale}


def _hard_swish(m: Match) -> Made | str:
    alpha, beta = g.attr(m.named["sigmoid"], "alpha", 0.2), g.attr(m.named["sigmoid"], "beta", 0.5)
    if not (math.isclose(alpha, 1 / 6, rel_tol=TOLERANCE) and math.isclose(beta, 0.5, rel_tol=TOLERANCE)):
        return f"its HardSigmoid has alpha {alpha:.6g} and beta {beta:.6g}, not 1/6 and 1/2"
    return "HardSwish", [m["x"]], {}


def _leaky(m: Match) -> Made | str:
    slope = m.numbers["slope"]
    if m.root.op_type == "Max" and not 0 <= slope <= 1:
        return f"the slope {slope:.6g} is not between 0 and 1"
    return "LeakyRelu", [m["x"]], {"alpha": slope}


def _negative_leaky(m: Match) -> Made | str:
    """relu(x) + slope · relu(-x): the slope on the negative side is the factor's opposite."""
    return "LeakyRelu", [m["x"]], {"alpha": -m.numbers["slope"]}


def _prelu(m: Match, sign: float) -> Made | str:
    slope, x = g.const(m["slope"]), g.shape(m["x"])
    if slope is None or x is None:
        return "the slope is not a constant"
    dims = slope.shape
    if len(dims) > len(x) or any(d not in (1, n) for d, n in zip(reversed(dims), reversed(x), strict=False)):
        return f"the slope of shape {list(dims)} does not broadcast to its input"
    graph = m.root.graph
    assert isinstance(graph, ir.Graph)
    return "PRelu", [m["x"], g.initializer(graph, (sign * slope).astype(slope.dtype), f"{m.output.name}_slope")], {}


_DENOMINATOR = Sum(1.0, Op("Exp", Product(-1.0, X)))
_POSITIVE = OneOf(Op("Greater", X, ZERO), Op("GreaterOrEqual", X, ZERO), Op("Less|LessOrEqual", ZERO, X))
_SLOPED = Product("slope", X)
_OPPOSITE = Op("Relu", Product(-1.0, X))
_DOUBLED = Op("Sub", X, Op("Abs", X))

RULES = (
    Rule("Relu", OneOf(Op("Max", X, ZERO), Op("Clip", X, ZERO), Op("Where", _POSITIVE, X, ZERO)), _unary("Relu")),
    Rule("Clip", OneOf(Op("Min", Op("Max", X, LOW), HIGH), Op("Max", Op("Min", X, HIGH), LOW)), _clip),
    Rule("Clip", OneOf(Op("Min", Op("Relu", X), HIGH), Op("Relu", Op("Min", X, HIGH))), _clip),
    Rule(
        "HardSigmoid",
        OneOf(
            Product("scale", Op("Clip", Sum("shift", Product("slope", X)), ZERO, HIGH)),
            Op("Clip", Sum("shift", Product("slope", X)), ZERO, ONE),
        ),
        _hard_sigmoid,
    ),
    Rule("HardSwish", Product(1.0, X, Op("HardSigmoid", X, name="sigmoid")), _hard_swish),
    Rule("HardSwish", Product(1 / 6, X, Op("Clip", Sum(3.0, X), ZERO, Const(6.0))), _unary("HardSwish")),
    Rule("Sigmoid", OneOf(Op("Div", ONE, _DENOMINATOR), Op("Reciprocal", _DENOMINATOR)), _unary("Sigmoid")),
    Rule("Swish", Op("Div", X, _DENOMINATOR), _unary("edgec::Swish")),
    Rule("Swish", Product(1.0, X, Op("Sigmoid", X)), _unary("edgec::Swish")),
    Rule("Softplus", Op("Log", Sum(1.0, Op("Exp", X))), _unary("Softplus")),
    Rule("Mish", Product(1.0, X, Op("Tanh", Op("Softplus", X))), _unary("Mish")),
    Rule("Softsign", Op("Div", X, Sum(1.0, Op("Abs", X))), _unary("Softsign")),
    Rule("LeakyRelu", OneOf(Op("Max", X, _SLOPED), Op("Where", _POSITIVE, X, _SLOPED)), _leaky),
    Rule("LeakyRelu", Sum(0.0, Op("Relu", X), Product("slope", _OPPOSITE)), _negative_leaky),
    Rule("PRelu", Op("Add", Op("Relu", X), Op("Mul", Var("slope"), _OPPOSITE)), lambda m: _prelu(m, -1)),
    Rule("PRelu", Op("Add", Op("Relu", X), Product(0.5, Var("slope"), _DOUBLED)), lambda m: _prelu(m, 1)),
    Rule(
        "Elu",
        Op("Where", _POSITIVE, X, Product("alpha", Sum(-1.0, Op("Exp", X)))),
        lambda m: ("Elu", [m["x"]], {"alpha": m.numbers["alpha"]}),
    ),
)


@dataclass(frozen=True)
class FuseActivations(Pass):
    """Replace written-out activations by their operators.

    | before | after |
    |---|---|
    | `Max(x, 0)`, `Clip(x, 0)` | `Relu` |
    | `Min(Max(x, low), high)`, `Min(Relu(x), high)` | `Clip` |
    | `Clip(x + 3, 0, 6) / 6` and other slopes | `HardSigmoid` |
    | `x · HardSigmoid(x)`, `x · Clip(x + 3, 0, 6) / 6` | `HardSwish` |
    | `1 / (1 + Exp(-x))` | `Sigmoid` |
    | `x · Sigmoid(x)`, `x / (1 + Exp(-x))` | `Swish` |
    | `Log(1 + Exp(x))` | `Softplus` |
    | `x · Tanh(Softplus(x))` | `Mish` |
    | `x / (1 + Abs(x))` | `Softsign` |
    | `Max(x, slope · x)`, `Where(x > 0, x, slope · x)` | `LeakyRelu` |
    | `Relu(x) - slope · Relu(-x)`, `Relu(x) + slope · (x - Abs(x)) / 2` | `LeakyRelu`, `PRelu` |
    | `Where(x > 0, x, alpha · (Exp(x) - 1))` | `Elu` |

    Where the written-out form overflows (`Log(1 + Exp(100))` is infinite in float32), the operator is right.
    """

    name: ClassVar[str] = "fuse-activations"

    def run(self, model: ir.Model, ctx: Context) -> int:
        return rewrite(model, RULES, ctx)
