"""What a report says of a model before the passes and behind them: interface, weight, what it is measured on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import onnx_ir as ir

from . import pipelines
from .backend import Emitted
from .cost import stats
from .records import PassRecord, Report
from .reference import Reference


def describe(report: Report, model: ir.Model, ref: Reference, path: str | Path | None) -> None:
    """What the report says of the model as it was loaded, and of what it is measured on."""
    report.given_inputs, report.samples = ref.samples.given, ref.samples.count
    report.inputs, report.outputs = _ports(model.graph.inputs), _ports(model.graph.outputs)
    report.before = stats(model, None if path is None else Path(path))


def describe_file(report: Report, model: ir.Model, emitted: Emitted) -> None:
    """What the report says of the model after the passes, and of the file that it was lowered to."""
    report.contract, report.warnings = emitted.contract, emitted.warnings
    report.names = {a: b for a, b in [*emitted.inputs.items(), *emitted.outputs.items()] if a != b}
    report.after = stats(model, emitted.path)
    report.after.nodes = _nodes_before_legalisation(report.passes)


def _nodes_before_legalisation(passes: Sequence[PassRecord]) -> int:
    """What the passes made of the model; legalisation then spells operators out for one target."""
    last = next((i for i, r in enumerate(passes) if r.spec == pipelines.LEGALIZE[0]), len(passes))
    return passes[last - 1].nodes


def _ports(values: Sequence[ir.Value]) -> list[str]:
    return [
        f"{v.name}: {v.dtype.name.lower() if v.dtype else '?'} {v.shape if v.shape is not None else 'of any shape'}"
        for v in values
    ]
