"""The report as one HTML page: no other file, no network, light and dark, readable on a phone.

Everything is rendered here from the JSON document; the page's script only sorts tables and saves the document. Sections
come first, then what only one of them is made of; elements and what several use are in `html_parts`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import figures as fig
from .html_parts import Html, bars, card, cell, definitions, number, table, tag
from .report import interface_lines
from .report_guard import damage_html, figures_html
from .report_tradeoff import to_html as tradeoff_html
from .web import ANALYSIS, page

if TYPE_CHECKING:
    from .cost.records import Analysis

Json = dict[str, Any]
KINDS = 14
"""Operators in the chart; the rest is one line."""


def to_html(document: Json, analyses: Sequence[Analysis] = ()) -> str:
    """The page for a report document (see `report.to_json`). `analyses`: of the model before and after, if made."""
    parts = [_head(document), _cards(document), *_warnings(document), _charts(document)]
    parts += [_passes(document), *tradeoff_html(document), *damage_html(document), _proof(document)]
    parts += [_interface(document), _environment(document)]
    title = f"{Path(document['source']).name}: edgec report"
    data: Json = {"report": document}
    if not analyses:
        return page(title, "\n".join([*parts, _footer(document)]), data, ["report.js"], ["page.css"])
    from .analysis.page import MOUNT, STYLES, documents

    # The report has cards of its own for the whole.
    data["analyses"] = {**documents(analyses), "cards": False}
    parts += [tag("h2", "What it costs", class_="chapter"), MOUNT, _footer(document)]
    return page(title, "\n".join(parts), data, ["report.js", *ANALYSIS], STYLES)


# --- sections --------------------------------------------------------------------------------------------------------


def _head(d: Json) -> Html:
    proof = d["proof"]
    precision = {"fp16": "float16", "fp32": "float32"}.get(str(d["precision"]), str(d["precision"]))
    chips = [tag("span", text, class_="chip") for text in (f"-{d['level']}", str(d["target"]), precision) if text]
    words = ("not checked", "bad") if proof is None else ("proven", "good") if proof["ok"] else ("proof failed", "bad")
    chips.append(tag("span", words[0], class_=f"chip {words[1]}"))
    arrow = tag("span", " → ", class_="arrow")
    title = tag("h1", Path(d["source"]).name, arrow, Path(d["output"]).name or "not saved")
    return Html(title + tag("div", *chips, class_="chips"))


def _cards(d: Json) -> Html:
    a, b, proof = d["before"], d["after"], d["proof"]
    cards = [
        card("On disk", fig.size(b["file_bytes"]), _became(fig.size, a["file_bytes"], b["file_bytes"])),
        card("Nodes", fig.count(b["nodes"]), _became(fig.count, a["nodes"], b["nodes"])),
        card("MACs per run", fig.count(b["macs"]), _became(fig.count, a["macs"], b["macs"])),
    ]
    if d["latency"] is not None:
        t = d["latency"]
        words = f"was {fig.duration(number(t['before']))}, onnxruntime, one thread"
        cards.append(card("One run", fig.duration(number(t["after"])), words))
    if d["metric"] is not None:
        m = d["metric"]
        words = f"was {fig.score(number(m['before']))}, {m['samples']:,} samples"
        cards.append(card(m["name"], fig.score(number(m["after"])), words))
    elif d["accuracy"] is not None:
        acc = d["accuracy"]
        words = f"was {acc['before']:.2%}, {acc['samples']:,} samples"
        cards.append(card("Accuracy", f"{acc['after']:.2%}", words))
    if proof is not None and proof["loss"] is not None:
        loss = proof["loss"]
        cards.append(
            card(
                "Signal to noise",
                fig.decibels(number(loss["snr_db"])),
                f"relative error {fig.error(number(loss['max_rel']))}",
            )
        )
    total = sum(number(s) for s in d["seconds"].values())
    cards.append(card("Compiled in", fig.duration(total), f"peak memory {fig.size(d['peak_bytes'])}"))
    return tag("div", *cards, class_="cards")


def _warnings(d: Json) -> Iterable[Html]:
    undone = [p for p in d["passes"] if p["status"] == "undone"]
    if undone:
        items = []
        for p in undone:
            where = f" To reproduce: {p['reproducer']}" if p["reproducer"] else ""
            items.append(tag("li", tag("code", p["spec"]), f": {p['why']}.", tag("span", where, class_="soft")))
        yield tag("section", tag("h2", "Undone"), tag("ul", *items, class_="plain"), class_="bad")
    part = [p for p in d["passes"] if p["status"] == "ok" and p["retreat"]]
    if part:
        items = [tag("li", tag("code", p["spec"]), ": ", ". ".join(p["retreat"])) for p in part]
        yield tag("section", tag("h2", "Taken back in part"), tag("ul", *items, class_="plain"), class_="warn")
    if d["warnings"]:
        items = [tag("li", w) for w in d["warnings"]]
        yield tag("section", tag("h2", "Warnings"), tag("ul", *items, class_="plain"), class_="warn")


def _charts(d: Json) -> Html:
    a, b = d["before"], d["after"]
    sizes = [
        ("On disk", a["file_bytes"], b["file_bytes"], fig.size),
        ("Weights", a["weight_bytes"], b["weight_bytes"], fig.size),
        ("Parameters", a["parameters"], b["parameters"], fig.count),
        ("Nodes", a["nodes"], b["nodes"], fig.count),
        ("MACs", a["macs"], b["macs"], fig.count),
    ]
    legend = tag("p", tag("i"), tag("span", "before"), tag("i", class_="after"), tag("span", "after"), class_="legend")
    rows = [bars(name, x, y, max(x or 0, y or 0), form) for name, x, y, form in sizes]
    left = tag("section", tag("h2", "Before and after"), legend, tag("div", *rows, class_="bars"), _track(d))
    kinds = {k: (a["ops"].get(k, 0), b["ops"].get(k, 0)) for k in [*a["ops"], *b["ops"]]}
    order = sorted(kinds, key=lambda k: (-max(kinds[k]), k))
    top = max((max(v) for v in kinds.values()), default=0)
    rows = [bars(k, *kinds[k], top, fig.count) for k in order[:KINDS]]
    rest = order[KINDS:]
    more = [sum(kinds[k][side] for k in rest) for side in (0, 1)]
    note = f"{len(rest)} more kinds: {more[0]} nodes before, {more[1]} after" if rest else ""
    right = tag(
        "section", tag("h2", "Kinds of nodes"), legend, tag("div", *rows, class_="bars"), tag("p", note, class_="soft")
    )
    return tag("div", left, right, class_="two")


def _passes(d: Json) -> Html:
    heads = [("pass", ""), ("rewrites", "n"), ("time", "n"), ("check", "n"), ("nodes", "n"), ("outputs moved", "n")]
    rows = [_pass_row(p) for p in d["passes"]]
    quiet = sum(p["status"] == "unchanged" and not p["notes"] for p in d["passes"])
    box = tag("input", type="checkbox", id="all")
    shown = tag("label", f" show the {quiet} that found nothing to do", for_="all")
    return tag(
        "section",
        tag("h2", "Passes"),
        *([box, shown] if quiet else []),
        tag("div", table(heads, rows), class_="scroll"),
    )


def _proof(d: Json) -> Html:
    proof = d["proof"]
    if proof is None:
        return tag("section", tag("h2", "Proof"), tag("p", "With --verify off nothing was run: nothing is proven."))
    given = "the given inputs" if d["samples"]["given"] else "synthesised inputs"
    count = d["samples"]["count"]
    parts = [tag("h2", "Proof"), tag("p", proof["ran"])]
    if proof["problems"]:
        parts.append(tag("ul", *(tag("li", p, class_="badt") for p in proof["problems"]), class_="plain"))
    tolerance = number(proof["exact_tolerance"])
    meaning = {
        "exact": f"Exact: the file against the model before lowering, rounding left out of both; "
        f"at most {tolerance:.0e} is allowed",
        "loss": "Loss: the file as it rounds, against the original model",
    }
    for key, limit in (("exact", tolerance), ("loss", None)):
        if proof[key] is not None:
            parts += [tag("h3", meaning[key]), tag("div", figures_html(proof[key], limit), class_="scroll")]
    parts.append(tag("p", f"Measured on {given} ({count:,} sample{'' if count == 1 else 's'}).", class_="soft"))
    return tag("section", *parts)


def _interface(d: Json) -> Html:
    face = d["interface"]
    rows = [("input", i) for i in face["inputs"]] + [("output", o) for o in face["outputs"]]
    rows += [("in the file", line) for line in interface_lines(face["renamed"], face["contract"])]
    return tag("section", tag("h2", "Interface"), definitions(rows))


def _environment(d: Json) -> Html:
    times = [(step, fig.duration(number(s))) for step, s in d["seconds"].items()]
    pipeline = tag("details", tag("summary", "Pipeline"), tag("p", tag("code", ", ".join(d["pipeline"]))))
    left = tag("section", tag("h2", "Time"), definitions(times))
    right = tag("section", tag("h2", "Environment"), definitions(d["versions"].items()), pipeline)
    return tag("div", left, right, class_="two")


def _footer(d: Json) -> Html:
    made = tag("span", f"edgec {d['versions'].get('edgec', '')}".strip())
    return tag("footer", made, tag("button", "Save as report.json", id="save", class_="link", type="button"))


# --- parts of sections -----------------------------------------------------------------------------------------------


def _became(form: Callable[[int | None], str], before: int | None, after: int | None) -> str:
    change = fig.change(before, after)
    return "as before" if change == "same" else f"{change}, was {form(before)}" if change else ""


def _track(d: Json) -> Html:
    """How the number of nodes fell, pass by pass, as a stepped line."""
    counts = [d["before"]["nodes"], *(p["nodes"] for p in d["passes"])]
    top = max(counts)
    if len(counts) < 3 or not top or min(counts) == top:
        return Html("")
    width, height = 1000, 90
    step = width / (len(counts) - 1)
    points = [(i * step, height - (height - 6) * n / top) for i, n in enumerate(counts)]
    line = f"M0,{points[0][1]:.1f}" + "".join(f"H{x:.1f}V{y:.1f}" for x, y in points[1:])
    label = f"Nodes, pass by pass: from {counts[0]:,} to {counts[-1]:,}"
    drawing = tag(
        "svg", tag("path", d=f"{line}V{height}H0Z", class_="area"), tag("path", d=line), class_="track",
        viewBox=f"0 0 {width} {height}", preserveAspectRatio="none", role="img", aria_label=label,
    )  # fmt: skip
    return Html(tag("h3", label) + drawing)


def _pass_row(p: Json) -> Html:
    name: Html = tag("code", p["spec"])
    if p["notes"]:
        count = tag("span", f"{len(p['notes'])} note{'' if len(p['notes']) == 1 else 's'}", class_="count")
        name = tag("details", tag("summary", name, count), tag("ul", *(tag("li", n) for n in p["notes"])))
    moved, text, style = math.nan, "", "soft"
    if p["status"] == "undone":
        moved, text, style = math.inf, "undone", "badt"
    elif p["loss"] is not None:
        moved = number(p["loss"]["max_rel"])
        text, style = f"{fig.error(moved)} · {fig.decibels(number(p['loss']['snr_db']))}", "warnt"
        if p["metric"] is not None:
            text += f" · {p['metric']['name']} {fig.score(number(p['metric']['after']))}"
    elif p["exact"] is not None:
        moved = number(p["exact"]["max_rel"])
        text, style = "equal" if moved == 0 else fig.error(moved), "good"
    elif p["status"] == "skipped":
        text = "skipped"
    check = number(p["check_seconds"])
    cells = [
        tag("td", name),
        cell(p["rewrites"], f"{p['rewrites']:,}" if p["rewrites"] else ""),
        cell(number(p["seconds"]), fig.duration(number(p["seconds"]))),
        cell(check, fig.duration(check) if check else ""),
        cell(p["nodes"], fig.count(p["nodes"])),
        cell(moved, tag("span", text, class_=style)),
    ]
    return tag("tr", *cells, class_=p["status"] + ("" if p["notes"] else " plain"))
