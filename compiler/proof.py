"""The proof: what was written to disk is read back, run in onnxruntime, and compared with what was compiled."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import onnx_ir as ir

from .backend import Emitted
from .data import Samples
from .errors import ModelError
from .graph import shape
from .guard.task import Task
from .numerics import Meter
from .operators import probe
from .quantization.compared import differing
from .records import Proof, Report
from .reference import Reference
from .session import Saved, Session
from .verify import Comparison, compare_outputs, named_by_size, tolerance
from .weights import release

EXACT_TOLERANCE = 1e-4
"""Relative error allowed between the file and the model before lowering, rounding stripped from both.

Equal graphs that associate sums differently agree to 1e-6; the wrong mode of one GELU in a ViT shows at 3e-4.
"""

RAN = {
    ".mlpackage": "The saved package was read back, lifted to ONNX and run in onnxruntime. "
    "Apple's own compiler and runtime did not run.",
    ".onnx": "The saved file was read back and run in onnxruntime.",
}

Outputs = Mapping[str, np.ndarray]


@dataclass
class _Side:
    """One side of a comparison: a session, and how its inputs and outputs are called."""

    session: Session
    model: ir.Model
    inputs: Mapping[str, str] = field(default_factory=dict)
    outputs: Mapping[str, str] = field(default_factory=dict)

    def run(self, feeds: Mapping[str, np.ndarray], like: Outputs | None = None) -> dict[str, np.ndarray]:
        """Outputs under the other side's names, for inputs under the other side's names."""
        ports = {v.name or "": v for v in self.model.graph.inputs}
        mine = {}
        for name, array in feeds.items():
            port = ports.get(self.inputs.get(name, name))
            if port is not None:
                mine[port.name or ""] = _as_port(array, port)
        got = self.session.run(mine)
        names = {b: a for a, b in self.outputs.items()}
        found = {names.get(n, n): a for n, a in got.items()}
        if like is not None:
            found = {n: _like(a, like[n]) if n in like else a for n, a in found.items()}
        return found


def _as_port(array: np.ndarray, port: ir.Value) -> np.ndarray:
    """An input as the file's interface wants it: int64 as int32, a scalar as one element."""
    dtype = (port.dtype or ir.DataType.FLOAT).numpy()
    dims = [d if isinstance(d, int) else -1 for d in port.shape or ()]
    fitted = array.astype(dtype) if array.dtype != dtype else array
    if port.shape is not None and fitted.ndim != len(dims) and fitted.size == 1:
        fitted = fitted.reshape([1] * len(dims))
    return fitted


def _like(array: np.ndarray, ref: np.ndarray) -> np.ndarray:
    """An output as the model's interface has it: the file may hold int32 for int64, and [1] for a scalar."""
    if array.shape != ref.shape and array.size == ref.size == 1:
        array = array.reshape(ref.shape)
    return array.astype(ref.dtype) if array.dtype != ref.dtype and ref.dtype.kind != "U" else array


def prove(
    emitted: Emitted,
    model: ir.Model,
    reference: Reference,
    max_error: float | None,
    min_snr: float | None,
    load: Callable[[Path], ir.Model],
    task: Task | None = None,
) -> Proof:
    """Read `emitted` back and compare it with `model` (exact) and with the original (loss) on all samples.

    The metric of `task` is measured of what was read back, too, on its own samples.

    Where dimensions are free, the first comparison runs at other sizes as well; there, shapes must be the original's.
    Structural faults that the frontend finds while loading are in `problems`.
    """
    start = time.perf_counter()
    proof = Proof(ran=RAN.get(emitted.path.suffix, RAN[".onnx"]), exact_tolerance=EXACT_TOLERANCE)
    try:
        lifted = load(emitted.path)
    except ModelError as e:
        proof.problems = str(e).splitlines()
        return proof
    if emitted.lift is not None:
        emitted.lift(lifted)
    names = emitted.inputs, emitted.outputs
    samples, other = reference.samples, reference.other
    feeds = samples.first
    runs = (feeds, other.inputs) if other is not None else (feeds,)
    base = _run(model, runs)
    # Of an ONNX file onnxruntime itself decodes the weights, as it will for those who use the file.
    got = _run(lifted, runs, *names, like=base, bodies=emitted.path.suffix == ".onnx")
    proof.exact = compare_outputs(base, got, model)
    if not proof.exact.within(EXACT_TOLERANCE):
        proof.exact_tolerance = tolerance(model, runs, base, EXACT_TOLERANCE)
    if other is not None:
        try:
            other.check(got)
        except ModelError as e:
            proof.problems.append(str(e))
    proof.problems += differing(model, lifted)
    if emitted.values:
        proof.probed, found = probe(model, lifted, emitted.values)
        proof.problems += found
    as_read = Saved(emitted.path) if emitted.as_users_do else Session(lifted)
    rounded = _Side(as_read, lifted, *names)
    first = _Side(Session(reference.model), reference.model) if len(samples.runs) > 1 else None
    meters: dict[str, Meter] = {}
    score = _Score(samples.labels)
    for feeds in samples:
        ref = first.run(feeds) if first is not None else reference.outputs
        got = rounded.run(feeds, ref)
        _add(meters, ref, got)
        score.add(ref, got)
    proof.loss, proof.accuracy = _comparison(meters), score.result()
    if task is not None:
        try:
            proof.score = task.result(task.score(lambda inputs: rounded.run(inputs, reference.outputs)))
        except ModelError as e:
            proof.problems.append(str(e))
    release(lifted)
    proof.ok = (
        not proof.problems
        and proof.exact.within(proof.exact_tolerance)
        and (max_error is None or proof.loss.within(max_error))
        and (min_snr is None or proof.loss.snr_db >= min_snr)
        and (proof.score is None or proof.score.ok)
    )
    proof.seconds = time.perf_counter() - start
    return proof


