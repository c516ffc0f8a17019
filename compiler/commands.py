"""The smaller commands: analyze, groups, verify, passes, targets, ops."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from . import process
from .analysis import arguments as analyze
from .argtypes import error_limit, limit
from .arguments import SHAPE, add_metric, check_source
from .channels import command as groups
from .freeze import parse_shape
from .plugins import PASSES, entries, find_pass
from .targets import ALIASES, TARGETS, find_target

HELP = {
    "analyze": "What a model costs, exactly, and where: MACs, FLOPs, parameters, bytes, memory.",
    "groups": "Which channels, heads and units can be removed together: the groups that pruning works on.",
    "verify": "Do two models compute the same? Any two that can be loaded; ports are matched by name, else by order.",
    "passes": "The passes that there are, built in and plugged in, with their options.",
    "targets": "The targets that there are, and what each can express.",
    "ops": "The ONNX operators that a target can express directly.",
}

EXACT = 1e-5


def arguments(name: str, p: argparse.ArgumentParser) -> None:
    """Declare what a command takes."""
    if name == "analyze":
        analyze.declare(p)
    if name == "groups":
        groups.declare(p)
    if name == "verify":
        p.add_argument("a", metavar="A", help="the reference")
        p.add_argument("b", metavar="B", help="the other one")
        p.add_argument("--inputs", metavar="FILE.npz", help="arrays named like the inputs of A")
        p.add_argument("--shape", action="append", default=[], metavar="NAME:1,3,224,224", help=SHAPE + " (of A)")
        p.add_argument(
            "--max-error", type=error_limit, default=None, metavar="X",
            help=f"largest error allowed, relative to the largest output (default: {EXACT:g})",
        )  # fmt: skip
        p.add_argument(
            "--min-snr", type=limit, default=None, metavar="DB", help="smallest signal-to-noise ratio, in dB"
        )
        add_metric(p)
    if name == "ops":
        p.add_argument("--target", default="ios", help="the target (default: ios)")


def run(name: str, o: argparse.Namespace, console: Callable[[], Any]) -> int:
    """Run a command; returns the exit code."""
    if name == "analyze":
        return _analyze(o, console)
    if name == "groups":
        return groups.run(o, console)
    if name == "verify":
        return _verify(o, console)
    tables: dict[str, Callable[[], Table]] = {"passes": _passes, "targets": _targets, "ops": lambda: _ops(o)}
    title, columns, rows = tables[name]()
    if o.json:
        keys = [c.replace(" ", "_") for c in columns]
        print(json.dumps({"version": 1, name: [dict(zip(keys, row, strict=True)) for row in rows]}, indent=2))
    else:
        from .report_terminal import print_table

        if name == "passes":
            columns, rows = _narrow(rows)
        print_table(console(), title, columns, [[_cell(value) for value in row] for row in rows])
    return 0


def _narrow(rows: Sequence[Sequence[Any]]) -> tuple[Sequence[str], list[Sequence[Any]]]:
    """The passes as a table for 80 columns: options under the summary, packages only where they are not edgec."""
    shown: list[Sequence[Any]] = []
    for name, kind, options, summary, package in rows:
        about = f"{summary}\n{{{_cell(options)}}}" if options else summary
        shown.append((name, kind, about, "" if package == "edgec" else package))
    return ("name", "kind", "summary {options}", "package"), shown


def _cell(value: Any) -> Any:
    """How the table shows what is a list or an object in JSON."""
    if isinstance(value, dict):
        return ", ".join(f"{k}={v}" for k, v in value.items())
    return ", ".join(map(str, value)) or "none" if isinstance(value, list) else value


def _analyze(o: argparse.Namespace, console: Callable[[], Any]) -> int:
    with process.undisturbed():
        from .analysis import command
    return command.run(o, console)


Table = tuple[str, Sequence[str], list[Sequence[Any]]]


def _passes() -> Table:
    rows: list[Sequence[Any]] = []
    for name, entry in entries(PASSES).items():
        cls = type(find_pass(name))
        options = {f.name: f.default for f in dataclasses.fields(cls)}
        summary = (cls.__doc__ or "").strip().split("\n")[0]
        rows.append((name, "lossy" if cls.lossy else "exact", options, summary, entry.dist.name if entry.dist else ""))
    return "Passes", ("name", "kind", "options", "summary", "package"), rows


def _targets() -> Table:
    alias = {v: k for k, v in ALIASES.items()}
    rows: list[Sequence[Any]] = [
        (
            t.name,
            alias.get(t.name, ""),
            t.suffix,
            t.summary,
            t.opset or "25",
            "fp16" if t.float16 else "fp32",
            [f"int{b}" for b in t.weight_bits],
        )
        for t in TARGETS.values()
    ]
    return "Targets", ("name", "alias", "file", "summary", "opset", "precision", "weights"), rows


def _ops(o: argparse.Namespace) -> Table:
    import onnx.defs

    from .core_ops import core

    target = find_target(o.target)
    direct = core(target)
    found = {}
    schemas: Any = onnx.defs.get_all_schemas()
    for schema in schemas:
        if schema.domain != "" or schema.deprecated:
            continue
        if direct is None or schema.name in direct:
            found[schema.name] = "directly"
        elif schema.has_function or schema.has_context_dependent_function:
            found[schema.name] = "written out in others"
    rows: list[Sequence[Any]] = sorted(found.items())  # type: ignore[assignment]
    return f"Operators of {target.name}", ("operator", "lowered"), rows


def _verify(o: argparse.Namespace, console: Callable[[], Any]) -> int:
    from . import driver

    for path in (o.a, o.b):
        check_source(Path(path))
    shapes = dict(parse_shape(s) for s in o.shape)
    found = driver.verify(o.a, o.b, o.inputs, shapes, metric=o.metric, data=o.data, max_drop=o.max_drop)
    # Without a limit the models must be equal.
    error = EXACT if (o.max_error, o.min_snr, o.max_drop) == (None, None, None) else o.max_error
    ok = (
        (o.min_snr is None or found.snr_db >= o.min_snr)
        and (error is None or found.within(error))
        and (found.score is None or found.score.ok)
    )
    if o.json:
        from .report import comparison_json, score_json

        document = {"version": 1, "same": ok, "outputs": comparison_json(found), "metric": score_json(found.score)}
        print(json.dumps(document, indent=2))
    else:
        from .report_terminal import print_comparison

        print_comparison(found, console())
        limits = [] if o.min_snr is None else [f"--min-snr {o.min_snr:g}"]
        limits += [] if error is None else [f"--max-error {error:g}"]
        limits += [] if o.max_drop is None else [f"--max-drop {o.max_drop:g}"]
        allowed = f"than {' and '.join(limits)} allows."
        fine = "The models compute the same." if error == EXACT else f"The models differ by no more {allowed}"
        print(fine if ok else f"The models differ by more {allowed}")
    return 0 if ok else 1
