"""What --target onnxruntime writes beside the same model in other forms: size, time, and what the outputs keep.

    python -m benchmarks.onnxruntime_target [NAME …] [--out docs/onnxruntime-table]
    python -m benchmarks.onnxruntime_target --rows

Run from the repository root with a Python that has edgec and pillow. A NAME is a task of `benchmarks.quantize_tasks`,
or the path of an .onnx file, which gets random inputs. Every row is a file, run as onnxruntime runs it by default on
one thread: the least processor time of a run, all files of a model in turn. `SNR`: against the float file, on inputs
that nobody calibrated with. Weights are rounded to 8 bits without data: rows differ in form and activations alone.
With `--rows`, a single product of 768 x 3072 in onnxruntime's kernels, for different numbers of rows.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnxruntime import quantization as theirs

import edgec
from edgec.compiler import pipelines
from edgec.compiler.driver import load
from edgec.compiler.synthesis import synthesise

from . import harness

ROUND, PACK = "round-weights{bits=8,by=mse,min_snr=0}", "pack-weights"
SAMPLES = 16
"""To calibrate with, and as many others to measure on."""
RUNS = 15

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Case:
    """A model, samples to calibrate with and to measure on, each a set of inputs for one run."""

    name: str
    model: Path
    shapes: Mapping[str, list[int]]
    calibration: Sequence[Arrays]
    test: Sequence[Arrays]


def case(name: str) -> Case:
    """A task by its name, or a file with random inputs."""
    if not name.endswith(".onnx"):
        from .quantize_tasks import TASKS

        task = TASKS[name]()
        fold, shapes = task.folds[0], {k: list(v) for k, v in task.shapes.items()}
        return Case(task.name, task.model, shapes, _runs(fold.calibration, shapes), _runs(fold.test, shapes))
    model = load(name)
    runs = [synthesise(model, seed=i) for i in range(2 * SAMPLES)]
    return Case(Path(name).name, Path(name), {}, runs[:SAMPLES], runs[SAMPLES:])


def _runs(arrays: Arrays, shapes: Mapping[str, Sequence[int]]) -> list[Arrays]:
    """The samples, cut into runs of the shapes."""
    steps = {k: (shapes[k][0] if k in shapes else 1) for k in arrays}
    count = min(len(a) // steps[k] for k, a in arrays.items())
    return [{k: a[i * steps[k] : (i + 1) * steps[k]] for k, a in arrays.items()} for i in range(min(count, SAMPLES))]


# --- forms ------------------------------------------------------------------------------------------------------------


def forms(c: Case, folder: Path) -> Iterator[tuple[str, Callable[[], Path]]]:
    """What each row is called, and what writes its file."""
    yield "float32, as it came", lambda: c.model
    yield "edgec -O1 --target onnx", lambda: ours(c, folder / "o1.onnx", "onnx", ())
    yield "… weights as DequantizeLinear", lambda: ours(c, folder / "dq.onnx", "onnx", (ROUND, PACK))
    integers = (ROUND, *pipelines.INTEGERS, PACK)
    yield "**edgec --target onnxruntime**", lambda: ours(c, folder / "ort.onnx", "onnxruntime", integers, False)
    yield "… with given inputs", lambda: ours(c, folder / "given.onnx", "onnxruntime", integers, True)
    yield "onnxruntime, quantize_dynamic", lambda: dynamic(c, folder / "dynamic.onnx")
    yield "onnxruntime, quantize_static", lambda: static(c, folder)


NOTES: dict[str, list[str]] = {}


def ours(c: Case, out: Path, target: str, passes: Sequence[str], given: bool = False) -> Path:
    """Compile with these passes behind those of -O1."""
    inputs = {k: np.concatenate([r[k] for r in c.calibration]) for k in c.calibration[0]} if given else None
    specs = ",".join((*pipelines.O1, *passes))
    options: dict[str, Any] = {"verify": "end", "shapes": dict(c.shapes)}
    with edgec.compile(c.model, passes=specs, target=target, inputs=inputs, **options) as done:
        done.save(out)
        NOTES[str(out)] = list(done.report.contract)
    return out


def dynamic(c: Case, out: Path) -> Path:
    """onnxruntime's own, data-free."""
    theirs.quantize_dynamic(c.model, out, per_channel=True)
    return out


