"""Ranges of channels, and the factors that make them even."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..compiler import graph as g
from ..compiler.channels.components import components
from ..compiler.weights import release_tensor
from .channel_gains import Ids, Use

SMALLEST = 2.0**-12
"""Of the largest range: what channels have at least when factors are chosen. Smaller ones hardly matter."""


def ranges_of(use: Use) -> np.ndarray:
    """The largest magnitudes of a weight in its view, over the places of a kernel."""
    array, tensor = g.const(use.constant), g.const_tensor(use.constant)
    assert array is not None and tensor is not None
    seen = array.reshape(use.view)
    if use.node.op_type in ("Conv", "ConvTranspose"):
        found = np.maximum(seen.max(-1, keepdims=True), -seen.min(-1, keepdims=True))
    else:
        found = np.abs(seen)
    release_tensor(tensor)
    return np.asarray(found)


def largest_by(ids: Ids, ranges: np.ndarray, sides: np.ndarray) -> None:
    """Note in `sides` (what factors multiply, what they divide; by factor) the largest ranges under these ids.

    `ranges` broadcast to what the ids are over; noted is their share of the largest.
    """
    largest = ranges.max()
    if largest > 0:
        own = ranges.max(tuple(a for a, n in enumerate(ids.shape) if n == 1), keepdims=True) / largest
        np.maximum.at(sides, ((ids < 0).astype(int), np.abs(ids)), own)


def sets_of(uses: Sequence[Use], count: int) -> list[tuple[np.ndarray, list[Use]]]:
    """Factors that channels of one value have, and those of what it is added to; with the weights that they go into."""
    firsts = [int(np.abs(u.ids)[u.ids != 0][0]) for u in uses]
    a = np.concatenate([np.abs(u.ids)[u.ids != 0].reshape(-1) for u in uses])
    b = np.repeat(firsts, [np.count_nonzero(u.ids) for u in uses])
    of = components(a, b, count)
    found: dict[int, list[Use]] = {}
    for use, first in zip(uses, firsts, strict=True):
        found.setdefault(int(of[first]), []).append(use)
    return [(np.flatnonzero(of == c), members) for c, members in found.items()]


def even(plus: np.ndarray, minus: np.ndarray, alpha: float = 0.5) -> np.ndarray:
    """The factors minus^(1 - alpha) / plus^alpha, times what keeps the largest of `plus` times factors as it is.

    With alpha = 0.5 both sides are even afterwards; with 1 all of `plus` is alike.
    """
    both = (plus > 0) & (minus > 0)
    if not both.any():
        return np.ones(plus.size)
    a, b = (np.maximum(x, x.max() * SMALLEST)[both] for x in (plus, minus))
    found = b ** (1 - alpha) / a**alpha
    found *= a.max() / (a * found).max()
    made = np.ones(plus.size)
    made[both] = found
    return made
