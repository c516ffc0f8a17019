"""Normalisations as exporters write them out, as patterns: x, axes, eps, and the nodes that take the means."""

from __future__ import annotations

from .patterns import Const, OneOf, Op, Pattern, Product, Sum, Var

X = Var("x")


def deviation(variance: Pattern) -> Pattern:
    """√(variance + eps)."""
    shifted = Sum("eps", variance)
    return OneOf(Op("Sqrt", shifted), Op("Pow", shifted, Const(0.5)))


def inverse(variance: Pattern) -> Pattern:
    """1 / √(variance + eps)."""
    root = deviation(variance)
    return OneOf(Op("Reciprocal", root), Op("Div", Const(1.0), root), Op("Pow", Sum("eps", variance), Const(-0.5)))


MEAN = Op("ReduceMean", X, Var("axes"), name="mean", keepdims=1)
CENTRED = Op("Sub", X, MEAN)
VARIANCE = Op("ReduceMean", Product(1.0, CENTRED, CENTRED), Var("axes2"), name="variance", keepdims=1)
NORMALISED = OneOf(Op("Div", CENTRED, deviation(VARIANCE)), Op("Mul", CENTRED, inverse(VARIANCE)))

SQUARES = Op("ReduceMean", Product(1.0, X, X), Var("axes"), name="mean", keepdims=1)
ROOT_MEAN_SQUARE = OneOf(Op("Div", X, deviation(SQUARES)), Op("Mul", X, inverse(SQUARES)))
