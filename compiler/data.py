"""The samples that a model is measured on: the user's, or synthesised ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from .synthesis import LABELS, batches, fit_inputs, load_inputs, synthesise


@dataclass(frozen=True)
class Samples:
    """Inputs for a model, cut into runs.

    Attributes:
        runs: one set of named inputs per run.
        given: whether they are the user's.
        labels: the right class of each sample, shape [N], where the user gave any.
        count: how many samples there are; 1 where no axis counts samples.
    """

    runs: tuple[Mapping[str, np.ndarray], ...]
    given: bool = False
    labels: np.ndarray | None = None
    count: int = 1

    @property
    def first(self) -> Mapping[str, np.ndarray]:
        """The inputs of the first run: what passes measure with."""
        return self.runs[0]

    @classmethod
    def of(cls, model: ir.Model, inputs: str | Path | Mapping[str, np.ndarray] | None) -> Samples:
        """The user's inputs (named arrays or an .npz, `labels` apart), or synthesised ones. Raises UsageError."""
        if inputs is None:
            return cls((synthesise(model),))
        arrays = dict(load_inputs(inputs, model) if isinstance(inputs, str | Path) else fit_inputs(inputs, model))
        labels = arrays.pop(LABELS, None)
        runs = tuple(batches(arrays, model))
        count = max((a.shape[0] for a in arrays.values() if a.ndim), default=1)
        return cls(runs, True, labels, count)

    def __iter__(self) -> Iterator[Mapping[str, np.ndarray]]:
        return iter(self.runs)
