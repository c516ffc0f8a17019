"""What masks and low ranks cost trained models: every way of choosing, from calibration inputs, measured on others.

    python -m benchmarks.sparsity [--tasks digits crepe ...] [--specs "mask-weights{pattern=2:4}" ...] [--out FILE]

Run from the repository root with the Python that edgec is installed in, with Pillow and the test extras. A model is
cleaned up as at -O1 first. `signal` is the signal-to-noise ratio of the outputs against that model, in dB; then what
the task makes of them, and of the original's; `MACs` and `parameters` are what factor-weights leaves, or, of a mask,
the share that is not zero. `s` is processor time of the pass, calibration included.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import onnx_ir as ir

from edgec.compiler import cost, driver, shapes
from edgec.compiler.data import Samples
from edgec.compiler.passbase import Context
from edgec.compiler.plugins import find_pass
from edgec.compiler.session import Session
from edgec.compiler.targets import find_target
from edgec.compiler.weights import Scratch
from edgec.passes.low_rank import total_macs

from . import harness, quantize_tasks
from .quantize_tasks import Fold, Task

DIGITS = Path("examples/digits")
MASKS = tuple(
    f"mask-weights{{{what}{by}}}"
    for what in ("ratio=0.5", "ratio=0.5,spread=global", "pattern=2:4", "ratio=0.5,block=4", "ratio=0.75,spread=global")
    for by in ("", ",by=wanda", ",by=sparsegpt")
)
RANKS = tuple(f"truncate-rank{{ratio={r}{by}}}" for r in (0.2, 0.4) for by in ("", ",by=activations"))


def digits() -> Task:
    with np.load(DIGITS / "digits.npz") as file:
        image, labels = file["image"], file["labels"]
    fold = Fold({"image": image[:512]}, {"image": image[512:]}, labels[512:])
    return Task("digits", DIGITS / "digits.onnx", [fold], "% right", _right)


def _right(_: np.ndarray, got: np.ndarray, labels: np.ndarray | None) -> float:
    assert labels is not None
    return float(100 * (got.argmax(-1) == labels).mean())


TASKS: dict[str, Callable[[], Task]] = {"digits": digits, **quantize_tasks.TASKS}


@cache
def cleaned(path: Path) -> ir.Model:
    return driver.compile(path, level="O1", target="onnx", verify="off").model


def outputs(model: ir.Model, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
    """The first output for all samples."""
    session = Session(model)
    found = [session.run(feeds)[session.outputs[0]] for feeds in Samples.of(model, inputs)]
    return np.concatenate(found)


def row(name: str, task: Task, spec: str) -> harness.Row:
    seconds = noise = signal = before = after = 0.0
    left: list[dict[str, float]] = []
    for fold in task.folds:
        model = cleaned(task.model).clone()
        runs = Samples.of(model, fold.calibration).runs
        reference = outputs(model, fold.test)
        whole = _size(model)
        with Scratch() as scratch:
            ctx = Context(find_target("onnx"), scratch, runs[0], given=True, runs=runs)
            start = time.process_time()
            find_pass(spec).run(model, ctx)
            seconds += time.process_time() - start
            got = outputs(model, fold.test)
            if spec.startswith("mask"):
                left.append({"not zero": _dense(model) / _dense(cleaned(task.model))})
            else:
                find_pass("factor-weights").run(model, ctx)
                shapes.infer(model)
                left.append({k: v / whole[k] for k, v in _size(model).items()})
        signal += float(np.square(reference, dtype=np.float64).sum())
        noise += float(np.square(reference.astype(np.float64) - got).sum())
        before += task.measure(reference, reference, fold.labels)
        after += task.measure(reference, got, fold.labels)
    n = 1 if "of 20" in task.unit else len(task.folds)
    shares = {k: f"{np.mean([part[k] for part in left]):.0%}" for k in left[0]}
    ratio = float(10 * np.log10(signal / max(noise, 1e-30)))
    return {
        "model": name,
        "pass": spec,
        "signal": round(ratio, 1),
        "task": f"{after / n:.4g} {task.unit}",
        "original": f"{before / n:.4g}",
        **shares,
        "s": round(seconds, 1),
    }


def _size(model: ir.Model) -> dict[str, float]:
    return {"MACs": total_macs(model), "parameters": float(cost.parameters(model))}


def _dense(model: ir.Model) -> int:
    values = (v.const_value for v in model.graph.initializers.values())
    return sum(int(np.count_nonzero(t.numpy())) for t in values if t is not None and t.dtype == ir.DataType.FLOAT)


COLUMNS = ["model", "pass", "signal", "task", "original", "not zero", "MACs", "parameters", "s"]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=["digits", "efficientnet", "minilm"])
    parser.add_argument("--specs", nargs="+", default=[*MASKS, *RANKS])
    parser.add_argument("--out", type=Path, default=Path("docs/sparsity_table"), help="write OUT.md and OUT.json")
    o = parser.parse_args(arguments)
    found: list[harness.Row] = []
    tools = {"edgec": harness.versions(sys.executable, ("edgec", "onnx", "onnxruntime", "numpy", "scipy"))}
    for name in o.tasks:
        task = TASKS[name]()
        for spec in o.specs:
            found.append(row(name, task, spec))
            print(found[-1], file=sys.stderr, flush=True)
            table = [{c: r.get(c, "") for c in COLUMNS} for r in found]
            harness.report("Masks and low ranks of trained models", table, tools, o.out)


if __name__ == "__main__":
    main()
