"""Cells: the parts of a weight that share a scale. A rounding method sees a weight cell by cell, whatever its axes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from .points import BLOCK


@dataclass(frozen=True)
class Cells:
    """How a weight of a shape is cut into cells.

    Attributes:
        axis: the axis of the channels (outputs).
        inputs: the axes that are summed over, the first is cut into blocks.
        block: inputs in a block; 0: a channel is one cell.
    """

    shape: tuple[int, ...]
    axis: int
    inputs: tuple[int, ...] = ()
    block: int = 0

    @property
    def blocks(self) -> int:
        """Blocks along the first of the inputs."""
        return -(-self.shape[self.inputs[0]] // self.block) if self.block else 1

    @property
    def _others(self) -> tuple[int, ...]:
        """Axes that are neither: matrices of a stack, directions of an LSTM. Their blocks have scales of their own."""
        return tuple(a for a in range(len(self.shape)) if a != self.axis and a not in self.inputs)

    def pieces(self, array: np.ndarray, size: int = BLOCK) -> Iterator[tuple[slice, np.ndarray]]:
        """Some channels at a time: which, and an array channels x cells x elements (contiguous), zeros at the end."""
        count = self.shape[self.axis]
        if not self.block:
            turned = np.moveaxis(array, self.axis, 0)
        else:
            turned = array.transpose(self.axis, *self._others, *self.inputs)
        step = max(1, size * count // max(1, array.size))
        for i in range(0, count, step):
            part = turned[i : i + step]
            if self.block:
                at = 1 + len(self._others)
                short = self.blocks * self.block - part.shape[at]
                if short:
                    part = np.pad(part, [(0, short if a == at else 0) for a in range(part.ndim)])
                cells = int(np.prod(part.shape[1:at], dtype=np.int64)) * self.blocks
            else:
                cells = 1
            yield slice(i, i + step), np.ascontiguousarray(part.reshape(len(part), cells, -1))

    def factors(self, found: np.ndarray) -> np.ndarray:
        """What was found for channels x cells, shaped as `points.spread` reads it."""
        if not self.block:
            return found.reshape(-1)
        sizes = [self.shape[self.axis], *(self.shape[a] for a in self._others), self.blocks]
        order = [self.axis, *self._others, *self.inputs]
        wide = found.reshape(sizes + [1] * (len(self.inputs) - 1))
        return np.ascontiguousarray(wide.transpose(np.argsort(order)))


def weighted_pieces(
    array: np.ndarray, cells: Cells, importance: np.ndarray | None
) -> Iterator[tuple[slice, np.ndarray, np.ndarray | None]]:
    """Some channels at a time: which, their elements and the importance of each."""
    if importance is None:
        yield from ((own, part, None) for own, part in cells.pieces(array))
        return
    for (own, part), (_, weights) in zip(cells.pieces(array), cells.pieces(importance), strict=True):
        yield own, part, weights


def binned(part: np.ndarray, weights: np.ndarray | None, bins: int) -> tuple[np.ndarray, np.ndarray]:
    """The elements of large cells, counted (or their weights) in bins of equal width: numbers and weights, `bins` each.

    The ends of a cell are numbers of their own, so that scales which reach them do so.
    """
    low, high = part.min(-1, keepdims=True), part.max(-1, keepdims=True)
    width = (high - low) / np.float32(bins - 1)
    usual = (width > 1e-37) & (width < 1e37)  # Else all count as the lowest: scales are float16.
    with np.errstate(all="ignore"):
        place = part - low
        place *= np.where(usual, 1 / width, np.float32(0))
    place += np.float32(0.5)
    at = np.where(usual, place, 0).astype(np.intp) if not usual.all() else place.astype(np.intp)
    at += np.arange(at[..., 0].size).reshape(*at.shape[:-1], 1) * bins
    flat = None if weights is None else weights.ravel()
    mass = np.bincount(at.ravel(), flat, low.size * bins).reshape(*part.shape[:-1], bins)
    return low + width * np.arange(bins, dtype=np.float32), mass.astype(np.float32)
