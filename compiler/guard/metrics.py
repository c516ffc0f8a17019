"""Measures of a task: what a model's outputs are worth on labelled samples, by a name or by the user's own function.

A metric is fed run by run and keeps counts only; a user's function sees all outputs at once (`function`).
"""

from __future__ import annotations

import abc
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np

from ..data import LABELS
from ..errors import UsageError
from ..numerics import looks_like_logits
from ..passbase import parse_spec
from ..plugins import find_function
from ..synthesis import dims_text
from .function import Function

Arrays = Mapping[str, np.ndarray]


class Scorer(Protocol):
    """Sums up a measure over the runs of a model."""

    def add(self, outputs: Arrays, data: Arrays) -> None:
        """Take in one run: what the model computed, and the arrays that go with these samples."""

    def result(self) -> float:
        """The measure over all that was added."""


@dataclass(frozen=True)
class Metric:
    """A measure, by its name.

    Attributes:
        name: as the user wrote it.
        start: makes a scorer; it gets the arrays of all samples.
        larger_is_better: else smaller is.
        share: whether it lies between 0 and 1.
        labels: the array of labels that it needs, if it needs any.
        against: whether the labels are the winners of the original model.
    """

    name: str
    start: Callable[[Arrays], Scorer]
    larger_is_better: bool = True
    share: bool = False
    labels: str | None = LABELS
    against: bool = False

    def lost(self, before: float, after: float) -> float:
        """How many points worse `after` is than `before`; negative where it is better."""
        return before - after if self.larger_is_better else after - before


def find_metric(text: str | Callable[..., float]) -> Metric:
    """The metric of that name, `name{output=…,labels=…}`, `module:function`, `./file.py:function`, or a function.

    Raises UsageError, listing the names, for what is none.
    """
    if callable(text):
        return _of_function(getattr(text, "__name__", "function"), text)
    if ":" in text.partition("{")[0]:
        found = find_function(text)
        if not callable(found):
            raise UsageError(f"metric '{text}' is no function, but {type(found).__name__}")
        return _of_function(text, found)
    spec = parse_spec(text)
    kind = METRICS.get(spec.name)
    if kind is None:
        known = ", ".join(METRICS)
        raise UsageError(f"unknown metric '{spec.name}'; there are {known}, and module:function or ./file.py:function")
    options = dict(spec.options)
    if wrong := [o for o in options if o not in ("output", "labels")]:
        raise UsageError(f"metric '{spec.name}' has no option '{wrong[0]}'; its options: output, labels")
    labels, output = options.get("labels", LABELS), options.get("output")
    if kind.against and "labels" in options:
        raise UsageError(f"metric '{spec.name}' needs no labels: it compares with the original model")
    return Metric(
        text, lambda _: kind(labels, output), kind.larger_is_better, kind.share, None if kind.against else labels,
        kind.against,
    )  # fmt: skip


def _of_function(name: str, function: Callable[..., float]) -> Metric:
    larger = not getattr(function, "smaller_is_better", False)
    return Metric(name, lambda data: Function(name, function, data), larger, labels=None)


@dataclass
class _Labelled(abc.ABC):
    """What the built-in scorers share: which output is scored, and its labels."""

    larger_is_better: ClassVar[bool] = True
    share: ClassVar[bool] = True
    against: ClassVar[bool] = False

    labels: str
    output: str | None
    seen: int = 0

    @abc.abstractmethod
    def add(self, outputs: Arrays, data: Arrays) -> None:
        """See `Scorer`."""

    @abc.abstractmethod
    def result(self) -> float:
        """The measure; NaN where nothing was counted."""

    def _named(self, outputs: Arrays) -> dict[str, np.ndarray]:
        """The outputs to choose from."""
        if self.output is None:
            return dict(outputs)
        if self.output not in outputs:
            raise UsageError(f"the metric's output '{self.output}' is none of the model's: {', '.join(outputs)}")
        return {self.output: outputs[self.output]}

    def _scores(self, outputs: Arrays, data: Arrays) -> tuple[np.ndarray, np.ndarray]:
        """Scores of classes [places, classes] and the right class of each place, without labels below 0."""
        labels = data[self.labels]
        if labels.dtype.kind not in "iu":
            raise UsageError(f"'{self.labels}' is {labels.dtype}: classes must be whole numbers")
        found = self._named(outputs)
        for array in found.values():
            scores = _classes_last(array, labels.shape)
            if scores is not None:
                classes, wanted = scores.shape[-1], labels.reshape(-1)
                if wanted.size and wanted.max() >= classes:
                    raise UsageError(
                        f"'{self.labels}' holds {wanted.max()}, but there are {classes} classes, 0 to {classes - 1}; "
                        "labels below 0 are not counted"
                    )
                counted = wanted >= 0
                return scores.reshape(-1, classes)[counted], wanted[counted]
        shapes = ", ".join(f"'{n}' {dims_text(a.shape)}" for n, a in found.items())
        raise UsageError(
            f"'{self.labels}' has shape {dims_text(labels.shape)} for a run whose outputs are {shapes}: none of them "
            "holds scores of classes for these. Choose one with {output=…}, or write a function"
        )


