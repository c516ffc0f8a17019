"""What bytes of weights are worth in noise, shown: a line for the terminal, figures for the document, a plot."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from . import figures as fig
from .html_parts import Html, cell, number, table, tag
from .terminal_parts import DIM, HEAD
from .tradeoff import Point, Tradeoff

if TYPE_CHECKING:
    from rich.text import Text

Json = dict[str, Any]

WIDTH, HEIGHT = 760, 340
LEFT, RIGHT, TOP, BOTTOM = 58, 20, 30, 44
TICKS = 6
STEPS = 200
"""Points of the frontier that the document holds at most."""

WORDS = (
    "Line: the best for every size, as it is expected from the noise that each weight makes alone. Points: measured, "
    "with the same bits for all weights, and what was chosen. Higher and further left is better."
)


def to_json(found: Tradeoff) -> Json:
    """For report.json; see docs/report.md."""
    step = max(1, -(-len(found.frontier) // STEPS))
    kept = [p for i, p in enumerate(found.frontier) if i % step == 0 or i == len(found.frontier) - 1]
    return {
        "other_bytes": found.rest,
        "scores": list(found.scores),
        "chosen": _point(found.chosen),
        "uniform": [{"bits": p.bits, **_point(p)} for p in found.uniform],
        "frontier": [{"weight_bytes": p.nbytes, "expected_snr_db": _db(p.expected)} for p in kept],
        "weights": [
            {"name": w.name, "bits": w.bits, "bytes": w.nbytes, "plain_bytes": w.plain, "snr_db": _db(w.noise)}
            for w in found.weights
        ],
    }


def _point(p: Point) -> Json:
    measured = None if p.measured is None else _db(p.measured)
    return {"weight_bytes": p.nbytes, "expected_snr_db": _db(p.expected), "snr_db": measured}


def _db(noise: float) -> float | str:
    if noise <= 0:
        return "inf"
    return -10 * math.log10(noise) if math.isfinite(noise) else "-inf"


def line(found: Tradeoff) -> Text:
    """What became of the weights, and of the same bits everywhere that come nearest in size, for the terminal."""
    from rich.text import Text

    counts = Counter("as they are" if w.nbytes == w.plain else f"{w.bits} bits" for w in found.weights)
    order = sorted(counts, key=lambda c: (not c[0].isdigit(), c))
    chosen = to_json(found)["chosen"]
    text = Text.assemble(("Bits", HEAD), "  ", ", ".join(f"{counts[c]} of {c}" for c in order).replace("of as", "as"))
    text.append(f": {fig.size(found.chosen.nbytes)}, {fig.decibels(number(chosen['snr_db']))}")
    near = min(found.uniform, key=lambda p: abs(p.nbytes - found.chosen.nbytes), default=None)
    if near is not None and near.measured is not None:
        same = f"; {near.bits} bits everywhere: {fig.size(near.nbytes)}, {fig.decibels(number(_db(near.measured)))}"
        text.append(same, DIM)
    return text


def to_html(document: Json) -> Iterator[Html]:
    """A section of the page for each pass that searched."""
    for p in document["passes"]:
        found = p["tradeoff"]
        if found is None:
            continue
        how = f" Outputs compared as probabilities: {', '.join(found['scores'])}." if found["scores"] else ""
        rows = [_row(f"{u['bits']} bits everywhere", u) for u in found["uniform"]]
        rows.append(_row("chosen", found["chosen"]))
        heads = [("weights", ""), ("bytes", "n"), ("SNR expected", "n"), ("SNR measured", "n")]
        each = [("weight", ""), ("bits", "n"), ("bytes", "n"), ("as it is", "n"), ("SNR of it alone", "n")]
        yield tag(
            "section",
            tag("h2", "Bytes and noise: ", tag("code", p["spec"])),
            tag("p", WORDS + how, class_="soft"),
            tag("div", _plot(found), class_="scroll"),
            tag("div", table(heads, rows), class_="scroll"),
            tag(
                "details",
                tag("summary", f"The bits of {len(found['weights'])} weights"),
                tag("div", table(each, [_weight(w) for w in found["weights"]]), class_="scroll"),
            ),
        )


def _row(name: str, p: Json) -> Html:
    expected, measured = number(p["expected_snr_db"]), number(p["snr_db"])
    return tag(
        "tr",
        tag("td", name),
        cell(p["weight_bytes"], fig.size(p["weight_bytes"])),
        cell(expected, fig.decibels(expected)),
        cell(measured, "" if math.isnan(measured) else fig.decibels(measured)),
    )


def _weight(w: Json) -> Html:
    snr, kept = number(w["snr_db"]), w["bytes"] == w["plain_bytes"]
    return tag(
        "tr",
        tag("td", tag("code", w["name"])),
        cell(w["bits"], "as it is" if kept else str(w["bits"])),
        cell(w["bytes"], fig.size(w["bytes"])),
        cell(w["plain_bytes"], fig.size(w["plain_bytes"])),
        cell(snr, "" if kept else fig.decibels(snr)),
    )


def _plot(found: Json) -> Html:
    """Bytes to the right, signal over noise up."""
    points = [(u["weight_bytes"], number(u["snr_db"]), f"{u['bits']} bits") for u in found["uniform"]]
    mine = (found["chosen"]["weight_bytes"], number(found["chosen"]["snr_db"]), "chosen")
    shown = [p for p in [*points, mine] if math.isfinite(p[1])]
    if not shown:
        return Html("")
    line = [(f["weight_bytes"], number(f["expected_snr_db"])) for f in found["frontier"]]
    low, high = min(p[1] for p in shown), max(p[1] for p in shown)
    edge = max(3.0, 0.1 * (high - low))
    bottom, top = min(low - edge, high - 6), high + edge
    first, last = min(p[0] for p in shown), max(p[0] for p in shown)
    space = max(0.06 * (last - first), 0.02 * last, 1.0)
    first, last = max(0.0, first - space), last + space

    def at(x: float, y: float) -> tuple[float, float]:
        across = LEFT + (x - first) / (last - first) * (WIDTH - LEFT - RIGHT)
        return across, HEIGHT - BOTTOM - (y - bottom) / (top - bottom) * (HEIGHT - TOP - BOTTOM)

    inside = [at(*p) for p in line if math.isfinite(p[1]) and first <= p[0] <= last and bottom <= p[1] <= top]
    path = "M" + "L".join(f"{x:.1f},{y:.1f}" for x, y in inside)
    parts = [*_axes(first, last, bottom, top, at)]
    parts += [tag("path", d=path, class_="frontier")] if len(inside) > 1 else []
    for x, y, name in shown:
        cx, cy = at(x, y)
        mark = "mine" if name == "chosen" else "same"
        hint = tag("title", f"{name}: {fig.size(x)}, {fig.decibels(y)}")
        parts.append(tag("circle", hint, cx=f"{cx:.1f}", cy=f"{cy:.1f}", r="6" if mark == "mine" else "4", class_=mark))
        # Above the line for what was chosen, below it for the others: they are close to each other where it matters.
        up = -10 if mark == "mine" else 16
        parts.append(tag("text", name, x=f"{cx:.1f}", y=f"{cy + up:.1f}", text_anchor="middle", class_=mark))
    label = f"Bytes of weights and signal-to-noise ratio: chosen {fig.size(mine[0])}, {fig.decibels(mine[1])}"
    return tag("svg", *parts, class_="pareto", viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img", aria_label=label)


def _axes(first: float, last: float, bottom: float, top: float, at: Any) -> Iterator[Html]:
    (left, down), (right, up) = at(first, bottom), at(last, top)
    for x in ticks(first, last):
        across, _ = at(x, bottom)
        yield tag("line", x1=f"{across:.1f}", x2=f"{across:.1f}", y1=f"{up:.1f}", y2=f"{down:.1f}", class_="grid")
        yield tag("text", fig.size(round(x)), x=f"{across:.1f}", y=f"{down + 17:.1f}", text_anchor="middle")
    for y in ticks(bottom, top):
        _, height = at(first, y)
        yield tag("line", x1=f"{left:.1f}", x2=f"{right:.1f}", y1=f"{height:.1f}", y2=f"{height:.1f}", class_="grid")
        yield tag("text", f"{y:g}", x=f"{left - 8:.1f}", y=f"{height + 4:.1f}", text_anchor="end")
    yield tag("text", "bytes of the weights", x=f"{(left + right) / 2:.1f}", y=f"{HEIGHT - 8}", text_anchor="middle")
    yield tag("text", "SNR of the outputs, dB", x=f"{left - 40:.1f}", y=f"{TOP - 14}")


def ticks(low: float, high: float) -> Sequence[float]:
    """Round numbers between two, about `TICKS` of them."""
    rough = (high - low) / TICKS
    power = 10 ** math.floor(math.log10(rough))
    step = next(s * power for s in (1, 2, 5, 10) if s * power >= rough)
    return [k * step for k in range(math.ceil(low / step), math.floor(high / step) + 1)]
