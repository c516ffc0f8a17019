"""Channels that are always equal: one reader's slice takes up the other's, so that one of them is read by nobody."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from ..graph import attr, const, is_const
from ..weights import Scratch, release_value
from .alike import first_alike, kinds
from .linear_nodes import Linear
from .masked import Masked
from .shrink import replace_tensor
from .unread import ALONE, POOLS

Ids = np.ndarray
"""int64, a number per channel: equal ones are equal channels, for any input."""
BINARY = frozenset({"Add", "Sub", "Mul", "Div", "Max", "Min"})


@dataclass
class Twins:
    """One walk through a model in order; weights that read two equal channels read one of them, twice as strongly.

    Attributes:
        same: value → an axis, and the numbers of its channels. Values without equal channels are left out.
        changed: how many weights were replaced.
    """

    model: ir.Model
    scratch: Scratch | None = None
    same: dict[ir.Value, tuple[int, Ids]] = field(default_factory=dict)
    changed: int = 0
    _given: dict[tuple[ir.Value, int], Ids] = field(default_factory=dict)
    _count: int = 0

    def run(self) -> int:
        for node in list(self.model.graph):
            found = self._visit(node) if node.domain == "" and node.outputs else None
            if found is not None and np.unique(found[1]).size < found[1].size:
                self.same[node.outputs[0]] = found
        return self.changed

    def _visit(self, node: ir.Node) -> tuple[int, Ids] | None:
        linear = Linear.of(node)
        if linear is not None:
            known = self.same.get(linear.x)
            if known is not None and known[0] == linear.in_axis and linear.owned:
                self._joined(linear, known[1])
            ids = self._of_rows(linear)
            return None if ids is None else (linear.out_axis, ids)
        if node.op_type == "Concat":
            return self._concat(node)
        found = next((self.same[v] for v in node.inputs if v in self.same), None)
        if found is None:
            return None
        if node.op_type == "BatchNormalization":
            numbers = [const(v) for v in node.inputs[1:5]]
            whole = found[0] == 1 and all(n is not None for n in numbers)
            return (1, self._pairs(found[1], *numbers)) if whole else None
        if node.op_type in BINARY:
            return self._binary(node, found)
        pools = node.op_type in POOLS and found[0] == 1 and _size(node.outputs[0], 1) == found[1].size
        if not (node.op_type in ALONE or pools) or node.inputs[0] not in self.same:
            return None
        # What was made of equal channels is equal, but not to what it was made of: both may be read side by side.
        return found if node.op_type == "Identity" else (found[0], self._pairs(found[1]))

    def _fresh(self, count: int) -> Ids:
        self._count += count
        return np.arange(self._count - count, self._count)

    def _pairs(self, *columns: np.ndarray | None) -> Ids:
        """New numbers: equal where all columns are."""
        kind = kinds([c for c in columns if c is not None])
        return np.asarray(self._fresh(int(kind.max(initial=-1)) + 1)[kind])

    def _of_rows(self, linear: Linear) -> Ids | None:
        """Equal filters with equal biases."""
        bias, doubtful = linear.bias_array(), doubtful_rows(linear)
        if bias is None or not doubtful.size:
            return None
        dead, filled = ~linear.live_rows(), _filled(linear)
        ids = self._fresh(dead.size)
        doubtful = doubtful[~dead[doubtful]]
        for alike in (dead, filled) if filled[doubtful].all() else (dead,):
            _, first, kind = np.unique(bias[alike], return_index=True, return_inverse=True)
            ids[alike] = ids[alike][first[kind]]
        if not filled[doubtful].all():
            front = np.moveaxis(linear.array(), linear.rows, 0)
            ids[doubtful] = ids[first_alike(front.reshape(len(front), -1), doubtful, bias)]
            release_value(linear.weight)
        return ids

    def _joined(self, linear: Linear, ids: Ids) -> None:
        """Add the slices that read equal channels into the first one's."""
        _, first, kind = np.unique(ids, return_index=True, return_inverse=True)
        target = first[kind]
        moved = np.flatnonzero((target != np.arange(ids.size)) & linear.live_columns())
        if not moved.size:
            return
        array = np.array(linear.array(), np.float64)
        columns = np.moveaxis(array, linear.columns, 0)
        np.add.at(columns, target[moved], columns[moved])
        columns[moved] = 0
        if np.isfinite(array.astype(linear.dtype)).all():
            replace_tensor(linear.weight, array.astype(linear.dtype), self.scratch)
            self.changed += 1

    def _binary(self, node: ir.Node, found: tuple[int, Ids]) -> tuple[int, Ids] | None:
        """With a constant per channel or for all, or with another value whose channels are known."""
        rank = len(node.outputs[0].shape or ())
        owner = next(v for v in node.inputs if v in self.same)
        axis = found[0] + rank - len(owner.shape or ())
        columns = []
        for v in node.inputs:
            column = self._column(v, axis, rank, found[1].size)
            if column is None:
                return None
            columns.append(column)
        return axis, self._pairs(*columns)

    def _column(self, value: ir.Value | None, axis: int, rank: int, size: int) -> np.ndarray | None:
        if value is None or value.shape is None:
            return None
        shift = rank - len(value.shape)
        if value in self.same:
            own, ids = self.same[value]
            return ids if own + shift == axis and ids.size == size else None
        if axis < shift or value.shape[axis - shift] == 1:
            return np.zeros(size)
        if is_const(value) and all(n == 1 for a, n in enumerate(value.shape) if a + shift != axis):
            array = const(value)
            return None if array is None or array.size != size else array.reshape(-1)
        return None

    def _concat(self, node: ir.Node) -> tuple[int, Ids] | None:
        """Side by side, and the same value twice is all twins."""
        repeated = len(set(node.inputs)) < len(node.inputs)
        rank = len(node.outputs[0].shape or ())
        if not rank or not (repeated or any(v in self.same for v in node.inputs)):
            return None
        axis, parts = attr(node, "axis") % rank, []
        for v in node.inputs:
            size = _size(v, axis)
            if v is None or not isinstance(size, int):
                return None
            if v in self.same and self.same[v][0] == axis:
                parts.append(self.same[v][1])
                continue
            if (v, axis) not in self._given:
                self._given[v, axis] = self._fresh(size)
            parts.append(self._given[v, axis])
        return axis, np.concatenate(parts)


