"""Rounding with error feedback: each input's rounding error is made up for by the inputs that are rounded after it.

The error that a change E makes in a layer's outputs is tr(E H E'), H the second moments of the layer's inputs. With
H = R D R', R unit upper triangular, it is the sum of d_j (e_j + sum_{k<j} e_k R_kj)² over inputs j (and outputs). So
going through the inputs in order, rounding w_j + sum_{k<j} e_k R_kj instead of w_j makes each term as small as can be.
This is GPTQ (Frantar et al. 2023, arXiv 2210.17323) without an inverse (Babai's nearest plane; arXiv 2507.18553).

H is known from few samples. What is added to its diagonal (damping) holds the feedback back; how much of it is best,
samples tell that were held out: down to none at all, which is plain rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import numpy as np

from ..calibration.statistics import Moments
from ..calibration.sums import Sums
from .columns import Columns, columns, product
from .grids import Grid, Sparse

BLOCK = 64
"""Inputs whose errors are fed to the later ones at once."""
DAMPINGS = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
"""Of the mean of the diagonal."""
USUAL = 1e-4
"""For each input, of the one that is tried first: the more inputs, the less is known of each pair of them."""
OUTPUTS = 128
"""Outputs that the choice of a damping is made on."""
KEPT = 1 << 25
"""Bytes of second moments up to which what is made of them is kept, for other widths. Of wider layers it isn't, and
what damping was best at one width is taken for all."""

PRECISE = 2048
"""Inputs up to which moments are decomposed in double precision."""

T = TypeVar("T")


@dataclass(frozen=True)
class Choice:
    """A rounded weight.

    Attributes:
        array: the weight, on its grid.
        damping: what was added to the diagonal; None: plain rounding.
        plain, loss: mean square error of the layer's outputs (summed over them) with plain rounding and with `array`,
            on held-out samples where there are any.
        shift: what to add to the bias so that the mean of the outputs stays, groups x outputs; None: nothing.
    """

    array: np.ndarray
    damping: float | None
    plain: float
    loss: float
    shift: np.ndarray | None = None


def centred(fit: Sums, seen: Sums) -> Sums:
    """The moments `seen` about the mean of `fit`: what is left when a bias makes up for the mean error."""
    assert seen.gram is not None
    a, b = fit.mean[..., None, :], seen.mean[..., None, :]
    # (a - b)'(a - b) - b'b, as one product of two rows each.
    rows = np.concatenate([a - b, b], -2).astype(seen.gram.dtype)
    gram = np.concatenate([a - b, -b], -2).astype(seen.gram.dtype).swapaxes(-1, -2) @ rows
    gram += seen.gram
    return Sums(seen.count, np.einsum("gii->gi", gram), b[..., 0, :] - a[..., 0, :], gram)


def feedback(matrix: np.ndarray, how: Columns, gram: np.ndarray, damping: float) -> np.ndarray:
    """Round `matrix` (groups x outputs x inputs) with error feedback; `gram` is groups (or 1) x inputs x inputs."""
    return _rounded(matrix, how, Factors(gram), damping)


def _rounded(matrix: np.ndarray, how: Columns, factors: Factors, damping: float) -> np.ndarray:
    order, factor = factors.order, factors.of(damping)
    weights = np.ascontiguousarray(matrix.transpose(2, 0, 1)[order], np.float32)
    how = how.order(order)
    errors, rounded = np.empty_like(weights), np.empty_like(weights)
    for start in range(0, len(weights), BLOCK):
        stop = min(len(weights), start + BLOCK)
        own = np.ascontiguousarray(factor[:, :stop, start:stop].swapaxes(1, 2)).swapaxes(1, 2)
        fed = weights[start:stop]
        if start:
            fed = fed + product(errors[:start], own[:, :start])
        for j in range(start, stop):
            goal = fed[j - start]
            if j > start:
                goal = goal + product(errors[start:j], own[:, start:j, j - start : j - start + 1])[0]
            rounded[j] = how.round(j, goal)
            np.subtract(weights[j], rounded[j], out=errors[j])
    found = np.empty_like(rounded)
    found[order] = rounded
    return found.transpose(1, 2, 0)


class Factors:
    """R of H = R D R', H the moments groups x inputs x inputs with a damping, for one damping after the other.

    `order` is that of the inputs in R: the largest first.
    """

    def __init__(self, gram: np.ndarray) -> None:
        diagonal = np.einsum("gii->gi", gram)
        self.order = np.argsort(-diagonal.sum(0), kind="stable")
        self._mean = np.maximum(diagonal.mean(1), np.finfo(np.float32).tiny)
        # Of the reversed matrix the lower factor; reversed again, it is the upper one of H itself.
        back = self.order[::-1]
        kind = np.float64 if gram.shape[-1] <= PRECISE else np.float32
        self._reversed: np.ndarray = np.ascontiguousarray(gram.take(back, 1).take(back, 2), kind)
        self._plain = np.einsum("gii->gi", self._reversed).copy()
        self._known: dict[float, np.ndarray] = {}

    def of(self, damping: float) -> np.ndarray:
        """R, float32. Kept for as long as this is, unless it is large."""
        found = self._known.get(damping)
        if found is None:
            np.einsum("gii->gi", self._reversed)[:] = self._plain + damping * self._mean[:, None]
            lower = np.linalg.cholesky(self._reversed)
            lower /= np.einsum("gii->gi", lower)[:, None]
            found = lower.astype(np.float32, copy=False)[:, ::-1, ::-1]
            if found.nbytes <= KEPT:
                self._known[damping] = found
        return found


def choose(array: np.ndarray, grid: Grid | Sparse, known: Moments, *, bias: bool = False) -> Choice:
    """Round `array`, the weight that `known` is about, to `grid`: with as much feedback as pays on held-out samples.

    With `bias`, the layer has a bias that can make up for the mean error; it does where that pays.
    Plain rounding stays where feedback doesn't pay, where nothing is held out to tell, for tables, for weights that are
    read in several ways, for layers too wide for second moments, and for grids that round several inputs together.
    """
    plain = _plain(array, grid)
    error = known.layer.matrix(array - plain)
    seen = known.held or known.fit
    lost = seen.loss(error)
    how = columns(grid, known.layer, array)
    if known.held is None or known.shared or known.fit.gram is None or how is None or not lost:
        return Choice(plain, None, lost, lost)
    if bias:
        bias = _about(known, True)[1].loss(error) <= lost
    fit, seen, whole = _about(known, bias)
    matrix = known.layer.matrix(array)
    damping, share = _damping(matrix, how, fit, seen, error, known.fit.memo)
    found = plain
    if damping is not None:
        found = _plain(known.layer.shaped(_rounded(matrix, how, _factors(whole), damping)), grid)
    shift = _shift(known, known.layer.matrix(array - found)) if bias else None
    return Choice(found, damping, lost, seen.loss(error) * share, shift)


def _plain(array: np.ndarray, grid: Grid | Sparse) -> np.ndarray:
    """The nearest numbers of the grid."""
    if isinstance(grid, Sparse):
        if grid.inner is None:
            return array
        return np.where(array != 0, grid.inner.decode(grid.inner.nearest(array)), np.float32(0))
    return grid.decode(grid.nearest(array))


def _shift(known: Moments, error: np.ndarray) -> np.ndarray:
    """The mean of what the error takes from the layer's outputs."""
    mean = np.broadcast_to(known.whole.mean, (error.shape[0], error.shape[2]))
    return np.asarray(np.einsum("goi,gi->go", error, mean, dtype=np.float64) * known.layer.scale, np.float32)


