"""What a model is for, measured: a metric on the user's labelled samples, of the original and of what became of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from ..data import Samples, fit_inputs, load_inputs, read_arrays
from ..errors import ModelError, UsageError
from ..session import Session
from ..synthesis import declared_dims, dims_text
from ..weights import release
from .metrics import Arrays, Metric, find_metric, winners

Run = Callable[[Arrays], Mapping[str, np.ndarray]]


@dataclass(frozen=True)
class Score:
    """A metric of the original model and of what became of it.

    Attributes:
        name: of the metric.
        before, after: the metric of the original, and of the other.
        drop: how many points the other is worse; negative where it is better.
        samples: how many were scored.
        larger_is_better: else smaller is.
        max_drop: how many points it may be worse; None: any.
    """

    name: str
    before: float
    after: float
    drop: float
    samples: int
    larger_is_better: bool = True
    max_drop: float | None = None

    @property
    def ok(self) -> bool:
        """Whether no more is lost than may be."""
        return self.max_drop is None or self.drop <= self.max_drop

    def line(self) -> str:
        """The score in words, for a message."""
        return f"{self.name} {self.before:.4g} → {self.after:.4g}"


class Task:
    """A metric, the samples that it is measured on, and what the original model reaches. `Context.metric` is one.

    Attributes:
        name: of the metric, as the user wrote it.
        metric: see `metrics.Metric`.
        max_drop: how many points the model may lose in all, in the metric's own unit; None: any number.
        original: what the original model reaches.
        samples: how many samples there are.
    """

    def __init__(self, metric: Metric, samples: Samples, data: Arrays, max_drop: float | None = None) -> None:
        self.name, self.metric, self.max_drop, self.samples = metric.name, metric, max_drop, samples.count
        self.original = math.nan
        self._runs, self._data = samples.runs, data
        self._winners: list[np.ndarray] = []

    @classmethod
    def wanted(
        cls,
        model: ir.Model,
        metric: str | Callable[..., float] | None,
        data: Arrays | None,
        max_drop: float | None,
        original: ir.Model | None = None,
    ) -> Task | None:
        """The task that the user named, if any. Raises UsageError, ModelError: see `of`."""
        if metric is not None and data is None:
            raise UsageError(f"metric '{metric}' is measured on samples; give them with --data FILE.npz")
        if metric is None and max_drop is not None:
            raise UsageError("--max-drop: of which metric? Name it with --metric")
        return None if metric is None or data is None else cls.of(model, metric, data, max_drop, original)

    @classmethod
    def of(
        cls,
        model: ir.Model,
        metric: str | Callable[..., float],
        data: Arrays,
        max_drop: float | None = None,
        original: ir.Model | None = None,
    ) -> Task:
        """The metric on `data`: arrays named like the inputs of `model`, labels and more.

        Runs take what `model` takes, whose shapes may be fixed; `original` is what is measured, by default `model`.
        Raises UsageError for data that doesn't fit, ModelError for a metric that can't be measured.
        """
        found = find_metric(metric)
        if max_drop is not None and (math.isnan(max_drop) or max_drop < 0):
            raise UsageError(f"--max-drop {max_drop:g}: a number of points, 0 or more")
        if max_drop is not None and found.share and max_drop >= 1:
            raise UsageError(f"--max-drop {max_drop:g}: {found.name} lies between 0 and 1, where one percent is 0.01")
        samples, arrays = Samples.with_more(model, data)
        if found.labels is not None:
            _check_labels(model, found.name, found.labels, samples, arrays)
        task = cls(found, samples, arrays, max_drop)
        session = Session(original or model)
        if found.against:
            task._winners = [winners(session.run(feeds)) for feeds in task._runs]
        task.original = task.score(session.run)
        release(original or model)
        return task

    def measure(self, model: ir.Model) -> float:
        """The metric of a model whose inputs and outputs have the original's names, rounding included.

        Runs it on all samples. Raises ModelError when it can't be run, or there is no number.
        """
        value = self.score(Session(model).run)
        release(model)
        return value

    def drop(self, value: float) -> float:
        """How many points worse than the original `value` is; negative where it is better."""
        return self.metric.lost(self.original, value)

    def result(self, value: float) -> Score:
        """`value` beside what the original reaches."""
        larger = self.metric.larger_is_better
        return Score(self.name, self.original, value, self.drop(value), self.samples, larger, self.max_drop)

    def score(self, run: Run) -> float:
        """The metric of whatever `run` makes of the original's inputs. Raises ModelError for what is no number."""
        scorer = self.metric.start(self._data)
        for feeds, data in self._cut():
            scorer.add(run(feeds), data)
        value = scorer.result()
        if not math.isfinite(value):
            raise ModelError(f"metric '{self.name}' is {value}: no number to compare with")
        return value

    def _cut(self) -> Iterator[tuple[Arrays, Arrays]]:
        """The inputs of each run, and the data that goes with them."""
        start = 0
        for i, feeds in enumerate(self._runs):
            if self._winners:
                assert self.metric.against
                yield feeds, {"labels": self._winners[i]}
                continue
            size = self._size(feeds)
            whole = len(self._runs) == 1
            yield (
                feeds,
                {n: a if whole or n in feeds else a[start : start + size] for n, a in self._data.items() if a.ndim},
            )
            start += size

    def _size(self, feeds: Arrays) -> int:
        """How many samples are in a run."""
        return next((len(a) for n, a in feeds.items() if a.ndim and len(a) != len(self._data[n])), 1)


def with_data(
    model: ir.Model, inputs: str | Path | Arrays | None, data: str | Path | Arrays | None
) -> tuple[str | Path | Arrays | None, Arrays | None]:
    """Inputs to measure with, and data for a metric: one stands in for the other. Raises UsageError."""
    if data is None:
        if isinstance(inputs, str | Path):
            inputs = load_inputs(inputs, model)
        return inputs, inputs
    arrays = read_arrays(data) if isinstance(data, str | Path) else {n: np.asarray(a) for n, a in data.items()}
    ports = {v.name for v in model.graph.inputs}
    source = f"'{data}'" if isinstance(data, str | Path) else "data"
    fitted = fit_inputs({n: a for n, a in arrays.items() if n in ports}, model, source)
    return fitted if inputs is None else inputs, arrays | fitted


def _check_labels(model: ir.Model, metric: str, labels: str, samples: Samples, arrays: Arrays) -> None:
    """Raise UsageError where the labels are missing, or too few or too many."""
    if labels not in arrays:
        more = [n for n in arrays if n not in samples.first]
        has = f"what it holds besides the inputs: {', '.join(more)}" if more else "it holds nothing but the inputs"
        raise UsageError(f"metric '{metric}' needs an array '{labels}' in the data; {has}")
    found = arrays[labels]
    dims = [declared_dims(v) for v in model.graph.inputs]
    many = len(samples.runs) > 1 or any(d and not isinstance(d[0], int) for d in dims)
    if many and found.shape[:1] != (samples.count,):
        raise UsageError(
            f"'{labels}' has shape {dims_text(found.shape)}: it must have a row for each of the {samples.count} samples"
        )
