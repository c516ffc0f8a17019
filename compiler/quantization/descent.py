"""Coordinate descent on a rounded weight: each input in turn takes the grid's best numbers, given all others.

The error that a change E = W - Q makes in a layer's outputs is tr(E H E'), H the second moments of the layer's inputs.
Of one input j it is h_jj e_j² + 2 e_j (g_j - h_jj e_j) + what doesn't depend on it, g = E H: the best number of the
grid is the one nearest to q_j + g_j / h_jj. Error feedback (`feedback`) takes each input once, and knows only the
errors before it; here those behind it count as well, and the sum never grows (as CDQuant: Nair, Suggala, arXiv
2406.17542). AdaRound (Nagel et al., arXiv 2004.10568) minimises the same sum over rounding up or down, by gradients.
"""

from __future__ import annotations

import numpy as np

from .columns import Columns, product

BLOCK = 64
"""Inputs whose changes reach the others at once."""
SWEEPS = 4
"""Times that all inputs are gone through at most."""
SETTLED = 1e-3
"""Share of numbers that change in a sweep, below which it was the last."""


def descend(
    matrix: np.ndarray, start: np.ndarray, how: Columns, gram: np.ndarray, damping: float, sweeps: int = SWEEPS
) -> np.ndarray:
    """Numbers of the grid with a smaller error than `start`, or the same; arrays groups x outputs x inputs.

    `gram` is groups (or 1) x inputs x inputs; `damping` times the mean of its diagonal is added to this.
    """
    diagonal = np.einsum("gii->gi", gram)
    order = np.argsort(-diagonal.sum(0), kind="stable")
    h = gram[:, order[:, None], order].astype(np.float32)
    at = np.arange(len(order))
    h[:, at, at] += (damping * np.maximum(diagonal.mean(1), np.finfo(np.float32).tiny))[:, None].astype(np.float32)
    how = how.order(order)
    found = np.ascontiguousarray(start.transpose(2, 0, 1)[order], np.float32)
    slope = product(np.ascontiguousarray(matrix.transpose(2, 0, 1)[order], np.float32) - found, h)
    for _ in range(sweeps):
        changed = 0
        for first in range(0, len(order), BLOCK):
            block = slice(first, min(len(order), first + BLOCK))
            before = found[block].copy()
            inner, local = h[:, block, block], slope[block].copy()
            for j in range(len(before)):
                own = inner[:, j, j][:, None]
                found[first + j] = how.round(first + j, before[j] + local[j] / own)
                moved = before[j] - found[first + j]
                if moved.any():
                    local += inner[:, :, j].T[:, :, None] * moved
            moved_by = before - found[block]
            changed += int(np.count_nonzero(moved_by))
            if moved_by.any():
                slope += product(moved_by, h[:, block])
        if changed <= SETTLED * found.size:
            break
    back = np.empty_like(found)
    back[order] = found
    return back.transpose(1, 2, 0)
