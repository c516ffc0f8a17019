"""What round-weights can do beyond error feedback: `by=descent` and `by=sequential` beside `by=feedback`.

    python -m benchmarks.quantize_feedback [--tasks magika ppocr …] [--bits 4 3]

Run from the repository root with a Python that has what benchmarks.quantize needs. Weights get tables with scales (iOS
18) by the calibration half of each task's first fold. Signal over noise of the outputs on the other half, in dB, and
what the task makes of them; processor seconds with all runs of the model.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from edgec.compiler.data import Samples
from edgec.compiler.driver import load
from edgec.compiler.passbase import Context
from edgec.compiler.plugins import find_pass
from edgec.compiler.targets import find_target
from edgec.compiler.weights import Scratch

from . import harness
from .quantize import float_model, outputs, scored
from .quantize_edgec import TARGET, optimized
from .quantize_tasks import TASKS, Task

WAYS = ("feedback", "descent", "sequential")


def rows(task: Task, bits: list[int], scratch: Scratch) -> Iterator[harness.Row]:
    start, fold = scratch.dir / "o1.onnx", task.folds[0]
    optimized(float_model(task, scratch.dir), task, start)
    reference = load(start)
    samples = Samples.of(reference, fold.calibration)
    ctx = Context(find_target(TARGET), scratch, samples.first, True, runs=samples.runs)
    wanted = outputs(reference, fold.test).astype(np.float64)
    for b in bits:
        for way in WAYS:
            model, began = load(start), time.process_time()
            find_pass(f"round-weights{{bits={b},by={way},min_snr=0,scheme=table}}").run(model, ctx)
            spent = time.process_time() - began
            found = scored(task, [(wanted, outputs(model, fold.test), fold.labels)])
            yield {"model": task.name, "bits": b, "by": way, **found, "CPU s": round(spent, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=["efficientnet", "ppocr", "magika", "silero"])
    parser.add_argument("--bits", nargs="+", type=int, default=[4])
    parser.add_argument("--out", type=Path, help="write OUT.md and OUT.json as well")
    o = parser.parse_args()
    tools = {"python": harness.versions(sys.executable, ("edgec", "onnxruntime", "numpy"))}
    found: list[harness.Row] = []
    for name in o.tasks:
        with tempfile.TemporaryDirectory() as folder, Scratch(Path(folder)) as scratch:
            for row in rows(TASKS[name](), o.bits, scratch):
                print(row, file=sys.stderr, flush=True)
                found.append(row)
    harness.report("Beyond error feedback", found, tools, o.out)


if __name__ == "__main__":
    main()
