"""Packed weights as the `constexpr_…` operators that unpack them.

Until iOS 17 there is one operator for a weight, and what it reads are attributes. From iOS 18 on they read inputs, and
each other: from left to right, with a bitmap the lower row, which hands the mask on.

    constexpr_lut_to_dense   → constexpr_blockwise_shift_scale
    constexpr_lut_to_sparse  → constexpr_sparse_blockwise_shift_scale → constexpr_sparse_to_dense

Sources: coremltools 9.0, `ops/defs/iOS16/constexpr_ops.py`, `iOS18/compression.py`; what its optimisers write is
compared with this in tests/unit/test_coreml_packed_apple.py.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from ...compiler.quantization.bits import pack_bits
from .constants import Affine, spread
from .packed import Packed, Shift

Part = tuple[np.ndarray, str] | str
"""An argument: an array with its type, or the name of what an operator made."""


class Writes(Protocol):
    """What of serialise.Writer is used here."""

    @property
    def version(self) -> int: ...
    def dtype(self, var: Any) -> np.dtype[Any]: ...
    def named(self, var: Any) -> str: ...
    def fresh(self, wish: str) -> str: ...
    def string(self, out: Any, text: str) -> None: ...
    def value(self, out: Any, array: np.ndarray, kind: str = "") -> None: ...
    def tensor_type(self, kind: str, shape: tuple[int, ...]) -> Any: ...


def write_packed(w: Writes, var: Any, weight: Affine | Packed, block: Any) -> None:
    """Add the operators that make `var` of the packed weight to a block."""
    if isinstance(weight, Affine):
        _affine(w, var, weight, block)
    elif w.version < 18:
        _single(w, var, weight, block)
    else:
        _chain(w, var, weight, block)


def _start(w: Writes, block: Any, kind: str, name: str) -> Any:
    out = block.operations.add(type=kind)
    w.string(out.attributes["name"], name)
    return out


def _argument(w: Writes, out: Any, name: str, part: Part) -> None:
    argument = out.inputs[name].arguments.add()
    if isinstance(part, str):
        argument.name = part
    else:
        w.value(argument.value, *part)


def _affine(w: Writes, var: Any, weight: Affine, block: Any) -> None:
    """Integers with scales per tensor or channel, from iOS 18 on per block as well."""
    dtype = w.dtype(var)
    scale = weight.scale.numpy().astype(dtype)
    zero = None if weight.zero is None else weight.zero.numpy()
    data, kind = weight.data.numpy(), weight.data.dtype.name.replace("8", str(weight.bits))
    if w.version < 18:
        out = _start(w, block, "constexpr_affine_dequantize", w.named(var))
        zero = np.zeros(scale.shape, data.dtype) if zero is None else zero.astype(data.dtype)
        w.value(out.attributes["quantized_data"], data)
        w.value(out.attributes["zero_point"], zero)
        w.value(out.attributes["scale"], scale)
        w.value(out.attributes["axis"], np.array(weight.axis, np.int32))
    else:
        out = _start(w, block, "constexpr_blockwise_shift_scale", w.named(var))
        _argument(w, out, "data", (data, kind))
        _argument(w, out, "scale", (_per_block(scale, weight), ""))
        if zero is not None and zero.any():
            _argument(w, out, "offset", (_per_block(zero.astype(data.dtype), weight), kind))
    out.outputs.add(name=w.named(var), type=w.tensor_type(dtype.name, weight.shape))
    weight.data.forget()


def _per_block(array: np.ndarray, weight: Affine) -> np.ndarray:
    """A scale or offset in the weight's rank: one element for each block."""
    if weight.block:
        return array
    shaped = spread(array, weight)
    assert shaped is not None
    return shaped.reshape(shaped.shape or (1,) * len(weight.data.shape))


def _single(w: Writes, var: Any, weight: Packed, block: Any) -> None:
    """iOS 16 and 17: one table for all, or floats with a bitmap; bytes and the shape."""
    dtype, shape = w.dtype(var), np.array(weight.shape, np.uint32)
    if weight.lut is not None:
        out = _start(w, block, "constexpr_lut_to_dense", w.named(var))
        w.value(out.attributes["indices"], pack_bits(weight.data.numpy().view(np.uint8), weight.lut.bits))
        w.value(out.attributes["lut"], weight.lut.tables.numpy().astype(dtype).reshape(-1))
    else:
        assert weight.mask is not None
        out = _start(w, block, "constexpr_sparse_to_dense", w.named(var))
        w.value(out.attributes["nonzero_data"], weight.data.numpy().astype(dtype))
        w.value(out.attributes["mask"], pack_bits(weight.mask.numpy(), 1))
    w.value(out.attributes["shape"], shape)
    out.outputs.add(name=w.named(var), type=w.tensor_type(dtype.name, weight.shape))
    weight.data.forget()


