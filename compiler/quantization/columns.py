"""Rounding a weight one input at a time: what a grid says about all outputs of a layer for one of its inputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ..calibration.linear_layers import Layer
from .grids import Affine, Grid, NumberFormat, Sparse, Table
from .points import FORMATS, NF4, midpoints, nearest_vectors, spread

ONE = np.float32(1)


@dataclass(frozen=True)
class Columns:
    """The numbers of a grid, by inputs of a layer.

    Attributes:
        of: arrays inputs (or 1: alike for all) x groups x outputs, by name.
        snap: rounds numbers of one input (groups x outputs), given what `of` holds for it.
    """

    snap: Callable[..., np.ndarray]
    of: dict[str, np.ndarray] = field(default_factory=dict)
    vector: int = 1

    def round(self, i: int, numbers: np.ndarray) -> np.ndarray:
        """The nearest numbers of the grid for input `i`, groups x outputs."""
        return self.snap(numbers, **{k: a[i if len(a) > 1 else 0] for k, a in self.of.items()})

    def take(self, outputs: np.ndarray) -> Columns:
        """Of these outputs only."""
        return replace(self, of={k: a[..., outputs] if a.shape[-1] > 1 else a for k, a in self.of.items()})

    def order(self, inputs: np.ndarray) -> Columns:
        """With the inputs in another order."""
        return replace(self, of={k: a[inputs] if len(a) > 1 else a for k, a in self.of.items()})


def columns(grid: Grid | Sparse, layer: Layer, array: np.ndarray) -> Columns | None:
    """How to round `array`, the layer's weight, to `grid`; None where several inputs are rounded together."""
    if isinstance(grid, Sparse):
        inner = columns(grid.inner, layer, array) if grid.inner is not None else Columns(lambda numbers: numbers)
        if inner is None or inner.vector > 1:
            return None
        zero = _by_input(layer, array) == 0
        return Columns(
            lambda numbers, zero, **of: np.where(zero, 0, inner.snap(numbers, **of)), {**inner.of, "zero": zero}
        )
    return _COLUMNS[type(grid)](grid, layer, array.shape)


def _by_input(layer: Layer, array: np.ndarray) -> np.ndarray:
    """An array of the weight's shape as inputs x groups x outputs."""
    return np.ascontiguousarray(layer.matrix(array).transpose(2, 0, 1))


def _spread(
    layer: Layer, factors: np.ndarray | None, axis: int | None, block: int, shape: tuple[int, ...]
) -> dict[str, np.ndarray]:
    """`factors` by input, once where they are the same for all."""
    if factors is None:
        return {}
    wide = spread(factors, axis, block, shape, slice(0, shape[0]))
    if wide.ndim == 0:
        return {"scale": wide.reshape(1, 1, 1)}
    full = _by_input(layer, np.broadcast_to(wide, shape))
    return {"scale": full[:1] if (full == full[:1]).all() else full}


def _affine(grid: Affine, layer: Layer, shape: tuple[int, ...]) -> Columns:
    low, high = np.float32(grid.low), np.float32(grid.high)

    def snap(numbers: np.ndarray, scale: np.ndarray, zero: Any = 0) -> np.ndarray:
        # Step by step in one place: this is called for each input, and np.clip alone takes as long as all of it.
        q = numbers / scale
        np.rint(q, out=q)
        q += zero
        np.maximum(q, low, out=q)
        np.minimum(q, high, out=q)
        q -= zero
        q *= scale
        return np.asarray(q)

    zeros = _spread(layer, grid.zeros, grid.axis, grid.block, shape)
    named = {"zero": zeros["scale"]} if zeros else {}
    return Columns(snap, {**_spread(layer, grid.scales, grid.axis, grid.block, shape), **named})


