"""Choosing the grid of a weight: which scales, zero points and tables round it at the least square error.

`fit` needs no data. Given `importance`, a weight for each square error (say the second moments of the inputs), it
chooses with it. Rounding itself is `Grid.round`, or anything that sees errors beyond a single element.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from ..errors import EdgecError
from ..parallel import on_cores
from .cells import Cells, binned, weighted_pieces
from .grids import Affine, Grid, NumberFormat, Sparse, Table
from .gridtables import fit_table
from .kmeans import atoms
from .points import FORMATS
from .scales import Snap, asymmetric, integers, near, symmetric

Search = Callable[[np.ndarray, np.ndarray | None, "GridSpec"], tuple[np.ndarray, ...]]
Per = Literal["tensor", "channel", "block"]


@dataclass(frozen=True)
class GridSpec:
    """A kind of grid.

    Attributes:
        scheme: `affine`; `table`; `ternary` (-1, 0, 1) and `binary` (-1, 1), scaled; a key of `points.FORMATS`.
        bits: of an index: 1 … 8; ignored by schemes that say it themselves.
        symmetric: affine: no zero points.
        per: what shares a scale; a table per tensor has none, and float16 and bfloat16 never have.
        block: inputs that share a scale, with per="block".
        group: channels that share a table; 0: all.
        vector: neighbouring channels that share an index into a table.
        search: choose scales for the least square error; else such that the largest number is reached.
        zeros: what is zero stays so: `apart`, in a mask, and the grid is fitted to the rest; `within`, 0 is one of the
            grid's numbers; "": zeros are numbers like others.
    """

    scheme: str = "affine"
    bits: int = 8
    symmetric: bool = True
    per: Per = "channel"
    block: int = 32
    group: int = 0
    vector: int = 1
    search: bool = True
    zeros: Literal["", "apart", "within"] = ""


def fit(
    array: np.ndarray,
    axis: int,
    spec: GridSpec,
    importance: np.ndarray | None = None,
    inputs: tuple[int, ...] = (),
) -> Grid | Sparse:
    """The grid of that kind that suits a float32 weight best; `Sparse` where its zeros are to stay.

    `axis` is that of the outputs; `inputs` are those that are summed over, the first is cut into blocks (by default
    all others); `importance` broadcasts against the weight, and is not negative. Raises scales.Unreachable where
    numbers are too large for float16 scales or tables, EdgecError for NaN and infinities.
    """
    check_finite(array)
    if importance is not None:
        importance = np.broadcast_to(np.asarray(importance, np.float32), array.shape)
    inputs = inputs or tuple(a for a in range(array.ndim) if a != axis)
    if (spec.scheme, spec.zeros) in (("table", "apart"), ("binary", "apart"), ("binary", "within")):
        # Of other grids 0 is a number, and they lose nothing by it.
        others = (array != 0).astype(np.float32)
        importance = others if importance is None else importance * others
    grid = _fit(array, axis, spec, importance, inputs)
    return Sparse(grid) if spec.zeros else grid


def _fit(array: np.ndarray, axis: int, spec: GridSpec, importance: np.ndarray | None, inputs: tuple[int, ...]) -> Grid:
    if spec.scheme == "table":
        scaled, zero = spec.per != "tensor", spec.zeros == "within"
        return fit_table(array, axis, spec.bits, importance, scaled, spec.group, spec.vector, zero)
    if spec.scheme in ("float16", "bfloat16"):
        return NumberFormat(spec.scheme)
    cells = Cells(array.shape, axis, inputs, spec.block if spec.per == "block" else 0)
    place = None if spec.per == "tensor" else inputs[0] if spec.per == "block" else axis
    if spec.scheme == "affine" and not spec.symmetric:
        scales, zeros = _searched(array, cells, spec, importance, _zero_points)
        return Affine(spec.bits, scales, place, cells.block, zeros.astype(np.uint8), signed=False)
    grid = unit(spec)
    (scales,) = _searched(array, cells, replace(spec, bits=grid.bits), importance, _scales)
    if isinstance(grid, Table):
        return replace(grid, axis=axis, scales=np.full(array.shape[axis], scales) if place is None else scales)
    return replace(grid, scales=scales, axis=place, block=cells.block)  # type: ignore[type-var]


def check_finite(array: np.ndarray) -> None:
    """Raise EdgecError for NaN and infinities."""
    if array.size and not (np.isfinite(array.min()) and np.isfinite(array.max())):
        kind = "NaN" if np.isnan(array).any() else "infinity"
        raise EdgecError(f"it holds {kind}, which no grid has")


def unit(spec: GridSpec) -> Grid:
    """The grid with a scale of 1. Not for tables."""
    one = np.ones((), np.float16)
    if spec.scheme in FORMATS:
        return NumberFormat(spec.scheme)
    if spec.scheme == "binary":
        return Table(1, np.array([[[-1], [1]]], np.float16))
    if spec.scheme == "ternary":
        return Affine(2, one, narrow=True)
    return Affine(spec.bits, one, narrow=spec.bits == 8)


def _snap(spec: GridSpec) -> tuple[Snap, tuple[float, float]]:
    """What rounds to the points of the unit grid, and how far they reach below and above 0."""
    grid = unit(spec)
    if isinstance(grid, Affine):
        return integers(grid.low, grid.high), (-grid.low, max(1, grid.high))
    if isinstance(grid, NumberFormat) and grid.bits == 4:
        return near(grid.decode(np.arange(16, dtype=np.uint8))), (grid.largest, grid.largest)
    if isinstance(grid, NumberFormat):
        kind, end = grid, grid.largest
        return lambda x: kind.decode_rows(kind.encode_rows(x, ALL, x.shape), ALL, x.shape), (end, end)
    return lambda x: np.where(x < 0, x.dtype.type(-1), x.dtype.type(1)), (1, 1)


ALL = slice(None)

BINS = {2: 128, 3: 256, 4: 512}
"""By bits, in how many bins the elements of a large cell are counted before scales are tried: 32 for each step."""


def _scales(cells: np.ndarray, weights: np.ndarray | None, spec: GridSpec) -> tuple[np.ndarray, ...]:
    snap, ends = _snap(spec)
    return (symmetric(cells, snap, ends, spec.bits, weights, spec.search),)


def _zero_points(cells: np.ndarray, weights: np.ndarray | None, spec: GridSpec) -> tuple[np.ndarray, ...]:
    return asymmetric(cells, spec.bits, weights, spec.search)


def _searched(
    array: np.ndarray, cells: Cells, spec: GridSpec, importance: np.ndarray | None, search: Search
) -> list[np.ndarray]:
    """What `search` finds for each cell, shaped for the grid."""
    if spec.per == "tensor":
        x, mass = atoms(array, importance)
        return [a.reshape(()) for a in search(x.astype(np.float32), mass.astype(np.float32), spec)]
    bins = BINS.get(spec.bits, 0) if spec.scheme in ("affine", "ternary") else 0

    def work(piece: tuple[slice, np.ndarray, np.ndarray | None]) -> tuple[np.ndarray, ...]:
        _, part, weights = piece
        if bins and spec.search and part.shape[-1] >= 2 * bins:
            part, weights = binned(part, weights, bins)
        return search(part, weights, spec)

    found = on_cores(work, weighted_pieces(array, cells, importance))
    return [cells.factors(np.concatenate(part)) for part in zip(*found, strict=True)]
