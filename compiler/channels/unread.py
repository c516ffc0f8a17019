"""Channels that nobody reads: every weight behind them is zero there, so what makes them may be zero, too."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from ..graph import attr, const, ints, is_const, subgraphs
from ..weights import Scratch
from .constant import UNARY
from .linear_nodes import Linear
from .shrink import replace_tensor

Read = np.ndarray | None
"""Per position on an axis, whether anybody reads it; None for all of them."""
POOLS = frozenset({"GlobalAveragePool", "GlobalMaxPool", "MaxPool", "AveragePool", "LpPool", "GlobalLpPool", "Resize"})
BINARY = frozenset({"Add", "Sub", "Mul", "Div", "Max", "Min", "PRelu"})
ALONE = frozenset({*UNARY, "Gelu", "Erf", "Softsign", "Mish", "Selu", "Celu", "Cast", "Sqrt", "Sin", "Cos", "Round"})


@dataclass
class Unread:
    """One walk through a model from its outputs; rows of weights that make what nobody reads are set to zero.

    Asked for are axis 1 and the last one: where channels lie in images, and in tokens.

    Attributes:
        read: value and axis → who is read; what isn't in there is read.
        changed: how many weights and biases were replaced.
    """

    model: ir.Model
    scratch: Scratch | None = None
    read: dict[tuple[ir.Value, int], np.ndarray] = field(default_factory=dict)
    changed: int = 0

    def run(self) -> int:
        inner = {v for n in self.model.graph for g in subgraphs(n) for m in g.all_nodes() for v in m.inputs}
        for node in reversed(list(self.model.graph)):
            for value in node.outputs:
                rank = len(value.shape) if value.shape is not None else 0
                if value.is_graph_output() or value in inner or not rank:
                    continue
                for axis in {min(1, rank - 1), rank - 1}:
                    found = self._read(value, axis)
                    if found is not None and not found.all():
                        self.read[value, axis] = found
            self._clear(node)
        return self.changed

    def _read(self, value: ir.Value, axis: int) -> Read:
        size = value.shape[axis] if value.shape is not None else None
        if not isinstance(size, int) or not value.uses():
            return None
        every = np.zeros(size, bool)
        for use in value.uses():
            found = self._by(use.node, use.idx, value, axis, size)
            if found is None:
                return None
            every |= found
            if every.all():
                return None
        return every

    def _by(self, node: ir.Node, i: int, value: ir.Value, axis: int, size: int) -> Read:
        """Who on an axis of its input i a node reads."""
        if node.domain != "":
            return None
        linear = Linear.of(node)
        if linear is not None:
            return linear.live_columns() if i == 0 and linear.in_axis == axis else None
        rule = _RULES.get(node.op_type)
        return None if rule is None else rule(self, node, i, value, axis, size)

    def out(self, node: ir.Node, axis: int) -> Read:
        return self.read.get((node.outputs[0], axis))

    def _clear(self, node: ir.Node) -> None:
        """Set to zero what a node makes that nobody reads."""
        if node.domain != "":
            return
        linear = Linear.of(node)
        if linear is not None:
            gone = _gone(self.read.get((node.outputs[0], linear.out_axis)))
            if gone is not None and linear.owned:
                if linear.live_rows()[gone].any():
                    self._replace(linear.weight, linear.without_rows(gone))
                self._zero(linear.bias, gone)
        elif node.op_type == "BatchNormalization":
            gone = _gone(self.read.get((node.outputs[0], 1)))
            if gone is not None:
                self._zero(node.inputs[1], gone)
                self._zero(node.inputs[2], gone)
        elif node.op_type in ("Add", "Sub", "Mul"):
            self._clear_constant(node)

    def _clear_constant(self, node: ir.Node) -> None:
        """A constant per channel that is added or multiplied."""
        rank = len(node.outputs[0].shape or ())
        for value in node.inputs:
            if value is None or not is_const(value) or value.shape is None:
                continue
            wide = [a for a, n in enumerate(value.shape) if n != 1]
            if len(wide) == 1:
                gone = _gone(self.read.get((node.outputs[0], wide[0] + rank - len(value.shape))))
                if gone is not None:
                    self._zero(value, gone)

    def _zero(self, value: ir.Value | None, gone: np.ndarray) -> None:
        array = const(value)
        if value is None or array is None or array.size != gone.size:
            return
        if len(value.uses()) != 1 or value.is_graph_output():
            return
        flat = array.reshape(-1)
        if flat[gone].any():
            made = np.array(flat)
            made[gone] = 0
            self._replace(value, made.reshape(array.shape))

    def _replace(self, value: ir.Value, array: np.ndarray) -> None:
        replace_tensor(value, array, self.scratch)
        self.changed += 1


def _gone(read: Read) -> np.ndarray | None:
    return None if read is None else ~read


def _same(u: Unread, node: ir.Node, i: int, value: ir.Value, axis: int, size: int) -> Read:
    return u.out(node, axis) if i == 0 else None


def _pooled(u: Unread, node: ir.Node, i: int, value: ir.Value, axis: int, size: int) -> Read:
    return u.out(node, 1) if i == 0 and axis == 1 and _extent(node.outputs[0], 1) == size else None


def _extent(value: ir.Value, axis: int) -> object:
    return value.shape[axis] if value.shape is not None and axis < len(value.shape) else None


def _broadcast(u: Unread, node: ir.Node, i: int, value: ir.Value, axis: int, size: int) -> Read:
    """An operand; where it is multiplied by a constant zero, nobody reads it. A divisor of zero would do harm."""
    if node.op_type == "Div" and i == 1:
        return None
    out = node.outputs[0]
    rank = len(out.shape or ())
    there = axis + rank - len(value.shape or ())
    if _extent(out, there) != size:
        return None
    found = u.out(node, there)
    other = next((v for k, v in enumerate(node.inputs) if k != i), None)
    if node.op_type == "Mul" and other is not None and is_const(other) and other.shape is not None:
        array = const(other)
        assert array is not None
        wide = [a + rank - array.ndim for a, n in enumerate(array.shape) if n != 1]
        if wide == [there]:
            used = array.reshape(-1) != 0
            found = used if found is None else found & used
    return found


def _normed(u: Unread, node: ir.Node, i: int, value: ir.Value, axis: int, size: int) -> Read:
    scale = const(node.inputs[1])
    if i != 0 or axis != 1 or scale is None:
        return None
    found = u.out(node, 1)
    return np.asarray(scale != 0 if found is None else found & (scale != 0))


def _joined(u: Unread, node: ir.Node, i: int, value: ir.Value, axis: int, size: int) -> Read:
    if attr(node, "axis") % len(value.shape or (1,)) != axis:
        return None
    before = [_extent(v, axis) if v is not None else None for v in node.inputs[:i]]
    found = u.out(node, axis)
    if found is None or not all(isinstance(n, int) for n in before):
        return None
    start = sum(int(n) for n in before)  # type: ignore[call-overload]
    return found[start : start + size]


def _parted(u: Unread, node: ir.Node, i: int, value: ir.Value, axis: int, size: int) -> Read:
    if attr(node, "axis", 0) % len(value.shape or (1,)) != axis or i != 0:
        return None
    parts = []
    for out in node.outputs:
        n = _extent(out, axis)
        if not isinstance(n, int) or out.is_graph_output():
            return None
        own = np.zeros(n, bool) if not out.uses() else np.ones(n, bool)
        parts.append(u.read.get((out, axis), own))
    return np.concatenate(parts)


def _sliced(u: Unread, node: ir.Node, i: int, value: ir.Value, axis: int, size: int) -> Read:
    """What is cut off is not read."""
    given = [ints(v) if v is not None else None for v in (*node.inputs[1:5], *[None] * (5 - len(node.inputs)))]
    starts, ends, axes, steps = given
    if (
        i != 0
        or starts is None
        or ends is None
        or any(v is not None and g is None for v, g in zip(node.inputs[1:], given, strict=False))
    ):
        return None
    rank = len(value.shape or ())
    where = [a % rank for a in (axes or range(len(starts)))]
    found = u.out(node, axis)
    if axis not in where:
        return found
    k = where.index(axis)
    positions = np.arange(size)[slice(starts[k], ends[k], steps[k] if steps else 1)]
    if steps and steps[k] < 0:
        return None
    read = np.zeros(size, bool)
    read[positions] = True if found is None else found
    return read


Rule = Callable[[Unread, ir.Node, int, ir.Value, int, int], Read]
_RULES: Mapping[str, Rule] = {
    **dict.fromkeys(ALONE, _same),
    **dict.fromkeys(POOLS, _pooled),
    **dict.fromkeys(BINARY, _broadcast),
    "BatchNormalization": _normed,
    "Concat": _joined,
    "Split": _parted,
    "Slice": _sliced,
}
