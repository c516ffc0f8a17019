"""What lossy passes cost, shown: the metric, what was taken back, and the layers in which the damage arises.

For the terminal; and, from the report's document, for the page.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from . import figures as fig
from .html_parts import Html, cell, number, table, tag
from .records import PassRecord
from .terminal_parts import BAD, DIM, HEAD, counted, section, table_of

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text

    from .guard.task import Score

Json = dict[str, Any]
WORST = 10
"""Layers of a pass that the terminal shows: those whose own error is largest."""

LAYERS = (
    "Each layer's output against what it was before the pass. Own: where this layer alone is changed and reads what it "
    "read before; its share of the error's power, the rest is inherited from layers before it. Bars: the error of its "
    "own, relative to the output."
)


def score_line(score: Score) -> Text:
    """A metric before and after, for the terminal."""
    from rich.text import Text

    after = fig.score(score.after), HEAD if score.ok else BAD
    text = Text.assemble(("Metric", HEAD), f"  {score.name} {fig.score(score.before)} → ", after)
    limit = "" if score.max_drop is None else f"; up to {score.max_drop:g} may be lost"
    better = "" if score.larger_is_better else ", smaller is better"
    text.append(f"  of {counted(score.samples, 'sample')}{better}{limit}", DIM)
    return text


def damage(p: PassRecord, verbose: bool) -> Iterator[RenderableType]:
    """What was taken back of a pass, and, if `verbose`, the layers that it harmed most, for the terminal."""
    from rich.text import Text

    if p.retreat:
        yield section(Text.assemble(("Taken back in part ", "yellow"), (p.spec, HEAD)), p.retreat)
    if not p.layers or not verbose:
        return
    worst = sorted(p.layers, key=lambda x: x.own_db)[:WORST]
    rest = len(p.layers) - len(worst)
    lines = ["each layer's output against what it was before the pass; own: of this layer's change alone"]
    lines += [f"{counted(rest, 'more layer')} with less error of {'its' if rest == 1 else 'their'} own"] if rest else []
    yield section(Text.assemble(("Layers of ", DIM), (p.spec, HEAD)), lines)
    columns = ("layer", "left", True), ("operator", "left", False), ("SNR", "right", False), ("own", "right", False)
    shown = table_of(*columns, ("share", "right", False))
    for x in worst:
        shown.add_row(Text(x.name), x.op, fig.decibels(x.snr_db), fig.decibels(x.own_db), f"{x.own:.0%}")
    yield shown


def damage_html(document: Json) -> Iterator[Html]:
    """What each lossy pass cost, a section of the page for each: outputs, and layers where they were measured."""
    for p in document["passes"]:
        if p["loss"] is None or p["status"] != "ok":
            continue
        parts = [
            tag("h2", "What was lost behind ", tag("code", p["spec"])),
            tag("div", figures_html(p["loss"], None), class_="scroll"),
        ]
        if p["layers"]:
            heads = [("layer", ""), ("operator", ""), ("SNR", "n"), ("own", "n"), ("own share", "n"), ("", "")]
            worst = max(_power(x["own_snr_db"]) for x in p["layers"])
            rows = [_row(x, worst) for x in p["layers"]]
            parts += [tag("h3", "Where it arises"), tag("p", LAYERS, class_="soft")]
            parts.append(tag("div", table(heads, rows), class_="scroll"))
        yield tag("section", *parts)


def _row(x: Json, worst: float) -> Html:
    snr, own = number(x["snr_db"]), number(x["own_snr_db"])
    width = 100 * (_power(x["own_snr_db"]) / worst) ** 0.5 if worst else 0.0
    bar = tag("div", class_="bar after" if width else "bar none", style=f"width:{width:.2f}%")
    return tag(
        "tr",
        tag("td", tag("code", x["name"])),
        tag("td", x["op"]),
        cell(snr, fig.decibels(snr)),
        cell(own, fig.decibels(own)),
        cell(x["own"], f"{x['own']:.0%}"),
        tag("td", bar, class_="wide"),
    )


def _power(db: Any) -> float:
    """Noise power over signal power; at most 1, so that one broken layer doesn't hide the others."""
    return min(1.0, float(10 ** (-number(db) / 10)))


def figures_html(comparison: Json, limit: float | None) -> Html:
    """A table of how far each output is; with a `limit` to the relative error, whether it is within."""
    heads = [("output", ""), *((h, "n") for h in ("max abs", "relative", "SNR", "cosine", "top-1")), ("verdict", "")]
    rows = []
    for name, d in comparison["outputs"].items():
        rel, snr, cos = number(d["max_rel"]), number(d["snr_db"]), number(d["cosine"])
        good = d["mismatch"] is None and (limit is None or rel <= limit)
        verdict = d["mismatch"] or ("measured" if limit is None else "✓ within" if good else "✗ too far")
        rows.append(
            tag(
                "tr",
                tag("td", tag("code", name)),
                cell(number(d["max_abs"]), fig.error(number(d["max_abs"]))),
                cell(rel, fig.error(rel)),
                cell(snr, fig.decibels(snr)),
                cell(cos, fig.cosine(cos)),
                cell(number(d["top1"]), "" if d["top1"] is None else fig.share(number(d["top1"]))),
                tag("td", verdict, class_="verdict " + ("badt" if not good else "soft" if limit is None else "good")),
            )
        )
    return table(heads, rows)
