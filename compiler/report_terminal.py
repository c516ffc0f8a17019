"""The report in the terminal: what became of the model, what the passes did, and how well the file is proven."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from . import figures as fig
from .records import PassRecord, Report
from .report import interface_lines
from .report_guard import damage, score_line
from .report_tradeoff import line as tradeoff_line
from .terminal_parts import BAD, DIM, HEAD, OK, counted, emit, section, table_of
from .verify import Comparison

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table
    from rich.text import Text

OUTPUTS = 6
"""Outputs whose figures are shown: the worst ones, where a model has more."""

WIDE = 16
"""Characters from which a column of a table, but for the first, is wrapped where the terminal is too narrow."""

NAME = 32
"""Characters up to which the name of a pass stays whole, however narrow the terminal is."""


def print_summary(report: Report, console: Console, *, verbose: bool = False, times: bool = False) -> None:
    """Print the report. `verbose`: what almost fired, too. `times`: every pass, with the time of its check."""
    parts = [
        _title(report),
        _sizes(report),
        *_passes(report, verbose, times),
        *_proof(report),
        *_notices(report, verbose),
    ]
    emit(console, [part for p in [*parts, _footer(report)] for part in ("", p)], indent=1)


def print_times(report: Report, console: Console) -> None:
    """Print every pass with its time, and nothing else."""
    emit(console, [part for p in _passes(report, False, True) for part in ("", p)], indent=1)


def print_table(console: Console, title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print rows of plain values under a title; numbers to the right. Long text wraps, empty columns are left out."""
    from rich.text import Text

    kept = [i for i in range(len(columns)) if any(r[i] not in ("", None) for r in rows)]
    numeric = {i for i in kept if all(isinstance(r[i], int | float) for r in rows)}
    cells = [{i: f"{r[i]:,}" if i in numeric else str(r[i]) for i in kept} for r in rows]
    wide = {i for i in kept[1:] if max(len(c[i]) for c in cells) > WIDE}
    table = table_of(*((columns[i], "right" if i in numeric else "left", i in wide) for i in kept))
    for found in cells:
        table.add_row(*(Text(found[i]) for i in kept))
    emit(console, ["", Text(f"{title} ({len(rows)})", HEAD), table, ""])


def print_comparison(comparison: Comparison, console: Console) -> None:
    """Print how far each output of one model is from the other's."""
    table = _figures_table()
    left_out = _add_figures(table, "", comparison, None)
    more = [f"{counted(left_out, 'more output')}, all closer"] if left_out else []
    score: list[RenderableType] = [] if comparison.score is None else ["", score_line(comparison.score)]
    emit(console, ["", table, *more, *score, ""])


# --- parts -----------------------------------------------------------------------------------------------------------


def _title(report: Report) -> RenderableType:
    from rich.text import Text

    precision = {"fp16": "float16", "fp32": "float32"}.get(report.precision, report.precision)
    proven = "" if report.proof is None else "proven" if report.proof.ok else "NOT PROVEN"
    settings = [f"-{report.level}" if report.level else "", report.target, precision]
    text = Text.assemble((report.source, HEAD), " → ", (report.output or "(not saved)", HEAD), "\n")
    text.append(" · ".join(filter(None, settings)), DIM)
    if proven:
        text.append(" · ", DIM)
        text.append(proven, OK if proven == "proven" else BAD)
    return text


def _sizes(report: Report) -> RenderableType:
    from rich.text import Text

    a, b = report.before, report.after
    table = table_of(("", "left", False), ("before", "right", False), ("after", "right", False), ("", "left", False))
    rows = [
        ("nodes", fig.count, a.nodes, b.nodes),
        ("parameters", fig.count, a.parameters, b.parameters),
        ("weights", fig.size, a.weight_bytes, b.weight_bytes),
        ("on disk", fig.size, a.file_bytes, b.file_bytes),
        ("MACs", fig.count, a.macs, b.macs),
    ]
    for name, form, before, after in rows:
        better = before is not None and after is not None and 0 < after < before
        change = fig.change(before, after)
        style = OK if better else "yellow" if change.endswith("more") else DIM
        table.add_row(name, form(before), Text(form(after), HEAD), Text(change, style))
    if (t := report.latency) is not None:
        words = Text(f"{fig.speed(t.before, t.after)} in onnxruntime here, one thread", OK if t.faster else "yellow")
        table.add_row("one run", fig.duration(t.before), Text(fig.duration(t.after), HEAD), words)
    return table


