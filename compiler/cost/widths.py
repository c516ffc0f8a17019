"""How many bits an element of a value takes, and which nodes only name the same bytes otherwise.

Half precision and integer activations are rounding pairs in a float32 graph (see rounding.py): the value between and
behind them is kept in the narrow type, and the pair itself is neither an operator nor a copy.
"""

from __future__ import annotations

import onnx_ir as ir

from ..ops import RESHAPE
from ..rounding import is_pair

VIEWS = RESHAPE | {"Identity"}
"""Operators whose result is their first input's bytes."""


def is_view(node: ir.Node) -> bool:
    """Whether the first output of `node` is the bytes of its first input: it is neither read nor written."""
    if node.domain:
        return False
    return node.op_type in VIEWS or is_rounding(node) or (node.op_type == "Dropout" and len(node.inputs) < 3)


def is_rounding(node: ir.Node) -> bool:
    """Whether `node` is one of the two of a rounding pair."""
    if node.domain or node.op_type not in ("Cast", "DequantizeLinear", "QuantizeLinear"):
        return False
    if node.op_type != "QuantizeLinear" and is_pair(node):
        return True
    out = node.outputs[0]
    return bool(out.uses()) and not out.is_graph_output() and all(_ends(user, out) for user, _ in out.uses())


def _ends(user: ir.Node, value: ir.Value) -> bool:
    return user.inputs[0] is value and user.op_type in ("Cast", "DequantizeLinear") and is_pair(user)


def bits(value: ir.Value | None) -> int | None:
    """Bits of one element of `value` as it is kept between two operators; None for strings and unknown types."""
    kind = None if value is None else value.dtype
    if value is None or kind is None or kind == ir.DataType.STRING:
        return None
    narrow = _rounded_to(value)
    return min(kind.bitwidth, narrow) if narrow else kind.bitwidth


def _rounded_to(value: ir.Value) -> int | None:
    """The bits that a rounding pair leaves of `value`: one that makes it, or one that is all that reads it."""
    node = value.producer()
    if node is not None and node.op_type in ("Cast", "DequantizeLinear") and not node.domain and is_pair(node):
        kind = node.inputs[0].dtype  # type: ignore[union-attr]
        return None if kind is None else kind.bitwidth
    uses = value.uses()
    if not uses or value.is_graph_output():
        return None
    widths = []
    for user, _ in uses:
        if user.op_type not in ("Cast", "QuantizeLinear") or user.inputs[0] is not value or not is_rounding(user):
            return None
        kind = user.outputs[0].dtype
        widths.append(value.dtype.bitwidth if kind is None else kind.bitwidth)  # type: ignore[union-attr]
    return max(widths)
