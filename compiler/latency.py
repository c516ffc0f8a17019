"""Whether a model is faster for what passes did: the original and what is left run in turn in onnxruntime."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from . import process
from .errors import ModelError
from .graph import nodes
from .passbase import Pass
from .records import Latency, PassRecord, Report
from .rounding import is_pair
from .session import Saved, Session
from .targets import Target

BUDGET = 1.0
"""Seconds for all timed runs."""
LEAST, MOST = 3, 25
"""Timed runs of each model."""


@dataclass
class Shrunk:
    """Keeps the model as the last pass that makes models smaller left it: what comes later need not run here.

    Attributes:
        steps: the passes that will run.
        then: called after each pass, too.
        model: None where no such pass changed anything.
    """

    steps: Sequence[Pass]
    then: Callable[[PassRecord, ir.Model], None]
    model: ir.Model | None = None
    _specs: set[str] = field(init=False)

    def __post_init__(self) -> None:
        self._specs = {p.spec for p in self.steps if p.shrinks}

    def ended(self, record: PassRecord, model: ir.Model) -> None:
        if record.status == "ok" and record.spec in self._specs:
            self.model = model.clone()
        self.then(record, model)


def compared(
    original: ir.Model,
    left: ir.Model | Path,
    inputs: Mapping[str, np.ndarray],
    *,
    integers: bool = False,
) -> Latency:
    """Least processor seconds of a run of both, on one thread, onnxruntime optimising as it does; nothing is rounded.

    With `integers`, what is left rounds its activations, and onnxruntime may compute in integers. A file is run as its
    users run it; the original then is, too.
    Runs alternate, so that both see the same machine, for about a second in all, three times each at least. Other work
    on the machine counts neither way. Raises ModelError where onnxruntime can't run one of them.
    """
    if isinstance(left, Path):
        sessions = [Session(original, threads=1, options=_default(integers=True)), Saved(left, threads=1)]
    else:
        sessions = [Session(original, threads=1, exact=True, options=_default())]
        sessions.append(Session(left, threads=1, exact=not integers, options=_default(integers)))
    taken = _in_turn(sessions, inputs)
    before, after = map(min, taken)
    return Latency(before, after, len(taken[0]))


def least(sessions: Sequence[Session], inputs: Mapping[str, np.ndarray]) -> list[float]:
    """The least processor seconds of a run of each session, as in `compared`; they must have one thread each."""
    return [min(seconds) for seconds in _in_turn(sessions, inputs, 8 * MOST)]


def _in_turn(
    sessions: Sequence[Session], inputs: Mapping[str, np.ndarray], most: int = MOST
) -> list[list[float]]:
    """What each run took of this thread's processor time, after one that does not count."""
    clock = time.thread_time
    for s in sessions:
        s.run(inputs)
    taken: list[list[float]] = [[] for _ in sessions]
    end = clock() + BUDGET
    while len(taken[0]) < LEAST or (len(taken[0]) < most and clock() < end):
        for s, seconds in zip(sessions, taken, strict=True):
            start = clock()
            s.run(inputs)
            seconds.append(clock() - start)
    return taken


def _default(integers: bool = False) -> Any:
    options = process.onnxruntime().SessionOptions()
    if not integers:
        # Weights that are stored packed are unpacked once: else they would be in every run of one of the two.
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    return options


def has_integers(model: ir.Model) -> bool:
    """Whether activations are rounded to integers."""
    return any(is_pair(node) for node in nodes(model, "DequantizeLinear"))


SLOWER = {
    "pruning": "what pruning left is slower than the original here, {times:.2f} times: axes whose lengths are no "
    "multiples of 8 or 16 can cost more than they save; give mask-channels a larger `align`",
    "integers": "with integer activations the model is slower than the original here, {times:.2f} times: onnxruntime "
    "has integer kernels for few operators, and processors without instructions for them gain little. "
    "Leave quantize-activations out",
    "form": "the file is slower than the original here, {times:.2f} times",
}
"""What to say where a change that was made for speed made the model slower."""


def faster_by(
    original: ir.Model, model: ir.Model, shrunk: ir.Model | None, target: Target, file: Path
) -> tuple[ir.Model | Path, str] | None:
    """What was changed for speed, a key of `SLOWER`, and the model or file to time for it; None where nothing was.

    Integers are timed where onnxruntime is what will run them; what is written for it alone is timed in any case.
    """
    if target.backend == "onnxruntime":
        return file, "form"
    if target.backend == "onnx" and has_integers(model) and not has_integers(original):
        return model, "integers"
    return None if shrunk is None else (shrunk, "pruning")


def time_change(
    report: Report, original: ir.Model, left: ir.Model | Path, change: str, inputs: Mapping[str, np.ndarray]
) -> None:
    """Write into the report what `compared` finds; warn where `change`, a key of `SLOWER`, made the model slower."""
    try:
        found = report.latency = compared(original, left, inputs, integers=change == "integers")
    except ModelError as e:
        report.warnings.append(f"how much time is saved by {change} could not be measured: {e}")
        return
    if not found.faster:
        report.warnings.append(SLOWER[change].format(times=found.after / found.before))
