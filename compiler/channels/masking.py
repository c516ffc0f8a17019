"""Masking: what a set of dead classes means for the numbers of weights. Each weight is copied and written once."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from ..graph import const
from ..weights import Scratch, release_value
from .balance import settle
from .coupling import Coupling, Hold
from .shrink import replace_tensor
from .solve import Flags, Solution


def mask(model: ir.Model, coupling: Coupling, found: Solution, dead: Flags, scratch: Scratch | None = None) -> int:
    """Set every slice of these classes to zero, where masking may; returns how many weights changed.

    Normalisations that lose channels are put right: see `balance`.
    """
    changed, means = settle(coupling, found, dead, scratch)
    gone = dead[found.of]
    for value in coupling.holds:
        touched = [h for h in coupling.zeroed(value) if gone[h.grid.ids].any()]
        if not touched and value not in means:
            continue
        array = np.array(const(value), order="C")
        release_value(value)
        for mean in means.get(value, ()):
            mean.write(array)
        for h in touched:
            blank(array, h, gone[h.grid.ids])
        replace_tensor(value, array, scratch)
        changed.add(value)
    return len(changed)


def blank(array: np.ndarray, h: Hold, gone: Flags) -> None:
    """Set what lies under ids that are `gone` (a flag per id of the grid) to zero, or to what it is filled with."""
    seen = array.reshape(h.view)
    if h.fill is not None:
        here = _spread(h.view, h.grid.axes, gone)
        seen[here] = np.broadcast_to(h.fill, h.view)[here]
        return
    first, last = min(h.grid.axes), max(h.grid.axes)
    if last < len(h.grid.axes):
        # Whole rows, one after the other in memory.
        flat = gone.transpose(np.argsort(h.grid.axes)).reshape(-1)
        seen.reshape(flat.size, -1)[np.flatnonzero(flat)] = 0
        return
    # The same positions in every row. Bits that are cleared make zeros faster than numbers that are assigned.
    inside = h.view[first:]
    word = np.dtype(f"u{array.dtype.itemsize}")
    stays = ~_spread(inside, [a - first for a in h.grid.axes], gone).reshape(-1)
    rows = seen.view(word).reshape(math.prod(h.view[:first]), stays.size)
    np.bitwise_and(rows, stays.astype(word) * ~word.type(0), out=rows)


def _spread(view: Sequence[int], axes: Sequence[int], over_ids: np.ndarray) -> np.ndarray:
    """What is given per id, for every element of a constant."""
    front = over_ids.transpose(np.argsort(axes))
    return np.broadcast_to(front.reshape([n if a in axes else 1 for a, n in enumerate(view)]), view)