def _chain(w: Writes, var: Any, weight: Packed, block: Any) -> None:
    """From iOS 18 on: what is stored goes through a table, scales and a bitmap, as far as it has them."""
    name, dtype = w.named(var), w.dtype(var)
    steps = [weight.lut is not None, weight.shift is not None, weight.mask is not None]
    data: Part = _data(weight, dtype)
    mask: Part | None = None if weight.mask is None else (weight.mask.numpy(), "uint1")
    if weight.lut is not None:
        tables = weight.lut.tables.numpy().astype(dtype)
        kind = "constexpr_lut_to_sparse" if mask is not None else "constexpr_lut_to_dense"
        out = _start(w, block, kind, name if sum(steps) == 1 else w.fresh(f"{name}_lut"))
        _argument(w, out, "indices_nonzero_data" if mask is not None else "indices", data)
        _argument(w, out, "lut", (_placed(tables, weight), ""))
        if weight.lut.vector > 1:
            _argument(w, out, "vector_axis", (np.array(weight.lut.vector_axis, np.int32), ""))
        data, mask = _outputs(w, out, weight, mask, "indices_mask", dtype)
    if weight.shift is not None:
        kind = "constexpr_sparse_blockwise_shift_scale" if mask is not None else "constexpr_blockwise_shift_scale"
        out = _start(w, block, kind, name if mask is None else w.fresh(f"{name}_scaled"))
        integer = "" if isinstance(data, str) else data[1]
        _argument(w, out, "nonzero_data" if mask is not None else "data", data)
        _shift(w, out, weight.shift, dtype, integer)
        data, mask = _outputs(w, out, weight, mask, "data_mask", dtype)
    if mask is not None:
        out = _start(w, block, "constexpr_sparse_to_dense", name)
        _argument(w, out, "nonzero_data", data)
        _argument(w, out, "mask", mask)
        out.outputs.add(name=name, type=w.tensor_type(dtype.name, weight.shape))
    weight.data.forget()


def _outputs(
    w: Writes, out: Any, weight: Packed, mask: Part | None, mask_name: str, dtype: np.dtype[Any]
) -> tuple[Part, Part | None]:
    """Add the results of an operator, of a sparse one the mask as well; their names."""
    name = out.attributes["name"].immediateValue.tensor.strings.values[0]
    if mask is None:
        out.outputs.add(name=name, type=w.tensor_type(dtype.name, weight.shape))
        return name, None
    _argument(w, out, mask_name, mask)
    flags = w.fresh(f"{name}_mask")
    out.outputs.add(name=flags, type=w.tensor_type("uint1", weight.shape))
    vector = 1 if weight.lut is None else weight.lut.vector
    out.outputs.add(name=name, type=w.tensor_type(dtype.name, (weight.data.size * vector,)))
    return name, flags


def _data(weight: Packed, dtype: np.dtype[Any]) -> Part:
    data = weight.data.numpy()
    if not weight.bits:
        return data.astype(dtype), ""
    bits = weight.bits if weight.lut is None else weight.lut.bits
    if weight.lut is not None:
        return data.view(np.uint8), f"uint{bits}"
    return data, data.dtype.name.replace("8", str(bits))


def _placed(tables: np.ndarray, weight: Packed) -> np.ndarray:
    """Tables in the rank of the indices, and two more: entries and vectors."""
    assert weight.lut is not None
    groups, entries, vector = tables.shape
    places = (groups if i == weight.lut.axis and groups > 1 else 1 for i in range(len(weight.index_shape)))
    return tables.reshape(*places, entries, vector)


def _shift(w: Writes, out: Any, shift: Shift, dtype: np.dtype[Any], integer: str) -> None:
    """Scale and offset; the offset has the type of what it is taken from."""
    _argument(w, out, "scale", (shift.scale.numpy().astype(dtype), ""))
    if shift.zero is None or not (zero := shift.zero.numpy()).any():
        return
    _argument(w, out, "offset", (zero, integer) if integer else (zero.astype(dtype), ""))
