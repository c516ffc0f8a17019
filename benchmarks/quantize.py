"""Weights of few bits, edgec beside coremltools.optimize: what the outputs keep, what the file takes.

    python -m benchmarks.quantize [--tasks crepe minilm …] [--bits 8 4 3] [--out docs/quantize]

Run from the repository root with a Python that has edgec, coremltools, torch (exports two of the models) and pillow.
Every row is a Core ML package on disk (iOS 18), read back and run by onnxruntime with activations in float32, on inputs
that nobody calibrated with (`benchmarks.quantize_tasks`). coremltools' rows start from the package that edgec writes
without rounding, and are its options that need no data: what needs some, it runs on a Mac only, or trains with torch.

`SNR`: signal over noise against the float model, dB, over all outputs of all folds (before a last softmax). `kB`: the
package. `CPU s`: of rounding alone, edgec's with all its runs of the model for calibration.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import coremltools as ct
import coremltools.optimize as cto
import numpy as np
import onnx
import onnx_ir as ir

import edgec
from edgec.compiler import pipelines
from edgec.compiler.compilation import Hooks
from edgec.compiler.driver import load
from edgec.compiler.session import Session

from . import harness
from .quantize_tasks import TASKS, Arrays, Fold, Task

TARGET = "ios18"
SMALL = 2048
"""Elements below which nobody rounds a weight."""


def float_model(task: Task, folder: Path) -> Path:
    """The model without its last softmax, if that is to go."""
    if not task.before:
        return task.model
    model = onnx.load(task.model)
    graph = model.graph
    last = max(i for i, n in enumerate(graph.node) if n.op_type == task.before)
    end, behind = graph.node[last], graph.node[-1]
    logits = end.input[0]
    if behind.op_type == "Reshape" and behind.input[0] == end.output[0]:
        behind.input[0] = logits
        del graph.node[last]
    else:
        graph.output[0].name = logits
        del graph.node[last:]
    path = folder / "float.onnx"
    onnx.save(model, path)
    return path


def outputs(model: ir.Model, feeds: Arrays) -> np.ndarray:
    """The first output for all samples, as many at once as the model takes, nothing rounded but weights."""
    session, name = Session(model, exact=True), model.graph.outputs[0].name or ""
    assert model.graph.inputs[0].shape is not None
    first = model.graph.inputs[0].shape[0]
    step, count = first if isinstance(first, int) else 64, len(next(iter(feeds.values())))
    kinds = {v.name: v.dtype.numpy() for v in model.graph.inputs if v.dtype is not None}
    parts = (
        {k: np.asarray(feeds[k][i : i + step], kinds[k]) for k in kinds if k in feeds} for i in range(0, count, step)
    )
    return np.concatenate([session.run(part, [name])[name] for part in parts])


def compiled(source: Path, task: Task, out: Path, passes: tuple[str, ...], inputs: Arrays | None) -> float:
    """Write edgec's package; the seconds of processor time that round-weights took."""
    spent = [0.0]
    hooks = Hooks(
        pass_started=lambda p, *_: spent.append(-time.process_time()) if p.name == "round-weights" else None,
        pass_ended=lambda r, _: spent.append(time.process_time()) if r.spec.startswith("round-weights") else None,
    )
    shapes = {k: list(v) for k, v in task.shapes.items()}
    options: dict[str, Any] = {"verify": "off", "latency": False, "hooks": hooks, "precision": "fp16"}
    specs = ",".join((*pipelines.O1, *passes))
    given = dict(inputs) if inputs else None
    with edgec.compile(source, passes=specs, target=TARGET, shapes=shapes, inputs=given, **options) as done:
        done.save(out)
    return sum(spent)


def edgec_jobs(source: Path, task: Task, fold: Fold, bits: int) -> Iterator[tuple[str, Callable[[Path], float]]]:
    """What edgec does at these bits: without data and with, one table and blocks."""
    for what, options in (("table", "scheme=table"), ("blocks of 32", "scheme=affine,block=32")):
        for by, inputs in (("no data", None), ("given inputs", fold.calibration)):
            passes = (f"round-weights{{bits={bits},min_snr=0,{options}}}", "pack-weights")
            yield (
                f"edgec, {what}, {by}",
                lambda out, passes=passes, inputs=inputs: compiled(source, task, out, passes, inputs),
            )


