"""How important a slice is: from weights alone. What needs activations is in `activations`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from ..graph import const
from ..weights import release_value
from .coupling import Coupling, Hold
from .solve import Solution

Amounts = Callable[[np.ndarray], np.ndarray]
"""Slices as rows (slices x elements) → an amount for each."""
STEPS = 8
"""Of Weiszfeld's iteration: the order of the slices settles in fewer."""
BLOCK = 1 << 17
"""Elements that are summed at a time."""


def element_scores(coupling: Coupling, found: Solution, kind: str) -> np.ndarray:
    """Per class, the amounts of its slices, each relative to the mean over the slices of that axis of that weight.

    `kind` is l1, l2, geometric-median or bn. Slices that masking leaves alone (divisors, variances) don't count.
    Reads every weight a few times, block by block.
    """
    if kind == "bn":
        return _scales(coupling, found)
    scores = np.zeros(found.count)
    for value, holds in coupling.holds.items():
        masked = [h for h in holds if h.masked and h.fill is None]
        array = const(value) if masked else None
        if array is None or array.dtype.kind != "f":
            continue
        if kind == "geometric-median":
            found_here = [_from_median(_rows(array, h)) for h in masked]
        else:
            sums = _summed(_SIZES[kind], array.reshape(masked[0].view), [h.grid.axes for h in masked])
            found_here = [s if kind == "l1" else np.sqrt(s) for s in sums]
        for h, amounts in zip(masked, found_here, strict=True):
            add_relative(scores, found.of[h.grid.ids], amounts)
        release_value(value)
    return scores


def add_relative(scores: np.ndarray, classes: np.ndarray, amounts: np.ndarray) -> None:
    """Add amounts to the scores of these classes, relative to their mean."""
    np.add.at(scores, classes.reshape(-1), (amounts / max(float(amounts.mean()), 1e-30)).reshape(-1))


_SIZES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "l1": np.abs,
    "l2": lambda a: np.square(a, dtype=np.float32),
}


def _summed(
    size: Callable[[np.ndarray], np.ndarray], array: np.ndarray, kept: Sequence[Sequence[int]]
) -> list[np.ndarray]:
    """Sums of sizes over all axes but those that are kept, which come in the order given. One reading for all."""
    sums = [np.zeros([array.shape[a] for a in sorted(axes)]) for axes in kept]
    for part in _blocks(array.shape):
        block, depth = size(array[part]).astype(np.float64), len(part) - 1
        for axes, total in zip(kept, sums, strict=True):
            here = tuple(part[a] for a in sorted(axes) if a <= depth)
            total[here] += _alone(block, [a - depth for a in axes if a >= depth])
    return [s.transpose(np.argsort(np.argsort(axes))) for s, axes in zip(sums, kept, strict=True)]


def _alone(block: np.ndarray, kept: Sequence[int]) -> np.ndarray:
    """Sums over all axes but these. Short axes at the end come last, when little is left."""
    if kept and 0 not in kept:
        return _alone(block.sum(0), [a - 1 for a in kept])
    if max(kept, default=-1) < len(kept):
        return np.asarray(block.reshape(*block.shape[: len(kept)], -1).sum(-1))
    return np.asarray(block.sum(tuple(a for a in range(block.ndim) if a not in kept)))


def _blocks(shape: Sequence[int]) -> Iterator[tuple[int | slice, ...]]:
    """Indices of leading axes, and ranges of the next one, that cut an array into blocks."""
    sizes = np.cumprod([1, *reversed(shape)])[::-1]
    depth = next((d for d, n in enumerate(sizes[1:]) if n <= BLOCK), 0)
    step = max(1, BLOCK // max(int(sizes[depth + 1]), 1))
    for lead in np.ndindex(*shape[:depth]):
        for k in range(0, shape[depth], step):
            yield (*lead, slice(k, k + step))


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
