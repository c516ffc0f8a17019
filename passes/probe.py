"""Running a model with some weights rounded: all of it, or, for one weight, what lies behind its first reader."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from ..compiler.calibration.batching import samples
from ..compiler.calibration.streaming import Feeds, Runs
from ..compiler.graph import const
from ..compiler.numerics import Meter, looks_like_logits
from ..compiler.passbase import Context
from ..compiler.segments import Ahead, Segments
from ..compiler.session import Session
from ..compiler.synthesis import synthesise
from ..compiler.verify import Comparison
from ..compiler.weights import release
from .round_weights import MIN_SNR, Rounded, replace_weights

if TYPE_CHECKING:
    from ..compiler.guard.task import Task

JUDGED = 256
"""Samples that plans are measured on before they are taken, more or less."""
SAMPLES = 32
"""Samples that the model is run with for each weight."""
PEAKED = 4.0
"""Times the mean that the largest of a row's probabilities must be, or a half, for an output to be scores."""
PEAK = 16.0
"""How many times the mean square error the square of the largest error is at first taken to be."""
DROP = 100.0
"""How many times what is allowed of a metric's drop a unit of expected noise is at first taken to cost."""


@dataclass(frozen=True)
class Damage:
    """How far the outputs are from those of the model as it was.

    Attributes:
        noise: noise power over signal power of the worst output, probabilities in place of scores.
        snr: the least signal-to-noise ratio of an output as it is, in dB.
        error: the largest error relative to the largest value of its output.
        drop: how many points the task's metric has lost; 0 where it was not measured.
    """

    noise: float
    snr: float
    error: float
    drop: float = 0.0


@dataclass(frozen=True)
class Allowed:
    """Errors that the outputs may have, and which share of their power; points that a metric may lose."""

    max_error: float | None
    min_snr: float | None
    share: float = 1.0
    max_drop: float | None = None

    def excess(self, found: Damage) -> float:
        """How far over what is allowed this is, as a ratio of powers."""
        largest = 0.0 if self.max_error is None else (found.error / self.max_error) ** 2
        power = 0.0 if self.min_snr is None else 10 ** ((self.min_snr - found.snr) / 10)
        lost = 0.0
        if self.max_drop is not None and found.drop > 0:
            lost = found.drop / self.max_drop if self.max_drop else np.inf
        return max(largest, power, lost) / self.share

    @property
    def guess(self) -> float:
        """What the excess may be for each unit of expected noise, before anything is measured."""
        largest = 0.0 if self.max_error is None else PEAK / self.max_error**2
        power = 0.0 if self.min_snr is None else 10 ** (self.min_snr / 10)
        return max(largest, power, 0.0 if self.max_drop is None else DROP) / self.share


