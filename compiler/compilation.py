"""What a compilation gives back, and what a caller may watch while it runs."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import onnx_ir as ir

from .backend import Emitted
from .passbase import Pass
from .place import place
from .records import PassRecord, Proof, Report
from .weights import Scratch


@dataclass
class Hooks:
    """What a caller may watch: steps as they start, the model once loaded, passes as they start and end.

    `progress` is called in the course of a long pass: what it is doing, how far it is, of how many (0: unknown).
    """

    step: Callable[[str], None] = lambda _: None
    loaded: Callable[[ir.Model], None] = lambda _: None
    pass_started: Callable[[Pass, int, int], None] = lambda *_: None
    pass_ended: Callable[[PassRecord, ir.Model], None] = lambda *_: None
    progress: Callable[[str, int, int], None] = lambda *_: None


@dataclass
class Compilation:
    """A compiled model: what it became, what happened to it, and the proof. Close it, or use `with`, to free the disk.

    Attributes:
        model: the model after all passes, as it was lowered.
        report: everything that was found out.
        path: where the compiled file lies; a temporary place until `save`.
        emitted: what the backend said of the file: names, contract, files that belong beside it.
    """

    model: ir.Model
    report: Report
    path: Path
    emitted: Emitted = field(repr=False)
    _scratch: Scratch = field(repr=False)

    @property
    def proof(self) -> Proof | None:
        """What the file on disk computes, against the model; None with verify="off"."""
        return self.report.proof

    def save(self, path: str | Path) -> Path:
        """Put the compiled file at `path`, replacing what is there only once the new one is whole.

        Weights over 2 GB go beside it. Raises EdgecError where it can't be written.
        """
        target, made, old = Path(path), self.path, self.path.name
        if self.emitted.sidecars and target.name != old:
            assert self.emitted.renamed is not None
            made = self._scratch.dir / target.name
            self.emitted.renamed(made)
        extras = [(e, target.parent / (target.name + e.name.removeprefix(old))) for e in self.emitted.sidecars]
        # The first save moves the file out of the temporary folder; it stays where it is when saved once more.
        place([*extras, (made, target)], keep=bool(self.report.output))
        self.emitted.sidecars = [moved for _, moved in extras]
        self.path = self.emitted.path = target
        self.report.contract = [line.replace(old, target.name) for line in self.report.contract]
        self.report.output = str(target)
        return target

    def close(self) -> None:
        """Remove the temporary files. The model's big tensors lie in them: don't use `model` afterwards."""
        self._scratch.close()

    def __enter__(self) -> Compilation:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass
class Clock:
    """Steps and how long they took."""

    hooks: Hooks
    seconds: dict[str, float] = field(default_factory=dict)

    @contextlib.contextmanager
    def __call__(self, step: str) -> Iterator[None]:
        self.hooks.step(step)
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[step] = self.seconds.get(step, 0.0) + time.perf_counter() - start
