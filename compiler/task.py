"""What a model is for, measured: a metric on the user's labelled samples, of the original and of what became of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from .data import Samples
from .errors import ModelError, UsageError
from .metrics import Arrays, Metric, find_metric, winners
from .session import Session
from .synthesis import declared_dims, dims_text
from .weights import release

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
    def of(
        cls,
        model: ir.Model,
        metric: str | Callable[..., float],
        data: str | Path | Arrays,
        max_drop: float | None = None,
    ) -> Task:
        """The metric of `model`, which is the original, on `data`: an .npz or arrays, named like its inputs, and more.

        Raises UsageError for data that doesn't fit, ModelError for a metric that can't be measured.
        """
        found = find_metric(metric)
        if max_drop is not None and (math.isnan(max_drop) or max_drop < 0):
            raise UsageError(f"--max-drop {max_drop:g}: a number of points, 0 or more")
        if max_drop is not None and found.share and max_drop >= 1:
            raise UsageError(f"--max-drop {max_drop:g}: {found.name} lies between 0 and 1, where one percent is 0.01")
        dims = [declared_dims(v) for v in model.graph.inputs]
        samples, arrays = Samples.with_more(model, data)
        if found.labels is not None and found.labels not in arrays:
            more = [n for n in arrays if n not in samples.first]
            has = f"what it holds besides the inputs: {', '.join(more)}" if more else "it holds nothing but the inputs"
            raise UsageError(f"metric '{found.name}' needs an array '{found.labels}' in the data; {has}")
        many = len(samples.runs) > 1 or any(d and not isinstance(d[0], int) for d in dims)
        if many and found.labels is not None and len(np.atleast_1d(arrays[found.labels])) != samples.count:
            raise UsageError(
                f"'{found.labels}' has shape {dims_text(arrays[found.labels].shape)}: it must have a row for each of "
                f"the {samples.count} samples"
            )
        task = cls(found, samples, arrays, max_drop)
        session = Session(model)
        if found.against:
            task._winners = [winners(session.run(feeds)) for feeds in task._runs]
        task.original = task.score(session.run)
        release(model)
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