def _passes(report: Report, verbose: bool, times: bool) -> Iterator[RenderableType]:
    from rich.text import Text

    shown = [p for p in report.passes if p.status == "ok" or times or (verbose and p.notes)]
    if shown:
        longest = max(len(p.spec) for p in shown)
        table = table_of(
            ("pass", "left", longest > NAME), ("rewrites", "right", False), ("time", "right", False),
            *([("check", "right", False)] if times else []), ("nodes", "right", False), ("outputs", "left", True),
        )  # fmt: skip
        if longest > NAME:
            table.columns[0].min_width = NAME
        for p in shown:
            cells = [Text(p.spec), Text(f"{p.rewrites:,}" if p.rewrites else "", ""), Text(fig.duration(p.seconds))]
            if times:
                cells.append(Text(fig.duration(p.check_seconds) if p.check_seconds else "", DIM))
            cells += [Text(fig.count(p.nodes)), _moved(p)]
            table.add_row(*cells, style=DIM if p.status != "ok" else "")
        yield table
    yield from (tradeoff_line(p.tradeoff) for p in report.passes if p.tradeoff is not None and p.status == "ok")
    lines = _pass_lines(report, verbose, times)
    if lines:
        yield Text("\n".join(lines), DIM)
    if verbose:
        yield from (section(Text(p.spec, HEAD), p.notes) for p in report.passes if p.notes)
    for p in report.passes:
        if p.status == "undone":
            lines = [p.why or "it broke its promise", *([f"to reproduce: {p.reproducer}"] if p.reproducer else [])]
            yield section(Text.assemble(("Undone ", BAD), (p.spec, HEAD)), lines)
        else:
            yield from damage(p, verbose)
            if verbose and p.loss is not None:
                table = _figures_table()
                _add_figures(table, "", p.loss, None)
                yield section(Text.assemble(("Outputs behind ", DIM), (p.spec, HEAD)), [])
                yield table


def _pass_lines(report: Report, verbose: bool, times: bool) -> list[str]:
    """What the table leaves out, in words."""
    count = {s: sum(p.status == s for p in report.passes) for s in ("unchanged", "skipped")}
    lines = []
    if count["unchanged"] and not times:
        some = any(p.status == "ok" for p in report.passes)
        lines.append(f"{counted(count['unchanged'], 'more pass' if some else 'pass')} found nothing to rewrite.")
    if count["skipped"]:
        lines.append(f"{counted(count['skipped'], 'pass')} skipped by --bisect-limit.")
    notes = sum(len(p.notes) for p in report.passes)
    if notes and not verbose:
        lines.append(
            f"{counted(notes, 'note')} on what was kept or almost rewritten: -v shows {'it' if notes == 1 else 'them'}."
        )
    return lines


def _moved(p: PassRecord) -> Text:
    """How far the outputs moved, in a cell."""
    from rich.text import Text

    if p.status == "undone":
        return Text("undone", BAD)
    if p.loss is not None:
        score = "" if p.score is None else f", {p.score.name} {fig.score(p.score.after)}"
        return Text(f"loss {fig.error(p.loss.max_rel)}, {fig.decibels(p.loss.snr_db)}{score}", "yellow")
    if p.exact is not None:
        return Text("equal" if p.exact.max_rel == 0 else f"exact to {fig.error(p.exact.max_rel)}", OK)
    return Text("not checked" if p.status == "ok" else "", DIM)


