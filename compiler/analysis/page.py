"""Analyses as one HTML page that opens offline: maps, plots and tables, drawn by its scripts from the documents."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from ..cost.devices import rows
from ..cost.measure import Measured
from ..cost.records import Analysis
from ..html_parts import Html, tag
from ..web import ANALYSIS, page
from .document import Growth, sizes, to_json
from .wording import letters, shape_text

LABELS = ("before", "after")
STYLES = ("page.css", "analysis.css")


def to_html(
    analyses: Sequence[Analysis],
    device: str | None = None,
    growth: Growth | None = None,
    measured: Sequence[Measured] = (),
) -> str:
    """The page for one analysis, or for two: before and after. `device` and `growth`: what is shown at first.

    `measured`: what running each of them showed.
    """
    names = [Path(a.source).name for a in analyses]
    title = f"{' → '.join(names)}: edgec analyze"
    data = documents(analyses, device, growth, measured)
    body = [_head(analyses, names), MOUNT, tag("footer", tag("span", "edgec analyze"), _SAVE)]
    return page(title, "\n".join(body), {"analyses": data}, ANALYSIS, STYLES)


MOUNT = tag("div", tag("noscript", "This page draws itself: it needs JavaScript."), id="analysis")
"""Where the scripts put what they draw."""

_SAVE = tag("button", "Save as analysis.json", id="save-analysis", class_="link", type="button")


def documents(
    analyses: Sequence[Analysis],
    device: str | None = None,
    growth: Growth | None = None,
    measured: Sequence[Measured] = (),
) -> dict[str, Any]:
    """What the scripts draw: the documents with their labels, and the devices that there are."""
    models = [
        {"label": label, "document": to_json(a, measured=times), "letters": letters(a, sizes(a))}
        for label, a, times in zip_longest(LABELS[: len(analyses)], analyses, measured)
    ]
    span = {"symbol": growth.symbol, "values": [value for value, _ in growth.rows]} if growth else None
    return {"models": models, "devices": rows(), "device": device, "range": span}


def _head(analyses: Sequence[Analysis], names: Sequence[str]) -> Html:
    last = analyses[-1]
    arrow = tag("span", " → ", class_="arrow")
    inside = [part for i, name in enumerate(names) for part in ((arrow, name) if i else (name,))]
    names_of = letters(last, sizes(last))
    chips = [tag("span", f"{last.totals.nodes:,} nodes", class_="chip")]
    chips += [
        tag("span", f"{name}: {kind} {shape_text(dims, names_of).replace(', ', '×') or 'scalar'}", class_="chip")
        for name, (kind, dims) in list(last.inputs.items())[:6]
    ]
    if any(a.unknown for a in analyses):
        chips.append(tag("span", "unknown operators", class_="chip bad"))
    return Html(tag("h1", *inside) + tag("div", *chips, class_="chips"))
