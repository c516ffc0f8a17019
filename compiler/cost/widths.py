"""How many bits an element of a value takes, and which nodes only name the same bytes otherwise.

Half precision and integer activations are rounding pairs in a float32 graph (see rounding.py): the value between and
behind them is kept in the narrow type, and the pair itself is neither an operator nor a copy. What only hands such
numbers on (Relu, MaxPool, Concat, Transpose) has no pair of its own, and its result is narrow all the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx_ir as ir

from ..graph import is_const
from ..ops import EXACT, PICKS, RESHAPE
from ..rounding import is_pair

HALF_BITS = 16
"""From here on, types are floating-point: what Max, Neg or Clip make of such numbers has the same type."""

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


def bits(value: ir.Value | None, known: dict[ir.Value, int | None] | None = None) -> int | None:
    """Bits of one element of `value` as it is kept between two operators; None for strings and unknown types.

    Who asks for many values gives one `known` to all calls: each value is then looked at once.
    """
    if value is None:
        return None
    known = {} if known is None else known
    if value in known:
        return known[value]
    waiting = [value]
    while waiting:  # a chain of operators that hand numbers on may be long: no recursion
        current = waiting[-1]
        missing = [v for v in _carriers(current) if v not in known] if current not in known else []
        if missing:
            waiting += missing
            continue
        waiting.pop()
        if current not in known:
            known[current] = _bits(current, known)
    return known[value]


def declared_bits(value: ir.Value) -> int | None:
    """Bits of one element in the type that `value` is declared with; None for strings and unknown types."""
    kind = value.dtype
    return None if kind is None or kind == ir.DataType.STRING else kind.bitwidth


def _bits(value: ir.Value, known: Mapping[ir.Value, int | None]) -> int | None:
    """The same, where the values that `value` is carried over from are known."""
    width, node = declared_bits(value), value.producer()
    if width is None:
        return None
    narrow = _rounded_to(value)
    carriers = _carriers(value) if narrow is None else []
    if narrow is None and carriers and node is not None:
        narrow = carried_bits(node, [known[v] for v in carriers])
    return min(width, narrow) if narrow else width


def _carriers(value: ir.Value) -> list[ir.Value]:
    """The values whose numbers `value` holds, where its maker only hands them on: a Relu of halves is half."""
    node = value.producer()
    return [] if node is None or value.is_graph_output() or not hands_on(node) else data(node)


def hands_on(node: ir.Node) -> bool:
    """Whether the first output of `node` holds numbers that its inputs' type can hold."""
    return not node.domain and node.op_type in EXACT and node.outputs[0].dtype == ir.DataType.FLOAT


def data(node: ir.Node) -> list[ir.Value]:
    """The inputs of an operator that hands numbers on from which they can come; constants aside."""
    read = node.inputs[:1] if node.op_type in PICKS else node.inputs
    return [v for v in read if v is not None and v.dtype == ir.DataType.FLOAT and not is_const(v)]


def carried_bits(node: ir.Node, inputs: Sequence[int | None]) -> int | None:
    """The bits of what `node` hands on of inputs that have so many: of integers, only what it picks from one input."""
    if not inputs or None in inputs:
        return None
    widest = max(b for b in inputs if b is not None)
    return widest if node.op_type in PICKS or widest >= HALF_BITS else None


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
