"""Which weights go: the least of all, of each row, of every m neighbours, or of blocks; and what others make up for it.

Matrices are groups x outputs x inputs, as in `compiler.linear_layers`. A mask is true where a weight becomes zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.linalg import LinAlgError, cholesky, lapack

COLUMNS = 128
"""Inputs that are worked on at a time; SparseGPT chooses the weights that go among these."""
BINS, LOWEST = 4096, -64.0
"""Bins of a weight's share, from 2^LOWEST to 1, each in the same ratio to the next."""
FINE = 1 << 16
"""Bins of all squares that float32 has, 2^-150 to 2^130."""


@dataclass(frozen=True)
class Pattern:
    """What a mask looks like.

    Attributes:
        ratio: the share of the weights that goes.
        few, many: `few` of `many` neighbouring inputs stay; `many` of 1: any.
        block: neighbouring outputs that go together.
        rows: whether weights are compared within a row only.
    """

    ratio: float
    few: int = 1
    many: int = 1
    block: int = 1
    rows: bool = False

    def mask(self, scores: np.ndarray, taps: int = 1) -> np.ndarray:
        """What goes, by scores that are mean squares; of inputs = channels x taps, neighbours are channels."""
        if self.many > 1:
            return _few_of_many(scores, taps, self.few, self.many)
        each = _blocked(scores, self.block)
        groups, outputs, inputs = each.shape
        flat = each.reshape(groups * outputs, inputs) if self.rows else each.reshape(1, -1)
        mask = least(flat, round(self.ratio * flat.shape[1])).reshape(each.shape)
        return mask if self.block == 1 else np.repeat(mask, self.block, 1)[:, : scores.shape[1]]


def least(scores: np.ndarray, count: int) -> np.ndarray:
    """True for the `count` least of each row; of equal ones the first."""
    if count >= scores.shape[1]:
        return np.ones(scores.shape, bool)
    if count < 1:
        return np.zeros(scores.shape, bool)
    last = np.partition(scores, count - 1, axis=1)[:, count - 1, None]
    mask = np.asarray(scores <= last)
    over = np.flatnonzero(mask.sum(1) > count)
    if over.size:
        some, edge = scores[over], last[over]
        less, same = some < edge, some == edge
        mask[over] = less | (same & (np.cumsum(same, 1) <= count - less.sum(1, keepdims=True)))
    return mask


def _blocked(scores: np.ndarray, block: int) -> np.ndarray:
    """The mean over `block` neighbouring outputs each; the last block may have fewer."""
    if block == 1:
        return scores
    starts = np.arange(0, scores.shape[1], block)
    sizes = np.diff(np.append(starts, scores.shape[1]))
    return np.asarray(np.add.reduceat(scores, starts, 1) / sizes[:, None].astype(scores.dtype))


