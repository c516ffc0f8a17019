"""Slices of a weight that hold the mean of the others, a block at a time: the largest weights are tables that write."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from .solve import Flags

CLOSE = 1e-5
"""How far what is gone may be from the mean of what stays, relative to the largest that stays."""
BLOCK = 1 << 16
"""Elements that are looked at at a time: what is made of them stays in the processor's cache."""


@dataclass(frozen=True)
class Mean:
    """The mean over the slices that stay, for those that are `gone`, along an axis.

    Attributes:
        scale: per slice, what it is multiplied by on its way to the mean; None where nothing is.
    """

    axis: int
    gone: Flags
    scale: np.ndarray | None = None

    def equals(self, other: Mean) -> bool:
        """Whether it is the same mean of the same slices."""
        if self.axis != other.axis or not np.array_equal(self.gone, other.gone):
            return False
        return self.scale is other.scale if self.scale is None else np.array_equal(self.scale, other.scale)  # type: ignore[arg-type]

    def write(self, array: np.ndarray) -> None:
        """Set what is gone to the mean of what stays, in place."""
        matrix, places = self._matrix(array), np.flatnonzero(self.gone)
        for part in _blocks(matrix):
            matrix[part, places] = self._of(matrix[part])
        if not np.may_share_memory(matrix, array):
            front = np.moveaxis(array, self.axis, -1)
            front[...] = matrix.reshape(front.shape)

    def holds(self, array: np.ndarray) -> bool:
        """Whether what is gone is the mean already, up to rounding."""
        matrix, stays, gone = self._matrix(array), np.flatnonzero(~self.gone), np.flatnonzero(self.gone)
        if not stays.size or (self.scale is not None and not self.scale[gone].all()):
            return False
        for part in _blocks(matrix):
            mean, rest = self._of(matrix[part]), matrix[part].take(gone, 1)
            far = _farthest(rest, mean)
            # No mean is larger than the largest, and what a mask wrote is closer than that.
            if self.scale is None and (far <= CLOSE * np.abs(mean[:, 0])).all():
                continue
            limit = CLOSE * np.abs(matrix[part].take(stays, 1)).max(1)
            if not (far <= limit).all():
                return False
        return True

    def _matrix(self, array: np.ndarray) -> np.ndarray:
        """The slices as columns."""
        return np.moveaxis(array, self.axis, -1).reshape(-1, self.gone.size)

    def _of(self, rows: np.ndarray) -> np.ndarray:
        """The mean of each row, one for all that is gone, or one for each of it."""
        weight = np.where(self.gone, 0, 1.0 if self.scale is None else self.scale)
        mean = (rows.astype(np.float64) @ weight)[:, None] / (~self.gone).sum()
        return np.asarray(mean if self.scale is None else mean / self.scale[self.gone])


def _farthest(rest: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """How far the farthest of each row is from its mean, one for the row or one for each of it."""
    if mean.shape[1] > 1:
        return np.asarray(np.abs(rest - mean).max(1))
    return np.asarray(np.maximum(rest.max(1) - mean[:, 0], mean[:, 0] - rest.min(1)))


def _blocks(matrix: np.ndarray) -> Iterator[slice]:
    step = max(1, BLOCK // max(matrix.shape[1], 1))
    return (slice(k, k + step) for k in range(0, matrix.shape[0], step))
