"""The prune groups drawn: a graph of groups and of the weights that they lie on, as Graphviz text or as a page."""

from __future__ import annotations

import json
from collections.abc import Sequence

import networkx as nx

from ..html_parts import Html, tag
from .groups import Group

COLORS = {"channel": "#3b82c4", "row": "#c4553b", "dimension": "#7a9a3b"}
WIDE, LEFT, RIGHT, TALL = 1100, 240, 560, 16
"""Of the drawing, in its own units: its width, where the columns stand, and the distance of lines."""
STYLE = """
body{font:14px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:1140px;padding:0 1rem;color:#222;background:#fff}
table{border-collapse:collapse;width:100%}td,th{text-align:left;padding:.25rem .6rem;border-bottom:1px solid #ddd;
vertical-align:top}td.n,th.n{text-align:right}svg{width:100%;height:auto;border:1px solid #ddd}code{font-size:12px}
@media (prefers-color-scheme:dark){body{background:#161616;color:#ddd}td,th,svg{border-color:#444}text{fill:#ddd}}
"""


def graph(found: Sequence[Group]) -> nx.Graph:
    """A node per group (`kind`, `units`) and per weight; an edge where a group lies on a weight, with the axes."""
    g = nx.Graph()
    for group in found:
        g.add_node(group.name, kind=group.kind, label=f"{group.name}: {group.units} x {group.kind}", units=group.units)
        for p in group.places:
            g.add_node(f"w:{p.weight}", kind="weight", label=f"{p.weight} {'x'.join(map(str, p.shape))}")
            g.add_edge(group.name, f"w:{p.weight}", label=", ".join(map(str, p.axes)))
    return g


def to_dot(found: Sequence[Group]) -> str:
    """For Graphviz: `dot -Tsvg`."""
    drawn = graph(found)
    lines = ["graph groups {", "  rankdir=LR;", '  node [fontname="sans-serif"];']
    for name, data in drawn.nodes(data=True):
        look = "shape=box" if data["kind"] == "weight" else f'shape=ellipse, color="{COLORS[data["kind"]]}"'
        lines.append(f"  {json.dumps(name)} [label={json.dumps(data['label'])}, {look}];")
    lines += [f"  {json.dumps(a)} -- {json.dumps(b)} [label={json.dumps(d['label'])}];" for a, b, d in
              drawn.edges(data=True)]  # fmt: skip
    return "\n".join([*lines, "}", ""])


def to_html(source: str, found: Sequence[Group], notes: Sequence[str]) -> str:
    """A page that opens offline: the drawing, the table, and why the rest can't go."""
    head = ("group", "kind", "units", "parameters each", "MACs each", "lies on")
    rows = [
        tag("tr", tag("td", g.name), tag("td", g.kind), tag("td", f"{g.units}", class_="n"),
            tag("td", f"{g.parameters:,.0f}", class_="n"), tag("td", f"{g.macs:,.0f}", class_="n"),
            tag("td", tag("code", ", ".join(p.text for p in g.places))))
        for g in found
    ]  # fmt: skip
    table = tag("table", tag("tr", *(tag("th", h) for h in head)), *rows)
    parts = [tag("h1", f"Prune groups of {source}"), _svg(graph(found)), table]
    if notes:
        parts += [tag("h2", "Kept"), tag("ul", *(tag("li", n) for n in notes))]
    title = tag("head", Html('<meta charset="utf-8">'), tag("title", source), Html(f"<style>{STYLE}</style>"))
    return "<!doctype html>\n" + tag("html", title, tag("body", *parts), lang="en") + "\n"


def _svg(drawn: nx.Graph) -> Html:
    """Groups in one column, weights in another, those that are connected close to each other."""
    groups, weights = _columns(drawn)
    rows = {w: TALL * (k + 1.0) for k, w in enumerate(weights)}
    place: dict[str, tuple[float, float]] = {w: (RIGHT, y) for w, y in rows.items()}
    last = 0.0
    for g in groups:
        ys = [rows[w] for w in drawn[g]]
        last = max(sum(ys) / len(ys) if ys else 0.0, last + TALL)
        place[g] = (LEFT, last)
    lines = [
        tag("line", tag("title", f"{a[2:] if a in rows else b[2:]}: axis {d['label']}"),
            x1=f"{place[a][0]:.0f}", y1=f"{place[a][1]:.1f}", x2=f"{place[b][0]:.0f}", y2=f"{place[b][1]:.1f}",
            stroke=COLORS[drawn.nodes[b if a in rows else a]["kind"]], stroke_opacity="0.5")
        for a, b, d in drawn.edges(data=True)
    ]  # fmt: skip
    high = max([last, *rows.values()], default=0.0) + 2 * TALL
    marks = [_mark(drawn.nodes[n], *place[n]) for n in (*groups, *weights)]
    return tag("svg", *lines, *marks, viewBox=f"0 0 {WIDE} {high:.0f}", role="img")


def _columns(drawn: nx.Graph) -> tuple[list[str], list[str]]:
    """Groups in the order in which one comes from one to the next, weights by the mean place of their groups."""
    groups = [n for part in nx.connected_components(drawn) for n in nx.dfs_preorder_nodes(drawn, min(part))
              if drawn.nodes[n]["kind"] != "weight"]  # fmt: skip
    at = {g: k for k, g in enumerate(groups)}
    weights = [n for n in drawn if n not in at]
    weights.sort(key=lambda w: (sum(at[g] for g in drawn[w]) / len(drawn[w]), w))
    return groups, weights


def _mark(data: dict[str, str], x: float, y: float) -> Html:
    weight = data["kind"] == "weight"
    circle = tag("circle", cx=f"{x:.0f}", cy=f"{y:.1f}", r="3" if weight else "6",
                 fill="#888" if weight else COLORS[data["kind"]])  # fmt: skip
    text = tag("text", data["label"], x=f"{x + (8 if weight else -12):.0f}", y=f"{y + 4:.1f}",
               font_size="11" if weight else "12", text_anchor="start" if weight else "end")  # fmt: skip
    return tag("g", circle, text)