def _few_of_many(scores: np.ndarray, taps: int, few: int, many: int) -> np.ndarray:
    """True but for `few` of every `many` neighbouring channels; what is left over at the end stays."""
    groups, outputs, inputs = scores.shape
    seen = scores.reshape(groups, outputs, inputs // taps, taps)
    whole = seen.shape[2] // many * many
    mask = np.zeros(seen.shape, bool)
    parts = seen[:, :, :whole].reshape(groups, outputs, -1, many, taps)
    flat = np.moveaxis(parts, 3, 4).reshape(-1, many)
    chosen = least(flat, many - few).reshape(groups, outputs, -1, taps, many)
    mask[:, :, :whole] = np.moveaxis(chosen, 4, 3).reshape(groups, outputs, whole, taps)
    return mask.reshape(scores.shape)


def repaired(matrix: np.ndarray, gram: np.ndarray, pattern: Pattern, taps: int, damping: float) -> np.ndarray:
    """The matrix with a mask, and with the weights that stay changed so that the outputs change least.

    Input by input, the error that its zeros make is handed on to the inputs behind it, by least squares on E[x x']
    (`gram`, groups or 1 x inputs x inputs; SparseGPT, Frantar & Alistarh, arXiv 2301.00774). Raises LinAlgError.
    """
    groups, _, inputs = matrix.shape
    # Neighbouring channels, of one tap after the other, behind each other.
    order = np.arange(inputs).reshape(-1, taps).T.reshape(-1) if pattern.many > 1 else np.arange(inputs)
    left = np.ascontiguousarray(matrix[:, :, order].transpose(0, 2, 1))
    upper = _inverse_root(gram[:, order][:, :, order], damping)
    upper = upper if len(upper) == groups else np.broadcast_to(upper, (groups, *upper.shape[1:]))
    for start, stop in _stretches(inputs, taps, pattern.many):
        errors = _stretch(left[:, start:stop], upper[:, start:stop, start:stop], pattern)
        if stop < inputs:
            left[:, stop:] -= upper[:, start:stop, stop:].transpose(0, 2, 1) @ errors
    result = np.empty_like(matrix)
    result[:, :, order] = left.transpose(0, 2, 1)
    return result


def _stretches(inputs: int, taps: int, many: int) -> list[tuple[int, int]]:
    """Inputs that are worked on together; none of `many` neighbours is apart from the others."""
    segment = inputs if many == 1 else inputs // taps
    step = max(1, COLUMNS // many) * many
    return [(a + i, a + min(i + step, segment)) for a in range(0, inputs, segment) for i in range(0, segment, step)]


def _stretch(left: np.ndarray, upper: np.ndarray, pattern: Pattern) -> np.ndarray:
    """Mask some inputs (groups x inputs x outputs, in place) and hand errors on among them; the errors."""
    inputs = left.shape[1]
    diagonal = np.einsum("gii->gi", upper)[:, :, None]
    errors = np.empty_like(left)
    mask = np.zeros(left.shape, bool)
    if pattern.many == 1:
        mask = _chosen(left, diagonal, pattern)
    for j in range(inputs):
        if pattern.many > 1 and j % pattern.many == 0 and j + pattern.many <= inputs:
            part = slice(j, j + pattern.many)
            mask[:, part] = _chosen(left[:, part], diagonal[:, part], pattern)
        errors[:, j] = np.where(mask[:, j], left[:, j], 0) / diagonal[:, j]
        left[:, j][mask[:, j]] = 0
        if j + 1 < inputs:
            left[:, j + 1 :] -= upper[:, j, j + 1 :, None] * errors[:, None, j]
    return errors


def _chosen(left: np.ndarray, diagonal: np.ndarray, pattern: Pattern) -> np.ndarray:
    """What goes, by the error that the other inputs can't make up for; groups x inputs x outputs."""
    return pattern.mask(np.square(left / diagonal).transpose(0, 2, 1)).transpose(0, 2, 1)


def _inverse_root(gram: np.ndarray, damping: float) -> np.ndarray:
    """The upper triangular U with U'U = (H + damping · mean(diagonal H) · 1)^-1, float32. Raises LinAlgError."""
    found = np.empty(gram.shape, np.float32)
    for h, u in zip(gram, found, strict=True):
        damped = h.astype(np.float64)
        damped[np.diag_indices_from(damped)] += damping * max(float(np.trace(damped)) / len(damped), 1e-30)
        # With both axes in reverse, a lower root of H is an upper one, and its inverse is U.
        root = cholesky(damped[::-1, ::-1], lower=True, overwrite_a=True, check_finite=False)[::-1, ::-1]
        inverse, fault = lapack.dtrtri(root, lower=0)
        if fault:
            raise LinAlgError("singular")
        u[...] = np.triu(inverse)
    return found


def counts(scores: np.ndarray) -> np.ndarray:
    """How many weights of a layer lie in each bin of what each contributes, relative to itself and all above it.

    That quotient can be compared between layers (LAMP, Lee et al., arXiv 2010.07611).
    """
    number, amount = np.zeros(FINE, np.int64), np.zeros(FINE)
    for part in np.array_split(scores.reshape(-1), max(1, scores.size >> 20)):
        with np.errstate(divide="ignore"):
            place = np.clip((np.log2(part) + 150) * (FINE / 280), 0, FINE - 1).astype(np.int64)
        number += np.bincount(place, minlength=FINE)
        amount += np.bincount(place, part, FINE)
    above = np.cumsum(amount[::-1])[::-1]
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.log2(amount / np.maximum(number, 1) / above)
    place = np.clip((np.nan_to_num(share, nan=LOWEST, neginf=LOWEST) / -LOWEST + 1) * BINS, 0, BINS - 1)
    return np.bincount(place.astype(np.int64), number, BINS)


def spread_over(bins: Sequence[np.ndarray], ratio: float) -> list[float]:
    """Each layer's share of weights that go, when of all of them `ratio` of the weights go, the least first."""
    every = np.cumsum(np.sum(bins, 0))
    wanted = ratio * every[-1]
    last = int(np.searchsorted(every, wanted))
    inside = every[last] - (every[last - 1] if last else 0)
    part = (wanted - (every[last - 1] if last else 0)) / inside if inside else 0.0
    return [float((b[:last].sum() + part * b[last]) / max(1, b.sum())) for b in bins]
