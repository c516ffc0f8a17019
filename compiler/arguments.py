"""What the command line takes, the help that says so, and what can be said against it before any work."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from .. import __version__
from .argtypes import count, error_limit, limit
from .errors import UsageError

EPILOG = """\
other commands (each has --help):
  edgec analyze MODEL      what does it cost, and where?
  edgec groups MODEL       what can be pruned, and what hangs on it?
  edgec verify A B         do two models compute the same?
  edgec passes             the passes, with their options
  edgec targets            the targets, and what each can express
  edgec ops                the operators that a target can express

pass specs: name, name{option=value,…}, package.module:Class, ./file.py:Class{…}
exit codes: 0 fine, 1 the model or the proof failed, 2 wrong use, 130 interrupted"""

SHAPE = "fix a free shape, or one free dimension by its name: N:1"


def compiler_parser() -> argparse.ArgumentParser:
    """The parser of `edgec MODEL [options]`."""
    p = argparse.ArgumentParser(
        prog="edgec",
        usage="edgec MODEL [-O0|-O1|-O2|-O3|-Os] [--target ios] [-o OUT] [options]",
        description="Compile a neural network for a device, and prove that what was written computes the same.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    p.add_argument("model", metavar="MODEL", nargs="?", help="the model: .onnx, .mlpackage")
    p.add_argument("-O", dest="level", default="2", choices=list("0123s"), help="optimisation level (default: -O2)")
    p.add_argument("--target", default="ios", help="where it will run; `edgec targets` lists them (default: ios)")
    p.add_argument("-o", dest="out", metavar="OUT", help="what to write (default: the model's name, in this folder)")
    p.add_argument("--dry-run", action="store_true", help="only say whether it would compile, and what is missing")
    p.add_argument("--version", action="version", version=f"edgec {__version__}")

    g = p.add_argument_group("inputs")
    g.add_argument("--shape", action="append", default=[], metavar="NAME:1,3,224,224", help=SHAPE)
    g.add_argument("--inputs", metavar="FILE.npz", help="arrays to measure with, named like the inputs, and `labels`")

    g = p.add_argument_group("numbers")
    g.add_argument("--precision", choices=("fp16", "fp32"), help="compute in half or single precision")
    g.add_argument("--io", choices=("fp32", "fp16"), default="fp32", help="type of float inputs and outputs")
    g.add_argument("--opset", type=int, help="with --target onnx: the opset to write")
    g.add_argument(
        "--max-error", type=error_limit, metavar="X", help="largest error allowed, relative to the largest output"
    )
    g.add_argument("--min-snr", type=limit, metavar="DB", help="smallest signal-to-noise ratio allowed, in decibels")
    add_metric(g)
    g.add_argument(
        "--verify", choices=("each", "end", "off"), default="each", help="when to check (default: each pass)"
    )
    g.add_argument("--strict", action="store_true", help="a pass that breaks the model is an error, not undone")

    g = p.add_argument_group("passes")
    g.add_argument("--pass", dest="extra", action="append", default=[], metavar="SPEC", help="run this pass, too")
    g.add_argument("--passes", metavar="SPECS", help="run these passes instead of the level's")
    g.add_argument("--print-pipeline", action="store_true", help="print the pass specs and stop")
    g.add_argument("--list-passes", action="store_true", help="same as `edgec passes`")
    g.add_argument("--print-after-all", action="store_true", help="print the model after each pass")
    g.add_argument("--print-after-change", action="store_true", help="print what each pass changed, as a diff")
    g.add_argument("--time-passes", action="store_true", help="print the time of every pass")
    g.add_argument("--save-temps", metavar="DIR", help="save the model after each pass that changed it")
    g.add_argument("--resume", metavar="FILE", help="keep what takes long to measure, to go on after an interrupt")
    g.add_argument("--bisect-limit", type=count, metavar="N", help="run only the first N passes")

    g = p.add_argument_group("output")
    g.add_argument("--report", action="append", default=[], metavar="OUT.html|OUT.json", help="write a report")
    g.add_argument("--no-latency", action="store_true", help="don't time the model before and after pruning")
    g.add_argument("--json", action="store_true", help="print the report as JSON instead of a summary")
    g.add_argument("-q", dest="quiet", action="store_true", help="print errors, and what other options ask for, only")
    g.add_argument("-v", dest="verbose", action="count", default=0, help="print what almost fired, too")
    return p


def add_metric(p: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """Declare what measures how well a model does its task."""
    p.add_argument("--metric", metavar="NAME|module:fn", help="what it is for: accuracy, top5, iou, …, or a function")
    p.add_argument("--data", metavar="FILE.npz", help="what --metric is measured on: inputs and `labels`")
    p.add_argument("--max-drop", type=error_limit, metavar="X", help="points of --metric that may be lost: 0.01, say")


def check_name(path: Path) -> None:
    """Refuse names that are no text: protobuf, which external data is named in, can't hold them. Raises UsageError."""
    try:
        str(path.absolute()).encode()
    except UnicodeEncodeError:
        raise UsageError(f"the path {path} is no UTF-8; rename the file, or the folder that it lies in") from None


def check_source(path: Path) -> None:
    """Refuse a model that isn't there, or that nothing reads. Raises UsageError."""
    from .plugins import check_loadable

    check_name(path)
    if not path.exists():
        raise UsageError(f"no such file: {path}")
    check_loadable(path)


def check_output(out: Path, source: Path, suffix: str) -> None:
    """Find out before the work, not after it, that the output can't be written. Raises UsageError."""
    check_name(out)
    if out.name == suffix:
        raise UsageError(f"the output needs a name before {suffix}")
    if out.suffix != suffix:
        raise UsageError(f"the output must end in {suffix} for this target, not '{out.name}'")
    if not out.parent.is_dir():
        raise UsageError(f"can't write {out}: there is no folder {out.parent}")
    if not os.access(out.parent, os.W_OK):
        raise UsageError(f"can't write {out}: no permission to write in {out.parent.absolute()}")
    if not out.exists():
        return
    if out.resolve() == source.resolve():
        raise UsageError(f"{out} is the model itself; name another output with -o")
    if out.is_dir() != (suffix == ".mlpackage"):
        raise UsageError(f"{out} exists and is {'a folder' if out.is_dir() else 'a file'}; name another output with -o")
    if out.is_dir() and any(out.iterdir()) and not (out / "Manifest.json").is_file():
        raise UsageError(f"{out} holds something else than a Core ML package; name another output with -o")


def check_temps(path: str | None) -> None:
    """The same for --save-temps."""
    if path is not None and Path(path).exists() and not Path(path).is_dir():
        raise UsageError(f"--save-temps {path}: is not a folder")


def check_reports(paths: Sequence[str]) -> None:
    """The same for reports."""
    for path in map(Path, paths):
        if path.suffix not in (".html", ".json"):
            raise UsageError(f"--report {path}: must end in .html or .json")
        if not path.parent.is_dir():
            raise UsageError(f"--report {path}: there is no folder {path.parent}")
        if path.is_dir():
            raise UsageError(f"--report {path}: is a folder")
        if not os.access(path.parent, os.W_OK):
            raise UsageError(f"--report {path}: no permission to write in {path.parent.absolute()}")
