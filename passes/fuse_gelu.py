"""GELU, written out in any of its algebraic forms, becomes one Gelu node."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from ..compiler.passbase import Context, Pass
from ..compiler.patterns import Match, OneOf, Op, Pattern, Product, Sum, Var
from ..compiler.rewriting import Made, Rule, rewrite

X = Var("x")
SCALE = math.sqrt(2 / math.pi)
CUBE = 0.044715


def _polynomial(scale: float) -> Pattern:
    """`scale · (x + 0.044715 x³)`, factored one way or another."""
    return OneOf(
        Product(scale, Sum(0.0, X, Product(CUBE, X, X, X))),
        Product(scale, X, Sum(1.0, Product(CUBE, X, X))),
        Product(scale * CUBE, X, Sum(1 / CUBE, Product(1.0, X, X))),
        Sum(0.0, Product(scale, X), Product(scale * CUBE, X, X, X)),
    )


def _of_cdf(inner: Pattern) -> Pattern:
    """`x · ½ (1 + inner)`."""
    return OneOf(Product(0.5, X, Sum(1.0, inner)), Product(1.0, X, Sum(0.5, Product(0.5, inner))))


def _tanh_gelu(m: Match) -> Made:
    return "Gelu", [m["x"]], {"approximate": "tanh"}


RULES = (
    Rule("GELU", _of_cdf(Op("Erf", Product(math.sqrt(0.5), X))), lambda m: ("Gelu", [m["x"]], {})),
    Rule("GELU (tanh)", _of_cdf(Op("Tanh", _polynomial(SCALE))), _tanh_gelu),
    # ½ (1 + tanh z) = sigmoid(2 z)
    Rule("GELU (tanh)", Product(1.0, X, Op("Sigmoid", _polynomial(2 * SCALE))), _tanh_gelu),
)


@dataclass(frozen=True)
class FuseGelu(Pass):
    """Replace GELU by its operator.

    Before: `x · 0.5 · (1 + Erf(x / √2))`, or `x · 0.5 · (1 + Tanh(√(2/π) (x + 0.044715 x³)))`, in any order and
    nesting, with Div or Mul, Pow or Mul, or a Sigmoid of the doubled argument.
    After: `Gelu(x)`, or `Gelu<approximate = "tanh">(x)`.
    The constants must agree to float32's precision: `x · Sigmoid(1.702 x)` is a Swish, not a GELU.
    """

    name: ClassVar[str] = "fuse-gelu"

    def run(self, model: ir.Model, ctx: Context) -> int:
        return rewrite(model, RULES, ctx)