def _kept(sums: Sums, key: object, make: Callable[[], T]) -> T:
    """What `make` gives, kept with the moments that it is made of unless it is large."""
    if key in sums.memo:
        return cast(T, sums.memo[key])
    found = make()
    if sums.gram is not None and sums.gram.nbytes <= KEPT:
        sums.memo[key] = found
    return found


def _about(known: Moments, mean: bool) -> tuple[Sums, Sums, Sums]:
    """The moments to fit to, those to measure with and all; `mean`: about the mean, which a bias makes up for."""
    fit, seen, whole = known.fit, known.held or known.fit, known.whole
    if not mean:
        return fit, seen, whole
    about, measured = _kept(fit, "centred", lambda: (centred(fit, fit), centred(fit, seen)))
    return about, measured, about if whole is fit else _kept(whole, "centred", lambda: centred(whole, whole))


def _factors(sums: Sums) -> Factors:
    gram = sums.gram
    assert gram is not None
    return _kept(sums, "factors", lambda: Factors(gram))


def _damping(
    matrix: np.ndarray, how: Columns, fit: Sums, seen: Sums, error: np.ndarray, memo: dict[object, Any]
) -> tuple[float | None, float]:
    """The damping that is best on held-out samples, None for plain rounding; and the loss as a share of the plain one.

    Tried on some of the outputs: they don't depend on each other. `error` is that of plain rounding;
    what was best at another width is in `memo`, and tried first.
    """
    some = _some(matrix.shape[1], how.vector)
    part, few = matrix[:, some], how.take(some)
    plain = seen.loss(error[:, some])
    assert fit.gram is not None
    wide, factors = fit.gram.nbytes > KEPT, _factors(fit)
    tried = _walked(
        lambda damping: seen.loss(part - _rounded(part, few, factors, damping)),
        memo.get("damping", _usual(matrix.shape[2])),
        alone=wide and "damping" in memo,
    )
    best = min(tried, key=lambda d: tried[d])
    memo["damping"] = best
    return (best, tried[best] / plain) if tried[best] < plain else (None, 1.0)


def _usual(inputs: int) -> float:
    """The damping that is tried first."""
    return min(DAMPINGS, key=lambda d: abs(np.log(d / (USUAL * inputs))))


def _walked(loss: Callable[[float], float], start: float, *, alone: bool) -> dict[float, float]:
    """The losses of dampings from `start` downhill; of that `alone`."""
    first = DAMPINGS.index(start)
    found = {start: loss(start)}
    for step in () if alone else (-1, 1):
        i, best = first, found[start]
        while 0 <= i + step < len(DAMPINGS):
            i += step
            found[DAMPINGS[i]] = now = loss(DAMPINGS[i])
            if now >= best:
                break
            best = now
        if i != first + step or best < found[start]:
            break
    return found


def _some(outputs: int, vector: int) -> np.ndarray:
    """At most `OUTPUTS` outputs, evenly spread, whole vectors."""
    groups = outputs // vector
    step = max(1, -(-groups * vector // OUTPUTS))
    return (np.arange(0, groups, step)[:, None] * vector + np.arange(vector)).reshape(-1)