def judge(model: ir.Model, ctx: Context, scores: bool | None = None) -> Probe:
    """What measures as whoever checks the result does: against the original, on many samples, and with the metric."""
    runs = ctx.runs or (ctx.inputs or synthesise(model, ctx.seed),)
    # The first of them is what the manager checks each pass with.
    some = runs[:: max(1, sum(samples(feeds) for feeds in runs) // JUDGED)]
    wanted = None
    if ctx.original is not None:
        session = Session(ctx.original)
        wanted = [session.run(feeds) for feeds in some]
        release(ctx.original)
    return Probe(model, some, scores, wanted=wanted, task=ctx.metric)


def allowed_by(ctx: Context, share: float) -> Allowed:
    """What the user allows all passes together, a share of it; 25 dB where nothing was said."""
    drop = None if ctx.metric is None else ctx.metric.max_drop
    if ctx.max_error is None and ctx.min_snr is None and drop is None:
        return Allowed(None, MIN_SNR, share)
    return Allowed(ctx.max_error, ctx.min_snr, share, drop)


class Probe:
    """Runs a model with some weights rounded. `scores`: whether outputs are scores of classes; None: by their looks.

    What is lost is lost against `wanted`, an output for each of the runs: by default, what the model gives as it is.
    With a `task`, its metric is measured as well.
    """

    def __init__(
        self,
        model: ir.Model,
        runs: Runs,
        scores: bool | None = None,
        *,
        wanted: Sequence[Feeds] | None = None,
        task: Task | None = None,
    ) -> None:
        self.model, self.runs, self._task = model, runs, task
        start = time.perf_counter()
        session = Session(model) if wanted is None else None
        built = time.perf_counter()
        self._wanted = [session.run(feeds) for feeds in runs] if session is not None else list(wanted or ())
        self.costly = time.perf_counter() - built > built - start
        """Whether it is running, not getting ready to run, that takes the time."""
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
        trial = self.model.clone()
        replace_weights(trial, rounded)
        return self.loss(trial)

    def loss(self, trial: ir.Model) -> Damage:
        """What a model with the same inputs and outputs has lost."""
        session = Session(trial)
        found = self.compared(session.run(feeds) for feeds in self.runs)
        if self._task is None:
            return found
        return Damage(found.noise, found.snr, found.error, max(0.0, self._task.drop(self._task.measure(trial))))

    def compared(self, ran: Iterable[Feeds]) -> Damage:
        """What these outputs, run by run, have lost. One that is left out is as it was."""
        plain = {n: Meter(n) for n in self._wanted[0]}
        seen = {n: Meter(n) for n in self._floats}
        for wanted, got in zip(self._wanted, ran, strict=True):
            for n, reference in wanted.items():
                own = got.get(n, reference)
                plain[n].add(reference, own)
                if n in seen:
                    seen[n].add(_viewed(reference, self.views[n]), _viewed(own, self.views[n]))
        whole = {n: m.result() for n, m in plain.items()}
        noises = [10 ** (-m.result().snr_db / 10) for m in seen.values()] or [d.max_rel for d in whole.values()]
        found = Comparison(whole)
        return Damage(max(noises, default=0.0), found.snr_db, found.max_rel)


class Behind:
    """What a weight's readers lead to, run from what lay before them."""

    def __init__(self, probe: Probe, segments: Segments, start: int, feeds: Sequence[Feeds], threads: int) -> None:
        self._probe, self._segments, self._start, self._feeds, self._threads = probe, segments, start, feeds, threads

    def damage(self, name: str, rounded: Rounded) -> Damage:
        """What is lost when the weight `name` is rounded so, all others as they are."""
        part = self._segments.part(self._start)
        replace_weights(part, {name: rounded})
        if not part.graph.outputs:
            return self._probe.compared({} for _ in self._feeds)
        session = Session(part, threads=self._threads)
        return self._probe.compared(session.run(feeds) for feeds in self._feeds)


class Switches:
    """The whole model with weights for inputs: one session for all of them, where running takes less than building."""

    def __init__(self, probe: Probe, names: Iterable[str], threads: int) -> None:
        self._probe = probe
        made = probe.model.clone()
        self._plain: dict[str, np.ndarray] = {}
        for name in dict.fromkeys(names):
            value = made.graph.initializers[name]
            array = const(value)
            assert array is not None
            self._plain[name] = array
            del made.graph.initializers[name]
            value.const_value = None
            made.graph.inputs.append(value)
        self._session = Session(made, threads=threads)

    def damage(self, name: str, rounded: Rounded) -> Damage:
        """What is lost when the weight `name` is rounded so, all others as they are."""
        own = {n: t.numpy() for n, t in ((name, rounded.tensor), *rounded.biases.items())}
        feeds = {**self._plain, **own}
        return self._probe.compared(self._session.run({**some, **feeds}) for some in self._probe.runs)


Alone = Behind | Switches


def alone(probe: Probe, weights: Sequence[tuple[str, Sequence[str]]], threads: int = 0) -> Iterator[tuple[int, Alone]]:
    """For each weight (its name, and those of biases that change with it) what measures it: as they are read, in turn.

    Where running the model takes longer than building a session, only what lies behind the weight is run, from values
    that were kept; else all of it, in one session.
    """
    own = probe.model.graph.initializers
    names = [(name, *biases) for name, biases in weights]
    if not probe.costly and all(n in own for each in names for n in each):
        one = Switches(probe, [n for each in names for n in each], threads)
        yield from ((i, one) for i in range(len(names)))
        return
    segments = Segments(probe.model)
    places = [min(segments.reader(own[n]) if n in own else 0 for n in each) for each in names]
    ahead = Ahead(segments, probe.runs)
    for i in sorted(range(len(names)), key=lambda i: places[i]):
        ahead.go(places[i])
        yield i, Behind(probe, segments, ahead.at, list(ahead), threads)


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
