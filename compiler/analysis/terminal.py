"""An analysis in the terminal: totals, what is unknown, where the cost lies (a tree of modules, or a flat list)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .. import figures as fig
from ..cost import polynomial
from ..cost.records import Analysis
from ..dims import Dim, Poly
from ..report_terminal import _emit, _section, _table
from .tree import Module, Row, layer_figures, rows, short_name, tree

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table
    from rich.text import Text

_HEAD, _DIM, _WARN = "bold", "dim", "bold yellow"

BAR = 8
"""Characters of a full bar."""

TERMS = 6
"""Terms of a polynomial that are shown; the JSON document has all."""


@dataclass(frozen=True)
class Metric:
    """A column: its heading, its name in a sentence, and how a figure is written."""

    head: str
    words: str
    form: Callable[[float], str]


def _count(x: float) -> str:
    return fig.count(round(x)) if x else "-"


def _size(x: float) -> str:
    return fig.size(round(x))


def _bits(x: float) -> str:
    return fig.size(round(x / 8))


def _seconds(x: float) -> str:
    return "-" if not x else f"{x * 1e6:.0f} µs" if x < 0.000995 else fig.duration(x)


METRICS = {
    "macs": Metric("MACs", "multiply-accumulates", _count),
    "parameters": Metric("params", "parameters", _count),
    "weight_bits": Metric("weights", "bytes of weights as stored", _bits),
    "flops": Metric("FLOPs", "floating-point operations", _count),
    "special": Metric("special", "transcendental functions", _count),
    "int_ops": Metric("int ops", "integer operations", _count),
    "bytes": Metric("moved", "bytes moved", _size),
    "read": Metric("read", "bytes read", _size),
    "written": Metric("written", "bytes written", _size),
    "effective_macs": Metric("eff. MACs", "MACs whose weight is not zero", _count),
    "bops": Metric("BOPs", "bit operations", _count),
    "time": Metric("time", "measured time", _seconds),
    "bound": Metric("at least", "lower bound of time", _seconds),
}
"""What can be sorted by, and shown."""


def print_analysis(
    analysis: Analysis,
    console: Console,
    at: Mapping[str, int],
    *,
    by: str = "macs",
    top: int = 20,
    depth: int | None = None,
    flat: bool = False,
) -> None:
    """Print totals, warnings and the costliest modules (`flat`: layers), figures at sizes `at` of free dimensions."""
    parts = [_title(analysis, at), _totals(analysis, at), *_notices(analysis)]
    root = tree(analysis, at)
    shown = _flat(analysis, at, by, top) if flat else rows(root, by, top, depth)
    parts.append(_where(shown, root.figures, by, console.width, flat))
    _emit(console, [part for p in parts for part in ("", p)] + [""], indent=1)


def _title(analysis: Analysis, at: Mapping[str, int]) -> RenderableType:
    from rich.text import Text

    text = Text.assemble((analysis.source, _HEAD))
    ports = [f"{name}: {kind} [{shape_text(s)}]" for name, (kind, s) in analysis.inputs.items()]
    text.append("\n" + ", ".join(ports[:4]) + (f" and {len(ports) - 4} more inputs" if len(ports) > 4 else ""), _DIM)
    if at:
        text.append("\nfigures at ", _DIM)
        text.append(", ".join(f"{k}={v}" for k, v in at.items()))
        free = next(iter(analysis.symbols), next(iter(at)))
        text.append(f"; --shape {free}:<size> for others", _DIM)
    return text


def shape_text(shape: Sequence[Dim | None] | None) -> str:
    """`1, 3, T, ?`"""
    return "unknown rank" if shape is None else ", ".join("?" if d is None else polynomial.text(d) for d in shape)


def _totals(analysis: Analysis, at: Mapping[str, int]) -> RenderableType:
    from rich.text import Text

    table = _table(("", "left", False), ("", "right", False), ("", "left", True))
    table.show_header = False
    for name, figure, words in total_lines(analysis, at):
        table.add_row(name, Text(figure, _HEAD), Text(words, _DIM))
    return table


def total_lines(analysis: Analysis, at: Mapping[str, int]) -> Iterator[tuple[str, str, str]]:
    """(what, figure, in full or as a polynomial) of each total."""
    t = analysis.totals

    def value(size: Dim) -> int:
        return polynomial.evaluate(size, at)

    def line(name: str, size: Dim, form: Callable[[float], str] = _count) -> tuple[str, str, str]:
        full = readable(size) if isinstance(size, Poly) else f"{size:,}" if size >= 10_000 else ""
        return name, form(value(size)), full

    yield line("MACs", t.macs)
    if t.effective_macs != t.macs:
        yield line("effective MACs", t.effective_macs)
    yield line("FLOPs", t.flops)
    for name, size in (("special functions", t.special), ("integer ops", t.int_ops), ("bit operations", t.bops)):
        if size:
            yield line(name, size)
    zeros = "" if t.zeros is None or not t.parameters else f", {t.zeros / t.parameters:.1%} of them zero"
    yield "parameters", _count(t.parameters), f"{t.parameters:,}{zeros}"
    bits = f"{8 * t.bytes / t.parameters:.3g} bits per parameter" if t.parameters else ""
    yield "stored weights", _size(t.bytes), f"{t.bytes:,} bytes" + (f", {bits}" if bits else "")
    yield line("peak activations", t.peak_activation_bytes, _size)
    yield line("bytes moved", _sum(t.read, t.written), _size)
    moved = value(t.read) + value(t.written)
    if moved:
        yield "intensity", f"{value(t.flops) / moved:.3g}", "FLOPs per byte moved"
    measured = sum(layer.seconds or 0 for layer in analysis.layers)
    if measured:
        yield "measured layers", _seconds(measured), f"{fig.count(round(value(t.flops) / measured))} FLOPs per second"
    yield "nodes", f"{t.nodes:,}", ""


def _sum(a: Dim, b: Dim) -> Dim:
    from ..dims import add

    return add(a, b)


def readable(size: Dim) -> str:
    """A polynomial, its first terms where it has many."""
    if isinstance(size, Poly) and len(size.terms) > TERMS:
        ordered = sorted(size.terms, key=lambda t: (-len(t[0]), repr(t[0])))
        return f"{_separated(polynomial.text(Poly(tuple(ordered[:TERMS]))))} + {len(size.terms) - TERMS} more terms"
    return _separated(polynomial.text(size))


def _separated(text: str) -> str:
    """Large factors with their thousands separated; names that hold digits stay."""
    return re.sub(r"(?<![\w.])\d{5,}(?!\w)", lambda m: f"{int(m[0]):,}", text)


def _notices(analysis: Analysis) -> Iterator[RenderableType]:
    from rich.text import Text

    if analysis.unknown:
        n = len(analysis.unknown)
        head = f"Unknown: {'one node is' if n == 1 else f'{n} nodes are'} not in the figures (counted as zero)"
        more = [f"… and {n - 10} more; --json lists all"] if n > 10 else []
        yield _section(Text(head, _WARN), [*analysis.unknown[:10], *more])
    if analysis.warnings:
        yield _section(Text("Warnings", _WARN), analysis.warnings)


# --- where it lies ---------------------------------------------------------------------------------------------------


def _flat(analysis: Analysis, at: Mapping[str, int], by: str, top: int) -> list[Row]:
    """The costliest layers, one by one."""
    found = []
    for layer in analysis.layers:
        name = ".".join((*layer.path, short_name(layer)))
        found.append(Module(name, layer_figures(layer, at), layer=layer))
    found.sort(key=lambda m: -m.figures[by])
    return [Row(0, m, m.figures) for m in found[:top] if m.figures[by] or by == "macs"]


def _where(shown: Sequence[Row], total: Mapping[str, float], by: str, width: int, flat: bool) -> Table:
    from rich.text import Text

    columns = [c for c in _columns(by, width) if c == by or total.get(c)]
    table = _table(("layer" if flat else "module", "left", False))
    table.columns[0].overflow = "ellipsis"
    table.columns[0].ratio = 1
    for c in columns:
        table.add_column(METRICS[c].head, justify="right", no_wrap=True)
    table.add_column(f"share of {METRICS[by].head}", justify="left", no_wrap=True)
    for row in shown:
        share = row.figures.get(by, 0) / total[by] if total.get(by) else 0
        cells = [Text(METRICS[c].form(row.figures.get(c, 0))) for c in columns]
        bar = Text.assemble(f"{share:6.1%} ", (_bar(share), "cyan"))
        table.add_row(_label(row), *cells, bar, style=_DIM if row.module is None else "")
    return table


def _columns(by: str, width: int) -> list[str]:
    """As many columns as fit beside the names, the sorted one first."""
    usual = [by, *(c for c in ("macs", "parameters", "bytes", "time", "bound", "flops", "weight_bits") if c != by)]
    return usual[: max(3, (width - 46) // 10)]


def _label(row: Row) -> Text:
    from rich.text import Text

    lead = "".join("  " if last else "│ " for last in row.last[:-1])
    lead += ("└ " if row.last[-1] else "├ ") if row.last else ""
    if row.module is None:
        return Text.assemble((lead, _DIM), (f"… {row.left_out:,} more", _DIM))
    layer = row.module.layer
    if layer is None:
        return Text.assemble((lead, _DIM), (row.module.name, _HEAD if not row.depth else ""))
    op = "" if layer.op in row.module.name else f" {layer.op}"
    unknown = (" unknown", _WARN) if layer.unknown else ""
    return Text.assemble((lead, _DIM), row.module.name, (op, _DIM), unknown)


def _bar(share: float) -> str:
    """A bar of eighths of a character."""
    eighths = round(share * BAR * 8)
    whole, rest = divmod(max(0, min(eighths, BAR * 8)), 8)
    return "█" * whole + (" ▏▎▍▌▋▊▉"[rest] if rest else "")
