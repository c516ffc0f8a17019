"""Rounded weights after coordinate descent, as far as it pays on calibration samples that were held out."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_ir as ir

from ..compiler.calibration.statistics import Moments
from ..compiler.graph import const
from ..compiler.quantization.columns import columns
from ..compiler.quantization.descent import descend
from ..compiler.quantization.feedback import centred, feedback
from ..compiler.quantization.grids import Grid, Sparse
from .calibrated import Calibrated

DAMPINGS = (0.01, 0.1, 1.0)
"""Of the mean of the diagonal of the second moments: what is tried, as in `feedback`."""
OUTPUTS = 128
"""Outputs that this is tried on."""


def descended(array: np.ndarray, found: Calibrated, grid: Grid | Sparse, known: Moments) -> Calibrated:
    """What becomes of a weight that was rounded with error feedback; `found` where held-out samples gain nothing."""
    how, layer = columns(grid, known.layer, array), known.layer
    fit, seen, whole = known.fit, known.held, known.whole
    if seen is None or known.shared or fit.gram is None or how is None or isinstance(grid, Sparse):
        return found
    if found.biases:
        fit, seen, whole = centred(fit, fit), centred(fit, seen), centred(whole, whole)
    assert fit.gram is not None and whole.gram is not None
    matrix, rounded = layer.matrix(array), layer.matrix(found.array)
    step = max(1, -(-matrix.shape[1] // OUTPUTS))
    some = np.arange(matrix.shape[1]).reshape(-1, how.vector)[::step].reshape(-1)
    part, few = matrix[:, some], how.take(some)
    starts = {d: feedback(part, few, fit.gram, d) for d in DAMPINGS}
    before = min(seen.loss(part - start) for start in starts.values())
    after = {d: seen.loss(part - descend(part, start, few, fit.gram, d)) for d, start in starts.items()}
    damping = min(after, key=lambda d: after[d])
    if after[damping] >= min(before, seen.loss(part - layer.matrix(grid.round(array))[:, some])):
        return found
    lower = layer.shaped(descend(matrix, rounded, how, whole.gram, damping))
    result = grid.decode(grid.nearest(lower))
    loss = None if found.loss is None else found.loss * after[damping] / before
    return replace(found, array=result, loss=loss, biases=_biases(found, matrix - layer.matrix(result), known))


def _biases(found: Calibrated, error: np.ndarray, known: Moments) -> dict[ir.Value, np.ndarray]:
    """The biases that make up for the mean of what this error takes from the outputs."""
    mean = np.broadcast_to(known.whole.mean, (error.shape[0], error.shape[2]))
    shift = np.einsum("goi,gi->go", error, mean, dtype=np.float64) * known.layer.scale
    made = {}
    for bias in found.biases:
        old = const(bias)
        assert old is not None
        made[bias] = np.asarray(old + shift.reshape(old.shape), np.float32)
    return made