def _run(
    model: ir.Model,
    runs: Sequence[Outputs],
    inputs: Mapping[str, str] | None = None,
    outputs: Mapping[str, str] | None = None,
    like: Outputs | None = None,
    bodies: bool = False,
) -> dict[str, np.ndarray]:
    """What `model` computes when nothing is rounded; `bodies` as in `Session`. Later runs are named by their sizes.

    It is one session, after which nothing of the model stays in memory.
    """
    side = _Side(Session(model, exact=True, bodies=bodies), model, inputs or {}, outputs or {})
    found = side.run(runs[0], like)
    for feeds in runs[1:]:
        found |= named_by_size(side.run(feeds), feeds)
    release(model)
    return found


def compare_models(a: ir.Model, b: ir.Model, samples: Samples, task: Task | None = None) -> Comparison:
    """Run two models on the same samples. Ports are matched by name, else by order. Raises ModelError.

    `task`, of the first of them, is measured of the second, too.
    """
    inputs = _matching("input", a.graph.inputs, b.graph.inputs)
    _check_forms(a.graph.inputs, {v.name: v for v in b.graph.inputs}, inputs)
    outputs = _matching("output", a.graph.outputs, b.graph.outputs)
    first, second = _Side(Session(a), a), _Side(Session(b), b, inputs, outputs)
    meters: dict[str, Meter] = {}
    for feeds in samples:
        ref = first.run(feeds)
        _add(meters, ref, second.run(feeds, ref))
    found = _comparison(meters)
    if task is None:
        return found
    return replace(found, score=task.result(task.score(lambda inputs: second.run(inputs, ref))))


def _matching(what: str, ours: Sequence[ir.Value], theirs: Sequence[ir.Value]) -> dict[str, str]:
    mine, other = [v.name or "" for v in ours], [v.name or "" for v in theirs]
    if len(mine) != len(other):
        raise ModelError(f"one model has {len(mine)} {what}s ({', '.join(mine)}), the other {len(other)}")
    if set(mine) == set(other):
        return {n: n for n in mine}
    return dict(zip(mine, other, strict=True))


def _check_forms(ours: Sequence[ir.Value], theirs: Mapping[str | None, ir.Value], pairs: Mapping[str, str]) -> None:
    """Raise ModelError where two inputs can't take the same array. A scalar may be one element, a type another."""
    for mine in ours:
        other = theirs[pairs[mine.name or ""]]
        a, b = shape(mine), shape(other)
        if a is None or b is None or not (set(a) - {1} or set(b) - {1}):
            continue
        fixed = [(x, y) for x, y in zip(a, b, strict=False) if isinstance(x, int) and isinstance(y, int)]
        if len(a) != len(b) or any(x != y for x, y in fixed):
            raise ModelError(
                f"the models don't take the same inputs: '{mine.name}' is {mine.shape}, "
                f"'{other.name}' of the other is {other.shape}"
            )


def _add(meters: dict[str, Meter], ref: Outputs, got: Outputs) -> None:
    for name, array in ref.items():
        if name not in got:
            raise ModelError(f"the file has no output '{name}'")
        meters.setdefault(name, Meter(name)).add(array, got[name])


def _comparison(meters: Mapping[str, Meter]) -> Comparison:
    return Comparison({n: m.result() for n, m in meters.items()})


@dataclass
class _Score:
    """Counts right classes on both sides, in the first output of shape [N, C]."""

    labels: np.ndarray | None
    seen: int = 0
    right: list[int] = field(default_factory=lambda: [0, 0])

    def add(self, ref: Outputs, got: Outputs) -> None:
        name = next((n for n, a in ref.items() if a.ndim == 2 and a.shape[1] > 1), None)
        if self.labels is None or name is None:
            return
        rows = int(ref[name].shape[0])
        wanted = self.labels[self.seen : self.seen + rows]
        for side, outputs in enumerate((ref, got)):
            self.right[side] += int((outputs[name].argmax(1) == wanted).sum())
        self.seen += rows

    def result(self) -> tuple[float, float] | None:
        return (self.right[0] / self.seen, self.right[1] / self.seen) if self.seen else None


def failure(report: Report) -> str:
    """What went wrong with a proof that failed, and what to do."""
    p = report.proof
    assert p is not None
    if p.problems:
        return "the file that was written is not sound:\n" + "\n".join(f"  - {x}" for x in p.problems)
    if p.exact is not None and not p.exact.within(p.exact_tolerance):
        allowed = f"(allowed {p.exact_tolerance:g})"
        return (
            f"the file does not compute what the model computes: {p.exact.worst_line()} {allowed}\n"
            "This is a fault in edgec; nothing was written. Please report it with the model."
        )
    assert p.loss is not None
    if p.score is not None and not p.score.ok:
        return (
            f"the file does its task worse than allowed: {p.score.line()}, over --max-drop {p.score.max_drop:g}\n"
            "Nothing was written. Allow more (--max-drop) or do less: -O1, --precision fp32."
        )
    return (
        f"the file differs from the original by more than allowed: {p.loss.worst_line()}\n"
        "Nothing was written. Allow more (--max-error, --min-snr) or do less: -O1, --precision fp32."
    )
