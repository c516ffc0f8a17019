"""Sparse weights: a mask, and the elements that it marks, which may themselves be integers or indices into tables.

Sources: `ops/defs/iOS16/constexpr_ops.py`, `iOS18/compression.py`. Mask and elements stay as they are stored, in the
local functions SparseWeight and MaskWeight of compiler/functions.py, where the forms allow it; else nodes spread them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from ..call import Call, Result, rule
from ..graph import FLOAT, INT32, Builder
from ..packed_bits import unpack
from .quantized import scaled_blocks, shifted
from .tables import group_axes, integers, look_up, packed_look_up

_KEPT = "edgec.kept"


@dataclass(frozen=True)
class Kept:
    """The elements that a mask marks, as a sparse operator hands them on: how to store them packed.

    Attributes:
        mask: the mask's bytes.
        shape: of the dense weight.
        values: makes these elements in a row, where that does not depend on their places.
        dense: makes the weight, with anything where the mask is not set.
        zeros: whether `dense` has zeros there.
        rounded: whether what is kept was rounded to float16.
    """

    mask: ir.Value
    shape: Sequence[int]
    values: Callable[[], ir.Value] | None
    dense: Callable[[], ir.Value]
    zeros: bool = True
    rounded: bool = False

    def weight(self, b: Builder) -> ir.Value:
        """The weight."""
        shape = list(self.shape)
        if self.values is not None:
            found = b.packed("SparseWeight", self.mask, self.values(), shape=shape)
        else:
            found = self.dense()
            found = found if self.zeros else b.packed("MaskWeight", self.mask, found, shape=shape)
        return b.round16(found) if self.rounded else found


def _kept_by(o: Call, name: str) -> Kept | None:
    """What an argument keeps, if a sparse operator made it."""
    given = o.arguments.get(name)
    value = given[0].value if given and o.literal(name) is None else None
    rounded = False
    while value is not None and _KEPT not in value.meta and (node := value.producer()) and node.op_type == "Cast":
        value, rounded = node.inputs[0], True
    found = None if value is None else value.meta.get(_KEPT)
    return replace(found, rounded=rounded) if isinstance(found, Kept) else None


def _spare(o: Call, mask: ir.Value, kept: ir.Value, packed: Kept | None) -> Result:
    """Both results of a sparse operator, for whatever reads them, with their packed form, which takes their place."""
    if packed is not None:
        kept.meta[_KEPT] = packed
        o.b.root.spare = True
    return [mask, kept]


def _spread(b: Builder, nonzero: ir.Value, mask: ir.Value, shape: Sequence[int], stored: int) -> ir.Value:
    """Values put where the mask (0 or 1, in `shape`) is set, zero elsewhere."""
    flat = b.cast(b.reshape(mask, [-1]), INT32)
    zero = b.op("CastLike", b.ints(0), nonzero)
    if stored == 0:
        return b.op("Expand", zero, b.ints(list(shape)))
    order = b.op(
        "Max",
        b.op("Sub", b.op("CumSum", flat, b.ints(0)), b.constant(np.array(1, np.int32))),
        b.constant(np.array(0, np.int32)),
    )
    picked = b.op("Gather", nonzero, order, axis=0)
    return b.reshape(b.op("Where", b.cast(flat, ir.DataType.BOOL), picked, zero), shape)


@rule("constexpr_sparse_to_dense", exact=True)
def constexpr_sparse_to_dense(o: Call) -> Result:
    """iOS 16 has packed bytes and a shape, iOS 18 a uint1 tensor."""
    kept = _kept_by(o, "nonzero_data")
    if kept is not None:
        return kept.weight(o.b)
    shape: list[int] = list(o.shape("mask")) if o.opset >= 8 else o.ints("shape")
    mask, data = o.literal("mask"), o.literal("nonzero_data")
    stored = o.shape("nonzero_data")[0]
    if mask is None or data is None or data.type.element.bits < 8 or not stored:
        dense = o.value("mask") if o.opset >= 8 else unpack(o.b, o.value("mask"), o.shape("mask")[0], 1, shape)
        return _spread(o.b, o.value("nonzero_data"), dense, shape, stored)
    flags = o.b.initializer(mask.packed() if o.opset >= 8 else mask.stored(), mask.name)
    values = o.b.initializer(data.stored(), data.name)
    to = FLOAT if data.type.dtype in ("fp16", "fp32") else values.dtype
    return o.b.packed("SparseWeight", flags, values, shape=shape, to=int(to or FLOAT))


def _kept(b: Builder, dense: ir.Value, mask: ir.Value) -> ir.Value:
    """The elements of a dense tensor where the mask is set, in order."""
    flags = b.cast(b.reshape(mask, [-1]), ir.DataType.BOOL)
    return b.op("Compress", b.reshape(dense, [-1]), flags, axis=0)


@rule("constexpr_lut_to_sparse", exact=True)
def constexpr_lut_to_sparse(o: Call) -> Result:
    b, mask, shape = o.b, o.value("indices_mask"), o.shape("indices_mask")
    count = o.shape("indices_nonzero_data")[0]
    indices = _spread(b, o.value("indices_nonzero_data"), mask, shape, count)
    dense = look_up(o, indices, shape)
    vector = o.shape("lut")[-1]
    if vector > 1:
        axis = o.integer("vector_axis") % len(shape)
        positions = np.repeat(np.arange(shape[axis]), vector)
        mask = b.op("Gather", mask, b.constant(positions), axis=axis)
    return _spare(o, mask, _kept(b, dense, mask), _kept_indices(o, shape, count) if vector == 1 else None)


def _kept_indices(o: Call, shape: Sequence[int], count: int) -> Kept | None:
    """Indices, of which only some are stored, in packed form."""
    flags, data, axes = o.literal("indices_mask"), o.literal("indices_nonzero_data"), group_axes(o)
    if flags is None or data is None or len(axes) > 1 or not count:
        return None
    mask = o.b.initializer(flags.packed(), flags.name)

    def values() -> ir.Value:
        return packed_look_up(o, integers(o, "indices_nonzero_data", [count]), [count], [])

    def dense() -> ir.Value:
        whole = integers(o, "indices_nonzero_data", [count])
        placed = o.b.packed("SparseWeight", mask, whole, shape=list(shape), to=int(ir.DataType.UINT8))
        return packed_look_up(o, placed, shape, axes)

    return Kept(mask, shape, None if axes else values, dense, zeros=False)


@rule("constexpr_sparse_blockwise_shift_scale")
def constexpr_sparse_blockwise_shift_scale(o: Call) -> Result:
    b, mask, shape = o.b, o.value("data_mask"), o.shape("data_mask")
    data = _spread(b, o.value("nonzero_data"), mask, shape, o.shape("nonzero_data")[0])
    dense = scaled_blocks(o, data, shape, o.shape("scale"))
    return _spare(o, mask, _kept(b, dense, mask), _kept_integers(o, shape))


def _kept_integers(o: Call, shape: Sequence[int]) -> Kept | None:
    """Integers, or what is looked up, of which only some are stored, in packed form."""
    inner, data, flags = _kept_by(o, "nonzero_data"), o.literal("nonzero_data"), o.literal("data_mask")
    if inner is not None:
        return Kept(inner.mask, shape, None, lambda: shifted(o, inner.weight(o.b), shape), not o.has("offset"))
    if data is None or flags is None or data.type.dtype not in ("int4", "uint4", "int8", "uint8") or not data.count:
        return None
    mask = o.b.initializer(flags.packed(), flags.name)
    to = ir.DataType.INT8 if data.type.dtype.startswith("int") else ir.DataType.UINT8

    def dense() -> ir.Value:
        stored = o.b.initializer(data.stored(), data.name)
        placed = o.b.packed("SparseWeight", mask, stored, shape=list(shape), to=int(to))
        placed.type = ir.TensorType(to)
        return shifted(o, placed, shape)

    return Kept(mask, shape, None, dense, not o.has("offset"))