def _proof(report: Report) -> Iterator[RenderableType]:
    from rich.text import Text

    proof = report.proof
    if proof is None:
        yield Text.assemble(("Not proven", BAD), ": with --verify off nothing was run.")
        return
    head = Text("Proof", HEAD) if proof.ok else Text("The proof FAILED", BAD)
    yield section(head, [proof.ran, *(Text(f"✗ {p}", BAD) for p in proof.problems)])
    table = _figures_table()
    left_out = _add_figures(table, "exact", proof.exact, proof.exact_tolerance)
    left_out += _add_figures(table, "loss", proof.loss, None)
    if table.row_count:
        yield table
        words = ["exact: the file against the model before lowering, rounding left out of both"] if proof.exact else []
        words += ["loss: the file as it rounds, against the original model"] if proof.loss else []
        source = "the given inputs" if report.given_inputs else "synthesised inputs"
        words.append(f"measured on {source}" + (f" ({counted(report.samples, 'sample')})" if report.samples else ""))
        if proof.probed:
            words.append(f"{counted(proof.probed, 'operator')} probed alone, on inputs that show an epsilon")
        words += (
            [f"{counted(left_out, 'more figure')} not shown, all smaller; they are in --report"] if left_out else []
        )
        yield Text("\n".join(words), DIM)
    if proof.score is not None:
        yield score_line(proof.score)
    elif report.accuracy is not None:
        before, after = report.accuracy
        text = Text.assemble(("Accuracy", HEAD), f"  {before:.2%} → ", (f"{after:.2%}", HEAD))
        text.append(f"  top-1 of {counted(report.samples, 'labelled sample')}", DIM)
        yield text


def _figures_table() -> Table:
    return table_of(
        ("", "left", False), ("output", "left", True), ("max abs", "right", False), ("relative", "right", False),
        ("SNR", "right", False), ("cosine", "right", False), ("top-1", "right", False),
    )  # fmt: skip


def _add_figures(table: Table, label: str, c: Comparison | None, tolerance: float | None) -> int:
    """A row for each of the worst outputs; returns how many are left out. `tolerance`: rows are ticked or crossed."""
    from rich.text import Text

    if c is None:
        return 0
    worst = sorted(c.outputs, key=lambda n: -c.outputs[n].max_rel)[:OUTPUTS]
    for i, name in enumerate(n for n in c.outputs if n in worst):
        d = c.outputs[name]
        good = d.mismatch is None and (tolerance is None or d.max_rel <= tolerance)
        sign = ("" if tolerance is None else "✓ ") if good else "✗ "
        head = Text.assemble((sign, OK if good else BAD), label if i == 0 else "")
        if d.mismatch is not None:
            table.add_row(head, Text.assemble(name, "\n", (d.mismatch, BAD)))
            continue
        figures = fig.error(d.max_abs), fig.error(d.max_rel), fig.decibels(d.snr_db), fig.cosine(d.cosine)
        table.add_row(head, Text(name), *map(Text, figures), Text(fig.share(d.top1)))
    return len(c.outputs) - len(worst)


def _notices(report: Report, verbose: bool) -> Iterator[RenderableType]:
    from rich.text import Text

    lines = interface_lines(report.names, report.contract)
    if verbose:
        lines = [*(f"input {i}" for i in report.inputs), *(f"output {o}" for o in report.outputs), *lines]
    if lines:
        yield section(Text("Interface", HEAD), lines)
    if report.warnings:
        yield section(Text("Warnings", "bold yellow"), report.warnings)


def _footer(report: Report) -> RenderableType:
    from rich.text import Text

    steps = [f"{name} {fig.duration(s)}" for name, s in report.seconds.items() if s >= 0.05]
    peak = f", peak memory {fig.size(report.peak_bytes)}" if report.peak_bytes else ""
    total = fig.duration(sum(report.seconds.values()))
    text = Text.assemble((total, HEAD), peak)
    if steps:
        text.append("  (" + ", ".join(steps) + ")", DIM)
    return text
