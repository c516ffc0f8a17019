"""The tables of benchmarks/prune.py: all columns in OUT.md, the ones that matter in docs/pruning.md."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from . import harness

COLUMNS = ("parameters", "MACs", "prune s", "s", "CPU s", "MB", "removed vs masked", "ms", "failed")
SHORT = ("parameters", "MACs", "prune s", "CPU s", "MB", "removed vs masked", "ms", "failed")
TITLE = "Structured pruning: half of the channels, or of the MACs"
MODES = {"legacy": "legacy", "legacy_dyn": "legacy, free batch", "dynamo": "dynamo", "dynamo_dyn": "dynamo, free batch"}
START, END = "<!-- benchmarks/prune.py writes from here -->", "<!-- to here -->"


def write(
    rows: Sequence[harness.Row], tools: Mapping[str, Mapping[str, str]], out: Path, page: Path, order: Sequence[str]
) -> None:
    """OUT.json, OUT.md, and what is between the marks of a page. Models in this order, then all others."""
    place = {name: k for k, name in enumerate(order)}
    rows = sorted(rows, key=lambda r: place.get(r["model"], len(place)))
    head = [harness.machine(), ""]
    head += [f"- {name}: " + ", ".join(f"{p} {v}" for p, v in found.items()) for name, found in tools.items()]
    out.parent.mkdir(parents=True, exist_ok=True)
    text = [f"# {TITLE}", "", *head, "", _table(rows, COLUMNS), "", *_exporters(rows)]
    out.with_suffix(".md").write_text("\n".join(text))
    result = {"title": TITLE, "machine": harness.machine(), "tools": tools, "rows": rows}
    out.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
    if page.exists() and START in (whole := page.read_text()):
        before, rest = whole.split(START, 1)
        after = rest.split(END, 1)[1]
        made = [START, "", *head, "", _table([r for r in rows if not _other(r)], SHORT), "", *_exporters(rows), END]
        page.write_text(before + "\n".join(made) + after)


def _other(row: harness.Row) -> bool:
    """Whether the file is by another exporter than the legacy one."""
    return row["model"].endswith((".dynamo", "_dyn"))


def _table(rows: Sequence[harness.Row], columns: Sequence[str]) -> str:
    return harness.markdown([{c: r.get(c) for c in ("model", "tool", *columns)} for r in rows])


def _exporters(rows: Sequence[harness.Row]) -> list[str]:
    """A row per network and variant, a column per way of exporting it."""
    found: dict[tuple[str, str], dict[str, str]] = {}
    for r in rows:
        network, _, mode = r["model"].rpartition(".")
        if r["tool"].startswith("edgec") and mode in MODES:
            words = f"{r.get('parameters')} / {r.get('MACs')}, {r.get('removed vs masked', '')}"
            words = str(r["failed"]) if r.get("failed") else words
            found.setdefault((network, r["tool"]), {})[mode] = words
    table = [
        {"model": network, "tool": tool} | {title: made.get(mode) for mode, title in MODES.items()}
        for (network, tool), made in found.items() if len(made) > 1
    ]  # fmt: skip
    words = "The same networks by other exporters, and with a free batch: parameters / MACs, removed vs masked."
    return [words, "", harness.markdown(table), ""] if table else []