class _Reader(theirs.CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, runs: Sequence[Arrays]) -> None:
        self.left = list(runs)

    def get_next(self) -> Arrays | None:
        return self.left.pop() if self.left else None


def static(c: Case, folder: Path) -> Path:
    """onnxruntime's own, calibrated by the least and largest number, QDQ, after its pre-processing."""
    from onnxruntime.quantization.shape_inference import quant_pre_process

    ready, out = folder / "ready.onnx", folder / "static.onnx"
    quant_pre_process(c.model, ready, skip_symbolic_shape=True)
    theirs.quantize_static(ready, out, _Reader(_known(c, c.calibration)), per_channel=True)
    return out


def _known(c: Case, runs: Sequence[Arrays]) -> list[Arrays]:
    """The inputs that the model has, in its types."""
    kinds = {v.name: v.dtype.numpy() for v in load(c.model).graph.inputs if v.dtype is not None}
    return [{k: np.asarray(a, kinds[k]) for k, a in r.items() if k in kinds} for r in runs]


# --- measuring --------------------------------------------------------------------------------------------------------


def measured(c: Case, files: Mapping[str, Path]) -> list[harness.Row]:
    """A row for each file."""
    sessions, rows = {n: _session(p) for n, p in files.items()}, []
    runs = _known(c, c.test)
    reference = [s[0] for s in _outputs(next(iter(sessions.values())), runs)]
    times = _least(list(sessions.values()), runs[0])
    for (name, path), seconds in zip(files.items(), times, strict=True):
        got = [s[0] for s in _outputs(sessions[name], runs)]
        noise = sum(float(np.square(a.astype(np.float64) - b).sum()) for a, b in zip(reference, got, strict=True))
        power = sum(float(np.square(a.astype(np.float64)).sum()) for a in reference)
        snr = "" if path == c.model else f"{10 * np.log10(power / max(noise, 1e-300)):.1f}" if noise else "equal"
        rows.append({
            "model": c.name, "form": name, "MB": f"{path.stat().st_size / 1e6:.1f}", "ms": f"{seconds * 1e3:.2f}",
            "against float": f"{times[0] / seconds:.2f}×", "SNR": snr,
        })  # fmt: skip
    return rows


def _session(path: Path) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _outputs(session: ort.InferenceSession, runs: Sequence[Arrays]) -> list[list[np.ndarray]]:
    names = {i.name for i in session.get_inputs()}
    return [session.run(None, {k: a for k, a in r.items() if k in names}) for r in runs]


def _least(sessions: Sequence[ort.InferenceSession], feeds: Arrays) -> list[float]:
    best = [np.inf] * len(sessions)
    for _ in range(RUNS):
        for i, session in enumerate(sessions):
            _outputs(session, [feeds])
            start = time.thread_time()
            _outputs(session, [feeds])
            best[i] = min(best[i], time.thread_time() - start)
    return best


# --- a single product -------------------------------------------------------------------------------------------------

DEEP, WIDE = 768, 3072


def products(folder: Path) -> list[harness.Row]:
    """Microseconds of a product, and its signal-to-noise ratio, by kernel and number of rows."""
    rng, rows = np.random.default_rng(0), []
    weight = (rng.standard_normal((DEEP, WIDE)) * 0.05).astype(np.float32)
    for count in (1, 4, 16, 128):
        feeds = {"x": rng.standard_normal((count, DEEP)).astype(np.float32)}
        sessions = {name: _session(_product(weight, folder, *form)) for name, form in KERNELS.items()}
        times, wanted = _least(list(sessions.values()), feeds), feeds["x"] @ weight
        row: harness.Row = {"rows": str(count)}
        for (name, session), seconds in zip(sessions.items(), times, strict=True):
            noise = np.square(session.run(None, feeds)[0] - wanted).sum() / np.square(wanted).sum()
            row[name] = f"{seconds * 1e6:.0f} µs" + ("" if noise < 1e-9 else f", {-10 * np.log10(noise):.0f} dB")
        rows.append(row)
    return rows


