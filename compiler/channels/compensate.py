"""After masking: fit what is left of each linear layer to what it computed before, by least squares; no training."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from scipy.linalg import LinAlgError, cho_factor, cho_solve

from ..calibration.streaming import Runs
from ..graph import const
from ..weights import Scratch
from .activations import ROWS, Reader, Seen, parts, readers
from .shrink import replace_tensor

STEPS = 16
"""How often the model is run anew on the way, so that later layers also mend what earlier ones could not."""
RIDGES = (1e-4, 1e-2, 1.0, 100.0)
"""Of the diagonal: which one, what was held out decides; or that nothing changes."""
HELD_OUT = 5
"""One place in so many is held out."""


@dataclass(frozen=True)
class Fitted:
    """What became of a layer: the squared error of its output, on places that were held out."""

    layer: str
    before: float
    after: float


def compensate(
    model: ir.Model, original: ir.Model, runs: Runs, seed: int = 0, scratch: Scratch | None = None
) -> list[Fitted]:
    """Fit weights (and biases) of Conv (of one group, or depthwise), MatMul and Gemm to give what `original` gives.

    In the order in which they run, from the inputs that they get now. Only numbers change: what is zero in a row or a
    column of channels stays zero. A layer stays as it is where that is best on what was held out.
    """
    changed = []
    layers = readers(model, depthwise=True)
    before = {r.y.name: r for r in readers(original, depthwise=True)}
    layers = [r for r in layers if r.y.name in before and _kept(r, before[r.y.name]) is not None]
    for part in parts(layers, runs[0], most=max(1, -(-len(layers) // STEPS))):
        pairs: dict[Reader, list[tuple[np.ndarray, np.ndarray]]] = {r: [] for r in part}
        then, now = Seen(original, [before[r.y.name] for r in part]), Seen(model, part)
        for k, feeds in enumerate(runs):
            old, new = then.run(feeds), now.run(feeds)
            for r in part:
                y = new[str(r.y.name)]
                x, missing = r.rows(new[str(r.x.name)], old[str(r.y.name)] - y, -(-ROWS // len(runs)), seed + k)
                pairs[r].append((x, missing))
        for r in part:
            x, missing = (np.concatenate(each) for each in zip(*pairs.pop(r), strict=True))
            found = _fit(r, x, missing, before[r.y.name], scratch)
            if found is not None:
                changed.append(found)
    return changed


def _kept(r: Reader, before: Reader) -> tuple[np.ndarray, np.ndarray] | None:
    """The outputs and inputs that are left; None where something else than whole ones was masked."""
    matrix = r.matrix()
    outputs, inputs = (np.asarray(matrix.any(axes)) for axes in ((1, 2), (0, 2)))
    whole = np.array_equal(matrix, before.matrix() * outputs[:, None, None] * inputs[:, None])
    return (outputs, inputs) if whole and outputs.any() and inputs.any() else None


def _fit(r: Reader, x: np.ndarray, missing: np.ndarray, before: Reader, scratch: Scratch | None) -> Fitted | None:
    kept = _kept(r, before)
    assert kept is not None
    outputs, inputs = kept
    wide, goal = _problems(r, x, missing, outputs, inputs)
    last = wide.shape[1] - max(1, wide.shape[1] // HELD_OUT)
    gram, cross = _sums(wide[:, :last], goal[:, :last])
    as_is = best = float(np.square(goal[:, last:], dtype=np.float64).sum())
    chosen = None
    for ridge in RIDGES:
        step = _solved(gram, cross, ridge, r.bias is not None)
        if step is None:
            continue
        error = float(np.square(goal[:, last:] - wide[:, last:] @ step, dtype=np.float64).sum())
        if error < best:
            best, chosen = error, ridge
    if chosen is None:
        return None
    rest = _sums(wide[:, last:], goal[:, last:])
    step = _solved(gram + rest[0], cross + rest[1], chosen, r.bias is not None)
    if step is None or not np.isfinite(step).all():
        return None
    _store(r, outputs, inputs, step, scratch)
    return Fitted(str(r.y.name), as_is, best)


def _problems(
    r: Reader, x: np.ndarray, missing: np.ndarray, outputs: np.ndarray, inputs: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """What is known and what is missing, problems x places x numbers: one problem, or one for each channel."""
    if r.depthwise:
        wide, goal = x[:, outputs].transpose(1, 0, 2), missing[:, outputs].T[..., None]
    else:
        wide, goal = x[:, inputs].reshape(1, len(x), -1), missing[None, :, outputs]
    if r.bias is not None:
        wide = np.concatenate([wide, np.ones((*wide.shape[:2], 1), wide.dtype)], 2)
    return np.ascontiguousarray(wide), goal


def _sums(wide: np.ndarray, goal: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    turned = wide.transpose(0, 2, 1)
    return (turned @ wide).astype(np.float64), (turned @ goal).astype(np.float64)


def _solved(gram: np.ndarray, cross: np.ndarray, ridge: float, bias: bool) -> np.ndarray | None:
    """The change of the weight, problems x inputs x outputs; a bias is not held back."""
    steps = []
    for squares, products in zip(gram, cross, strict=True):
        extra = np.full(len(squares), ridge * max(float(np.trace(squares)) / len(squares), 1e-30))
        if bias:
            extra[-1] = 1e-6 * extra[-1]
        damped = squares.copy()
        damped[np.diag_indices_from(damped)] += extra
        try:
            steps.append(cho_solve(cho_factor(damped), products))
        except LinAlgError:
            return None
    return np.asarray(steps, np.float32)


def _store(r: Reader, outputs: np.ndarray, inputs: np.ndarray, step: np.ndarray, scratch: Scratch | None) -> None:
    matrix = r.matrix().copy()
    taps = matrix.shape[2]
    if r.depthwise:
        matrix[outputs, 0] += step[:, :taps, 0]
        shift = step[:, -1, 0]
    else:
        count = int(inputs.sum()) * taps
        change = step[0, :count].T.reshape(int(outputs.sum()), int(inputs.sum()), taps)
        matrix[np.ix_(outputs, inputs)] += change
        shift = step[0, -1]
    replace_tensor(r.weight, r.shaped(matrix), scratch)
    if r.bias is not None:
        bias = np.array(const(r.bias))
        bias[outputs] += shift
        replace_tensor(r.bias, bias, scratch)
