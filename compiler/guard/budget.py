"""What lossy passes may cost in all: an error of the outputs, a signal-to-noise ratio, points of the task's metric."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ..errors import ModelError
from ..verify import Comparison, OtherSizes, compare_outputs, outputs_of
from .task import Score, Task

Outputs = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Loss:
    """What a model has lost of the original: how far its outputs are, and the metric, where there is one.

    Attributes:
        failure: why there is no metric where there should be one.
    """

    outputs: Comparison
    score: Score | None = None
    failure: str = ""


@dataclass(frozen=True)
class Budget:
    """What may be lost, and how it is measured.

    Attributes:
        original: what the original model computes from `inputs`.
        max_error: the largest relative error of an output; None: any.
        min_snr: the least signal-to-noise ratio of an output, in dB; None: any.
        task: the metric, measured where there is one; it knows what may be lost of it.
        other: inputs of other sizes, whose shapes must come out right.
    """

    original: Outputs
    inputs: Mapping[str, np.ndarray]
    max_error: float | None = None
    min_snr: float | None = None
    task: Task | None = None
    other: OtherSizes | None = None

    def loss(self, model: ir.Model) -> Loss:
        """What `model` has lost, rounding included. Runs it. Raises ModelError when that fails."""
        found = outputs_of(model, self.inputs, *((self.other.inputs,) if self.other is not None else ()))
        if self.other is not None:
            self.other.check(found)
        outputs = compare_outputs(self.original, {n: found[n] for n in self.original})
        # Samples of the metric are many: what is over by the outputs alone needs no more of them.
        if self.task is None or self._outputs_over(outputs):
            return Loss(outputs)
        try:
            return Loss(outputs, self.task.result(self.task.measure(model)))
        except ModelError as e:
            return Loss(outputs, failure=str(e))

    def over(self, loss: Loss) -> str:
        """How `loss` is over the budget, in words; nothing where it is within."""
        score = loss.score
        if why := self._outputs_over(loss.outputs):
            return why
        if loss.failure:
            return loss.failure
        if score is not None and not score.ok:
            return f"over --max-drop {score.max_drop:g}: {score.line()}"
        return ""

    def _outputs_over(self, found: Comparison) -> str:
        if self.max_error is not None and not found.within(self.max_error):
            return f"over --max-error {self.max_error:g}: {found.worst_line()}"
        if self.min_snr is not None and found.snr_db < self.min_snr:
            return f"under --min-snr {self.min_snr:g} dB: {found.worst_line()}"
        return ""
