"""Different bits for different weights beside the same bits for all, in as many bytes, on inputs held out.

    python -m benchmarks.mixed_bits [--tasks efficientnet ppocr …] [--bits 4 3] [--by fisher] [--samples 40]

Run from the repository root with a Python that has edgec, torch (exports two of the models) and pillow. Weights are
rounded once to each width (iOS 18's forms) by the calibration half of the first fold of `benchmarks.quantize_tasks`;
`quantize` then allocates as many bytes as the same bits everywhere take. SNR of the outputs on the other half, in dB:
of probabilities (Hellinger) where outputs are scores of classes, and of the outputs as they are. Processor seconds of
rounding to all widths, and of measuring the weights.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from edgec.compiler import pipelines
from edgec.compiler.data import Samples
from edgec.compiler.driver import load
from edgec.compiler.manager import Manager, Options
from edgec.compiler.passbase import Context
from edgec.compiler.targets import find_target
from edgec.compiler.weights import Scratch
from edgec.passes import weight_grid
from edgec.passes.bit_budget import Path as Steps
from edgec.passes.bit_budget import noise, size, size_of_bits, uniform
from edgec.passes.measurements import Measurements
from edgec.passes.probe import Probe, some_runs
from edgec.passes.quantize import Quantize
from edgec.passes.sensitivity import Fits, by_gradients, by_outputs

from . import harness
from .quantize import float_model
from .quantize_tasks import TASKS, Task

TARGET = "ios18"
SMALL = 2048
"""Elements below which a weight is not rounded."""


def rows(task: Task, bits: list[int], by: str, most: int, scratch: Scratch) -> Iterator[harness.Row]:
    model, fold = load(float_model(task, scratch.dir)), task.folds[0]
    calibration, test = (
        Samples.of(model, {n: a[:most] for n, a in half.items()}) for half in (fold.calibration, fold.test)
    )
    ctx = Context(find_target(TARGET), scratch, calibration.first, True, runs=calibration.runs)
    model = Manager(ctx, Options(verify="off"), {}).run(model, pipelines.build(list(pipelines.O1)))
    start = time.process_time()
    weights = weight_grid.weights(model, SMALL)
    fits = Fits(model, weights, Quantize()._specs(ctx), ctx, scratch, Measurements(), jobs=1)
    rounded = time.process_time()
    scores = True if task.before == "Softmax" else None  # what lies before it doesn't look like scores
    probe = Probe(model, some_runs(model, ctx), scores)
    curves = (by_gradients if by == "fisher" else by_outputs)(fits, probe, ctx)
    spent = {"rounding s": round(rounded - start, 1), "measuring s": round(time.process_time() - rounded, 1)}
    others = Probe(model, test.runs, scores)
    for b in bits:
        limit = size_of_bits(curves, b)
        for what, plan in (("same", uniform(curves, limit)), ("different", Steps(curves).of_size(limit))):
            if plan is None:
                continue
            found = others.damage(fits.finished(plan))
            yield {
                "model": task.name, "weights": len(fits.found), "bits": b, "of each weight": what,
                "kB": round(size(plan) / 1e3, 1), "SNR expected": _db(noise(plan)), "SNR": _db(found.noise),
                "SNR as it is": round(found.snr, 1), **spent,
            }  # fmt: skip


def _db(power: float) -> float:
    return round(-10 * math.log10(power), 1) if power > 0 else math.inf


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=["efficientnet", "ppocr"])
    parser.add_argument("--bits", nargs="+", type=int, default=[4, 3])
    parser.add_argument("--by", choices=("output", "fisher"), default="output")
    parser.add_argument("--samples", type=int, default=1 << 20, help="of each half at most")
    parser.add_argument("--out", type=Path, help="write OUT.md and OUT.json as well")
    o = parser.parse_args()
    tools = {"python": harness.versions(sys.executable, ("edgec", "onnxruntime", "numpy"))}
    found: list[harness.Row] = []
    for name in o.tasks:
        with tempfile.TemporaryDirectory() as folder, Scratch(Path(folder)) as scratch:
            found += rows(TASKS[name](), o.bits, o.by, o.samples, scratch)
        harness.report("Different bits beside the same", found, tools, o.out)


if __name__ == "__main__":
    main()
