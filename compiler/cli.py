"""The command line: arguments → options → driver → exit code. Nothing heavy is imported until it is used."""

from __future__ import annotations

import argparse
import atexit
import contextlib
import gc
import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import interrupts, process
from .arguments import check_output, check_reports, check_source, check_temps, compiler_parser
from .errors import EdgecError, UsageError, VerifyFailed

if TYPE_CHECKING:
    from rich.console import Console

    from .compilation import Compilation

COMMANDS = ("analyze", "groups", "verify", "passes", "targets", "ops")
INTERRUPTED = 130
BROKEN_PIPE = 141
"""What shells give for a program that its reader left, as in `edgec passes | head -1`: 128 and the signal's number."""

NARROWEST = 72
"""Columns below which tables would lose letters and figures: a narrower terminal wraps the lines itself."""

Written = list[Path]
"""What a run has written so far: what an error or an interrupt has to say."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    process.command_line = True
    # Models are many objects that live long: the collector's usual threshold makes it walk them again and again.
    gc.set_threshold(100_000, 20, 50)
    # Nor does it have to look for cycles in what the process is about to give back as a whole.
    atexit.register(gc.freeze)
    _settle_streams()
    written: Written = []
    try:
        interrupts.listen()
        code = _guarded(arguments, written)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        _say(f"edgec: interrupted; {_so_far(written)}")
        return INTERRUPTED
    except BrokenPipeError:
        # Python must not complain again while it shuts down.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except OSError as e:
        where = f" ({e.filename})" if e.filename else ""
        _say(f"edgec: error: {e.strerror or e}{where}; {_so_far(written)}")
        return 1


def _guarded(arguments: Sequence[str], written: Written) -> int:
    """The exit code, with every error that is not the system's said in words."""
    try:
        if arguments and arguments[0] in COMMANDS:
            return _command(arguments[0], arguments[1:], written)
        return _compile(compiler_parser().parse_args(arguments or ["--help"]), written)
    except SystemExit as e:  # Of argparse, or of a user's pass.
        if isinstance(e.code, str):
            _say(f"edgec: error: {e.code}")
        return e.code if isinstance(e.code, int) else int(e.code is not None)
    except EdgecError as e:
        _say(f"edgec: error: {e}")
        if written:
            _say(f"edgec: {_so_far(written)}")
        return e.exit_code
    except MemoryError:
        _say(f"edgec: error: out of memory; {_so_far(written)}. Try --verify end, or smaller --inputs.")
        return 1
    except OSError:
        raise
    except Exception as e:
        return _internal(e, arguments, written)


def _internal(error: Exception, arguments: Sequence[str], written: Written) -> int:
    """A fault of ours that nothing foresaw: said as one, with the traceback for those who ask."""
    import traceback

    where = traceback.extract_tb(error.__traceback__)[-1]
    if "-v" in arguments:
        traceback.print_exception(error)
    what = str(error).splitlines()[0] if str(error) else "no message"
    place = ", ".join([f"{Path(where.filename).name}:{where.lineno}", *getattr(error, "__notes__", ())])
    _say(
        f"edgec: internal error: {type(error).__name__}: {what} ({place}); {_so_far(written)}. "
        "Please report it; -v shows the traceback."
    )
    return 1


def _settle_streams() -> None:
    """Closed streams swallow what is printed; a name that has no form in the terminal's encoding is escaped."""
    for name, stream in (("stdout", sys.stdout), ("stderr", sys.stderr)):
        if stream is None:
            setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _so_far(written: Written) -> str:
    names = ", ".join(map(str, written)) or "nothing"
    return f"{names} {'were' if len(written) > 1 else 'was'} written"


def _say(text: str) -> None:
    # Where nobody listens any more, the exit code still tells.
    with contextlib.suppress(OSError):
        print(text, file=sys.stderr)


