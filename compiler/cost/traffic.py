"""Bytes that a node reads and writes when nothing is kept in a cache between two nodes: each operand once.

Weights count as they are stored: what unpacks a constant (DequantizeLinear, a lookup table, a Cast) does so on the way.
A view, and a rounding pair, which says in which type a value is kept, read and write nothing. An operator that picks
from its input reads what it picks, not the rest.
"""

from __future__ import annotations

import onnx_ir as ir

from .. import dims as d
from ..dims import Dim
from ..graph import const_tensor
from .bounds import ceil_div
from .node import Op, Unknown
from .walk import Liveness
from .widths import bits, declared_bits, is_view

PICKS = frozenset({
    "Compress", "Gather", "GatherElements", "GatherND", "SequenceAt", "Slice",
})  # fmt: skip
"""Operators that read as much of their first input as they write; the other inputs whole."""

UNREAD = {
    "CastLike": (1,), "ConstantOfShape": (0,), "Expand": (1,), "EyeLike": (0,), "RandomNormalLike": (0,),
    "RandomUniformLike": (0,), "Reshape": (1,), "Shape": (0,), "Size": (0,),
}  # fmt: skip
"""Operators that look at the shape or type of these inputs only, or at a shape that they hold."""

CONTROL = frozenset({"If", "Loop", "Scan", "SequenceMap"})
"""Operators whose bytes are those of the operators inside them."""


class Traffic:
    """Reads and writes of nodes, with the constants' bytes as stored."""

    def __init__(self, live: Liveness, *, rounded: bool) -> None:
        """`rounded`: whether there are rounding pairs at all."""
        self.live, self.rounded = live, rounded
        self._made_of: dict[ir.Value, frozenset[ir.Value]] = {}
        self._stored: dict[ir.Value, Dim] = {}
        self._held: dict[ir.Value, Dim] = {}
        self._bits: dict[ir.Value, int | None] = {}

    def of(self, op: Op) -> tuple[Dim, Dim]:
        """Bytes read and written in one run of a node. Raises Unknown."""
        node = op.node
        kind = "" if node.domain else node.op_type
        if is_view(node) or kind in CONTROL:
            return 0, 0
        read: Dim = 0
        inputs = op.inputs if len(op.inputs) < 2 else dict.fromkeys(op.inputs)
        unread = [op.inputs[i] for i in UNREAD.get(kind, ()) if i < len(op.inputs)]
        for value in inputs:
            if value is None or value in unread:
                continue
            if kind in PICKS and value is op.inputs[0]:
                read = d.add(read, self._bytes(value, op.n_out()))
            elif self.live.is_constant(value):
                read = d.add(read, self.stored(op, value))
            else:
                read = d.add(read, self.held(op, value))
        written: Dim = 0
        for value in op.outputs:
            if len(op.outputs) == 1 or value.uses() or value.is_graph_output():
                written = d.add(written, self.held(op, value))
        return read, written

    def held(self, op: Op, value: ir.Value) -> Dim:
        """Bytes of a value between two operators."""
        found = self._held.get(value)
        if found is None:
            found = self._held[value] = self._bytes(value, op.count(value))
        return found

    def stored(self, op: Op, value: ir.Value) -> Dim:
        """Bytes of a constant, or of the constants that one is computed from when these are fewer."""
        found = self._stored.get(value)
        if found is None:
            found = self._stored[value] = self._as_stored(op, value)
        return found

    def _as_stored(self, op: Op, value: ir.Value) -> Dim:
        total = sum(map(self.weight_bytes, self._sources(value)))
        if value.producer() is None:
            return total
        try:
            written_out = self.held(op, value)
        except Unknown:
            return total
        return min(total, written_out) if isinstance(written_out, int) and total else written_out

    def weight_bytes(self, constant: ir.Value) -> int:
        """Bytes of a constant that is given, not computed."""
        tensor = const_tensor(constant)
        return 0 if tensor is None else tensor.nbytes

    def _sources(self, value: ir.Value) -> frozenset[ir.Value]:
        """The constants that a constant value is computed from."""
        found = self._made_of.get(value)
        if found is None:
            node = value.producer()
            inputs = [] if node is None else [v for v in node.inputs if v is not None]
            found = frozenset().union(*(self._sources(v) for v in inputs)) if inputs else frozenset({value})
            self._made_of[value] = found
        return found

    def _bytes(self, value: ir.Value, count: Dim) -> Dim:
        width = bits(value, self._bits) if self.rounded else declared_bits(value)
        if width is None:
            raise Unknown(f"the element type of '{value.name}' is not known, or has no size")
        if not width % 8:
            return d.mul(count, width // 8)
        return ceil_div(d.mul(count, width), 8)
