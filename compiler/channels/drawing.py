"""The prune groups drawn: a graph of groups and of the weights that they lie on, as Graphviz text or as a page."""

from __future__ import annotations

import json
from collections.abc import Sequence

import networkx as nx

from ..html_parts import Html, tag
from .groups import Group

COLORS = {"channel": "#3b82c4", "row": "#c4553b", "dimension": "#7a9a3b"}
WIDE = 1100
MOST = 400
"""Nodes up to which springs find a good place for each in about a second; more stand in two columns."""
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
    """Each connected part laid out by itself, one below the other."""
    parts, top = [], 0.0
    for names in nx.connected_components(drawn):
        part = drawn.subgraph(sorted(names))
        tall = 60.0 + 26.0 * len(part)
        if len(part) > MOST:
            at = nx.bipartite_layout(part, [n for n in part if part.nodes[n]["kind"] != "weight"])
        else:
            tall = min(tall, 900.0)
            at = nx.spring_layout(part, seed=0, iterations=60) if len(part) > 2 else nx.circular_layout(part)
        place = {n: (80 + (x + 1) / 2 * (WIDE - 260), top + 20 + (y + 1) / 2 * (tall - 40)) for n, (x, y) in at.items()}
        for a, b in part.edges:
            (x1, y1), (x2, y2) = place[a], place[b]
            parts.append(tag("line", x1=f"{x1:.0f}", y1=f"{y1:.0f}", x2=f"{x2:.0f}", y2=f"{y2:.0f}", stroke="#9996"))
        parts += [_dot(drawn.nodes[n], *place[n]) for n in part]
        top += tall
    return tag("svg", *parts, viewBox=f"0 0 {WIDE} {max(top, 1):.0f}", role="img")


def _dot(data: dict[str, str], x: float, y: float) -> Html:
    weight = data["kind"] == "weight"
    mark = tag("circle", cx=f"{x:.0f}", cy=f"{y:.0f}", r="4" if weight else "8",
               fill="#888" if weight else COLORS[data["kind"]])  # fmt: skip
    text = tag("text", data["label"], x=f"{x + 10:.0f}", y=f"{y + 4:.0f}", font_size="10" if weight else "12")
    return tag("g", mark, text)
