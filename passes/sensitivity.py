"""What rounding each weight costs the outputs, measured: one run of the model for each weight.

A weight is rounded alone, to few bits, and the noise at the outputs measured. At other widths the noise follows the
error of its own layer's outputs, which second moments of the layer's inputs give without a run, for samples that were
held out. So a rounding that fits the samples too well does not look better than it is.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import onnx_ir as ir

from ..compiler.calibration.batching import samples
from ..compiler.calibration.statistics import Moments
from ..compiler.calibration.streaming import Runs
from ..compiler.numerics import Meter, looks_like_logits
from ..compiler.passbase import Context
from ..compiler.quantization.feedback import centred
from ..compiler.quantization.gridfit import GridSpec
from ..compiler.session import Session
from ..compiler.synthesis import synthesise
from ..compiler.verify import Comparison
from ..compiler.weights import Scratch, release, release_tensor
from .bit_budget import Width
from .calibrated import with_moments
from .round_weights import Rounded, replace_weights, round_weight
from .stored_forms import store
from .weight_grid import Weight

SAMPLES = 32
"""Samples that the model is run with for each weight."""
BITS = 3
"""Bits that a weight is rounded to while its noise is measured: few, so that the noise stands out."""
LOUD = 0.1
"""Noise power over signal power above which noise no longer grows with the error: then measured with more bits."""
PEAKED = 4.0
"""Times the mean that the largest of a row's probabilities must be, or a half, for an output to be scores."""

PEAK = 16.0
"""How many times the mean square error the square of the largest error is at first taken to be."""


@dataclass(frozen=True)
class Damage:
    """How far the outputs are from those of the model as it was.

    Attributes:
        noise: noise power over signal power of the worst output, probabilities in place of scores.
        snr: the least signal-to-noise ratio of an output as it is, in dB.
        error: the largest error relative to the largest value of its output.
    """

    noise: float
    snr: float
    error: float


@dataclass(frozen=True)
class Allowed:
    """Errors that the outputs may have, and which share of their power."""

    max_error: float | None
    min_snr: float | None
    share: float = 1.0

    def excess(self, found: Damage) -> float:
        """How far over what is allowed this is, as a ratio of powers."""
        largest = 0.0 if self.max_error is None else (found.error / self.max_error) ** 2
        power = 0.0 if self.min_snr is None else 10 ** ((self.min_snr - found.snr) / 10)
        return max(largest, power) / self.share

    @property
    def guess(self) -> float:
        """What the excess may be for each unit of expected noise, before anything is measured."""
        largest = 0.0 if self.max_error is None else PEAK / self.max_error**2
        power = 0.0 if self.min_snr is None else 10 ** (self.min_snr / 10)
        return max(largest, power) / self.share


class Probe:
    """Runs a model with some weights rounded. `scores`: whether outputs are scores of classes; None: by their looks."""

    def __init__(self, model: ir.Model, runs: Runs, scores: bool | None = None) -> None:
        self._model, self._runs = model, runs
        session = Session(model)
        self._wanted = [session.run(feeds) for feeds in self._runs]
        release(model)
        every = {n: [w[n] for w in self._wanted] for n in self._wanted[0]}
        self._floats = {n for n, arrays in every.items() if arrays[0].dtype.kind == "f" and any(map(np.any, arrays))}
        self.views = {n: _view(every[n][0], n, scores) for n in sorted(self._floats)}

    @property
    def as_classes(self) -> list[str]:
        """The outputs that are compared as probabilities of classes."""
        return [n for n, view in self.views.items() if view]

    def damage(self, rounded: Mapping[str, Rounded]) -> Damage:
        """What is lost when these weights are rounded."""
        trial = self._model.clone()
        replace_weights(trial, rounded)
        session = Session(trial)
        plain = {n: Meter(n) for n in self._wanted[0]}
        seen = {n: Meter(n) for n in self._floats}
        for feeds, wanted in zip(self._runs, self._wanted, strict=True):
            got = session.run(feeds)
            for n, reference in wanted.items():
                plain[n].add(reference, got[n])
                if n in seen:
                    seen[n].add(_viewed(reference, self.views[n]), _viewed(got[n], self.views[n]))
        release(trial)
        whole = {n: m.result() for n, m in plain.items()}
        noises = [10 ** (-m.result().snr_db / 10) for m in seen.values()] or [d.max_rel for d in whole.values()]
        found = Comparison(whole)
        return Damage(max(noises, default=0.0), found.snr_db, found.max_rel)


