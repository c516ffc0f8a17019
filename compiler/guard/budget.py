"""What lossy passes may cost in all: an error of the outputs, a signal-to-noise ratio, points of the task's metric."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ..calibration.batching import spread
from ..calibration.streaming import Feeds, Runs
from ..errors import ModelError
from ..numerics import Meter
from ..session import Session
from ..verify import Comparison, OtherSizes, named_by_size
from ..weights import release
from .task import Score, Task

Outputs = Mapping[str, np.ndarray]

JUDGED = 256
"""Samples that a budget is held against, more or less."""
FEW = 4
"""Further runs in which each part of a pass is measured alone."""
HELD = 1 << 28
"""Bytes of the original's outputs that are held for that, at most; fewer samples are looked at where they are large."""


def judged(model: ir.Model, runs: Runs, first: Outputs) -> list[tuple[Feeds, Outputs]]:
    """Some runs, evenly spread, without the first, whose outputs are known; and what `model` computes from them.

    A model of fixed batch sees a single sample in a run, and one sample says little.
    """
    some = spread(runs, JUDGED)[1:]
    most = HELD // max(1, sum(a.nbytes for a in first.values()))
    some = some[:: max(1, -(-len(some) // most))] if most else ()
    if not some:
        return []
    session = Session(model)
    found: list[tuple[Feeds, Outputs]] = [(feeds, session.run(feeds)) for feeds in some]
    release(model)
    return found


def together(session: Session, runs: Iterable[tuple[Feeds, Outputs]]) -> Comparison:
    """How far a model is, in these runs as if they were one, from what it should compute."""
    meters: dict[str, Meter] = {}
    for feeds, wanted in runs:
        got = session.run(feeds)
        for n, reference in wanted.items():
            meters.setdefault(n, Meter(n)).add(reference, got[n])
    return Comparison({n: m.result() for n, m in meters.items()})


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
        original: what the original model computes from `inputs`, the first run.
        max_error: the largest relative error of an output; None: any.
        min_snr: the least signal-to-noise ratio of an output, in dB; None: any.
        task: the metric, measured where there is one; it knows what may be lost of it.
        other: inputs of other sizes, whose shapes must come out right.
        more: further runs, and what the original computes from them: an error is that of all runs together.
    """

    original: Outputs
    inputs: Mapping[str, np.ndarray]
    max_error: float | None = None
    min_snr: float | None = None
    task: Task | None = None
    other: OtherSizes | None = None
    more: Sequence[tuple[Feeds, Outputs]] = ()

    def loss(self, model: ir.Model) -> Loss:
        """What `model` has lost, rounding included. Runs it. Raises ModelError when that fails."""
        session = Session(model)
        if self.other is not None:
            self.other.check(named_by_size(session.run(self.other.inputs), self.other.inputs))
        outputs = together(session, [(self.inputs, self.original), *self.more])
        release(model)
        # Samples of the metric are many: what is over by the outputs alone needs no more of them.
        if self.task is None or self._outputs_over(outputs):
            return Loss(outputs)
        try:
            return Loss(outputs, self.task.result(self.task.measure(model)))
        except ModelError as e:
            return Loss(outputs, failure=str(e))

    @property
    def few(self) -> list[Feeds]:
        """The first run and some others: for what is measured many times."""
        return [self.inputs, *(feeds for feeds, _ in self.more[:: max(1, len(self.more) // FEW)])]

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