def _classes_last(array: np.ndarray, labels: Sequence[int]) -> np.ndarray | None:
    """Scores with the classes as the last axis, or None where they don't belong to labels of this shape."""
    labels = tuple(labels)
    if array.dtype.kind != "f" or array.ndim != len(labels) + 1 or not labels:
        return None
    if array.shape[:-1] == labels and array.shape[-1] > 1:
        return array
    if array.ndim > 2 and (array.shape[0], *array.shape[2:]) == labels and array.shape[1] > 1:
        return np.moveaxis(array, 1, -1)
    return None


@dataclass
class _Accuracy(_Labelled):
    """The share of labels whose class has the highest score."""

    right: int = 0

    def add(self, outputs: Arrays, data: Arrays) -> None:
        scores, wanted = self._scores(outputs, data)
        self.right += int((scores.argmax(-1) == wanted).sum())
        self.seen += len(wanted)

    def result(self) -> float:
        return self.right / self.seen if self.seen else math.nan


@dataclass
class _Top5(_Accuracy):
    """The share of labels whose class has one of the five highest scores."""

    def add(self, outputs: Arrays, data: Arrays) -> None:
        scores, wanted = self._scores(outputs, data)
        own = np.take_along_axis(scores, wanted[:, None], -1) if len(wanted) else scores[:, :1]
        # Of equal scores the first counts as higher, as argmax has it; a NaN is never right.
        earlier = np.arange(scores.shape[-1]) < wanted[:, None]
        higher = ~(scores <= own) | ((scores == own) & earlier)
        self.right += int((higher.sum(-1) < 5).sum())
        self.seen += len(wanted)


@dataclass
class _Iou(_Labelled):
    """Intersection over union of what is predicted and what is right, the mean over all classes that occur."""

    counts: np.ndarray | None = None

    def add(self, outputs: Arrays, data: Arrays) -> None:
        scores, wanted = self._scores(outputs, data)
        classes = scores.shape[-1]
        found = np.bincount(wanted.astype(np.int64) * classes + scores.argmax(-1), minlength=classes * classes)
        matrix = found.reshape(classes, classes)
        self.counts = matrix if self.counts is None else self.counts + matrix

    def result(self) -> float:
        if self.counts is None or not self.counts.any():
            return math.nan
        both = np.diag(self.counts)
        either = self.counts.sum(0) + self.counts.sum(1) - both
        return float((both[either > 0] / either[either > 0]).mean())


@dataclass
class _Squares(_Labelled):
    """The mean of the squared difference from the labels, which have the output's shape."""

    larger_is_better: ClassVar[bool] = False
    share: ClassVar[bool] = False

    total: float = 0.0

    def add(self, outputs: Arrays, data: Arrays) -> None:
        wanted = data[self.labels]
        if wanted.dtype.kind not in "iuf":
            raise UsageError(f"'{self.labels}' is {wanted.dtype}: numbers are needed")
        size = [d for d in wanted.shape if d != 1]
        found = self._named(outputs)
        for array in found.values():
            if array.dtype.kind == "f" and [d for d in array.shape if d != 1] == size:
                self.total += self._sum(array.reshape(-1).astype(np.float64) - wanted.reshape(-1))
                self.seen += wanted.size
                return
        shapes = ", ".join(f"'{n}' {dims_text(a.shape)}" for n, a in found.items())
        raise UsageError(
            f"'{self.labels}' has shape {dims_text(wanted.shape)} for a run whose outputs are {shapes}: none of them "
            "is of that shape. Choose one with {output=…}, or write a function"
        )

    def _sum(self, error: np.ndarray) -> float:
        return float(error @ error)

    def result(self) -> float:
        return self.total / self.seen if self.seen else math.nan


class _Absolutes(_Squares):
    """The mean of the absolute difference from the labels, which have the output's shape."""

    def _sum(self, error: np.ndarray) -> float:
        return float(np.abs(error).sum())


class _Agreement(_Accuracy):
    """The share of rows whose highest score is that of the original model; needs no labels."""

    against: ClassVar[bool] = True


def winners(outputs: Arrays) -> np.ndarray:
    """The index of the highest score in each row of the first output that looks like scores. Raises UsageError."""
    found = next((a for n, a in outputs.items() if looks_like_logits(a, n)), None)
    if found is None:
        raise UsageError("metric 'agreement': no output looks like scores of classes; write a function instead")
    return np.asarray(found.argmax(-1))


METRICS: Mapping[str, type[_Labelled]] = {
    "accuracy": _Accuracy,
    "top5": _Top5,
    "iou": _Iou,
    "mse": _Squares,
    "mae": _Absolutes,
    "agreement": _Agreement,
}
