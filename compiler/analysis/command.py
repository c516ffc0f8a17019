"""`edgec analyze`: its arguments, and what it prints and writes."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from .. import process
from ..argtypes import count
from ..arguments import SHAPE, check_source
from ..cost.records import Analysis
from ..errors import EdgecError, UsageError
from ..freeze import Shapes, parse_shape
from .document import sizes, to_json

SORT = (
    "macs", "flops", "parameters", "weights", "bytes", "special", "int_ops", "effective_macs", "bops", "time", "bound",
)  # fmt: skip


def arguments(p: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    p.add_argument("model", metavar="MODEL", help="the model: .onnx, .mlpackage")
    p.add_argument("--shape", action="append", default=[], metavar="NAME:1,3,224,224", help=SHAPE)
    p.add_argument("--zeros", action="store_true", help="read the weights and count zeros: effective MACs, sparsity")
    p.add_argument("--compare", metavar="B", help="set another model beside it: what became of each figure")
    g = p.add_argument_group("table")
    g.add_argument("--sort", choices=SORT, default="macs", help="what the table shows most of (default: macs)")
    g.add_argument("--top", type=count, default=20, metavar="N", help="rows of the table (default: 20)")
    g.add_argument("--depth", type=count, metavar="N", help="levels of modules")
    g.add_argument("--flat", action="store_true", help="layers, not modules")
    g = p.add_argument_group("output")
    g.add_argument("--csv", metavar="FILE.csv", help="write a row per layer")
    g.add_argument("--html", metavar="FILE.html", help="write a page: maps, plots and all layers; opens offline")
    g.add_argument("-q", dest="quiet", action="store_true", help="print nothing but errors")


def run(o: argparse.Namespace, console: Callable[[], Any]) -> int:
    """Analyse, print, write; returns the exit code. Unknown nodes are a warning, no failure."""
    for path, suffix in ((o.csv, ".csv"), (o.html, ".html")):
        _check_output(path, suffix)
    shapes = dict(parse_shape(s) for s in o.shape)
    analysis = _analyzed(o.model, shapes, o)
    other = _analyzed(o.compare, shapes, o) if o.compare else None
    _write_all(o, analysis, other)
    if o.json:
        from .comparison import to_json_pair

        document = to_json(analysis) if other is None else to_json_pair(analysis, other)
        print(json.dumps(document, indent=2, ensure_ascii=False))
    elif not o.quiet:
        _print(o, analysis, other, console())
    return 0


def _analyzed(source: str, shapes: Shapes, o: argparse.Namespace) -> Analysis:
    with process.undisturbed():
        from .. import driver
    check_source(Path(source))
    return driver.analyze(source, shapes=shapes, zeros=o.zeros)


def _print(o: argparse.Namespace, analysis: Analysis, other: Analysis | None, console: Any) -> None:
    by = "weight_bits" if o.sort == "weights" else o.sort
    at = sizes(analysis)
    if other is None:
        from .terminal import print_analysis

        print_analysis(analysis, console, at, by=by, top=o.top, depth=o.depth, flat=o.flat)
        return
    from .comparison import print_comparison

    print_comparison(analysis, other, console, (at, common(at, sizes(other))), by=by, top=o.top, depth=o.depth)


def common(a: Mapping[str, int], b: Mapping[str, int]) -> dict[str, int]:
    """The sizes of `b`, those of a symbol that both have from `a`: figures that are compared are at equal sizes."""
    return {name: a.get(name, size) for name, size in b.items()}


def _write_all(o: argparse.Namespace, analysis: Analysis, other: Analysis | None) -> None:
    if o.csv:
        from .sheet import to_csv

        write(Path(o.csv), to_csv(analysis))
    if o.html:
        from .page import to_html

        write(Path(o.html), to_html([analysis] if other is None else [analysis, other]))


def write(path: Path, text: str) -> None:
    """Write a file; what is there stays until the new one is whole. Raises EdgecError when it can't be written."""
    aside = path.with_name(f".{path.name}.edgec-{os.getpid()}")
    try:
        aside.write_text(text, encoding="utf-8")
        aside.replace(path)
    except OSError as e:
        raise EdgecError(f"can't write {path}: {e.strerror or e}") from e
    finally:
        aside.unlink(missing_ok=True)


def _check_output(path: str | None, suffix: str) -> None:
    """Find out before the work, not after it, that a file can't be written."""
    if path is None:
        return
    if Path(path).suffix.lower() != suffix:
        raise UsageError(f"'{path}' must end in {suffix}")
    if not Path(path).parent.is_dir():
        raise UsageError(f"can't write {path}: there is no folder {Path(path).parent}")
