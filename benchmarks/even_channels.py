"""What evening out channels gains before weights and activations become integers: the tables of docs/quantization.md.

    python -m benchmarks.even_channels [--tasks crepe minilm …]

Run from the repository root with a Python that has what benchmarks.quantize needs. Signal over noise of the outputs
against the float model in dB, on inputs that nobody calibrated with (`benchmarks.quantize_tasks`, first fold).
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir

import edgec
from edgec.compiler import pipelines
from edgec.compiler.data import Samples
from edgec.compiler.passbase import Context
from edgec.compiler.plugins import find_pass
from edgec.compiler.session import Session
from edgec.compiler.targets import find_target
from edgec.compiler.weights import Scratch

from . import harness
from .quantize import float_model
from .quantize_tasks import TASKS, Arrays, Task

SAMPLES = 32
"""To calibrate with, and to measure on."""
TENSOR, CHANNEL = "round-weights{by=mse,min_snr=0,per=tensor}", "round-weights{by=mse,min_snr=0}"
INTEGERS = "quantize-activations{min_snr=0}"
WIDEST = "quantize-activations{min_snr=0,calibrate=minmax}"
EVEN, SMOOTH = "equalize-channels", "smooth-activations"
ROWS: tuple[tuple[str, ...], ...] = (
    (TENSOR,), (EVEN, TENSOR), (CHANNEL,), (EVEN, CHANNEL), (INTEGERS, TENSOR), (EVEN, INTEGERS, TENSOR),
    (INTEGERS, CHANNEL), (EVEN, INTEGERS, CHANNEL), (SMOOTH, INTEGERS, CHANNEL),
)  # fmt: skip
INSERTED = tuple(f"{SMOOTH}{{insert=true,alpha={a}}}" for a in (0.5, 0.6, 0.75, 0.9, 1))
MORE = {
    "minilm": (*((s, INTEGERS, CHANNEL) for s in INSERTED), (WIDEST, CHANNEL), (INSERTED[2], WIDEST, CHANNEL)),
}
"""Rows for some tasks only: transformers whose activations nothing absorbs without a Mul."""


def first(arrays: Arrays) -> Arrays:
    return {k: v[:SAMPLES] for k, v in arrays.items()}


def snr(wanted: np.ndarray, got: np.ndarray) -> float:
    a, b = wanted.astype(np.float64), got.astype(np.float64)
    return float(10 * np.log10(np.square(a).sum() / np.square(a - b).sum()))


def outputs(model: ir.Model, feeds: Arrays) -> np.ndarray:
    """The first output for all samples, weights and activations rounded."""
    session, name = Session(model), model.graph.outputs[0].name or ""
    return np.concatenate([session.run(part, [name])[name] for part in Samples.of(model, feeds).runs])


def measure(task: Task, more: tuple[tuple[str, ...], ...]) -> Iterator[tuple[str, float]]:
    """By passes, dB."""
    fold = replace(task.folds[0], calibration=first(task.folds[0].calibration), test=first(task.folds[0].test))
    with tempfile.TemporaryDirectory() as made:
        source = float_model(task, Path(made))
        with edgec.compile(source, passes=",".join(pipelines.O1), target="onnx", verify="off", latency=False) as done:
            base = done.model
            wanted, seen = outputs(base, fold.test), Samples.of(base, fold.calibration).runs
            for specs in (*ROWS, *more):
                model, scratch = base.clone(), Scratch()
                ctx = Context(find_target("onnx"), scratch, seen[0], True, runs=seen)
                for spec in specs:
                    find_pass(spec).run(model, ctx)
                yield ", ".join(specs), round(snr(wanted, outputs(model, fold.test)), 1)
                scratch.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=["efficientnet", "ppocr", "crepe", "minilm"])
    table: dict[str, harness.Row] = {}
    for name in parser.parse_args().tasks:
        task = TASKS[name]()
        for passes, found in measure(task, MORE.get(name, ())):
            table.setdefault(passes, {"passes": f"`{passes}`"})[task.name] = found
            print(f"{task.name:20}{found:8.1f} dB  {passes}", file=sys.stderr, flush=True)
    print(harness.markdown(list(table.values())))


if __name__ == "__main__":
    main()