def _format(grid: NumberFormat, layer: Layer, shape: tuple[int, ...]) -> Columns:
    kind, largest = FORMATS[grid.name][1], grid.largest
    points = np.array(NF4, np.float32)

    def snap(numbers: np.ndarray, scale: Any = ONE) -> np.ndarray:
        scaled = numbers / scale
        if kind is None:
            return np.asarray(points[np.searchsorted(midpoints(points), scaled, side="right")] * scale)
        return np.asarray(np.clip(scaled, -largest, largest).astype(kind).astype(np.float32) * scale)

    return Columns(snap, _spread(layer, grid.scales, grid.axis, grid.block, shape))


def _table(grid: Table, layer: Layer, shape: tuple[int, ...]) -> Columns | None:
    of = _spread(layer, grid.scales, grid.axis, 0, shape)
    tables = grid.tables.astype(np.float32)
    if grid.vector > 1:
        return _vectors(grid, layer, shape, tables, of) if len(tables) == 1 else None
    tables = np.sort(tables[:, :, 0], axis=1)
    if len(tables) == 1:
        points, between = tables[0], midpoints(tables[0])

        def snap(numbers: np.ndarray, scale: Any = ONE) -> np.ndarray:
            return np.asarray(points[np.searchsorted(between, numbers / scale, side="right")] * scale)

        return Columns(snap, of)
    return Columns(_several(tables), {**of, **_groups(grid, layer, shape)})


def _groups(grid: Table, layer: Layer, shape: tuple[int, ...]) -> dict[str, np.ndarray]:
    """Which table each number looks into."""
    ids = np.arange(shape[grid.axis]) // grid.group
    return {"table": _spread(layer, ids, grid.axis, 0, shape)["scale"].astype(np.int32)}


def _several(tables: np.ndarray) -> Callable[..., np.ndarray]:
    """Rounding to one of several tables, all in one search: each table lies in an interval of its own."""
    low = tables[:, :1].astype(np.float64)
    width = np.maximum(tables[:, -1:] - low, 1e-30) * 1.0000001
    middle = (tables[:, 1:].astype(np.float64) + tables[:, :-1]) / 2
    between = ((middle - low) / width + np.arange(len(tables))[:, None]).reshape(-1)
    each = tables.shape[1]

    def snap(numbers: np.ndarray, table: np.ndarray, scale: Any = ONE) -> np.ndarray:
        place = np.clip((numbers / scale - low[table, 0]) / width[table, 0], 0, 1 - 1e-7) + table
        found = np.searchsorted(between, place, side="right") - table * (each - 1)
        return np.asarray(tables[table, np.clip(found, 0, each - 1)] * scale)

    return snap


def _vectors(
    grid: Table, layer: Layer, shape: tuple[int, ...], tables: np.ndarray, of: dict[str, np.ndarray]
) -> Columns | None:
    """Vectors of neighbouring outputs; None where neighbours along the channel axis are something else."""
    v = grid.vector
    ids = np.arange(np.prod(shape)).reshape(shape)
    step = int(np.prod(shape[grid.axis + 1 :]))
    seen = layer.matrix(ids)
    if seen.shape[1] % v or (np.diff(seen[:, :v], axis=1) != step).any():
        return None

    def snap(numbers: np.ndarray, scale: Any = ONE) -> np.ndarray:
        scaled = numbers / scale
        lanes = scaled.reshape(*scaled.shape[:-1], -1, v)
        return np.asarray(tables[0][nearest_vectors(lanes, tables[0])].reshape(scaled.shape) * scale)

    return Columns(snap, of, v)


_COLUMNS: dict[type[Grid], Callable[[Any, Layer, tuple[int, ...]], Columns | None]] = {
    Affine: _affine,
    Table: _table,
    NumberFormat: _format,
}


def product(errors: np.ndarray, moments: np.ndarray) -> np.ndarray:
    """What errors of some inputs (inputs x groups x outputs) mean for others: others x groups x outputs.

    `moments`, or factors of them, are groups x inputs x others; one group stands for all.
    """
    if len(moments) == 1:
        return np.asarray(moments[0].T @ errors.reshape(len(errors), -1)).reshape(-1, *errors.shape[1:])
    return np.asarray(np.einsum("kgo,gkj->jgo", errors, moments))