def peer_jobs(base: Path, bits: int) -> Iterator[tuple[str, Callable[[Path], float]]]:
    """coremltools' ways at these bits."""
    for what, options in {
        "table": {"granularity": "per_tensor"},
        "table, scales": {"granularity": "per_tensor", "enable_per_channel_scale": True},
        "tables for 16": {"granularity": "per_grouped_channel", "group_size": 16},
        "tables for 8": {"granularity": "per_grouped_channel", "group_size": 8},
    }.items():
        palette = cto.coreml.OpPalettizerConfig(nbits=bits, mode="kmeans", weight_threshold=SMALL, **options)
        yield f"coremltools, {what}", lambda out, c=palette: peer(base, out, cto.coreml.palettize_weights, c)
    if bits in (4, 8):
        for what, more in {"channel": {}, "blocks of 32": {"block_size": 32}}.items():
            per = "per_block" if more else "per_channel"
            kind = {"mode": "linear_symmetric", "dtype": f"int{bits}", "granularity": per, **more}
            linear = cto.coreml.OpLinearQuantizerConfig(weight_threshold=SMALL, **kind)
            yield f"coremltools, {what}", lambda out, c=linear: peer(base, out, cto.coreml.linear_quantize_weights, c)


def peer(base: Path, out: Path, how: Callable[..., Any], config: Any) -> float:
    model = ct.models.MLModel(str(base), skip_model_load=True)
    start = time.process_time()
    rounded = how(model, cto.coreml.OptimizationConfig(global_config=config))
    spent = time.process_time() - start
    rounded.save(str(out))
    return spent


def size(package: Path) -> float:
    return round(sum(f.stat().st_size for f in package.rglob("*") if f.is_file()) / 1e3, 1)


def rows(task: Task, bits: list[int]) -> Iterator[harness.Row]:
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        source, base = float_model(task, folder), folder / "base.mlpackage"
        compiled(source, task, base, (), None)
        wanted = [outputs(load(source), fold.test) for fold in task.folds]
        yield {"model": task.name, "tool": "float16", "kB": size(base), **measured(task, base, wanted)}
        for b in bits:
            names = [n for n, _ in (*edgec_jobs(source, task, task.folds[0], b), *peer_jobs(base, b))]
            for i, name in enumerate(names):
                yield {"model": task.name, "bits": b, "tool": name, **_row(task, source, base, b, i, wanted, folder)}


def _row(
    task: Task, source: Path, base: Path, bits: int, i: int, wanted: list[np.ndarray], folder: Path
) -> harness.Row:
    """One way of rounding: once without data, else anew for each fold."""
    found, spent, package = [], 0.0, folder / "rounded.mlpackage"
    try:
        for fold, reference in zip(task.folds, wanted, strict=True):
            name, job = [*edgec_jobs(source, task, fold, bits), *peer_jobs(base, bits)][i]
            if not found or "given" in name:
                spent = job(package)
                lifted = load(package)
            found.append((reference, outputs(lifted, fold.test), fold.labels))
    except Exception as e:  # a peer's failure is a row of its table
        return {"failed": f"{type(e).__name__}: {e}".splitlines()[0][:120]}
    return {"kB": size(package), "CPU s": round(spent, 1), **scored(task, found)}


def measured(task: Task, package: Path, wanted: list[np.ndarray]) -> harness.Row:
    lifted = load(package)
    return scored(task, [(w, outputs(lifted, f.test), f.labels) for w, f in zip(wanted, task.folds, strict=True)])


def scored(task: Task, found: list[tuple[np.ndarray, np.ndarray, np.ndarray | None]]) -> harness.Row:
    """Signal over noise, and what the task makes of it: hits are summed over folds, shares averaged."""
    signal = sum(float(np.square(a, dtype=np.float64).sum()) for a, *_ in found)
    noise = sum(float(np.square(a.astype(np.float64) - b.reshape(a.shape)).sum()) for a, b, _ in found)
    scores = [task.measure(a, b.reshape(a.shape), labels) for a, b, labels in found]
    total = sum(scores) if "right" in task.unit else sum(scores) / len(scores)
    return {"SNR dB": round(10 * np.log10(signal / noise), 1), "task": f"{total:.4g} {task.unit}"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--bits", nargs="+", type=int, default=[8, 4, 3])
    parser.add_argument("--out", type=Path, default=Path("docs/quantize"), help="(default: docs/quantize)")
    o = parser.parse_args()
    tools = {"python": harness.versions(sys.executable, ("edgec", "onnxruntime", "coremltools", "numpy", "torch"))}
    stored = o.out.with_suffix(".json")
    found: list[harness.Row] = json.loads(stored.read_text())["rows"] if stored.exists() else []
    for name in o.tasks:
        task = TASKS[name]()
        found = [r for r in found if r["model"] != task.name or r.get("bits", o.bits[0]) not in o.bits]
        for row in rows(task, o.bits):
            found.append({c: row[c] for c in COLUMNS if c in row})
            print(json.dumps(found[-1]), file=sys.stderr, flush=True)
            harness.report("Weights of few bits, beside coremltools", found, tools, o.out)


COLUMNS = ("model", "bits", "tool", "SNR dB", "task", "kB", "CPU s", "failed")

if __name__ == "__main__":
    main()