KERNELS: dict[str, tuple[str, int, int]] = {
    "MatMul": ("MatMul", 32, 0),
    "MatMulNBits, 4 bits": ("MatMulNBits", 4, 0),
    "… level 4": ("MatMulNBits", 4, 4),
    "MatMulNBits, 8 bits": ("MatMulNBits", 8, 0),
    "… level 4 ": ("MatMulNBits", 8, 4),
    "DynamicQuantizeMatMul": ("DynamicQuantizeMatMul", 8, 0),
    "… without a sign": ("DynamicQuantizeMatMul", 8, 128),
}
"""Column → operator, bits, and the accuracy level or the zero point."""


def _product(weight: np.ndarray, folder: Path, op: str, bits: int, variant: int) -> Path:
    """A file with one operator."""
    if op == "MatMul":
        constants, attributes = [weight], {}
    elif op == "MatMulNBits":
        blocks, half = weight.T.reshape(WIDE, -1, 32), 1 << bits - 1
        scales = np.abs(blocks).max(2) / (half - 1)
        q = (np.clip(np.rint(blocks / scales[..., None]), -half, half - 1) + half).astype(np.uint8)
        constants = [q[..., ::2] | q[..., 1::2] << 4 if bits == 4 else q, scales.astype(np.float32)]
        attributes = {"K": DEEP, "N": WIDE, "bits": bits, "block_size": 32, "accuracy_level": variant}
    else:
        scales = np.abs(weight).max(0) / 127
        kind = np.uint8 if variant else np.int8
        q = (np.rint(weight / scales) + variant).astype(kind)
        constants, attributes = [q, scales.astype(np.float32), np.full(WIDE, variant, kind)], {}
    tensors = [onnx.numpy_helper.from_array(a, f"c{i}") for i, a in enumerate(constants)]
    domain = "" if op == "MatMul" else "com.microsoft"
    node = onnx.helper.make_node(op, ["x", *(t.name for t in tensors)], ["y"], domain=domain, **attributes)
    ports = [onnx.helper.make_tensor_value_info(n, 1, ["N", d]) for n, d in (("x", DEEP), ("y", WIDE))]
    graph = onnx.helper.make_graph([node], "product", ports[:1], ports[1:], tensors)
    opsets = [onnx.helper.make_opsetid("", 21), onnx.helper.make_opsetid("com.microsoft", 1)]
    path = folder / f"{op}.{bits}.{variant}.onnx"
    onnx.save(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=["efficientnet", "minilm", "ppocr", "crepe", "silero", "magika"])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--rows", action="store_true")
    options = parser.parse_args()
    if options.rows:
        with tempfile.TemporaryDirectory() as folder:
            print(harness.markdown(products(Path(folder))))
        return
    logging.disable(logging.WARNING)  # onnxruntime.quantization warns of each batch normalisation.
    rows: list[harness.Row] = []
    for name in options.names:
        found = case(name)
        with tempfile.TemporaryDirectory() as folder:
            files: dict[str, Path] = {}
            for form, write in forms(found, Path(folder)):
                try:
                    made = write()
                    _session(made)
                    files[form] = made
                except Exception as e:  # The peers fail in many ways; which one is the result.
                    print(f"{found.name}: {form}: {type(e).__name__}: {str(e).splitlines()[-1][:150]}", flush=True)
            rows += measured(found, files)
            for form, path in files.items():
                for note in NOTES.pop(str(path), []):
                    print(f"{found.name}: {form}: {note}", flush=True)
        print(harness.markdown(rows[-len(files) :]), flush=True)
    tools = {"edgec": harness.versions(sys.executable, ("edgec", "onnxruntime", "onnx", "numpy"))}
    harness.report("Forms of a model in onnxruntime", rows, tools, options.out)


if __name__ == "__main__":
    main()
