"""Write weights of a low rank as two smaller layers."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir
from scipy.linalg import LinAlgWarning, eigh, lu_factor, qr

from ..compiler.passbase import Context, Pass
from ..compiler.weights import release_tensor
from .low_rank import Candidate, Split, candidates, write

ROUNDING = 2.0**-24
"""The largest relative error of rounding to float32."""
SLACK = 4.0
"""How many roundings a weight may have gone through since it had its rank: a batch normalisation was folded, say."""
CLEARLY = 1e-4
"""The smallest pivot, relative to the largest, that is no rounding error of a singular matrix."""
EXTRA = 16
"""Random vectors more than the rank that is expected."""


@dataclass(frozen=True)
class FactorWeights(Pass):
    """Write a layer whose weight has a low rank as two smaller ones.

    Before:  `y = MatMul(x, w)`, w [768, 3072] of rank 256

    After:   `y = MatMul(MatMul(x, a), b)`, a [768, 256], b [256, 3072]

    Also Gemm, with its bias in the second, and Conv of one group: k x k then 1 x 1, 1 x 1 then k x k, k x 1 then 1 x k
    or 1 x k then k x 1, strides, pads and dilations where their axis is. The rank is found in the numbers: what is left
    out is no more than rounding to float32 makes, in every row and every column. A layer is written as two only where
    these take fewer multiply-accumulates and fewer parameters.

    Options:
        min_size: elements from which a weight is looked at.
    """

    name: ClassVar[str] = "factor-weights"
    prunes: ClassVar[bool] = True
    min_size: int = 4096

    def run(self, model: ir.Model, ctx: Context) -> int:
        """See the class. One weight is in memory at a time."""
        count = 0
        for c in candidates(model, self.min_size, "", Context(ctx.target, ctx.scratch)):
            best = _best(c)
            if c.value.const_value is not None:
                release_tensor(c.value.const_value)
            if best is not None:
                write(c, *best, ctx.scratch)
                count += 1
        return count


def _best(c: Candidate) -> tuple[Split, np.ndarray, np.ndarray] | None:
    """The split that takes the fewest multiply-accumulates, and the factors; None where no split has a low rank."""
    array = c.array()
    if not np.isfinite(array).all() or not array.any():
        return None
    best: tuple[Split, np.ndarray, np.ndarray] | None = None
    cost = math.inf
    for split in c.splits:
        most = c.most(split)
        if cost < math.inf:
            most = min(most, math.ceil(cost / split.macs) - 1)
        matrix = split.matrix(array)
        guess = _rank_of_part(matrix, most)
        found = _factors(matrix.astype(np.float64), guess, most) if 0 < guess <= most else None
        if found is not None:
            best, cost = (split, *found), len(found[1]) * split.macs
    return best


def _rank_of_part(matrix: np.ndarray, most: int) -> int:
    """About the rank of some of the rows and columns, a few more than `most`: the whole has no lower one."""
    size = min(*matrix.shape, most + max(8, most // 16))
    if most < 1:
        return 0
    rows, columns = (np.linspace(0, n - 1, size).astype(np.int64) for n in matrix.shape)
    part = matrix[np.ix_(rows, columns)].astype(np.float64)
    part /= np.maximum(np.abs(part).max(1, keepdims=True), 1e-300)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LinAlgWarning)
        pivots = np.abs(np.diagonal(lu_factor(part, overwrite_a=True, check_finite=False)[0]))
    return max(1, int((pivots > CLEARLY * pivots.max()).sum()))


def _factors(matrix: np.ndarray, guess: int, most: int) -> tuple[np.ndarray, np.ndarray] | None:
    """`second` (rows x rank) and `first` (rank x columns), whose product is the matrix to float32's precision.

    Rows and columns are brought to one scale first, by powers of two, so that small ones count as much as large ones.
    None where the rank is above `most`.
    """
    rows, columns = _scales(matrix)
    even = matrix * rows[:, None] * columns
    found = _decomposed(even, guess, most)
    if found is None:
        return None
    left, right = found
    limit = 4 * SLACK * ROUNDING
    error = even - left @ right
    for axis in (0, 1):
        if (np.square(error).sum(axis) > limit**2 * np.square(even).sum(axis)).any():
            return None
    return (left / rows[:, None]).astype(np.float32), (right / columns).astype(np.float32)


def _decomposed(matrix: np.ndarray, guess: int, most: int) -> tuple[np.ndarray, np.ndarray] | None:
    """The singular vectors, both times the root of the singular values, that make up the matrix but for rounding.

    From what the matrix makes of a few random vectors (Halko et al., arXiv 0909.4061), more of them while these miss
    something. The errors are those of the result, not of its squares: float64 is enough.
    """
    whole = float(np.square(matrix).sum())
    limit = (SLACK * ROUNDING) ** 2 * whole
    count = guess + EXTRA
    while True:
        count = min(count, *matrix.shape)
        seen = matrix @ np.random.default_rng(0).normal(size=(matrix.shape[1], count))
        basis = _orthonormal(matrix @ (matrix.T @ _orthonormal(seen)))
        rest = basis.T @ matrix
        missed = float(np.square(matrix - basis @ rest).sum())
        if missed <= limit:
            break
        if count >= min(*matrix.shape, most + EXTRA):
            return None
        count = min(2 * count, most + EXTRA)
    turn = eigh(rest @ rest.T, overwrite_a=True, check_finite=False)[1][:, ::-1]
    basis, rest = basis @ turn, turn.T @ rest
    squares = np.square(rest).sum(1)
    tails = missed + np.append(np.cumsum(squares[::-1])[::-1], 0)
    rank = int(np.argmax(tails <= limit))
    if not 1 <= rank <= most:
        return None
    root = np.sqrt(np.sqrt(squares[:rank]))
    return basis[:, :rank] * root, rest[:rank] / root[:, None]


def _orthonormal(vectors: np.ndarray) -> np.ndarray:
    return np.asarray(qr(vectors, mode="economic", overwrite_a=True, check_finite=False)[0])


def _scales(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Powers of two that bring the largest number of every row and column near 1; 1 for those of zeros."""
    scales = [np.ones(n) for n in matrix.shape]
    size = np.abs(matrix)
    for axis in (0, 1, 0, 1):
        top = (size * scales[0][:, None] * scales[1]).max(1 - axis)
        with np.errstate(divide="ignore"):
            scales[axis] *= np.where(top > 0, np.exp2(-np.rint(np.log2(top))), 1.0)
    return scales[0], scales[1]
