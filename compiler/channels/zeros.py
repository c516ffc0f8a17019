"""Which slices of constants are zero, without reading what need not be read: most are not, and one number says so."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

FEW = 8


def alive(array: np.ndarray, axes: Sequence[int]) -> np.ndarray:
    """For all positions on `axes`, in that order: whether anything there is not zero."""
    front = np.moveaxis(array, axes, range(len(axes)))
    k = len(axes)
    rest = front.shape[k:]
    if not rest or 0 in rest:
        return front.reshape(*front.shape[:k], -1).any(-1)
    found = np.asarray(front[(..., *(0 for _ in rest))] != 0)
    for at in (tuple(n // 2 for n in rest), tuple(n - 1 for n in rest)):
        if found.all():
            return found
        found |= front[(..., *at)] != 0
    left = np.argwhere(~found)
    if len(left) <= FEW:
        for position in left:
            found[tuple(position)] = bool(front[tuple(position)].any())
        return found
    return np.asarray((front != 0).any(tuple(range(k, front.ndim))))
