"""Ids through reshapes: which axes become which, and grids after axes were split or merged."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ..dims import Dim, exact_div, mul
from .coupling import Coupling
from .grids import Grid


def grouped(axes: Sequence[Dim], others: Sequence[Dim]) -> list[tuple[list[int], list[int]]]:
    """The axes of two shapes of equal size, in groups whose products are equal: (axes here, axes there)."""
    groups, i, j = [], 0, 0
    while i < len(axes) or j < len(others):
        a, b = [i] if i < len(axes) else [], [j] if j < len(others) else []
        pa, pb = (axes[i] if a else 1), (others[j] if b else 1)
        i, j = i + len(a), j + len(b)
        while pa != pb:
            here = exact_div(pa, pb) is not None if not (isinstance(pa, int) and isinstance(pb, int)) else pa > pb
            if (here or i >= len(axes)) and j < len(others):
                pb, j = mul(pb, others[j]), j + 1
                b.append(j - 1)
            elif i < len(axes):
                pa, i = mul(pa, axes[i]), i + 1
                a.append(i - 1)
            else:
                break
        groups.append((a, b))
    return groups


def refold(
    coupling: Coupling, grid: Grid, block: Sequence[int], dims: Sequence[int], to: Sequence[int], sizes: Sequence[int]
) -> Grid:
    """A grid after the axes `block` (of extents `dims`) were reshaped into axes `to` (of extents `sizes`).

    Axes of the block that the grid doesn't lie over are added, all alike. Where the block's order isn't the order in
    which they were split, survivors must be rows times columns.
    """
    inside = [grid.at(a) for a in block if a in grid.axes]
    outside = [d for d in range(grid.ids.ndim) if d not in inside]
    before = [d for d in outside if d < min(inside)]
    after = [d for d in outside if d > min(inside)]
    order = [*before, *inside, *after]
    if order != sorted(order):
        coupling.atoms.align(grid.ids)
    ids = grid.ids.transpose(order)
    shape, at = list(ids.shape), len(before)
    full = (
        shape[:at] + [n if a in grid.axes else 1 for a, n in zip(block, dims, strict=True)] + shape[at + len(inside) :]
    )
    wide = shape[:at] + list(dims) + shape[at + len(inside) :]
    ids = np.broadcast_to(ids.reshape(full), wide).reshape([*shape[:at], *sizes, *shape[at + len(inside) :]])
    assert math.prod(dims) == math.prod(sizes)
    axes = [grid.axes[d] for d in before], [grid.axes[d] for d in after]
    return Grid(ids, (*axes[0], *to, *axes[1]), grid.zero)
