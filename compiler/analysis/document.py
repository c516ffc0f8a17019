"""An analysis as a JSON document: `edgec analyze --json`, and what the page is drawn from.

docs/analyze.md describes every field, analysis.schema.json (next to this file) is the schema. Adding a field keeps the
version; renaming, removing or changing the meaning of one makes a new version.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..cost import polynomial
from ..cost.measure import Measured
from ..cost.records import Analysis, Layer, Shape, Totals
from ..cost.roofline import Roofline
from ..dims import Atom, Dim, Poly

VERSION = 1
SCHEMA = Path(__file__).with_name("analysis.schema.json")

Json = dict[str, Any]

COUNTS = ("macs", "flops", "special", "int_ops", "read", "written")
"""Counts of a layer that may depend on free dimensions; `effective_macs` and `bops` come after the weights."""


@dataclass
class Growth:
    """Totals at several sizes of one free dimension, the others at `sizes`."""

    symbol: str
    rows: list[tuple[int, Totals]]
    sizes: dict[str, int]


def to_json(
    analysis: Analysis,
    roofline: Roofline | None = None,
    growth: Growth | None = None,
    measured: Measured | None = None,
) -> Json:
    """The analysis as a document of plain JSON values, keys in a fixed order; see docs/analyze.md."""
    memory = analysis.memory
    return {
        "version": VERSION,
        "source": analysis.source,
        "symbols": dict(analysis.symbols),
        "limits": {name: number(size) for name, size in analysis.limits.items()},
        "sizes": sizes(analysis),
        "inputs": _ports(analysis.inputs),
        "outputs": _ports(analysis.outputs),
        "totals": _totals(analysis.totals),
        "memory": {
            "peak": number(memory.peak),
            "peak_given": number(memory.peak_given),
            "optimal": memory.optimal,
            "order": list(memory.order),
            "layers": list(memory.layers),
            "live": [number(n) for n in memory.live],
            "at_peak": list(memory.at_peak),
            "unsized": list(memory.unsized),
        },
        "unknown": list(analysis.unknown),
        "warnings": list(analysis.warnings),
        "roofline": None if roofline is None else _roofline(roofline),
        "growth": None if growth is None else _growth(growth),
        "measured": None if measured is None else _measured(measured),
        "layers": [_layer(layer) for layer in analysis.layers],
    }


def _totals(totals: Totals) -> Json:
    return {f.name: _plain(getattr(totals, f.name)) for f in dataclasses.fields(totals)}


def _roofline(found: Roofline) -> Json:
    return {
        "device": found.device.name,
        "seconds": found.seconds,
        "floor": found.floor,
        "ridge": found.ridge,
        "compute_bound": found.compute_bound,
        "memory_bound": found.memory_bound,
        "notes": list(found.notes),
        "layers": [{"seconds": r.seconds, "bound": r.bound, "intensity": r.intensity} for r in found.layers],
    }


def _measured(found: Measured) -> Json:
    names = ("seconds", "optimised", "other", "needed", "achieved", "runs", "threads", "machine")
    return {**{name: getattr(found, name) for name in names}, "at": dict(found.at), "notes": list(found.notes)}


def _growth(found: Growth) -> Json:
    rows = [{"size": value, "totals": _totals(totals)} for value, totals in found.rows]
    return {"symbol": found.symbol, "sizes": dict(found.sizes), "rows": rows}


def number(size: Dim) -> int | Json:
    """An integer, or a polynomial: as text, and as a sum of factors times what they are multiplied with."""
    if not isinstance(size, Poly):
        return int(size)
    terms = [{"factor": factor, "of": [_atom(a) for a in monomial]} for monomial, factor in size.terms]
    return {"text": polynomial.ascii(size), "terms": terms}


def _atom(atom: Atom) -> str | Json:
    if isinstance(atom, str):
        return atom
    name, *arguments = atom
    return {"op": str(name), "of": [number(a) for a in arguments]}  # type: ignore[arg-type]


def _plain(value: Any) -> Any:
    return number(value) if isinstance(value, Poly) else value


def _ports(ports: Mapping[str, tuple[str, Shape]]) -> Json:
    return {name: {"type": kind, "shape": shape_json(shape)} for name, (kind, shape) in ports.items()}


def shape_json(shape: Shape) -> list[int | str | None] | None:
    """Dimensions: a number, the text of a polynomial, or null; null for an unknown rank."""
    return None if shape is None else [polynomial.ascii(d) if isinstance(d, Poly) else d for d in shape]


def _layer(layer: Layer) -> Json:
    return {
        "name": layer.name,
        "op": layer.op,
        "path": list(layer.path),
        "inputs": [shape_json(s) for s in layer.inputs],
        "outputs": [shape_json(s) for s in layer.outputs],
        "runs": number(layer.runs),
        **{name: number(getattr(layer, name)) for name in COUNTS},
        "parameters": layer.parameters,
        "weight_bits": layer.weight_bits,
        "zeros": layer.zeros,
        "effective_macs": number(layer.effective_macs),
        "bops": number(layer.bops),
        "unknown": layer.unknown,
        "seconds": layer.seconds,
    }


# --- the sizes that figures are shown at ------------------------------------------------------------------------------

SIDE, LENGTH = 224, 128


def sizes(analysis: Analysis) -> dict[str, int]:
    """A size for each free dimension, to show figures at: 1 for batches, 224 for sides of images, 128 for the rest.

    One that only a run tells is as large as it can be, or 1 where nothing limits it.
    """
    found: dict[str, int] = dict.fromkeys(analysis.symbols, 1)
    for _, dims in analysis.inputs.values():
        for axis, dim in enumerate(dims or ()):
            name = dim.symbol() if isinstance(dim, Poly) else None
            if name is not None and axis > 0:
                found[name] = max(found.get(name, 1), _usual(axis, dims or ()))
    for size in _counted(analysis):
        for name in sorted(polynomial.symbols(size)):
            found.setdefault(name, 1)
    for name, limit in analysis.limits.items():
        if polynomial.symbols(limit) <= found.keys():
            found[name] = polynomial.evaluate(limit, found)
    # Where an order of steps was chosen for some sizes, these are the ones.
    return {name: analysis.memory.at.get(name, size) for name, size in found.items()}


def _usual(axis: int, dims: Sequence[Dim | None]) -> int:
    return SIDE if len(dims) == 4 and axis >= 1 else LENGTH


def _counted(analysis: Analysis) -> list[Dim]:
    totals = analysis.totals
    return [totals.macs, totals.flops, totals.read, totals.written, totals.bops, *analysis.memory.live]
