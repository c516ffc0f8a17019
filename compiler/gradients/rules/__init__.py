"""A rule for each operator, by what it does. An operator that is in none of the tables can't be differentiated."""

from __future__ import annotations

import onnx_ir as ir

from ...ops import RANDOM
from ..step import Rule
from . import activation, binary, convolution, indexing, normalise, pooling, product, reduce, resizing, views

RULES: dict[str, Rule] = {
    **activation.RULES,
    **binary.RULES,
    **convolution.RULES,
    **indexing.RULES,
    **normalise.RULES,
    **pooling.RULES,
    **product.RULES,
    **reduce.RULES,
    **resizing.RULES,
    **views.RULES,
}

STOPS = frozenset({
    "And", "ArgMax", "ArgMin", "BitShift", "BitwiseAnd", "BitwiseNot", "BitwiseOr", "BitwiseXor", "Ceil",
    "ConstantOfShape", "Equal", "EyeLike", "Floor", "Greater", "GreaterOrEqual", "Hardmax", "IsInf", "IsNaN", "Less",
    "LessOrEqual", "NonZero", "Not", "Or", "Range", "Round", "Shape", "Sign", "Size", "Xor",
}) | (RANDOM - {"Bernoulli", "Multinomial"})  # fmt: skip
"""Operators whose derivative is zero wherever it exists, or whose floats say nothing but a shape.

QuantizeLinear isn't one of them: what is read behind it depends on what is before it, however coarsely.
"""


def stops(node: ir.Node) -> bool:
    """Whether nothing goes back through the node: its derivative is zero wherever it exists."""
    if node.domain:
        return False
    if node.op_type == "Cast":
        kind = node.outputs[0].dtype
        return kind is not None and not kind.is_floating_point()
    return node.op_type in STOPS
