"""How a weight is stored: constants, and the operators that make the dense weight of them again.

A grid (compiler/quantization/grids.py) and its indices become a small tree of operators; what a target does not store
is not made. docs/storage.md shows the forms.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np
import onnx_ir as ir

from ..compiler.quantization.bits import pack_bits
from ..compiler.quantization.grids import Affine, Grid, NumberFormat, Sparse, Table
from ..compiler.quantization.points import FORMATS
from ..compiler.targets import Storage
from .weight_forms import Form, Leaf

FLOATS = {
    "float16": ir.DataType.FLOAT16, "bfloat16": ir.DataType.BFLOAT16,
    "float8e4m3": ir.DataType.FLOAT8E4M3FN, "float8e5m2": ir.DataType.FLOAT8E5M2,
}  # fmt: skip
"""Number formats that are element types of ONNX."""

_INTEGERS = {
    (2, False): ir.DataType.UINT2, (2, True): ir.DataType.INT2, (4, False): ir.DataType.UINT4,
    (4, True): ir.DataType.INT4, (8, False): ir.DataType.UINT8, (8, True): ir.DataType.INT8,
}  # fmt: skip
"""Bits and sign → the integer type; other widths are packed into bytes."""


def store(grid: Grid | Sparse, array: np.ndarray, storage: Storage) -> Form | None:
    """The form of `array`, a float32 weight; None where it is not exactly on the grid, or the target has no such form.

    Zeros are equal whatever their sign.
    """
    if isinstance(grid, Sparse):
        return _sparse(grid.inner, array, storage)
    if not fits(grid, array.shape, storage):
        return None
    codes = grid.indices(array)
    return None if codes is None else _MAKERS[type(grid)](grid, codes, array.shape, storage)


def fits(grid: Grid | Sparse, shape: tuple[int, ...], storage: Storage) -> bool:
    """Whether a target stores weights of this shape on such a grid."""
    match grid:
        case Sparse(inner=None):
            return storage.sparse
        case Sparse(inner=inner):
            return storage.joint and fits(inner, shape, storage)  # type: ignore[arg-type]
        case Affine():
            return bool(_width(grid.bits, storage.integers)) and (not grid.block or _blocks(grid, shape, storage))
        case Table():
            plain = grid.vector == 1 and len(grid.tables) == 1 and not grid.group
            whole = not grid.group or storage.remainders or not shape[grid.axis] % grid.group
            return (
                bool(_width(grid.bits, storage.tables))
                and (plain or (storage.groups and whole))
                and (grid.scales is None or storage.scaled)
            )
        case NumberFormat():
            kept = grid.name in storage.formats or bool(_width(grid.bits, storage.tables))
            scaled = grid.scales is None or (storage.scaled and (not grid.block or _blocks(grid, shape, storage)))
            return kept and scaled
    return False


def _blocks(grid: Affine | NumberFormat, shape: tuple[int, ...], storage: Storage) -> bool:
    return storage.blocks and (storage.remainders or not shape[grid.axis or 0] % grid.block)


def _width(bits: int, widths: tuple[int, ...]) -> int:
    """The least of the widths that holds so many bits; 0 if none does."""
    return min((w for w in widths if w >= bits), default=0)


# --- integers and indices ---------------------------------------------------------------------------------------------


def _integers(codes: np.ndarray, bits: int, signed: bool, hint: str) -> Leaf | Form:
    """Integers of `bits` bits as constants."""
    kind = _INTEGERS.get((bits, signed))
    if kind is not None:
        return Leaf(codes.astype(np.int8 if signed else np.uint8, copy=False), kind, hint)
    low = -(1 << (bits - 1)) if signed else 0
    packed = Leaf(pack_bits(codes.reshape(-1), bits, low), ir.DataType.UINT8, hint)
    to = ir.DataType.INT8 if signed else ir.DataType.UINT8
    return Form("UnpackBits", (packed,), {"bits": bits, "shape": codes.shape, "low": low, "to": int(to)})


def _scale(array: np.ndarray) -> Leaf:
    """Scales as float16 where that holds them."""
    with np.errstate(over="ignore"):
        half = array.astype(np.float16)
    if np.array_equal(half.astype(np.float32), array.astype(np.float32)):
        return Leaf(half, ir.DataType.FLOAT16, "scale")
    return Leaf(array.astype(np.float32), ir.DataType.FLOAT, "scale")


def _scaled(values: Leaf | Form, grid: Any, shape: tuple[int, ...], zero: Leaf | None = None, kind: str = "") -> Form:
    """`values` times the scales of a grid, a zero point before that."""
    axis, block, scales = grid.axis, getattr(grid, "block", 0), grid.scales

    def placed(a: np.ndarray) -> np.ndarray:
        """In the rank of the values."""
        return a if block else a.reshape([-1 if a.ndim and i == axis else 1 for i in range(len(shape))])

    if scales.ndim == 0 or axis is None:
        axis, block = 0, shape[0]
        scale = _scale(scales.reshape((1,) * len(shape)))
    else:
        scale = _scale(placed(scales))
    attributes = {"axis": axis, "block": block or 1}
    if zero is None:
        return Form("ScaleWeight", (values, scale), attributes, kind)
    zero = Leaf(zero.array.reshape(scale.array.shape), zero.dtype, zero.hint)
    return Form("ShiftScaleWeight", (values, scale, zero), attributes, kind)


def _affine(grid: Affine, codes: np.ndarray, shape: tuple[int, ...], storage: Storage) -> Form:
    """DequantizeLinear, but for blocks whose scales are shared along other axes as well."""
    bits = _width(grid.bits, storage.integers)
    return _dequantised(grid, _integers(codes, bits, grid.signed, "packed"), bits, shape)


def _dequantised(grid: Affine, values: Leaf | Form, bits: int, shape: tuple[int, ...]) -> Form:
    kind = _INTEGERS.get((bits, grid.signed)) or _INTEGERS[8, grid.signed]
    if isinstance(values, Form):
        kind = _INTEGERS[8, grid.signed]
    zero = None if grid.zeros is None else Leaf(np.broadcast_to(grid.zeros, grid.scales.shape), kind, "zero")
    if grid.block and grid.scales.size == 1:  # onnxruntime takes one scale for the tensor's.
        own = None if grid.zeros is None else grid.zeros.reshape(())
        whole = replace(grid, scales=grid.scales.reshape(()), zeros=own, axis=None, block=0)
        return _dequantised(whole, values, bits, shape)
    if grid.block:
        spread = tuple(-(-n // grid.block) if a == grid.axis else n for a, n in enumerate(shape))
        if grid.scales.shape != spread:
            return _scaled(values, grid, shape, zero, "integers")
        scale = _scale(grid.scales)
        attributes = {"axis": grid.axis, "block_size": grid.block, "output_dtype": int(ir.DataType.FLOAT)}
    else:
        scale = Leaf(grid.scales.astype(np.float32), ir.DataType.FLOAT, "scale")
        attributes = {} if grid.axis is None else {"axis": grid.axis}
    inputs = (values, scale) if zero is None else (values, scale, zero)
    return Form("DequantizeLinear", inputs, attributes, "integers")


def _looked_up(
    indices: Leaf | Form, tables: np.ndarray, bits: int, shape: tuple[int, ...], axis: int = 0, group: int = 0
) -> Form:
    """Entries of tables, which get as many as `bits` bits count."""
    longer = np.zeros((tables.shape[0], 1 << bits, tables.shape[2]), tables.dtype)
    longer[:, : tables.shape[1]] = tables
    points = _scale(longer)
    attributes: dict[str, Any] = {"shape": shape}
    if group:
        attributes |= {"axis": axis, "group": group // tables.shape[2]}
    if tables.shape[2] > 1:
        attributes["vector_axis"] = axis
    return Form("LookupWeight", (indices, Leaf(points.array, points.dtype, "table")), attributes, "table")


def _table(grid: Table, codes: np.ndarray, shape: tuple[int, ...], storage: Storage) -> Form:
    bits = _width(grid.bits, storage.tables)
    indices = _integers(codes, bits, False, "indices")
    group = grid.group if len(grid.tables) > 1 else 0
    found = _looked_up(indices, grid.tables, bits, shape, grid.axis, group)
    return found if grid.scales is None else _scaled(found, grid, shape, kind="table")


def points(grid: NumberFormat) -> np.ndarray:
    """All numbers of a format of at most 8 bits without its scale, by their bits; 0 for those that are none."""
    bits, kind = FORMATS[grid.name][0], FORMATS[grid.name][1]
    plain = NumberFormat(grid.name).decode(np.arange(1 << bits, dtype=np.uint8).reshape(1, -1))
    assert kind is not None or bits == 4
    return np.asarray(np.nan_to_num(plain.reshape(1, -1, 1), nan=0.0, posinf=0.0, neginf=0.0))


def _number(grid: NumberFormat, codes: np.ndarray, shape: tuple[int, ...], storage: Storage) -> Form:
    """A Cast of the short floats where the target stores them; else a table of all of them."""
    if grid.name not in storage.formats:
        bits = _width(grid.bits, storage.tables)
        found = _looked_up(_integers(codes, bits, False, "indices"), points(grid), bits, shape)
        return found if grid.scales is None else _scaled(found, grid, shape, kind="table")
    leaf = Leaf(codes.view(FORMATS[grid.name][1]), FLOATS[grid.name], "packed")
    if grid.scales is not None:
        return _scaled(leaf, grid, shape, kind="float")
    return Form("Cast", (leaf,), {"to": int(ir.DataType.FLOAT)}, "float")


Maker: TypeAlias = Callable[[Any, np.ndarray, tuple[int, ...], Storage], Form]
_MAKERS: dict[type, Maker] = {Affine: _affine, Table: _table, NumberFormat: _number}


# --- zeros left out ---------------------------------------------------------------------------------------------------


def _sparse(inner: Grid | None, array: np.ndarray, storage: Storage) -> Form | None:
    """A bit for each element, and the elements that are not zero, as floats or on a grid."""
    if not fits(Sparse(inner), array.shape, storage) or not array.size:
        return None
    found = Sparse(inner).indices(array)
    if found is None or (inner is None and not np.isfinite(array).all()):
        return None
    flags, codes = found
    mask = Leaf(np.packbits(flags.reshape(-1), bitorder="little"), ir.DataType.UINT8, "mask")
    kept = codes[flags]
    if not kept.size:  # No operator of Core ML has an empty tensor.
        return None
    shape, attributes = array.shape, {"shape": array.shape}
    if inner is None:
        return Form("SparseWeight", (mask, _scale(kept)), attributes, "sparse")
    if isinstance(inner, NumberFormat) and inner.name in storage.formats:
        leaf = Leaf(kept.view(FORMATS[inner.name][1]), FLOATS[inner.name], "packed")
        sparse = Form("SparseWeight", (mask, leaf), attributes, "sparse")
        return sparse if inner.scales is None else _scaled(sparse, inner, shape, kind="sparse")
    if isinstance(inner, Affine):
        return _sparse_integers(inner, mask, kept, shape, storage)
    bits = _width(inner.bits, storage.tables)
    tables = points(inner) if isinstance(inner, NumberFormat) else inner.tables  # type: ignore[attr-defined]
    indices = _integers(kept, bits, False, "indices")
    if len(tables) == 1:
        values = _looked_up(indices, tables, bits, kept.shape)
        sparse = Form("SparseWeight", (mask, values), attributes, "sparse")
        return sparse if inner.scales is None else _scaled(sparse, inner, shape, kind="sparse")  # type: ignore[attr-defined]
    assert isinstance(inner, Table)
    placed = Form("SparseWeight", (mask, indices), attributes | {"to": int(ir.DataType.UINT8)})
    dense = _looked_up(placed, tables, bits, shape, inner.axis, inner.group)
    dense = dense if inner.scales is None else _scaled(dense, inner, shape)
    return Form("MaskWeight", (mask, dense), attributes, "sparse")


def _sparse_integers(inner: Affine, mask: Leaf, kept: np.ndarray, shape: tuple[int, ...], storage: Storage) -> Form:
    """Integers put into their places, then dequantised; masked once more where 0 does not stand for zero."""
    bits = _width(inner.bits, storage.integers)
    to = ir.DataType.INT8 if inner.signed else ir.DataType.UINT8
    values = _integers(kept, bits, inner.signed, "packed")
    placed = Form("SparseWeight", (mask, values), {"shape": shape, "to": int(to)})
    dense = _dequantised(inner, placed, bits, shape)
    if inner.zeros is None or not inner.zeros.any():
        return Form(dense.op, dense.inputs, dense.attributes, "sparse")
    return Form("MaskWeight", (mask, dense), {"shape": shape}, "sparse")
