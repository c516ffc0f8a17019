"""Weights as indices into tables: one table, or one for every group of slices along an axis.

Sources: `ops/defs/iOS16/constexpr_ops.py`, `iOS18/compression.py`. Indices and tables stay as they are stored, in the
local function LookupWeight of compiler/functions.py; what has no such form (groups along two axes, computed indices)
is looked up by nodes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from ..call import Call, Result, Unsupported, rule
from ..graph import FLOAT, INT32
from ..scaled_tables import scaled


@rule("constexpr_lut_to_dense", exact=True)
def constexpr_lut_to_dense(o: Call) -> Result:
    """iOS 16 has packed bytes and a shape; iOS 18 has indices of a sub-byte type and a table per group."""
    b = o.b
    if o.opset >= 8:
        dims, axes = o.shape("indices"), group_axes(o)
        made = scaled(o, "lut")
        parts = None if made is None or o.literal("indices") is None else made.parts()
        if made is not None and parts is not None:
            b.root.spare = True
            return _scaled_look_up(o, dims, made.half, *parts)
        if len(axes) > 1 or o.literal("indices") is None:
            return look_up(o, o.value("indices"), dims)
        return packed_look_up(o, integers(o, "indices", dims), dims, axes)
    shape, entries = o.ints("shape"), o.shape("lut")[0]
    bits, literal = entries.bit_length() - 1, o.literal("indices")
    if literal is None:
        raise Unsupported("its indices are computed")
    kind = {2: ir.DataType.UINT2, 4: ir.DataType.UINT4, 8: ir.DataType.UINT8}.get(bits)
    if kind is not None:
        indices = b.initializer(literal.bytes_as(kind, shape) if bits < 8 else literal.stored(shape), literal.name)
    else:
        indices = b.packed("UnpackBits", b.initializer(literal.stored(), literal.name), bits=bits, shape=shape)
    return _table_look_up(o, indices, shape, [1, entries, 1])


def _scaled_look_up(
    o: Call, dims: Sequence[int], half: bool, tables: np.ndarray, factors: np.ndarray | None
) -> ir.Value:
    """Entries of constant tables, of one axis at most, times factors for the slices of any axes."""
    b, rank = o.b, len(dims)
    axes = [a for a, n in enumerate(tables.shape[:-2]) if n > 1]
    attributes = {"axis": axes[0], "group": dims[axes[0]] // tables.shape[axes[0]]} if axes else {}
    shape, vector = list(dims), tables.shape[-1]
    if vector > 1:
        attributes["vector_axis"] = o.integer("vector_axis") % rank
        shape[attributes["vector_axis"]] *= vector
    entries = b.constant(tables.reshape(-1, *tables.shape[-2:]))
    found = b.packed("LookupWeight", integers(o, "indices", dims), entries, shape=shape, **attributes)
    if factors is None:
        return found
    axis = next(a for a, n in enumerate(factors.shape) if n > 1)
    scale = b.constant(factors.astype(np.float16 if half else np.float32))
    found = b.packed("ScaleWeight", found, scale, axis=axis, block=1)
    return b.round16(found) if half else found


def group_axes(o: Call) -> list[int]:
    """The axes along which there are several tables."""
    return [a for a, n in enumerate(o.shape("lut")[:-2]) if n > 1]


def integers(o: Call, name: str, shape: Sequence[int]) -> ir.Value:
    """Constant indices as they are stored: a type of ONNX, or bytes and how to unpack them."""
    literal = o.literal(name)
    assert literal is not None
    if literal.type.element.onnx is not None:
        return o.b.initializer(literal.stored(shape), literal.name)
    packed = o.b.initializer(literal.packed(), literal.name)
    return o.b.packed("UnpackBits", packed, bits=literal.type.element.bits, shape=list(shape))


def packed_look_up(o: Call, indices: ir.Value, shape: Sequence[int], axes: Sequence[int]) -> ir.Value:
    """LookupWeight for dense indices; `lut` is [groups of each axis …, entries, vector], groups of one axis at most."""
    *groups, entries, vector = o.shape("lut")
    attributes: dict[str, int] = {}
    if axes:
        attributes = {"axis": axes[0], "group": shape[axes[0]] // groups[axes[0]]}
    result = list(shape)
    if vector > 1:
        attributes["vector_axis"] = o.integer("vector_axis") % len(shape)
        result[attributes["vector_axis"]] *= vector
    return _table_look_up(o, indices, result, [math.prod(groups), entries, vector], **attributes)


def _table_look_up(
    o: Call, indices: ir.Value, shape: Sequence[int], dims: Sequence[int], **attributes: int
) -> ir.Value:
    literal = o.literal("lut")
    if literal is None:
        tables = o.b.reshape(o.value("lut"), dims)
    else:
        tables = o.b.initializer(literal.stored(dims), literal.name)
        if literal.type.dtype in ("int8", "uint8"):
            attributes["to"] = int(tables.dtype or FLOAT)
    return o.b.packed("LookupWeight", indices, tables, shape=list(shape), **attributes)


def look_up(o: Call, indices: ir.Value, shape: Sequence[int]) -> ir.Value:
    """Table entries for any indices; `lut` is [groups of each axis …, entries, vector]."""
    b = o.b
    *groups, entries, vector = o.shape("lut")
    table = b.reshape(o.value("lut"), [-1, vector])
    index = b.cast(indices, INT32)
    if math.prod(groups) > 1:
        inner = [d for n, g in zip(shape, groups, strict=True) for d in (g, n // g)]
        first = np.arange(math.prod(groups), dtype=np.int32) * entries
        offset = b.constant(first.reshape([d for g in groups for d in (g, 1)]))
        index = b.reshape(b.op("Add", b.reshape(index, inner), offset), shape)
    found = b.op("Gather", table, index, axis=0)
    if vector == 1:
        return b.reshape(found, shape)
    rank = len(shape)
    axis = o.integer("vector_axis") % rank
    moved = b.transpose(found, [*range(axis + 1), rank, *range(axis + 1, rank)])
    return b.reshape(moved, [n * vector if a == axis else n for a, n in enumerate(shape)])
