"""What the command line shows while it works: progress on a terminal, the model after passes when asked."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import onnx_ir as ir

from .compilation import Hooks
from .passbase import Pass
from .records import PassRecord
from .text import diff, to_text

if TYPE_CHECKING:
    from rich.status import Status

    from .cost.records import Analysis

STEPS = {
    "load": "loading",
    "reference": "running the original",
    "passes": "running passes",
    "lower": "lowering",
    "proof": "proving what was written",
}


class Watch:
    """Hooks for the driver. Progress appears on a terminal only; a pipe stays quiet."""

    def __init__(self, options: argparse.Namespace, written: list[Path]) -> None:
        """What it writes goes into `written`."""
        self._options = options
        self._written = written
        self._status: Status | None = None
        self._text = ""
        self._number = 0
        self._pass = ""
        # Only a page shows what the model costs, before and after.
        self._pages = any(Path(p).suffix == ".html" for p in options.report)
        self.analyses: list[Analysis] = []
        self.hooks = Hooks(self._step, self._loaded, self._started, self._ended, self._progress)

    def __enter__(self) -> Watch:
        if sys.stderr.isatty() and not self._options.quiet:
            from rich.console import Console

            self._status = Console(stderr=True).status("starting")
            self._status.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._status is not None:
            self._status.stop()

    def _step(self, name: str) -> None:
        if self._status is not None:
            self._status.update(f"{STEPS.get(name, name)} …")

    def _loaded(self, model: ir.Model) -> None:
        if self._options.print_after_change:
            self._text = to_text(model)
        if self._pages:
            from .cost.analyze import analyze

            self.analyses.append(analyze(model, str(self._options.model)))

    def _started(self, p: Pass, index: int, count: int) -> None:
        self._pass = f"pass {index + 1} of {count}: {p.name}"
        if self._status is not None:
            self._status.update(f"{self._pass} …")

    def _progress(self, what: str, done: int, total: int) -> None:
        if self._status is not None:
            self._status.update(f"{self._pass}: {what}{f', {done} of {total}' if total else ''} …")

    def _ended(self, record: PassRecord, model: ir.Model) -> None:
        o = self._options
        self._number += 1
        if o.print_after_all or o.print_after_change:
            self._print(record, model)
        if o.save_temps and record.status == "ok":
            folder = Path(o.save_temps)
            folder.mkdir(parents=True, exist_ok=True)
            if folder not in self._written:
                self._written.append(folder)
            name = f"{self._number:02d}-{record.spec.partition('{')[0].replace('/', '_').replace(':', '_')}.onnx"
            ir.save(model.clone(), folder / name, external_data=f"{name}.data")

    def _print(self, record: PassRecord, model: ir.Model) -> None:
        text = to_text(model)
        # With --json, what is printed must parse.
        to = sys.stderr if self._options.json else sys.stdout
        if self._options.print_after_all:
            print(f"// after {record.spec} ({record.rewrites} rewrites)\n{text}", file=to)
        elif record.status == "ok":
            print(f"// {record.spec} ({record.rewrites} rewrites)\n{diff(self._text, text)}", file=to)
        self._text = text
