"""How long a model really takes here, in onnxruntime: each layer by itself, and the whole."""

from __future__ import annotations

import json
import os
import platform
import re
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir

from .. import dims as d
from .. import process
from ..errors import UsageError
from ..freeze import Shapes, fix
from ..graph import subgraphs
from ..session import Session
from ..synthesis import Inputs, synthesise
from .flatten import flattened
from .polynomial import evaluate, symbols
from .records import Analysis
from .sizes import Sizes

RUNS = 10
"""Runs that are timed, after one that is not."""

_PIECE = re.compile(r"edgec\.inlined\.(\d+)\.")


@dataclass
class Measured:
    """What running the model showed.

    Attributes:
        layers: median seconds of each layer of the analysis in one run of the model, in order, the graphs inside it
            apart; None where nothing was seen of it.
        other: seconds of what is no layer: unpacking weights that a local function stores.
        seconds: the sum over the layers and `other`: the whole, without onnxruntime's optimisations.
        optimised: median seconds of the whole with them.
        ops: operations per second that each layer achieved, two per MAC and all other arithmetic; None like `layers`.
        needed: operations of one run. achieved: per second, of the optimised whole.
        at: the sizes of the free dimensions that it ran at.
        runs, threads, machine: how often, on how many threads, on what.
        notes: what the figures mean, a sentence each.
    """

    layers: list[float | None] = field(default_factory=list)
    other: float = 0.0
    seconds: float = 0.0
    optimised: float = 0.0
    ops: list[float | None] = field(default_factory=list)
    needed: int = 0
    achieved: float = 0.0
    at: dict[str, int] = field(default_factory=dict)
    runs: int = RUNS
    threads: int = 1
    machine: str = ""
    notes: list[str] = field(default_factory=list)


def measure(
    model: ir.Model,
    analysis: Analysis,
    *,
    shapes: Shapes | None = None,
    inputs: Inputs | None = None,
    runs: int = RUNS,
    threads: int = 0,
) -> Measured:
    """Run `model` and write each layer's seconds into `analysis`.

    Args:
        model: what `analysis` is of; it is left as it is.
        shapes: sizes of free dimensions, as the analysis was made with. Those still free get the first that run.
        inputs: what to run on; by default, seeded ones of the right kind.
        runs: how many runs are timed.
        threads: of onnxruntime; 0 for as many as the machine has cores.

    Raises UsageError when the analysis is of another model, ModelError when onnxruntime can't run it.
    """
    if runs < 1:
        raise UsageError(f"a measurement takes at least one run, not {runs}")
    given, model = model, model.clone()
    fix(model, shapes or {})
    flat = flattened(model)
    nodes = list(_layers(flat.graph))
    if len(nodes) != len(analysis.layers):
        raise UsageError(
            f"the analysis has {len(analysis.layers)} layers, the model {len(nodes)}: it is of another one"
        )
    feeds = inputs if inputs is not None else synthesise(model)
    threads = threads or os.cpu_count() or 1
    found = Measured(at=_sizes(given, feeds), runs=runs, threads=threads, machine=_machine())
    _time_layers(found, flat, nodes, feeds)
    found.optimised = _time_whole(model, feeds, runs, threads)
    _rate(found, analysis)
    for layer, seconds in zip(analysis.layers, found.layers, strict=True):
        layer.seconds = seconds
    return found


def _layers(graph: ir.Graph) -> Sequence[ir.Node]:
    """The nodes that are layers of an analysis, in its order."""
    found: list[ir.Node] = []
    for node in graph:
        if node.op_type != "Constant" or node.domain:
            found.append(node)
            for inner in subgraphs(node):
                found += _layers(inner)
    return found


def _sizes(model: ir.Model, feeds: Inputs) -> dict[str, int]:
    """The sizes of the free dimensions that these inputs have."""
    sizes, found = Sizes(model), dict[str, int]()
    for value in model.graph.inputs:
        for dim, size in zip(sizes.dims(value) or (), feeds[value.name or ""].shape, strict=False):
            name = dim.symbol() if isinstance(dim, d.Poly) else None
            if name is not None:
                found.setdefault(name, size)
    return found


