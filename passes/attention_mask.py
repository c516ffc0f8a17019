"""The masks of an attention, added to scores or hiding some of them, as the one mask of an Attention node."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from ..compiler import graph as g
from ..compiler.passbase import Context
from .layouts import Size

HIDES = -1e4
"""Scores set to this, or less, get a weight of exactly 0 in float32 beside any score that is not itself hidden."""

LOWEST = -1e30
"""Below this, a score is lost in what is added to it, and onnxruntime takes the key for hidden."""


@dataclass(frozen=True)
class Mask:
    """One mask: `add` it to the scores, `keep` where true, `drop` where true."""

    kind: str
    value: ir.Value


@dataclass
class Masks:
    """Builds masks as Attention wants them, each once: twelve layers share one.

    `source` says where a symbolic size can be read off first.
    """

    ctx: Context
    source: Mapping[str, tuple[ir.Value, int]]
    _made: dict[tuple[object, ...], ir.Value] = field(default_factory=dict)

    def build(
        self, masks: Sequence[Mask], q: tuple[ir.Value, int], k: tuple[ir.Value, int], anchor: ir.Node
    ) -> tuple[ir.Value | None, bool]:
        """The mask (or None) and whether it is causal. `q` and `k`: a value and the axis of it that is the length."""
        rows, columns = (_size(value, at) for value, at in (q, k))
        rest = [m for m in masks if not _is_causal(m, rows, columns)]
        causal = len(rest) < len(masks)
        if any(_may_hide_all(m) for m in rest):
            self.ctx.note(
                "where a mask hides every key, Attention gives 0 (written out: NaN, or the mean of the values)"
            )
        if not rest:
            return None, causal
        mask = self._joined(rest, anchor)
        dims = g.shape(mask) or ()
        if len(dims) >= 2 and dims[-2] == rows and dims[-1] == columns:
            return mask, causal
        key = (mask, rows, columns)
        if key not in self._made:
            lengths = self._lengths(q, k, rows, columns, dims, anchor)
            self._made[key] = _after(anchor, "Expand", [mask, lengths], mask, (*dims[:-2], rows, columns), "expanded")
        return self._made[key], causal

    def _joined(self, masks: Sequence[Mask], anchor: ir.Node) -> ir.Value:
        keep: ir.Value | None = None
        for mask in masks:
            if mask.kind != "add":
                one = mask.value if mask.kind == "keep" else self._op("Not", [mask.value], anchor)
                keep = one if keep is None else self._op("And", [keep, one], anchor)
        total: ir.Value | None = None
        for mask in masks:
            if mask.kind == "add":
                total = mask.value if total is None else self._op("Add", [total, mask.value], anchor)
        if keep is None or total is None:
            found = keep if total is None else total
            assert found is not None
            return found
        graph, dtype = anchor.graph, total.dtype
        assert isinstance(graph, ir.Graph) and dtype is not None
        key = ("hidden", dtype)
        if key not in self._made:
            self._made[key] = g.initializer(graph, np.array(-np.inf, dtype.numpy()), "hidden")
        return self._op("Where", [keep, total, self._made[key]], anchor)

    def _op(self, op_type: str, inputs: Sequence[ir.Value], anchor: ir.Node) -> ir.Value:
        key = (op_type, *inputs)
        if key not in self._made:
            like = inputs[1] if op_type == "Where" else inputs[0]
            dims = [g.shape(v) for v in inputs]
            known = None if None in dims else _broadcast([d for d in dims if d is not None])
            self._made[key] = _after(anchor, op_type, inputs, like, known, op_type.lower())
        return self._made[key]

    def _lengths(
        self,
        q: tuple[ir.Value, int],
        k: tuple[ir.Value, int],
        rows: Size | None,
        columns: Size | None,
        dims: Sequence[Size | None],
        anchor: ir.Node,
    ) -> ir.Value:
        """`[rows, columns]` for Expand; 1 instead of a length that the mask is known to have."""
        graph = anchor.graph
        assert isinstance(graph, ir.Graph)
        parts: list[ir.Value | int] = []
        for (value, at), size, i in ((q, rows, -2), (k, columns, -1)):
            if size is not None and len(dims) >= -i and dims[i] == size:
                parts.append(1)
            elif isinstance(size, int):
                parts.append(size)
            else:
                # Sizes of one name are equal, wherever they are read off.
                key = ("length", size) if size is not None else ("length", value, at)
                if key not in self._made:
                    value, at = self.source.get(str(size), (value, at))
                    node = g.insert_before(anchor, "Shape", [value], {"start": at, "end": at + 1}, hint="length")
                    node.outputs[0].type, node.outputs[0].shape = ir.TensorType(ir.DataType.INT64), ir.Shape([1])
                    self._made[key] = node.outputs[0]
                parts.append(self._made[key])
        if all(isinstance(p, int) for p in parts):
            return g.initializer(graph, np.array(parts, np.int64), "mask_shape")
        values = [p if isinstance(p, ir.Value) else g.initializer(graph, np.array([p], np.int64), "one") for p in parts]
        node = g.insert_before(anchor, "Concat", values, {"axis": 0}, hint="mask_shape")
        node.outputs[0].type, node.outputs[0].shape = ir.TensorType(ir.DataType.INT64), ir.Shape([2])
        return node.outputs[0]


def _after(
    anchor: ir.Node,
    op_type: str,
    inputs: Sequence[ir.Value],
    like: ir.Value,
    dims: Sequence[Size | None] | None,
    hint: str,
) -> ir.Value:
    out = g.insert_before(anchor, op_type, inputs, {}, hint=f"{like.name}_{hint}").outputs[0]
    out.type = like.type
    out.shape = None if dims is None else ir.Shape(list(dims))
    return out


def _size(value: ir.Value, at: int) -> Size | None:
    dims = g.shape(value)
    return None if dims is None else dims[at]


def _broadcast(shapes: Sequence[Sequence[Size | None]]) -> list[Size | None]:
    """What these shapes broadcast to, None where that isn't known."""
    rank = max(len(s) for s in shapes)
    out: list[Size | None] = []
    for i in range(rank):
        found = {s[i - rank + len(s)] for s in shapes if i - rank + len(s) >= 0} - {1}
        numbers = [d for d in found if isinstance(d, int)]
        out.append(numbers[0] if numbers else 1 if not found else found.pop() if len(found) == 1 else None)
    return out