def _compile(o: argparse.Namespace, written: Written) -> int:
    with process.undisturbed():
        from . import pipelines
        from .freeze import parse_shape
        from .plugins import find_passes
        from .targets import find_target

    if o.list_passes:
        return _command("passes", ["--json"] if o.json else [], written)
    level, target = f"O{o.level}", find_target(o.target)
    if o.print_pipeline:
        kind = pipelines.precision_of(level, target, o.precision)
        extra = [p for specs in o.extra for p in find_passes(specs)]
        plan = pipelines.plan(level, target, kind, o.passes, extra, o.opset)
        print("\n".join(p.spec for p in plan.steps))
        for note in plan.notes.values():
            _say(f"edgec: {note}")
        return 0
    if not o.model:
        raise UsageError("which model? edgec MODEL [options]; `edgec --help` lists them")
    source = Path(o.model)
    check_source(source)
    check_reports(o.report)
    check_temps(o.save_temps)
    shapes = dict(parse_shape(s) for s in o.shape)
    if o.dry_run:
        return _dry_run(source, target.name, shapes, o)
    out = Path(o.out) if o.out else Path(f"{source.stem}{target.suffix}")
    check_output(out, source, target.suffix)
    return _run(o, source, out, shapes, written)


def _run(o: argparse.Namespace, source: Path, out: Path, shapes: dict[str, tuple[int, ...]], written: Written) -> int:
    try:
        compilation = _driven(o, source, out, shapes, written)
    except VerifyFailed as e:
        # Nothing is written, but what was found out about it is what one needs now.
        for failure in _finish(o, e.report, []):
            _say(f"edgec: error: {failure}")
        raise
    with compilation:
        with interrupts.held_back():
            compilation.save(out)
            written.append(out)
        if compilation.report.analyses:
            from .cost.analyze import analyze

            compilation.report.analyses.append(analyze(compilation.model, out.name))
        if failures := _finish(o, compilation.report, written):
            raise EdgecError("\n".join(failures))
    return 0


def _finish(o: argparse.Namespace, found: Any, written: Written) -> list[str]:
    """Write the reports and show the summary; returns which reports can't be written, and why."""
    with process.undisturbed():
        from . import report
    failures = []
    for path in map(Path, o.report):
        try:
            report.write(found, path)
            written.append(path)
        except EdgecError as e:
            failures.append(str(e))
    _show(o, found)
    return failures


def _driven(
    o: argparse.Namespace, source: Path, out: Path, shapes: dict[str, tuple[int, ...]], written: Written
) -> Compilation:
    with process.undisturbed():
        from . import driver
        from .watch import Watch

    with Watch(o, written) as watch:
        compilation = driver.compile(
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
            metric=o.metric,
            data=o.data,
            max_drop=o.max_drop,
            verify=o.verify,
            latency=not o.no_latency,
            layers=bool(o.verbose or o.report or o.json),
            strict=o.strict,
            io=o.io,
            opset=o.opset,
            bisect_limit=o.bisect_limit,
            resume=o.resume,
            reproducers=o.save_temps or out.parent,
            workdir=out.parent,
            name=out.name,
            hooks=watch.hooks,
        )
        compilation.report.analyses = watch.analyses
        return compilation


def _show(o: argparse.Namespace, found: Any) -> None:
    with process.undisturbed():
        from . import report, report_terminal

    if o.json:
        import json

        print(json.dumps(report.to_json(found), indent=2))
    elif not o.quiet:
        report_terminal.print_summary(found, _console(), verbose=bool(o.verbose), times=o.time_passes)
    elif o.time_passes:
        report_terminal.print_times(found, _console())
    if o.quiet and not o.json:
        for record in found.passes:
            if record.status == "undone":
                _say(f"edgec: pass {record.spec} was undone: {record.why}; see {record.reproducer}")
            elif record.retreat:
                _say(f"edgec: pass {record.spec} was taken back in part: {'. '.join(record.retreat)}")


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
    return 2 if any(m.wanting for m in missing) else 1 if missing else 0


def _console() -> Console:
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=False)
    console.width = max(console.width, NARROWEST)
    return console


def _command(name: str, arguments: Sequence[str], written: Written) -> int:
    with process.undisturbed():
        from . import commands

    p = argparse.ArgumentParser(prog=f"edgec {name}", description=commands.HELP[name], allow_abbrev=False)
    commands.arguments(name, p)
    p.add_argument("--json", action="store_true", help="print as JSON")
    p.set_defaults(written=written)
    return commands.run(name, p.parse_args(arguments), _console)


if __name__ == "__main__":
    sys.exit(main())