def doubtful_rows(linear: Linear) -> np.ndarray:
    """The rows of a weight that may equal another one. Two numbers of each tell nearly all of them apart."""
    left = np.arange(linear.count)
    for k in (0, 1):
        numbers = _numbers(linear, k)[left]
        order = np.argsort(numbers)
        equal = np.flatnonzero(np.diff(numbers[order]) == 0)
        left = np.sort(left[order[np.union1d(equal, equal + 1)]]) if equal.size else left[:0]
    return left


def _filled(linear: Linear) -> np.ndarray:
    """Which rows a mask has filled with the same numbers."""
    masked = Masked.of(linear.tensor())
    found = None if masked is None else masked.filled(linear.rows)
    return np.zeros(linear.count, bool) if found is None else found


def _numbers(linear: Linear, k: int) -> np.ndarray:
    """A number of each row, the first or one from the middle; of masked rows one that the mask leaves."""
    masked = Masked.of(linear.tensor())
    found = None if masked is None else masked.numbers(linear.rows, k)
    if found is None:
        front = np.moveaxis(linear.array(), linear.rows, 0)
        found = front[(slice(None), *(n * k // 2 for n in front.shape[1:]))]
    return found


def _size(value: ir.Value | None, axis: int) -> object:
    return value.shape[axis] if value is not None and value.shape is not None and axis < len(value.shape) else None