def _machine() -> str:
    """The processor and its cores."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = re.findall(r"^model name\s*:\s*(.+)$", info.read_text(), re.M)
        name = names[0] if names else name
    return f"{name}, {os.cpu_count()} cores, {platform.system()}"


# --- the whole -------------------------------------------------------------------------------------------------------


def _options(*, optimise: bool, profile: Path | None = None) -> Any:
    ort = process.onnxruntime()

    options = ort.SessionOptions()
    levels = ort.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimise else levels.ORT_DISABLE_ALL
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile / "profile")
    return options


def _time_whole(model: ir.Model, feeds: Inputs, runs: int, threads: int) -> float:
    session = Session(model, threads=threads, options=_options(optimise=True))
    session.run(feeds)
    seconds = []
    for _ in range(runs):
        start = time.perf_counter()
        session.run(feeds)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


# --- layers ----------------------------------------------------------------------------------------------------------


def _time_layers(found: Measured, flat: ir.Model, nodes: Sequence[ir.Node], feeds: Inputs) -> None:
    made = {out.name: i for i, node in enumerate(nodes) for out in node.outputs if out.name}
    for i, node in enumerate(nodes):
        node.name = f"layer{i}"
    profile = partial(_profile, flat, feeds=feeds, threads=found.threads, edit=partial(_name_pieces, made=made))
    per_run = _per_run(profile(runs=1, written=set()))
    # What onnxruntime has no kernel for it writes out under names of its own; that is done in its place here.
    unseen = {n.op_type for i, n in enumerate(nodes) if not n.domain and not any(i in run for run in per_run)}
    per_run = _per_run(profile(runs=found.runs + 1, written=unseen))[1:]  # the first run warms up
    seen = {key for run in per_run for key in run}
    found.layers = [
        statistics.median(run.get(i, 0.0) for run in per_run) if i in seen else None for i in range(len(nodes))
    ]
    found.other = statistics.median(run.get(None, 0.0) for run in per_run)
    found.seconds = found.other + sum(s for s in found.layers if s is not None)


def _profile(
    model: ir.Model,
    *,
    feeds: Inputs,
    threads: int,
    edit: Callable[[onnx.ModelProto], None],
    runs: int,
    written: set[str],
) -> list[dict[str, Any]]:
    """The events that onnxruntime's profiler saw in so many runs."""
    with tempfile.TemporaryDirectory(prefix="edgec-") as folder:
        options = _options(optimise=False, profile=Path(folder))
        session = Session(model, threads=threads, options=options, written=written, edit=edit)
        for _ in range(runs):
            session.run(feeds)
        events: list[dict[str, Any]] = json.loads(session.end_profiling().read_text())
    return events


def _name_pieces(proto: onnx.ModelProto, made: Mapping[str, int]) -> None:
    """Name the nodes that an operator was written out as after the layer that they are pieces of."""
    pieces: dict[str, list[onnx.NodeProto]] = {}
    for node in proto.graph.node:
        if not node.name.startswith("layer") and (marks := _PIECE.findall(" ".join((*node.input, *node.output)))):
            pieces.setdefault(marks[0], []).append(node)
    for group in pieces.values():
        layer = next((made[out] for node in group for out in node.output if out in made), None)
        for i, node in enumerate(group):
            node.name = "" if layer is None else f"layer{layer}.{i}"


def _per_run(events: Sequence[Mapping[str, Any]]) -> list[dict[int | None, float]]:
    """Seconds of each layer in each run, without those of what runs inside it; under None, of what is no layer."""
    spans = sorted((e["ts"], e["ts"] + e["dur"]) for e in events if e["name"] == "model_run")
    found: list[dict[int | None, float]] = [{} for _ in spans]
    timed = [e for e in events if e["cat"] == "Node" and e["name"].endswith("_kernel_time")]
    timed.sort(key=lambda e: (e["ts"], -e["dur"]))
    at = 0
    around: list[tuple[float, int | None]] = []  # end and layer of the nodes that the event lies inside of
    for event in timed:
        while at < len(spans) - 1 and event["ts"] > spans[at][1]:
            at += 1
        named = re.fullmatch(r"layer(\d+)(\.\d+)?", event["name"].removesuffix("_kernel_time"))
        layer = int(named[1]) if named else None
        run, seconds = found[at], event["dur"] / 1e6
        run[layer] = run.get(layer, 0.0) + seconds
        end = event["ts"] + event["dur"]
        while around and around[-1][0] < end:
            around.pop()
        if around:
            run[around[-1][1]] = run.get(around[-1][1], 0.0) - seconds
        around.append((end, layer))
    return found


def _rate(found: Measured, analysis: Analysis) -> None:
    """Operations per second, of the layers and of the whole."""
    needed = []
    for layer in analysis.layers:
        count = d.add(d.add(layer.flops, layer.special), layer.int_ops)
        needed.append(evaluate(count, found.at) if symbols(count) <= set(found.at) else 0)
    found.needed = sum(needed)
    found.ops = [n / s if s else None for n, s in zip(needed, found.layers, strict=True)]
    found.achieved = found.needed / found.optimised
    found.notes = [
        "layers are timed without onnxruntime's optimisations, so that each is a node of the file; the whole with them",
        f"medians of {found.runs} runs after one that warms up, {found.threads} threads, {found.machine}",
    ]
    if found.at:
        found.notes.append("measured at " + ", ".join(f"{name} = {size}" for name, size in found.at.items()))
