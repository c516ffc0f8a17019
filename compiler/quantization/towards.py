"""What a layer has to be for its outputs to stay, when its inputs have changed: least squares on cross moments.

A layer W gave W r for inputs r of the model as it was. Layers before it are rounded now, and it reads x. The T with the
least mean square of T x - W r is W C' H⁻¹, H = E[x x'] and C = E[x r']. It is drawn towards W (damping) as far as
samples that were held out want it. Rounding T in the place of W makes up for errors of earlier layers, too (as GPTAQ:
Li et al. 2025, arXiv 2504.02692, in another form).
"""

from __future__ import annotations

import numpy as np

from ..calibration.statistics import Moments
from ..calibration.sums import Sums

DAMPINGS = (0.003, 0.03, 0.3, 3.0, 30.0)
"""Of the mean of the diagonal: what is tried; else the layer stays what it is."""


def towards(matrix: np.ndarray, known: Moments, bias: bool) -> tuple[np.ndarray, np.ndarray | None] | None:
    """The matrix to round in the place of `matrix`, both groups x outputs x inputs, and what to add to the bias.

    `known` has cross moments with the inputs as they were. With `bias`, the layer has one for the means to agree as
    well: groups x outputs. None where nothing is known, or where held-out samples gain nothing.
    """
    fit, held, whole = known.fit, known.held, known.whole
    if held is None or known.shared or known.layer.counted or fit.gram is None or fit.cross is None:
        return None
    wide = matrix.astype(np.float64)
    errors = {d: _error(wide, _solved(wide, fit, d, bias), held, fit, bias) for d in DAMPINGS}
    best = min(errors, key=lambda d: errors[d])
    if errors[best] >= _error(wide, wide, held, fit, bias):
        return None
    goal = _solved(wide, whole, best, bias)
    offset = _mean(wide, whole.reference_mean) - _mean(goal, whole.mean) if bias else None
    return goal.astype(np.float32), offset


def _mean(matrix: np.ndarray, mean: np.ndarray | None) -> np.ndarray:
    """The mean of the outputs."""
    assert mean is not None
    return np.asarray(np.einsum("goi,gi->go", matrix, np.broadcast_to(mean, (matrix.shape[0], matrix.shape[2]))))


def _about(sums: Sums, around: Sums, bias: bool) -> tuple[np.ndarray, np.ndarray]:
    """E[x x'] and E[x r'], about the means of `around` where a bias takes these."""
    assert sums.gram is not None and sums.cross is not None
    gram, cross = sums.gram.astype(np.float64), sums.cross.astype(np.float64)
    if not bias:
        return gram, cross
    assert around.reference_mean is not None and sums.reference_mean is not None
    a, b, m, r = (x[..., None] for x in (around.mean, around.reference_mean, sums.mean, sums.reference_mean))
    at, bt, mt, rt = (x.swapaxes(-1, -2) for x in (a, b, m, r))
    return gram - a @ mt - m @ at + a @ at, cross - a @ rt - m @ bt + a @ bt


def _solved(matrix: np.ndarray, sums: Sums, damping: float, bias: bool) -> np.ndarray:
    """Least squares, drawn towards `matrix`."""
    gram, cross = _about(sums, sums, bias)
    size = gram.shape[-1]
    extra = damping * np.maximum(np.einsum("gii->g", gram) / size, np.finfo(np.float32).tiny)
    more = (matrix @ (cross - gram).swapaxes(-1, -2)).swapaxes(-1, -2)
    return np.asarray(matrix + np.linalg.solve(gram + extra[:, None, None] * np.eye(size), more).swapaxes(-1, -2))


def _error(matrix: np.ndarray, goal: np.ndarray, held: Sums, fit: Sums, bias: bool) -> float:
    """The mean square that is left on held-out samples, but for what is the same for every goal."""
    gram, cross = _about(held, fit, bias)
    return float(np.einsum("goi,goi->", goal @ gram, goal) - 2 * np.einsum("goi,goi->", goal @ cross, matrix))
