"""An analysis in the terminal: totals, what is unknown, where the cost lies (a tree of modules, or a flat list)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .. import figures as fig
from ..cost import polynomial
from ..cost.growth import tendency
from ..cost.measure import Measured
from ..cost.records import Analysis
from ..cost.roofline import Roofline
from ..dims import Dim, Poly
from ..terminal_parts import emit, section, table_of
from .document import Growth
from .tree import Module, Row, rows, short_name, tree
from .wording import letters, readable, renamed, shape_text

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table
    from rich.text import Text

_HEAD, _DIM, _WARN = "bold", "dim", "bold yellow"

BAR = 8
"""Characters of a full bar."""


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
    "rate": Metric("OP/s", "operations per second", _count),
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
    roofline: Roofline | None = None,
    growth: Growth | None = None,
    measured: Measured | None = None,
) -> None:
    """Print totals, warnings and the costliest modules (`flat`: layers), figures at sizes `at` of free dimensions."""
    names, plain = letters(analysis, at), not console.encoding.startswith("utf")
    parts = [_title(analysis, at, names), _totals(analysis, at, names, plain), *_notices(analysis)]
    parts += [_measured(measured)] if measured else []
    parts += [_device(roofline)] if roofline else []
    parts += [_growth(analysis, growth, names)] if growth else []
    root = tree(analysis, at, roofline.layers if roofline else ())
    shown = _flat(root, by, top) if flat else rows(root, by, top, depth)
    parts.append(_where(shown, root.figures, by, console.width, flat))
    emit(console, [part for p in parts for part in ("", p)] + [""], indent=1)


def _title(analysis: Analysis, at: Mapping[str, int], names: Mapping[str, str]) -> RenderableType:
    from rich.text import Text

    text = Text.assemble((analysis.source, _HEAD))
    ports = [f"{name}: {kind} [{shape_text(s, names)}]" for name, (kind, s) in analysis.inputs.items()]
    text.append("\n" + ", ".join(ports[:4]) + (f" and {len(ports) - 4} more inputs" if len(ports) > 4 else ""), _DIM)
    if at:
        text.append("\nfigures at ", _DIM)
        text.append(", ".join(f"{names[k]} = {v}" for k, v in at.items()))
        free = next(iter(analysis.symbols), next(iter(at)))
        text.append(f"; --shape {free}:<size> for others", _DIM)
        long = [f"{short} is {name}" for name, short in names.items() if short != name]
        text.append("\n" + ", ".join(long) if long else "", _DIM)
    return text


def _totals(analysis: Analysis, at: Mapping[str, int], names: Mapping[str, str], plain: bool) -> RenderableType:
    from rich.text import Text

    table = table_of(("", "left", False), ("", "right", False), ("", "left", True))
    table.show_header = False
    for name, figure, words in total_lines(analysis, at, lambda size: readable(size, names, plain)):
        table.add_row(name, Text(figure, _HEAD), Text(words, _DIM))
    return table


def total_lines(
    analysis: Analysis, at: Mapping[str, int], formula: Callable[[Dim], str]
) -> Iterator[tuple[str, str, str]]:
    """(what, figure, in full or as a polynomial, written by `formula`) of each total."""
    t = analysis.totals

    def value(size: Dim) -> int:
        return polynomial.evaluate(size, at)

    def line(name: str, size: Dim, form: Callable[[float], str] = _count) -> tuple[str, str, str]:
        full = formula(size) if isinstance(size, Poly) else f"{size:,}" if size >= 10_000 else ""
        return name, form(value(size)), full

    yield line("MACs", t.macs)
    if t.effective_macs != t.macs:
        yield line("effective MACs", t.effective_macs)
    yield line("FLOPs", t.flops)
    packed = t.zeros is not None or 8 * t.bytes < 30 * t.parameters
    for name, size in (("special functions", t.special), ("integer ops", t.int_ops), ("bit operations", t.bops)):
        if size and (packed or size is not t.bops):
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
    yield "nodes", f"{t.nodes:,}", ""


def _sum(a: Dim, b: Dim) -> Dim:
    from ..dims import add

    return add(a, b)


def _notices(analysis: Analysis) -> Iterator[RenderableType]:
    from rich.text import Text

    if analysis.unknown:
        n = len(analysis.unknown)
        head = f"Unknown: {'one node is' if n == 1 else f'{n} nodes are'} not in the figures (counted as zero)"
        more = [f"… and {n - 10} more; --json lists all"] if n > 10 else []
        yield section(Text(head, _WARN), [*analysis.unknown[:10], *more])
    if analysis.warnings:
        yield section(Text("Warnings", _WARN), analysis.warnings)


def _measured(found: Measured) -> RenderableType:
    """What running it here showed."""
    from rich.text import Text

    head = Text.assemble((f"Measured {_seconds(found.optimised)} a run", _HEAD), " in onnxruntime, optimised: ")
    head.append(f"{fig.count(round(found.achieved))}OP/s of {fig.count(found.needed)} operations needed")
    lines = [f"its layers one by one, as in the file: {_seconds(found.seconds)}"]
    if found.other:
        lines.append(f"{_seconds(found.other)} of that is no layer: unpacking weights")
    return section(head, [*lines, *(Text(note, _DIM) for note in found.notes)])


def _device(found: Roofline) -> RenderableType:
    from rich.text import Text

    device = found.device
    head = Text.assemble((f"At least {_seconds(found.seconds)} a run", _HEAD), f" on {device.what} ({device.name})")
    lines = [f"{found.compute_bound:,} layers are bound by arithmetic, {found.memory_bound:,} by memory"]
    if found.ridge:
        lines[0] += f"; from {found.ridge:.3g} operations per byte on, arithmetic is the limit"
    lines.append(f"with all activations on the chip: {_seconds(found.floor)}")
    return section(head, [*lines, *(Text(note, _DIM) for note in found.notes)])


def _growth(analysis: Analysis, growth: Growth, names: Mapping[str, str]) -> RenderableType:
    """The totals at each size, and which part of them is the largest from where on."""
    from rich.console import Group
    from rich.text import Text

    others = [f"{names.get(k, k)} = {v}" for k, v in growth.sizes.items() if k != growth.symbol]
    symbol = names.get(growth.symbol, growth.symbol)
    table = table_of((symbol, "right", False), *((h, "right", False) for h in ("MACs", "FLOPs", "moved", "peak")))
    for value, t in growth.rows:
        moved = polynomial.evaluate(t.read, {}) + polynomial.evaluate(t.written, {})
        macs, flops, peak = (polynomial.evaluate(x, {}) for x in (t.macs, t.flops, t.peak_activation_bytes))
        table.add_row(Text(f"{value:,}", _HEAD), _count(macs), _count(flops), _size(moved), _size(peak))
    short = {names.get(k, k): v for k, v in growth.sizes.items()}
    grows = f"MACs are {tendency(renamed(analysis.totals.macs, names), symbol, short)}"
    head = Text.assemble((f"Over {symbol}", _HEAD), (f" at {', '.join(others)}" if others else "", _DIM))
    return Group(head, table, Text(grows, _DIM))


# --- where it lies ---------------------------------------------------------------------------------------------------


def _flat(root: Module, by: str, top: int) -> list[Row]:
    """The costliest layers, one by one."""
    found, stack = [], [root]
    while stack:
        node = stack.pop()
        stack += reversed(node.parts.values())
        if node.layer is not None:
            name = ".".join((*node.layer.path, short_name(node.layer)))
            found.append(Module(name, node.figures, layer=node.layer))
    found.sort(key=lambda m: -m.figures[by])
    return [Row(0, m, m.figures) for m in found[:top] if m.figures[by] or by == "macs"]


def _where(shown: Sequence[Row], total: Mapping[str, float], by: str, width: int, flat: bool) -> Table:
    """The table; names get what the figures leave of the width."""
    from rich.text import Text

    columns = _columns(by, width, total)
    figures = [[METRICS[c].form(row.figures.get(c, 0)) for c in columns] for row in shown]
    heads = [METRICS[c].head for c in columns]
    share = f"share of {METRICS[by].head}"
    taken = (
        sum(2 + max(map(len, column)) for column in zip(heads, *figures, strict=True)) + 2 + max(len(share), 7 + BAR)
    )
    table = table_of(("layer" if flat else "module", "left", False), *((h, "right", False) for h in heads))
    table.add_column(share, justify="left", no_wrap=True)
    for row, cells in zip(shown, figures, strict=True):
        part = row.figures.get(by, 0) / total[by] if total.get(by) else 0
        bar = Text.assemble(f"{part:6.1%} ", (_bar(part), "cyan"))
        label = _label(row, max(12, width - 1 - taken))
        table.add_row(label, *map(Text, cells), bar, style=_DIM if row.module is None else "")
    return table


def _columns(by: str, width: int, total: Mapping[str, float]) -> list[str]:
    """As many columns as fit beside the names, the sorted one first."""
    usual = [c for c in ("macs", "time", "rate", "bound", "parameters", "bytes", "flops", "weight_bits") if c != by]
    return [by, *(c for c in usual if total.get(c))][: max(3, (width - 46) // 10)]


def _label(row: Row, width: int) -> Text:
    from rich.text import Text

    lead = "".join("  " if last else "│ " for last in row.last[:-1])
    lead += ("└ " if row.last[-1] else "├ ") if row.last else ""
    if row.module is None:
        return Text.assemble((lead, _DIM), (f"… {row.left_out:,} more", _DIM))
    layer, left = row.module.layer, width - len(lead)
    if layer is None:
        return Text.assemble((lead, _DIM), (shortened(row.module.name, left), _HEAD if not row.depth else ""))
    op = "" if layer.op in row.module.name or len(row.module.name) + len(layer.op) >= left else f" {layer.op}"
    name = shortened(row.module.name, left - 8 if layer.unknown else left)
    return Text.assemble((lead, _DIM), name, (op, _DIM), (" unknown", _WARN) if layer.unknown else "")


def shortened(name: str, most: int) -> str:
    """A name of at most so many characters; the middle of a longer one is left out."""
    if len(name) <= most:
        return name
    head = max(1, most // 3)
    return f"{name[:head]}…{name[len(name) - max(1, most - head - 1) :]}"


def _bar(share: float) -> str:
    """A bar of eighths of a character."""
    eighths = round(share * BAR * 8)
    whole, rest = divmod(max(0, min(eighths, BAR * 8)), 8)
    return "█" * whole + (" ▏▎▍▌▋▊▉"[rest] if rest else "")
