"""How important a slice is: from weights alone. What needs activations is in `activations`."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..graph import const
from .coupling import Coupling, Hold
from .solve import Solution

Amounts = Callable[[np.ndarray], np.ndarray]
"""Slices as rows (slices x elements) → an amount for each."""
STEPS = 8
"""Of Weiszfeld's iteration: the order of the slices settles in fewer."""


def element_scores(coupling: Coupling, found: Solution, kind: str) -> np.ndarray:
    """Per class, the amounts of its slices, each relative to the mean over the slices of that axis of that weight.

    `kind` is l1, l2, geometric-median or bn. Slices that masking leaves alone (divisors, variances) don't count.
    Reads every weight once.
    """
    if kind == "bn":
        return _scales(coupling, found)
    scores = np.zeros(found.count)
    for value, holds in coupling.holds.items():
        masked = [h for h in holds if h.masked and h.fill is None]
        array = const(value) if masked else None
        if array is None or array.dtype.kind != "f":
            continue
        size = _SIZES[kind](array) if kind in _SIZES else array
        for h in masked:
            if kind == "geometric-median":
                amounts = _from_median(_rows(size, h))
            else:
                amounts = size.reshape(h.view).sum(_others(h), dtype=np.float64)
                amounts = amounts.transpose(np.argsort(np.argsort(h.grid.axes)))
                amounts = amounts if kind == "l1" else np.sqrt(amounts)
            add_relative(scores, found.of[h.grid.ids], amounts)
    return scores


def add_relative(scores: np.ndarray, classes: np.ndarray, amounts: np.ndarray) -> None:
    """Add amounts to the scores of these classes, relative to their mean."""
    np.add.at(scores, classes.reshape(-1), (amounts / max(float(amounts.mean()), 1e-30)).reshape(-1))


_SIZES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "l1": np.abs,
    "l2": lambda a: np.square(a, dtype=np.float32),
}


def _others(h: Hold) -> tuple[int, ...]:
    return tuple(a for a in range(len(h.view)) if a not in h.grid.axes)


def _rows(array: np.ndarray, h: Hold) -> np.ndarray:
    """The slices under a grid as rows, in the order of its ids."""
    front = array.reshape(h.view).transpose(*h.grid.axes, *_others(h))
    return front.reshape(h.grid.ids.size, -1).astype(np.float32)


def _from_median(rows: np.ndarray) -> np.ndarray:
    """Distances to the geometric median of all rows (Weiszfeld 1937): what is close to it, others can stand in for.

    He et al., "Filter Pruning via Geometric Median", 2019.
    """
    center = rows.mean(0, dtype=np.float64).astype(np.float32)
    for _ in range(STEPS):
        far = np.maximum(np.sqrt(np.square(rows - center).sum(1)), 1e-12)
        center = (rows / far[:, None]).sum(0) / (1 / far).sum()
    return np.asarray(np.sqrt(np.square(rows - center).sum(1)), np.float64)


def _scales(coupling: Coupling, found: Solution) -> np.ndarray:
    """The absolute scales of batch normalisations (Liu et al., "Network Slimming", 2017); l2 where there are none."""
    scores, has = np.zeros(found.count), np.zeros(found.count, bool)
    for value, holds in coupling.holds.items():
        if any(n.op_type == "BatchNormalization" and not n.domain and i == 1 for n, i in value.uses()):
            scale = const(value)
            assert scale is not None
            for h in holds:
                add_relative(scores, found.of[h.grid.ids], np.abs(_rows(scale, h)).sum(1))
                has[found.of[h.grid.ids]] = True
    return scores if has.all() else np.where(has, scores, element_scores(coupling, found, "l2"))