def _array(mask: Mask) -> np.ndarray | None:
    """A constant mask as booleans, true where a key is kept; None when it isn't constant or adds something else."""
    array = g.const(mask.value)
    if array is None:
        return None
    if mask.kind != "add":
        return array if mask.kind == "keep" else ~array
    kept = array == 0
    return kept if bool(np.all(kept | (array <= HIDES))) else None


def _is_causal(mask: Mask, rows: Size | None, columns: Size | None) -> bool:
    """Whether the mask is exactly the lower triangle of a square, the same for every batch and head."""
    if not isinstance(rows, int) or rows != columns or rows < 2:
        return False
    tensor = g.const_tensor(mask.value)
    if tensor is None or tensor.size != rows * rows or tuple(tensor.shape)[-2:] != (rows, rows):
        return False
    kept = _array(mask)
    return kept is not None and bool(np.array_equal(kept.reshape(rows, rows), np.tri(rows, dtype=bool)))


def _may_hide_all(mask: Mask) -> bool:
    """Whether some query may be left without a key; what is added hides only where it is as good as -inf."""
    kept = _array(mask)
    if kept is not None:
        return not (kept.ndim and bool(kept.any(axis=-1).all()))
    if mask.kind != "add":
        return True
    chosen = g.producer(mask.value, "Where")
    return chosen is not None and any((g.scalar(v) or 0.0) < LOWEST for v in chosen.inputs[1:])
