"""The command line: arguments → options → driver → exit code. Nothing heavy is imported until it is used."""

from __future__ import annotations

import argparse
import gc
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import __version__
from . import process
from .argtypes import count, error_limit, limit
from .errors import EdgecError, UsageError, VerifyFailed

if TYPE_CHECKING:
    from rich.console import Console

    from .driver import Compilation

COMMANDS = ("verify", "passes", "targets", "ops")

EPILOG = """\
other commands (each has --help):
  edgec verify A B         do two models compute the same?
  edgec passes             the passes, with their options
  edgec targets            the targets, and what each can express
  edgec ops                the operators that a target can express

pass specs: name, name{option=value,…}, package.module:Class, ./file.py:Class{…}
exit codes: 0 fine, 1 the model or the proof failed, 2 wrong use, 130 interrupted"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    process.command_line = True
    # Models are many objects that live long: the collector's usual threshold makes it walk them again and again.
    gc.set_threshold(100_000, 20, 50)
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        if arguments and arguments[0] in COMMANDS:
            return _command(arguments[0], arguments[1:])
        return _compile(_compiler_parser().parse_args(arguments or ["--help"]))
    except EdgecError as e:
        _say(f"edgec: error: {e}")
        return e.exit_code
    except KeyboardInterrupt:
        _say("edgec: interrupted; nothing was written")
        return 130
    except BrokenPipeError:
        # The reader of our output has gone (`| head`): Python must not complain again while it shuts down.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except MemoryError:
        _say("edgec: error: out of memory. Try --verify end, or smaller --inputs.")
        return 1
    except OSError as e:
        where = f" ({e.filename})" if e.filename else ""
        _say(f"edgec: error: {e.strerror or e}{where}; nothing was written")
        return 1
    except Exception as e:
        return _internal(e, arguments)


def _internal(error: Exception, arguments: Sequence[str]) -> int:
    """A fault of ours that nothing foresaw: said as one, with the traceback for those who ask."""
    import traceback

    where = traceback.extract_tb(error.__traceback__)[-1]
    if "-v" in arguments:
        traceback.print_exception(error)
    _say(
        f"edgec: internal error: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'} "
        f"({Path(where.filename).name}:{where.lineno}). Nothing was written. Please report it; -v shows the traceback."
    )
    return 1


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _say(text: str) -> None:
    print(text, file=sys.stderr)


def _compiler_parser() -> argparse.ArgumentParser:
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
    g.add_argument("--shape", action="append", default=[], metavar="NAME:1,3,224,224", help="fix a free shape")
    g.add_argument("--inputs", metavar="FILE.npz", help="arrays to measure with, named like the inputs, and `labels`")

    g = p.add_argument_group("numbers")
    g.add_argument("--precision", choices=("fp16", "fp32"), help="compute in half or single precision")
    g.add_argument("--io", choices=("fp32", "fp16"), default="fp32", help="type of float inputs and outputs")
    g.add_argument("--opset", type=int, help="with --target onnx: the opset to write")
    g.add_argument(
        "--max-error", type=error_limit, metavar="X", help="largest error allowed, relative to the largest output"
    )
    g.add_argument("--min-snr", type=limit, metavar="DB", help="smallest signal-to-noise ratio allowed, in decibels")
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
    g.add_argument("--print-after-change", action="store_true", help="print what each pass changed")
    g.add_argument("--time-passes", action="store_true", help="print the time of every pass")
    g.add_argument("--save-temps", metavar="DIR", help="save the model after each pass that changed it")
    g.add_argument("--bisect-limit", type=count, metavar="N", help="run only the first N passes")

    g = p.add_argument_group("output")
    g.add_argument("--report", action="append", default=[], metavar="OUT.html|OUT.json", help="write a report")
    g.add_argument("--json", action="store_true", help="print the report as JSON instead of a summary")
    g.add_argument("-q", dest="quiet", action="store_true", help="print nothing but errors")
    g.add_argument("-v", dest="verbose", action="count", default=0, help="print what almost fired, too")
    return p


def _compile(o: argparse.Namespace) -> int:
    with process.undisturbed():
        from . import pipelines
        from .freeze import parse_shape
        from .targets import find_target

    if o.list_passes:
        return _command("passes", ["--json"] if o.json else [])
    level, target = f"O{o.level}", find_target(o.target)
    if o.print_pipeline:
        kind = pipelines.precision_of(level, target, o.precision)
        print("\n".join([*pipelines.pipeline(level, target, kind, o.passes, o.opset), *o.extra]))
        return 0
    if o.model is None:
        raise UsageError("which model? edgec MODEL [options]; `edgec --help` lists them")
    source = Path(o.model)
    if not source.exists():
        raise UsageError(f"no such file: {source}")
    _check_reports(o.report)
    shapes = dict(parse_shape(s) for s in o.shape)
    if o.dry_run:
        return _dry_run(source, target.name, shapes, o)
    out = Path(o.out) if o.out else Path(f"{source.stem}{target.suffix}")
    _check_output(out, source, target.suffix)
    return _run(o, source, out, shapes)


def _run(o: argparse.Namespace, source: Path, out: Path, shapes: dict[str, tuple[int, ...]]) -> int:
    with process.undisturbed():
        from . import report
    try:
        compilation = _driven(o, source, out, shapes)
    except VerifyFailed as e:
        # Nothing is written, but what was found out about it is what one needs now.
        for path in o.report:
            report.write(e.report, Path(path))
        _show(o, e.report)
        raise
    with compilation:
        compilation.save(out)
        for path in o.report:
            report.write(compilation.report, Path(path))
        _show(o, compilation.report)
    return 0


def _driven(o: argparse.Namespace, source: Path, out: Path, shapes: dict[str, tuple[int, ...]]) -> Compilation:
    with process.undisturbed():
        from . import driver
        from .watch import Watch

    with Watch(o) as watch:
        return driver.compile(
            source,
            level=f"O{o.level}",
            target=o.target,
            shapes=shapes,
            inputs=o.inputs,
            passes=o.passes,
            extra_passes=o.extra,
            precision=o.precision,
            max_error=o.max_error,
            min_snr=o.min_snr,
            verify=o.verify,
            strict=o.strict,
            io=o.io,
            opset=o.opset,
            bisect_limit=o.bisect_limit,
            reproducers=o.save_temps or out.parent,
            workdir=out.parent,
            name=out.name,
            hooks=watch.hooks,
        )


def _show(o: argparse.Namespace, found: Any) -> None:
    from . import report

    if o.json:
        import json

        print(json.dumps(report.to_json(found), indent=2))
    elif not o.quiet:
        from .report_terminal import print_summary

        print_summary(found, _console(), verbose=bool(o.verbose), times=o.time_passes)


def _dry_run(source: Path, target: str, shapes: dict[str, tuple[int, ...]], o: argparse.Namespace) -> int:
    with process.undisturbed():
        from . import driver
    missing = driver.dry_run(source, target=target, shapes=shapes, io=o.io, opset=o.opset)
    if o.json:
        import json

        rows = [{"node": m.node, "op": m.op, "why": m.why} for m in missing]
        print(
            json.dumps({"version": 1, "source": str(source), "target": target, "compiles": not rows, "missing": rows})
        )
    elif missing:
        print(f"{source} would not compile for {target}:")
        print("\n".join(f"  - {m}" for m in missing))
    else:
        print(f"{source} would compile for {target}.")
    return 1 if missing else 0


def _check_output(out: Path, source: Path, suffix: str) -> None:
    """Find out before the work, not after it, that the output can't be written."""
    if out.suffix != suffix:
        raise UsageError(f"the output must end in {suffix} for this target, not '{out.name}'")
    if not out.parent.is_dir():
        raise UsageError(f"can't write {out}: there is no folder {out.parent}")
    if not os.access(out.parent, os.W_OK):
        raise UsageError(f"can't write {out}: no permission to write in {out.parent.absolute()}")
    if out.exists() and out.resolve() == source.resolve():
        raise UsageError(f"{out} is the model itself; name another output with -o")
    if out.exists() and out.is_dir() != (suffix == ".mlpackage"):
        raise UsageError(f"{out} exists and is {'a folder' if out.is_dir() else 'a file'}; name another output with -o")


def _check_reports(paths: Sequence[str]) -> None:
    for path in map(Path, paths):
        if path.suffix not in (".html", ".json"):
            raise UsageError(f"--report {path}: must end in .html or .json")
        if not path.parent.is_dir():
            raise UsageError(f"--report {path}: there is no folder {path.parent}")


def _console() -> Console:
    from rich.console import Console

    return Console(highlight=False, soft_wrap=False)


def _command(name: str, arguments: Sequence[str]) -> int:
    from . import commands

    p = argparse.ArgumentParser(prog=f"edgec {name}", description=commands.HELP[name], allow_abbrev=False)
    commands.arguments(name, p)
    p.add_argument("--json", action="store_true", help="print as JSON")
    return commands.run(name, p.parse_args(arguments), _console)


if __name__ == "__main__":
    sys.exit(main())
