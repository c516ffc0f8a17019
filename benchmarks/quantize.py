"""Weights of few bits, edgec beside coremltools.optimize and onnxruntime.quantization: what outputs keep, and bytes.

    python -m benchmarks.quantize [--tasks crepe minilm …] [--bits 8 6 4 3] [--again edgec] [--out docs/quantize]

Run from the repository root with a Python that has edgec, coremltools, torch (exports two of the models) and pillow.
Rows of edgec and coremltools are Core ML packages on disk (iOS 18), read back and run by onnxruntime with activations
in float32, on inputs that nobody calibrated with (`benchmarks.quantize_tasks`). Rows that are in the file already are
kept, but for those that `--again` names: so a run may be cut short, and goes on where it was.

`SNR`: signal over noise against the float model, dB, over all outputs of all folds (before a last softmax or sigmoid).
`kB`: the package, or the ONNX file. `CPU s`: of rounding alone, edgec's with all its runs of the model for calibration,
which is done once for all rows but counted in each.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime

from edgec.compiler.data import Samples
from edgec.compiler.driver import load
from edgec.compiler.session import Session

from . import harness, quantize_gptq
from .quantize_edgec import GIVEN, Calibration, compiled, optimized, ways
from .quantize_peers import SAMPLES, coreml, runtime
from .quantize_summary import summary
from .quantize_tasks import TASKS, Arrays, Fold, Task

TITLE = "Weights of few bits, edgec beside coremltools and onnxruntime"
EDGEC, PEERS = "edgec", ("coremltools", "onnxruntime")
COLUMNS = ("model", "bits", "tool", "SNR dB", "task", "kB", "CPU s", "failed")


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
    """The first output for all samples, nothing rounded but weights."""
    session, name = Session(model, exact=True), model.graph.outputs[0].name or ""
    return np.concatenate([session.run(part, [name])[name] for part in Samples.of(model, feeds).runs])


def run_file(path: Path, runs: Sequence[Arrays]) -> np.ndarray:
    """The same for an ONNX file as onnxruntime runs it by default."""
    session = onnxruntime.InferenceSession(path)
    return np.concatenate([session.run(None, dict(part))[0] for part in runs])


class Rows:
    """The rows of one task. Packages and models lie in `folder`."""

    def __init__(self, task: Task, folder: Path) -> None:
        self._task, self._folder = task, folder
        self._source, self._start, self._base = float_model(task, folder), folder / "o1.onnx", folder / "base.mlpackage"
        optimized(self._source, task, self._start)
        compiled(self._start, self._base, "", None)
        self._wanted = [outputs(load(self._start), fold.test) for fold in task.folds]
        self._calibrations = [Calibration(fold.calibration) for fold in task.folds]

    def jobs(self, bits: list[int]) -> Iterator[tuple[harness.Row, Callable[[], harness.Row]]]:
        """The head of each row, and what makes the rest of it."""
        yield {"tool": "float16"}, self._plain
        for b in bits:
            for name, rounding in ways(b, self._task.before == "Softmax").items():
                yield {"bits": b, "tool": name}, lambda n=name, r=rounding: self._edgec(n, r)
            out, file = self._folder / "peer.mlpackage", self._folder / "peer.onnx"
            for name, job in coreml(self._base, b, out).items():
                yield {"bits": b, "tool": name}, lambda j=job, o=out: self._peer([j], o)
            for name, options in quantize_gptq.ways(b).items():
                yield {"bits": b, "tool": name}, lambda o=options: self._gptq(o)
            several = [runtime(self._source, b, lambda f=fold: self._some(f), file) for fold in self._task.folds]
            for name in several[0]:
                yield {"bits": b, "tool": name}, lambda n=name, s=several, o=file: self._peer([j[n] for j in s], o)

    def _some(self, fold: Fold) -> Iterator[dict[str, np.ndarray]]:
        return iter([dict(part) for part in self._runs(fold.calibration)[:SAMPLES]])

    def _runs(self, feeds: Arrays) -> Sequence[Arrays]:
        """The samples in the sizes of the task."""
        return Samples.of(load(self._start), feeds).runs

    def _plain(self) -> harness.Row:
        return self._row([outputs(load(self._base), fold.test) for fold in self._task.folds], self._base)

    def _edgec(self, name: str, rounding: str) -> harness.Row:
        out, got, spent = self._folder / "edgec.mlpackage", [], 0.0
        for fold, calibration in zip(self._task.folds, self._calibrations, strict=True):
            if not got or GIVEN in name:
                spent = compiled(self._start, out, rounding, calibration if GIVEN in name else None)
                lifted = load(out)
            got.append(outputs(lifted, fold.test))
        return self._row(got, out, spent)

    def _gptq(self, options: dict[str, Any]) -> harness.Row:
        got, spent = [], 0.0
        for fold, calibration in zip(self._task.folds, self._calibrations, strict=True):
            model = load(self._start)
            found, spent = quantize_gptq.rounded(calibration.known(model), options)
            for name, array in found.items():
                model.graph.initializers[name].const_value = ir.tensor(array, name=name)
            got.append(outputs(model, fold.test))
        row = self._row(got, self._base, spent + calibration.cpu)
        return {**row, "kB": quantize_gptq.kilobytes(load(self._start), row["kB"], options)}

    def _peer(self, jobs: list[Callable[[], float]], out: Path) -> harness.Row:
        """One job for all folds, or one for each."""
        got, spent = [], 0.0
        try:
            for i, fold in enumerate(self._task.folds):
                if i < len(jobs):
                    spent = jobs[i]()
                packed = out.suffix == ".onnx"
                got.append(run_file(out, self._runs(fold.test)) if packed else outputs(load(out), fold.test))
            return self._row(got, out, spent)
        except Exception as e:  # a peer's failure is a row of its table
            return {"failed": f"{type(e).__name__}: {e}".splitlines()[0][:120]}

    def _row(self, got: list[np.ndarray], out: Path, spent: float | None = None) -> harness.Row:
        found = [
            (w.astype(np.float64), g.reshape(w.shape), f.labels)
            for w, g, f in zip(self._wanted, got, self._task.folds, strict=True)
        ]
        files = [out] if out.is_file() else [f for f in out.rglob("*") if f.is_file()]
        row: harness.Row = {"kB": round(sum(f.stat().st_size for f in files) / 1e3, 1), **scored(self._task, found)}
        return row if spent is None else {**row, "CPU s": round(spent, 1)}


def scored(task: Task, found: list[tuple[np.ndarray, np.ndarray, np.ndarray | None]]) -> harness.Row:
    """Signal over noise, and what the task makes of it: hits are summed over folds, shares averaged."""
    signal = sum(float(np.square(a).sum()) for a, *_ in found)
    noise = sum(float(np.square(a - b).sum()) for a, b, _ in found)
    scores = [task.measure(a, b, labels) for a, b, labels in found]
    total = sum(scores) if "right" in task.unit else sum(scores) / len(scores)
    snr = 10 * math.log10(signal / noise) if 0 < noise < math.inf else -math.inf
    return {"SNR dB": round(snr, 1), "task": f"{total:.4g} {task.unit}"}


def report(rows: list[harness.Row], out: Path) -> None:
    """Write the rows as .json, and as .md with the summary before them."""
    rows.sort(key=lambda r: -r.get("bits", 99))
    names = list(TASKS)
    rows.sort(key=lambda r: names.index(r["task name"]))
    packages = ("edgec", "onnxruntime", "coremltools", "numpy", "torch", "scikit-learn")
    tools = harness.versions(sys.executable, packages)
    shown = [{c: r[c] for c in COLUMNS if c in r} for r in rows]
    text = [f"# {TITLE}", "", harness.machine(), "", ", ".join(f"{p} {v}" for p, v in tools.items()), "", INTRODUCTION]
    text += ["", harness.markdown(summary(shown)), "", GIVEN_TOO, "", harness.markdown(summary(shown, given=True))]
    text += ["", "## All rows", "", harness.markdown(shown), ""]
    out.with_suffix(".md").write_text("\n".join(text))
    result = {"title": TITLE, "machine": harness.machine(), "tools": {"python": tools}, "rows": rows}
    out.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")


INTRODUCTION = """\
`python -m benchmarks.quantize --help` explains columns, benchmarks/quantize_tasks.py the inputs. A model's column is
edgec's SNR in dB, and that of coremltools' best row without data, of any bits, in no more bytes (2 % are forgiven).
Bytes saved: beside what coremltools takes for the same SNR, between its rows. Task: what is made of the outputs."""

GIVEN_TOO = """\
The same beside coremltools' GPTQ, given the same inputs: each weight by the second moments that edgec's rows are fitted
to (benchmarks/quantize_gptq.py says how: its `LayerwiseCompressor` takes sequences of modules, and no model here is
one). It makes those weights 0 whose inputs were 0 in all samples, and has nothing for 6 bits."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--bits", nargs="+", type=int, default=[8, 6, 4, 3])
    parser.add_argument("--only", nargs="+", default=[""], help="make rows whose tool starts like these (default: all)")
    parser.add_argument("--again", nargs="+", default=[], help="make rows anew whose tool starts like these")
    parser.add_argument("--out", type=Path, default=Path("docs/quantize"), help="(default: docs/quantize)")
    o = parser.parse_args()
    stored = o.out.with_suffix(".json")
    found: list[harness.Row] = json.loads(stored.read_text())["rows"] if stored.exists() else []
    for name in o.tasks:
        with tempfile.TemporaryDirectory() as folder:
            rows = Rows(task := TASKS[name](), Path(folder))
            for head, make in rows.jobs(o.bits):
                key = (name, head.get("bits"), head["tool"])
                old = [r for r in found if (r["task name"], r.get("bits"), r["tool"]) == key]
                anew = head["tool"].startswith(tuple(o.again))
                if not head["tool"].startswith(tuple(o.only)) or (old and not anew):
                    continue
                row = {"task name": name, "model": task.name, **head, **make()}
                print(json.dumps(row), file=sys.stderr, flush=True)
                found = [r for r in found if r not in old] + [row]
                report(found, o.out)
    report(found, o.out)


if __name__ == "__main__":
    main()
