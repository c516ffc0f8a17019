"""Tables that a package scales before they are looked up in: coremltools writes a scale per channel so.

    constexpr_blockwise_shift_scale(data [g…, entries, 1], scale [h…, 1, 1]) → lut of constexpr_lut_to_dense

What is stored is one table, or one for each group along an axis, and scales. Scaling what is looked up instead gives
the same numbers, and is a form that stays packed (compiler/functions.py).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from .call import Call

_SCALED = "edgec.scaled"


@dataclass(frozen=True, eq=False)
class Scaled:
    """The constants of a `constexpr_blockwise_shift_scale`; `half`: its products are rounded to float16."""

    data: np.ndarray
    scale: np.ndarray
    offset: np.ndarray | None
    half: bool

    def parts(self) -> tuple[np.ndarray, np.ndarray | None] | None:
        """Tables [groups, entries, vector] in the rank given, of one axis at most, and the scales behind them if any.

        None where tables differ along several axes.
        """
        *groups, _, vector = self.data.shape
        base = _reduced(self.data)
        whole = all(n == 1 for n in self.scale.shape[-2:])
        if self.offset is None and vector == 1 and whole and _axes(base) <= 1 and _axes(self.scale) > 0:
            blocked = [1 < h < g for h, g in zip(self.scale.shape[:-2], groups, strict=True)]
            if sum(blocked) == 0:
                return _stored(base), self.scale.reshape(self.scale.shape[:-2])
        shifted = self.data.astype(np.float32) - (0 if self.offset is None else _spread(self.offset, self.data.shape))
        found = shifted * _spread(self.scale, self.data.shape)
        tables = _reduced(found.astype(np.float16) if self.half else found)
        return (_stored(tables), None) if _axes(tables) <= 1 else None


def note(o: Call, value: ir.Value) -> None:
    """Remember with the result of a `constexpr_blockwise_shift_scale` what it is made of, if that is constant."""
    data, scale = o.literal("data"), o.literal("scale")
    offset = o.literal("offset") if o.has("offset") else None
    if data is not None and scale is not None and (offset is not None or not o.has("offset")) and data.count <= MOST:
        known = Scaled(
            data.numpy(), scale.numpy().astype(np.float32), None if offset is None else offset.numpy(),
            o.type("scale").dtype == "fp16")  # fmt: skip
        value.meta[_SCALED] = known


MOST = 1 << 20
"""Elements up to which `data` may be tables: weights have more, and are not read here."""


def scaled(o: Call, name: str) -> Scaled | None:
    """What the tables given as an argument are made of."""
    given = o.arguments.get(name)
    value = given[0].value if given and o.literal(name) is None else None
    while value is not None and _SCALED not in value.meta and (node := value.producer()) and node.op_type == "Cast":
        value = node.inputs[0]
    found = None if value is None else value.meta.get(_SCALED)
    return found if isinstance(found, Scaled) else None


def _reduced(array: np.ndarray) -> np.ndarray:
    """The array with one slice of each axis, but of the last two, along which all slices are the same."""
    for axis in range(array.ndim - 2):
        first = array.take([0], axis)
        array = first if (array == first).all() else array
    return array


def _axes(array: np.ndarray) -> int:
    return sum(n > 1 for n in array.shape[:-2])


def _stored(tables: np.ndarray) -> np.ndarray:
    """Integers as float16, which holds those of eight bits."""
    return tables if tables.dtype.kind == "f" else tables.astype(np.float16)


def _spread(factors: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    wide = factors.astype(np.float32)
    for axis, (g, n) in enumerate(zip(factors.shape, shape, strict=True)):
        wide = np.repeat(wide, n // g, axis) if g < n else wide
    return wide