def some_runs(model: ir.Model, ctx: Context) -> Runs:
    """Runs of about `SAMPLES` samples: some of each where runs can be cut, else some runs, evenly spread."""
    runs = ctx.runs or (ctx.inputs or synthesise(model, ctx.seed),)
    total = sum(samples(feeds) for feeds in runs)
    if total <= SAMPLES:
        return runs
    fixed = any(v.shape is None or not len(v.shape) or isinstance(v.shape[0], int) for v in model.graph.inputs)
    if fixed or any(len({a.shape[0] for a in feeds.values()}) != 1 for feeds in runs):
        return runs[:: total // SAMPLES]
    runs = runs[:: max(1, len(runs) // SAMPLES)]
    each = -(-SAMPLES // len(runs))
    return [{n: a[:each] for n, a in feeds.items()} for feeds in runs]


def _view(reference: np.ndarray, name: str, scores: bool | None) -> str:
    """How an output is compared: `softmax` of it, its `root`, or as it is (empty)."""
    if scores is False or reference.ndim < 2 or reference.shape[-1] < 2 or not np.isfinite(reference).all():
        return ""
    if (reference >= 0).all() and np.allclose(reference.sum(-1, dtype=np.float64), 1, atol=1e-3):
        return "root"
    if scores is None:
        if not looks_like_logits(reference, name):
            return ""
        # A normalised embedding has the shape of scores, too; a softmax makes nearly equal numbers of it.
        top = float(np.square(_viewed(reference, "softmax")).max(-1).mean())
        return "softmax" if top >= min(0.5, PEAKED / reference.shape[-1]) else ""
    return "softmax"


def _viewed(array: np.ndarray, view: str) -> np.ndarray:
    """Roots of probabilities: the distance of two is Hellinger's. What adds the same to all scores changes nothing."""
    if not view:
        return array
    x = array.astype(np.float64)
    with np.errstate(all="ignore"):
        if view == "softmax":
            x = np.exp(x - x.max(-1, keepdims=True))
            x /= x.sum(-1, keepdims=True)
        return np.asarray(np.sqrt(np.maximum(x, 0)))


@dataclass(eq=False)
class Fitted:
    """A weight, rounded to several widths.

    Attributes:
        plain: bits and bytes of the weight as it is.
        rounded: by bits.
        nbytes: as stored, by bits.
        losses: by bits: the error of its layer's outputs to be expected, and on the samples that it was fitted to.
    """

    weight: Weight
    elements: int
    plain: Width
    rounded: dict[int, Rounded] = field(default_factory=dict)
    nbytes: dict[int, int] = field(default_factory=dict)
    losses: dict[int, tuple[float, float]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The initializer's name."""
        return self.weight.value.name or ""


def fitted(
    model: ir.Model, weights: Sequence[Weight], specs: Mapping[int, GridSpec], ctx: Context, spool: Scratch
) -> list[Fitted]:
    """The weights at each width (kept in `spool`), in their order; those that can't be rounded are left out."""
    inside = replace(ctx, scratch=spool)
    pairs = with_moments(model, weights, ctx) if ctx.given else ((w, None) for w in weights)
    found = {w.value: _fitted(w, specs, inside, known) for w, known in pairs}
    return [f for w in weights if (f := found[w.value]) is not None]


def _fitted(weight: Weight, specs: Mapping[int, GridSpec], ctx: Context, known: Moments | None) -> Fitted | None:
    tensor = weight.value.const_value
    assert tensor is not None
    wide = 16 if ctx.target.float16 else 32
    found = Fitted(weight, tensor.size, Width(wide, tensor.size * wide // 8, 0.0))
    for bits in sorted(specs, reverse=True):
        rounded = round_weight(weight, specs[bits], ctx, known)
        if rounded is None:
            return None
        array, made = tensor.numpy(), rounded.tensor.numpy()
        form = store(rounded.grid, made, ctx.target.storage)
        if form is not None and form.nbytes < found.plain.nbytes:
            found.rounded[bits], found.nbytes[bits] = rounded, form.nbytes
            found.losses[bits] = _losses(array - made, rounded, known)
        release_tensor(tensor)
        release_tensor(rounded.tensor)
    return found if found.rounded else None


def _losses(error: np.ndarray, rounded: Rounded, known: Moments | None) -> tuple[float, float]:
    # Rows of a table that no sample has read are as good as others: each error counts.
    if known is None or known.layer.counted or not rounded.loss:
        square = float(np.vdot(error, error))
        return square, square
    whole = known.whole
    if rounded.biases and whole.gram is not None:
        whole = centred(whole, whole)
    return rounded.loss, whole.loss(known.layer.matrix(error))


def widths(weight: Fitted, probe: Probe) -> list[Width]:
    """The widths of a weight and the noise to be expected at each, from one run, or a few where noise is loud."""
    scale = math.inf
    for bits in _measured(list(weight.rounded)):
        measured = probe.damage({weight.name: weight.rounded[bits]}).noise
        seen = weight.losses[bits][1]
        scale = 0.0 if measured == 0 else measured / seen if seen > 0 else math.inf
        if measured <= LOUD:
            break
    found = [Width(b, weight.nbytes[b], _times(scale, weight.losses[b][0])) for b in sorted(weight.rounded)]
    return [*found, weight.plain]


def _times(scale: float, loss: float) -> float:
    return scale * loss if math.isfinite(scale) else math.inf


def _measured(bits: Sequence[int]) -> Iterator[int]:
    """At which widths to measure, in order: the usual one, then wider ones."""
    ordered = sorted(bits)
    first = next((b for b in ordered if b >= BITS), ordered[-1])
    yield from (b for b in ordered if b >= first)
