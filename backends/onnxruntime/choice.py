"""Which operators are computed in integers: what is faster, by running it."""

from __future__ import annotations

import math
import platform
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx_ir as ir

from ...compiler.errors import ModelError
from ...compiler.latency import least
from ...compiler.numerics import compare
from ...compiler.session import Saved, Session
from .integers import FAMILIES, families, lowered, sites
from .pads import wide

GAIN = 0.95
"""A form is chosen if it takes less than this share of the time of the best one so far, twice."""

CUT, NONE = 2.0, 0.1
"""Decibels that integer kernels may lose against the same rounding computed in float, by sums that they cut off; and
where the user has limited the error."""

BLOCKS = 30.0
"""Decibels that outputs must keep where kernels round activations in blocks by themselves (MatMulNBits)."""

Inputs = Mapping[str, np.ndarray]
Writer = Callable[[ir.Model, Path], object]
"""Writes a model to a file."""


@dataclass
class Choice:
    """What was chosen.

    Attributes:
        model: the model in that form.
        notes: what was tried, a sentence each.
    """

    model: ir.Model
    notes: list[str] = field(default_factory=list)


def choose(model: ir.Model, inputs: Inputs | None, write: Writer, cut: float = CUT) -> Choice:
    """The fastest form of `model`: all in float, or some families of operators in integers.

    Each trial takes a second of processor time or two, with the best form so far running in turn. Without inputs, what
    passes rounded stays in integers.
    """
    found = list(families(model))
    if inputs is None or not (found or wide(model)):
        return _as_wanted(model, found)
    with tempfile.TemporaryDirectory(prefix="edgec-") as folder:
        search = _Search(model, inputs, Path(folder), write, cut)
        if wide(model):
            search.pad()
        for chosen in _subsets(found):
            search.attempt(chosen)
        return search.result(found)


def _as_wanted(model: ir.Model, found: list[str]) -> Choice:
    counts = _counted(model, found)
    notes = [f"{counts} in 8-bit integers, as rounded: nothing was timed"] if found else []
    return Choice(lowered(model, found), notes)


def _subsets(found: list[str]) -> Iterator[frozenset[str]]:
    """All families, each one alone, all but each one."""
    whole = frozenset(found)
    tried = [whole, *(frozenset({f}) for f in found), *(whole - {f} for f in found)]
    yield from dict.fromkeys(t for t in tried if t)


class _Trial:
    """A form of the model, as a file."""

    def __init__(self, model: ir.Model, families: frozenset[str], unsigned: bool, path: Path, write: Writer) -> None:
        self.families, self.unsigned, self.model = families, unsigned, model
        write(model, path)
        self.session = Saved(path, threads=1)


