"""edgec's ways of rounding weights, as rows of benchmarks.quantize: packages for Core ML, calibrated once for all."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest import mock

import onnx_ir as ir

import edgec
from edgec.compiler import pipelines
from edgec.compiler.calibration.linear_layers import linear_layers
from edgec.compiler.calibration.statistics import Moments
from edgec.compiler.compilation import Hooks
from edgec.compiler.data import Samples
from edgec.compiler.passbase import Context
from edgec.compiler.targets import find_target
from edgec.compiler.weights import Scratch
from edgec.passes import calibrated
from edgec.passes.weight_grid import Weight, weights

from .quantize_tasks import Arrays, Task

TARGET = "ios18"
SMALL = 2048
"""Elements below which a weight is not rounded."""
GIVEN = "given inputs"
MIXED = "edgec, mixed bits, " + GIVEN
TABLE = "edgec, table, " + GIVEN
BLOCKS = "edgec, blocks of 32, " + GIVEN
Pairs = Iterator[tuple[Weight, Moments | None]]


def ways(bits: int, scores: bool) -> dict[str, str]:
    """The pass that rounds, by the name of the row. With 8 bits for all there is nothing to mix.

    `scores`: a softmax has been cut off, so that the outputs don't look like what they are.
    """
    found = {
        "edgec, table, no data": f"round-weights{{bits={bits},scheme=table,min_snr=0}}",
        TABLE: f"round-weights{{bits={bits},scheme=table,min_snr=0}}",
        BLOCKS: f"round-weights{{bits={bits},block=32,min_snr=0}}",
        MIXED: f"quantize{{bits={bits}{',scores=true' if scores else ''}}}",
    }
    if bits == 8:
        del found[MIXED]
    return found


def optimized(source: Path, task: Task, out: Path) -> None:
    """The float model after -O1, for the sizes of the task: what all rows start from."""
    shapes = {k: list(v) for k, v in task.shapes.items()}
    with edgec.compile(source, level="O1", target="onnx", shapes=shapes, verify="off", latency=False) as done:
        done.save(out)


@dataclass
class Calibration:
    """What one set of inputs tells about all weights: gathered for the first row that asks, then kept.

    Attributes:
        cpu: seconds of processor time that it took.
    """

    inputs: Arrays
    cpu: float = 0.0
    _known: dict[str, Moments | None] = field(default_factory=dict)

    def known(self, model: ir.Model) -> list[tuple[Weight, Moments | None]]:
        """All weights of a model that nothing has rounded, with what is known."""
        with Scratch() as scratch:
            samples = Samples.of(model, self.inputs)
            ctx = Context(find_target(TARGET), scratch, samples.first, True, runs=samples.runs)
            return list(self.pairs(model, weights(model, SMALL), ctx))

    def pairs(self, model: ir.Model, wanted: Sequence[Weight], ctx: Context) -> Pairs:
        """In the place of `calibrated.with_moments`."""
        if not self._known:
            start = time.process_time()
            self._known = {w.value.name or "": m for w, m in calibrated.with_moments(model, wanted, ctx)}
            self.cpu = time.process_time() - start
        # What is known is of the first model that asked; its biases have been moved since.
        layers = {layer.weight: layer for layer in reversed(linear_layers(model))}
        for w in wanted:
            found = self._known[w.value.name or ""]
            yield w, None if found is None else replace(found, layer=layers[w.value])


def compiled(source: Path, out: Path, rounding: str, calibration: Calibration | None) -> float:
    """Write a package; the seconds of processor time that rounding took, calibration counted.

    Measurements for mixed bits are kept for the next widths, beside the package.
    """
    spent = [0.0]
    hooks = Hooks(
        pass_started=lambda p, *_: spent.append(-time.process_time()) if p.name != "pack-weights" else None,
        pass_ended=lambda r, _: spent.append(time.process_time()) if r.spec != "pack-weights" else None,
    )
    options: dict[str, Any] = {"verify": "off", "latency": False, "hooks": hooks, "precision": "fp16"}
    specs = ",".join(s for s in (*pipelines.PREPARE, rounding, "pack-weights" if rounding else "") if s)
    given = dict(calibration.inputs) if calibration else None
    if calibration:
        options["resume"] = out.with_name(f"{id(calibration)}.resume")
    before = calibration.cpu if calibration else 0.0
    kept = calibration.pairs if calibration else calibrated.with_moments
    with (
        mock.patch("edgec.passes.round_weights.with_moments", kept),
        mock.patch("edgec.passes.sensitivity.with_moments", kept),
        edgec.compile(source, passes=specs, target=TARGET, inputs=given, **options) as done,
    ):
        done.save(out)
    return sum(spent) + before
