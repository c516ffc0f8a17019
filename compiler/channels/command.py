"""`edgec groups`: what can be removed by itself, printed and drawn."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..argtypes import count
from ..arguments import SHAPE, check_source
from ..errors import UsageError
from ..freeze import parse_shape
from ..place import place_text


def declare(p: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    p.add_argument("model", metavar="MODEL", help="the model: .onnx, .mlpackage")
    p.add_argument("--shape", action="append", default=[], metavar="NAME:1,3,224,224", help=SHAPE)
    p.add_argument("--top", type=count, default=40, metavar="N", help="rows of the table (default: 40)")
    p.add_argument("--dot", metavar="FILE.dot", help="write a drawing for Graphviz")
    p.add_argument("--html", metavar="FILE.html", help="write a page with a drawing; opens offline")


def run(o: argparse.Namespace, console: Callable[[], Any]) -> int:
    """Find the groups, print and draw them; returns the exit code."""
    for path, suffix in ((o.dot, ".dot"), (o.html, ".html")):
        if path is not None and (Path(path).suffix != suffix or not Path(path).parent.is_dir()):
            raise UsageError(f"can't write {path}: a file in a folder that exists, ending in {suffix}, is needed")
    check_source(Path(o.model))
    from .. import driver
    from .groups import groups

    compiled = driver.compile(
        o.model, level="O0", target="onnx", verify="off", shapes=dict(parse_shape(s) for s in o.shape),
        passes="canonicalize,fold-constants,fold-shapes,remove-dead-code",
    )  # fmt: skip
    with compiled:
        found, notes = groups(compiled.model)
    if o.dot or o.html:
        from .drawing import to_dot, to_html

        for path, text in ((o.dot, to_dot), (o.html, lambda g: to_html(Path(o.model).name, g, notes))):
            if path is not None:
                place_text(Path(path), text(found))
                o.written.append(Path(path))
    if o.json:
        rows = [dataclasses.asdict(g) for g in found]
        print(json.dumps({"version": 1, "source": o.model, "groups": rows, "kept": notes}, indent=2))
    else:
        _print(o, found, notes, console())
    return 0


def _print(o: argparse.Namespace, found: list[Any], notes: list[str], console: Any) -> None:
    from ..report_terminal import print_table

    def lies(g: Any) -> str:
        first = ", ".join(p.text for p in g.places[:4])
        return first + (f" and {len(g.places) - 4} more" if len(g.places) > 4 else "")

    rows = [(g.name, g.kind, g.units, round(g.parameters), round(g.macs), lies(g)) for g in found[: o.top]]
    title = f"Prune groups of {Path(o.model).name}"
    print_table(console, title, ("group", "kind", "units", "parameters each", "MACs each", "lies on"), rows)
    rest = len(found) - len(rows)
    if rest > 0:
        print(f"{rest} more; --top {len(found)} shows all")
    if notes:
        print(f"kept in {len(notes)} places; the first: {notes[0]}")
