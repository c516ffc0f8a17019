"""`edgec analyze`: what it finds, prints and writes."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import onnx_ir as ir

from .. import driver
from ..arguments import check_source
from ..cost.analyze import analyze
from ..cost.devices import DEVICES, Device
from ..cost.devices import device as find_device
from ..cost.growth import growth, parse_range
from ..cost.measure import Measured, measure
from ..cost.records import Analysis
from ..cost.roofline import Roofline, roofline
from ..dims import Poly
from ..errors import UsageError
from ..freeze import Shapes, parse_shape
from ..place import place_text
from .document import Growth, sizes, to_json


@dataclass
class _Found:
    """What was asked for: one model or two, their sizes, a device's roofs, a range."""

    models: list[Analysis]
    sizes: list[dict[str, int]]
    rooflines: list[Roofline]
    growth: Growth | None
    measured: list[Measured]


def run(o: argparse.Namespace, console: Callable[[], Any]) -> int:
    """Analyse, print, write; returns the exit code. Unknown nodes are a warning, no failure."""
    if o.device == "list":
        return _devices(o, console)
    if o.model is None:
        raise UsageError("which model? edgec analyze MODEL [options]; `edgec analyze --help` lists them")
    for path, suffix in ((o.csv, ".csv"), (o.html, ".html")):
        _check_output(path, suffix)
    if o.compare and o.range:
        raise UsageError("--range shows one model; leave out --compare")
    device = find_device(o.device) if o.device else None
    span = parse_range(o.range) if o.range else None
    found = _find(o, device, span)
    _write_all(o, found)
    if o.json:
        print(json.dumps(_document(found), indent=2, ensure_ascii=False))
    elif not o.quiet:
        _print(o, found, console())
    return 0


def _find(o: argparse.Namespace, device: Device | None, span: tuple[str, list[int]] | None) -> _Found:
    shapes = dict(parse_shape(s) for s in o.shape)
    models: list[Analysis] = []
    measured: list[Measured] = []
    for source in filter(None, (o.model, o.compare)):
        check_source(Path(source))
        model = driver.load(source, partial=True)
        # Of two models, the second may have no such dimension any more.
        given = {name: size for name, size in shapes.items() if not models or name in _free(model)}
        models.append(analyze(model, source, zeros=o.zeros, shapes=given))
        if o.measure:
            measured.append(_measured(model, models[-1], given))
    at = [sizes(models[0])]
    at += [common(at[0], sizes(other)) for other in models[1:]]
    roofs = [roofline(m, device, s) for m, s in zip(models, at, strict=True)] if device else []
    if span is None:
        return _Found(models, at, roofs, None, measured)
    symbol, values = span
    others = {name: size for name, size in at[0].items() if name != symbol}
    return _Found(models, at, roofs, Growth(symbol, growth(models[0], symbol, values, others), others), measured)


def _free(model: ir.Model) -> set[str]:
    """What --shape can name: inputs, and free dimensions of inputs."""
    dims = {str(d) for v in model.graph.inputs for d in v.shape or () if not isinstance(d, int)}
    return dims | {v.name or "" for v in model.graph.inputs}


def _measured(model: ir.Model, analysis: Analysis, shapes: Shapes) -> Measured:
    """What running it shows, at the sizes that the figures are shown at."""
    at = {name: (size,) for name, size in sizes(analysis).items() if name in _inputs(analysis)}
    return measure(model, analysis, shapes={**shapes, **at})


def _inputs(analysis: Analysis) -> set[str]:
    """The free dimensions of the inputs."""
    dims = [dim for _, shape in analysis.inputs.values() for dim in shape or ()]
    return {name for dim in dims if isinstance(dim, Poly) and (name := dim.symbol()) is not None}


def _document(found: _Found) -> Any:
    from .comparison import to_json_pair

    if len(found.models) > 1:
        return to_json_pair(found.models[0], found.models[1])
    return to_json(found.models[0], next(iter(found.rooflines), None), found.growth, next(iter(found.measured), None))


def _print(o: argparse.Namespace, found: _Found, console: Any) -> None:
    by = "weight_bits" if o.sort == "weights" else o.sort
    if len(found.models) > 1:
        from .comparison import print_comparison

        times = [("measured", a.optimised, b.optimised) for a, b in pairwise(found.measured)]
        times += [(f"at least on {o.device}", a.seconds, b.seconds) for a, b in pairwise(found.rooflines)]
        print_comparison(
            found.models[0], found.models[1], console, found.sizes, by=by, top=o.top, depth=o.depth, times=times
        )
        return
    from .terminal import print_analysis

    print_analysis(
        found.models[0], console, found.sizes[0], by=by, top=o.top, depth=o.depth, flat=o.flat,
        roofline=next(iter(found.rooflines), None), growth=found.growth, measured=next(iter(found.measured), None),
    )  # fmt: skip


def _devices(o: argparse.Namespace, console: Callable[[], Any]) -> int:
    """The devices whose figures are published, and where."""
    from ..cost.devices import rows

    if o.json:
        print(json.dumps({"version": 1, "devices": rows()}, indent=2, ensure_ascii=False))
        return 0
    from ..report_terminal import print_table

    def rate(value: Any, unit: str) -> str:
        return f"{value / (1e12 if unit == 'TOPS' else 1e9):g} {unit}" if value else ""

    shown = [(d.name, d.what, rate(d.ops, "TOPS"), rate(d.bandwidth, "GB/s"), d.element) for d in DEVICES.values()]
    print_table(console(), "Devices", ("name", "unit", "arithmetic", "memory", "type"), shown)
    return 0


def common(a: Mapping[str, int], b: Mapping[str, int]) -> dict[str, int]:
    """The sizes of `b`, those of a symbol that both have from `a`: figures that are compared are at equal sizes."""
    return {name: a.get(name, size) for name, size in b.items()}


def _write_all(o: argparse.Namespace, found: _Found) -> None:
    if o.csv:
        from .sheet import to_csv

        place_text(Path(o.csv), to_csv(found.models[0]))
        o.written.append(Path(o.csv))
    if o.html:
        from .page import to_html

        place_text(Path(o.html), to_html(found.models, o.device, found.growth, found.measured))
        o.written.append(Path(o.html))


def _check_output(path: str | None, suffix: str) -> None:
    """Find out before the work, not after it, that a file can't be written."""
    if path is None:
        return
    if Path(path).suffix.lower() != suffix:
        raise UsageError(f"'{path}' must end in {suffix}")
    if not Path(path).parent.is_dir():
        raise UsageError(f"can't write {path}: there is no folder {Path(path).parent}")
