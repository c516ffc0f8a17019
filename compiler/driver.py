"""Frontend → passes → backend → proof, by name only: the driver imports no frontend, no pass and no backend."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import onnx_ir as ir

from . import core_ops, freeze, pipelines, proof
from .backend import EmitOptions
from .checks import check_operators, check_weights
from .compilation import Clock, Compilation, Hooks
from .cost.records import Analysis
from .data import Samples
from .describing import describe, describe_file
from .environment import peak_bytes, versions
from .errors import Missing, ModelError, UsageError, VerifyFailed
from .freeze import Shapes
from .guard.task import Task, with_data
from .latency import Shrunk, faster_by, time_change
from .manager import Manager, Options, VerifyMode
from .passbase import Context, Pass
from .plugins import find_backend, find_frontend, find_passes
from .records import Report
from .reference import Reference
from .shapes import infer
from .targets import Target, find_target
from .verify import Comparison
from .weights import Scratch, release

Source = str | Path | Any
Inputs = str | Path | Mapping[str, np.ndarray]


def load(source: Source, *, partial: bool = False) -> ir.Model:
    """The model as ONNX at the pinned opset, weights mapped from disk where the source allows it.

    `source` is a path (.onnx, .mlpackage, and what plug-ins add) or a framework's own object. With `partial`, operators
    that nobody knows are no error, where the frontend can do that: such a model can be looked at, not run.
    Raises UsageError for an unknown kind, ModelError for a model that is not valid.
    """
    if isinstance(source, ir.Model):
        return source
    frontend = find_frontend(source)
    options = {"partial": True} if partial and "partial" in inspect.signature(frontend).parameters else {}
    return frontend(source, **options)  # type: ignore[no-any-return]


def compile(
    source: Source,
    *,
    level: str = "O2",
    target: str = "ios",
    shapes: Shapes | None = None,
    inputs: Inputs | None = None,
    passes: str | None = None,
    extra_passes: str | Pass | Sequence[str | Pass] = (),
    precision: str | None = None,
    max_error: float | None = None,
    min_snr: float | None = None,
    metric: str | Callable[..., float] | None = None,
    data: Inputs | None = None,
    max_drop: float | None = None,
    verify: VerifyMode = "each",
    latency: bool = True,
    layers: bool = False,
    strict: bool = False,
    io: str = "fp32",
    opset: int | None = None,
    bisect_limit: int | None = None,
    resume: str | Path | None = None,
    reproducers: str | Path | None = None,
    workdir: str | Path | None = None,
    name: str | None = None,
    hooks: Hooks | None = None,
) -> Compilation:
    """Compile `source` for `target` and prove that the file computes what the model computes.

    Args:
        source: a path or a framework's object; see `load`.
        level: O0, O1, O2, O3 or Os.
        target: see `edgec targets`.
        shapes: input → dimensions, or symbol → size, for free dimensions.
        inputs: named arrays, or the path of an .npz; else synthesised, seeded.
        passes: pass specs that replace the level's own.
        extra_passes: specs or passes beside the level's, placed as `pipelines.placed` says.
        precision: fp16 or fp32; else what level and target imply.
        max_error: largest error of any output against the original model, relative to that output's largest value.
        min_snr: smallest signal-to-noise ratio of any output against the original model, in dB.
        metric: what the model is for: a name, `module:function`, or a function of outputs and data (docs/guard.md).
        data: what `metric` is measured on, arrays or the path of an .npz: inputs, labels, and what else it wants. By
            default `inputs`, and the other way round.
        max_drop: how many points of the metric may be lost, in its own unit.
        verify: check after each pass that rewrote something, only at the end, or never. The file is proven unless off.
        latency: where passes removed parts of the model, or its activations are integers in an ONNX file, time it
            before and after. Not with verify="off".
        layers: measure where the damage of lossy passes arises, layer by layer, for the report.
        strict: a pass that breaks its promise is an error instead of being undone.
        io: element type of float inputs and outputs of the file, fp32 or fp16.
        opset: ONNX targets: the opset of the file.
        bisect_limit: run only so many passes.
        resume: file in which long measurements are kept, so that an interrupted compilation goes on where it was.
        reproducers: folder for the input of a pass that was undone.
        workdir: folder for temporary files; the compiled file is made there.
        name: name of the compiled file; else the source's, with the target's suffix.
        hooks: to watch the progress.

    Raises:
        UsageError: the call is wrong. ModelError: the model is. UnsupportedOp: the target can't express it.
        PassFailed: a pass broke its promise, with `strict`. VerifyFailed: the file does not compute the model.
    """
    where, clock = find_target(target), Clock(hooks or Hooks())
    if verify not in get_args(VerifyMode):
        raise UsageError(f"unknown mode '{verify}' of verify; choose one of {', '.join(get_args(VerifyMode))}")
    pipelines.check_options(where, io, opset)
    kind = pipelines.precision_of(level, where, precision)
    plan = pipelines.plan(level, where, kind, passes, _extra(extra_passes), opset)
    h = clock.hooks
    shrunk = Shrunk(plan.steps, h.pass_ended)
    watched = Options(
        verify, strict, max_error, min_snr, bisect_limit, layers=layers, reproducers=_path(reproducers),
        started=h.pass_started, ended=shrunk.ended,
    )  # fmt: skip
    scratch = Scratch(_path(workdir))
    try:
        with clock("load"), _naming(source):
            model = _load_for(where, source, shapes)
            h.loaded(model)
        with clock("reference"), _naming(source):
            inputs, data = with_data(model, inputs, data)
            ref = Reference.of(model, inputs, verify)
            task = Task.wanted(model, metric, data, max_drop, ref.model)
        report = Report(_name(source), level=level, target=where.name, precision=kind, seconds=clock.seconds)
        describe(report, model, ref, source if isinstance(source, str | Path) else None)
        with clock("passes"):
            samples = ref.samples
            context = Context(
                where, scratch, samples.first, samples.given, runs=samples.runs, labels=samples.labels,
                max_error=max_error, min_snr=min_snr, metric=task, original=ref.model,
                resume=_path(resume), progress=h.progress,
            )  # fmt: skip
            manager = Manager(context, watched, ref.outputs, ref.other)
            model = manager.run(model, plan.steps)
        report.pipeline, report.passes = [p.spec for p in plan.steps], manager.records
        for i, note in plan.notes.items():
            report.passes[i].notes.insert(0, note)
        with clock("lower"):
            path = scratch.dir / (name or f"{_stem(source)}{where.suffix}")
            timed = ref.samples.first if latency and verify != "off" else None
            options = EmitOptions(io, opset, timed, max_error is not None or min_snr is not None)
            emitted = find_backend(where.backend).emit(model, where, path, options)
        describe_file(report, model, emitted)
        if verify != "off":
            with clock("proof"):
                report.proof = proof.prove(emitted, model, ref, max_error, min_snr, load, task)
            report.accuracy = report.proof.accuracy
            change = faster_by(ref.model, model, shrunk.model, where, emitted.path) if latency else None
            if change is not None:
                with clock("latency"):
                    time_change(report, ref.model, *change, ref.samples.first)
        report.peak_bytes, report.versions = peak_bytes(), versions()
        if report.proof is not None and not report.proof.ok:
            raise VerifyFailed(proof.failure(report), report)
        return Compilation(model, report, emitted.path, emitted, scratch)
    except BaseException:
        scratch.close()
        raise


def dry_run(
    source: Source,
    *,
    target: str = "ios",
    shapes: Shapes | None = None,
    io: str = "fp32",
    opset: int | None = None,
) -> list[Missing]:
    """What keeps `source` from compiling for `target`; empty when nothing does. Writes nothing, runs nothing."""
    where = find_target(target)
    pipelines.check_options(where, io, opset)
    with Scratch() as scratch:
        model = load(source)
        freeze.fix(model, shapes or {})
        unfixed = freeze.free(model) if where.backend == "coreml" else []
        specs = pipelines.pipeline("O0", where, "fp32", opset=opset)
        manager = Manager(Context(where, scratch), Options(verify="off"), {})
        model = manager.run(model, pipelines.build(specs))
        if not unfixed:
            return list(find_backend(where.backend).check(model, where, EmitOptions(io=io, opset=opset)))
        # Without sizes nothing can be lowered; operators that there is no row for are missing at any size.
        found = [Missing("", f"input '{v.name}'", f"free dimensions; give {freeze.flag(v)}", True) for v in unfixed]
        return [*found, *(Missing(n.name or "", n.op_type, why) for n, why in core_ops.unknown(model, where))]


def verify(
    a: Source,
    b: Source,
    inputs: Inputs | None = None,
    shapes: Shapes | None = None,
    *,
    metric: str | Callable[..., float] | None = None,
    data: Inputs | None = None,
    max_drop: float | None = None,
) -> Comparison:
    """Do two models compute the same? Any two that a frontend can load; ports are matched by name, else by order.

    With `metric` and `data` (as for `compile`) `score` of the result says how well each of them does its task.
    Raises UsageError for inputs or data that don't fit, ModelError when the interfaces can't be matched.
    """
    first, second = load(a), load(b)
    freeze.fix(first, shapes or {})
    for model in (first, second):
        check_operators(model)
    inputs, data = with_data(first, inputs, data)
    samples, task = Samples.of(first, inputs), Task.wanted(first, metric, data, max_drop)
    return proof.compare_models(first, second, samples, task)


def analyze(source: Source, *, shapes: Shapes | None = None, zeros: bool = False) -> Analysis:
    """What one run of a model costs, and where: see docs/cost.md. Nothing is run.

    Args:
        source: a path or a framework's object; see `load`.
        shapes: input → dimensions, or symbol → size, for free dimensions. What stays free is a symbol in the counts.
        zeros: count the weights that are zero. Only this reads them.

    Raises UsageError for a wrong call, ModelError for a wrong model. What can't be told is listed in the result.
    """
    from .cost.analyze import analyze as count

    model = load(source, partial=True)
    if isinstance(source, ir.Model):
        model = model.clone()
        infer(model)
    return count(model, _name(source), zeros=zeros, shapes=shapes)


def _load_for(where: Target, source: Source, shapes: Shapes | None) -> ir.Model:
    """The model with the shapes that the target needs, and nothing in it that can't work."""
    model = load(source)
    freeze.fix(model, shapes or {})
    if where.backend == "coreml":
        freeze.require_fixed(model, where.name)
    check_operators(model)
    check_weights(model)
    release(model)
    return model


@contextlib.contextmanager
def _naming(source: Source) -> Iterator[None]:
    """Whatever is said against the model as it was given says which model."""
    try:
        yield
    except ModelError as e:
        if not isinstance(source, str | Path) or str(source) in str(e):
            raise
        raise ModelError(f"{source}: {e}") from e


def _extra(extra: str | Pass | Sequence[str | Pass]) -> list[Pass]:
    found: list[Pass] = []
    for e in [extra] if isinstance(extra, str | Pass) else extra:
        if not isinstance(e, str | Pass):
            raise UsageError(f"{e!r} is neither a pass nor the spec of one")
        found += [e] if isinstance(e, Pass) else find_passes(e)
    return found


def _path(path: str | Path | None) -> Path | None:
    return None if path is None else Path(path)


def _name(source: Source) -> str:
    return str(source) if isinstance(source, str | Path) else type(source).__name__


def _stem(source: Source) -> str:
    return Path(source).stem if isinstance(source, str | Path) else type(source).__name__.lower()
