"""Two analyses side by side: totals with what became of them, and modules matched by their paths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .. import figures as fig
from ..cost import polynomial
from ..cost.records import Analysis
from ..terminal_parts import emit, section, table_of
from .document import VERSION, to_json
from .terminal import METRICS
from .tree import add, layer_figures
from .wording import shape_text

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.text import Text

TOTALS = {
    "macs": "MACs", "effective_macs": "effective MACs", "flops": "FLOPs", "special": "special functions",
    "int_ops": "integer ops", "bops": "bit operations", "parameters": "parameters", "bytes": "stored weights",
    "read": "bytes read", "written": "bytes written",
    "peak_activation_bytes": "peak activations", "nodes": "nodes",
}  # fmt: skip
"""Totals that are compared → what they are called."""
_BYTES = frozenset({"bytes", "read", "written", "peak_activation_bytes"})


@dataclass
class Pair:
    """A module that one of two models has, or both: its figures in each, empty where it has none."""

    path: tuple[str, ...]
    a: dict[str, float]
    b: dict[str, float]


def to_json_pair(a: Analysis, b: Analysis) -> dict[str, Any]:
    """Both documents, see `document.to_json`."""
    return {"version": VERSION, "a": to_json(a), "b": to_json(b)}


def modules(a: Analysis, b: Analysis, at: Sequence[Mapping[str, int]], depth: int) -> list[Pair]:
    """Modules down to `depth` parts of their paths, in the order of the models."""
    found: dict[tuple[str, ...], Pair] = {}
    for side, (analysis, sizes) in enumerate(zip((a, b), at, strict=True)):
        for layer in analysis.layers:
            figures = layer_figures(layer, sizes)
            for n in range(1, min(depth, len(layer.path)) + 1):
                pair = found.setdefault(layer.path[:n], Pair(layer.path[:n], {}, {}))
                add(pair.b if side else pair.a, figures)
    return sorted(found.values(), key=_position(list(found)))


def _position(paths: list[tuple[str, ...]]) -> Any:
    """Where a module stands: behind the one that it is in, else as they were met first."""
    first = {path: i for i, path in enumerate(paths)}
    return lambda pair: [first[pair.path[: n + 1]] for n in range(len(pair.path))]


def print_comparison(
    a: Analysis,
    b: Analysis,
    console: Console,
    at: Sequence[Mapping[str, int]],
    *,
    by: str = "macs",
    top: int = 20,
    depth: int | None = None,
    times: Sequence[tuple[str, float, float]] = (),
) -> None:
    """Print both models' totals with the change, and the costliest modules. `times`: (what, seconds of each)."""
    from rich.text import Text

    title = Text.assemble((a.source, "bold"), " → ", (b.source, "bold"))
    for analysis, sizes in zip((a, b), at, strict=True):
        if sizes:
            title.append(f"\n{analysis.source} at " + ", ".join(f"{k}={v}" for k, v in sizes.items()), "dim")
    parts: list[RenderableType] = [title, *_other_ports(a, b), _totals(a, b, at, times)]
    for analysis in (a, b):
        if analysis.unknown:
            n = len(analysis.unknown)
            head = Text(f"Unknown in {analysis.source}: {n} node{'s' * (n > 1)}, counted as zero", "bold yellow")
            parts.append(section(head, analysis.unknown[:5]))
    parts.append(_modules(modules(a, b, at, depth or 2), by, top))
    emit(console, [part for p in parts for part in ("", p)] + [""], indent=1)


def _other_ports(a: Analysis, b: Analysis) -> list[RenderableType]:
    """What the models do not have in common at their interface; names may differ, ports are taken in order."""
    from rich.text import Text

    lines = []
    for word, ports in (("input", (a.inputs, b.inputs)), ("output", (a.outputs, b.outputs))):
        told = [[f"{kind} [{shape_text(shape)}]" for kind, shape in side.values()] for side in ports]
        if len(told[0]) != len(told[1]):
            lines.append(f"{len(told[0])} {word}{'s' * (len(told[0]) > 1)} → {len(told[1])}")
        lines += [f"{word} {n}: {x} → {y}" for n, x, y in zip(ports[0], *told, strict=False) if x != y]
    return [section(Text("Their interfaces differ", "bold yellow"), lines[:8])] if lines else []


def _totals(
    a: Analysis, b: Analysis, at: Sequence[Mapping[str, int]], times: Sequence[tuple[str, float, float]]
) -> RenderableType:
    from rich.text import Text

    table = table_of(("", "left", False), ("before", "right", False), ("after", "right", False), ("", "left", False))
    counted = any(t.totals.effective_macs != t.totals.macs for t in (a, b))
    for name, words in TOTALS.items():
        if name == "effective_macs" and not counted:
            continue
        x, y = (polynomial.evaluate(getattr(t.totals, name), s) for t, s in zip((a, b), at, strict=True))
        if x or y:
            form = fig.size if name in _BYTES else fig.count
            table.add_row(words, form(x), Text(form(y), "bold"), _change(x, y))
    for what, before, after in times:
        seconds = METRICS["time"].form
        table.add_row(what, seconds(before), Text(seconds(after), "bold"), _change(1e9 * before, 1e9 * after))
    return table


def _change(x: float, y: float) -> Text:
    from rich.text import Text

    return Text(fig.change(round(x), round(y)), "green" if y < x else "yellow" if y > x else "dim")


def _modules(pairs: Sequence[Pair], by: str, top: int) -> RenderableType:
    from rich.text import Text

    size = sorted((max(p.a.get(by, 0), p.b.get(by, 0)) for p in pairs), reverse=True)
    least = size[top - 1] if len(size) > top else 0
    kept = [p for p in pairs if max(p.a.get(by, 0), p.b.get(by, 0)) >= max(least, 1e-12)][: 2 * top]
    if not any(p.a for p in kept) or not any(p.b for p in kept):
        which = "One model does not say" if kept else "Neither model says"
        return Text(f"{which} which modules its nodes came from.", "dim")
    columns = [c for c in dict.fromkeys((by, "macs", "parameters")) if any(p.a.get(c) or p.b.get(c) for p in kept)]
    table = table_of(("module", "left", False))
    table.columns[0].overflow = "ellipsis"
    for c in columns[:2]:
        for head in (METRICS[c].head, "after", ""):
            table.add_column(head, justify="right" if head else "left", no_wrap=True)
    for p in kept:
        cells: list[str | Text] = []
        for c in columns[:2]:
            x, y = p.a.get(c, 0), p.b.get(c, 0)
            cells += [METRICS[c].form(x) if p.a else "none", METRICS[c].form(y) if p.b else "none", _change(x, y)]
        table.add_row(Text("  " * (len(p.path) - 1) + p.path[-1]), *cells)
    return table