class _Search:
    """Goes from one form to a faster one."""

    def __init__(self, model: ir.Model, inputs: Inputs, folder: Path, write: Writer, cut: float) -> None:
        self.model, self.inputs, self.folder, self.write, self.cut = model, inputs, folder, write, cut
        self.notes: list[str] = []
        self.exact = Session(model, exact=True).run(inputs)
        self.rounded = _snr(self.exact, Session(model).run(inputs))
        self.gain, self.count, self.padded = 1.0, 0, False
        self.best = self.trial(frozenset(), False)

    def trial(self, chosen: frozenset[str], unsigned: bool) -> _Trial:
        """Raises ModelError where onnxruntime can't run it."""
        self.count += 1
        form = lowered(self.model, chosen, unsigned, self.padded)
        return _Trial(form, chosen, unsigned, self.folder / f"{self.count}.onnx", self.write)

    def pad(self) -> None:
        """Make wide margins before convolutions if that is faster."""
        self.padded = True
        trial = self.trial(frozenset(), False)
        before, after = self.seconds(trial)
        self.padded = after <= GAIN * before
        if self.padded:
            self.best = trial
            count = len(wide(self.model))
            speed = f"{before / after:.2f} times as fast here"
            self.notes.append(f"margins of {count} convolutions made before them: {speed}")

    def attempt(self, chosen: frozenset[str]) -> None:
        """Take these families in integers if that is faster than the best so far, and cuts off no sums."""
        for unsigned in (False, True):
            try:
                trial = self.trial(chosen, unsigned)
                before, after = self.seconds(trial)
                kept = _snr(self.exact, trial.session.run(self.inputs))
            except ModelError as e:
                self.notes.append(f"{_names(chosen)}: onnxruntime can't run them in integers: {e}")
                return
            if after > GAIN * before:
                return
            if kept >= self.wanted(chosen):
                self.best, self.gain = trial, self.gain * before / after
                return
            if "nbits" in chosen:
                wanted = self.wanted(chosen)
                self.notes.append(f"{_names(chosen)}: integers leave {kept:.1f} dB, {wanted:.1f} are wanted")
                return
            lost = f"{_names(chosen)} in integers {_sign(unsigned)} leave {kept:.1f} dB instead of {self.rounded:.1f}"
            self.notes.append(f"{lost}: this processor's kernels cut off sums ({processor()})")

    def wanted(self, chosen: frozenset[str]) -> float:
        """The least signal-to-noise ratio of outputs with these families in integers, against none rounded, in dB."""
        if "nbits" not in chosen:
            return self.rounded - self.cut
        return math.inf if self.cut == NONE else min(self.rounded - self.cut, BLOCKS)

    def seconds(self, trial: _Trial) -> tuple[float, float]:
        """What the best form so far and another take; where that seems to be faster, it is measured again."""
        before, after = least([self.best.session, trial.session], self.inputs)
        if after <= GAIN * before:
            again, once = least([trial.session, self.best.session], self.inputs)
            before, after = min(before, once), max(after, again)
        return before, after

    def result(self, found: list[str]) -> Choice:
        """The best, and what was decided."""
        chosen = [f for f in found if f in self.best.families]
        left = [f for f in found if f not in chosen]
        if chosen:
            speed = f"{self.gain:.2f} times as fast here as in float ({processor()})"
            self.notes.append(f"{_counted(self.model, chosen)} in 8-bit integers {_sign(self.best.unsigned)}: {speed}")
        if left:
            self.notes.append(f"{_counted(self.model, left)} in float: integers are no faster here ({processor()})")
        return Choice(self.best.model, self.notes)


def _sign(unsigned: bool) -> str:
    return "without a sign" if unsigned else "with a sign"


def _names(chosen: frozenset[str]) -> str:
    return ", ".join(FAMILIES[f] for f in FAMILIES if f in chosen)


def _counted(model: ir.Model, chosen: list[str]) -> str:
    count = {f: sum(s.family == f for s in sites(model)) for f in chosen}
    return ", ".join(f"{count[f]} {FAMILIES[f]}" for f in chosen)


def _snr(ref: Mapping[str, np.ndarray], got: Mapping[str, np.ndarray]) -> float:
    """Of the worst output of floats, in dB."""
    floats = {n: a for n, a in ref.items() if a.dtype.kind == "f" and np.any(a)}
    return min((d.snr_db for d in compare(floats, got).values()), default=math.inf)


def processor() -> str:
    """What kind of processor this is, and whether it multiplies 8-bit integers at once."""
    info = Path("/proc/cpuinfo")
    flags = set(info.read_text(errors="replace").split()) if info.exists() else set()
    known = [name for flag, name in _FLAGS.items() if flag in flags]
    return f"{platform.machine()} with {', '.join(known)}" if known else platform.machine()


_FLAGS = {
    "avx2": "AVX2", "avx512f": "AVX-512", "avx512_vnni": "VNNI", "avx_vnni": "VNNI", "amx_int8": "AMX",
    "asimddp": "dot products", "i8mm": "I8MM",
}  # fmt: skip
"""Linux' name of an instruction set → the usual one, of those that onnxruntime's integer kernels use."""
