"""The pass API: a pass is a frozen dataclass, its fields are its options, and one spec syntax names it everywhere.

mask-channels{ratio=0.5,by=taylor}      a pass by its registered name
my_pkg.mod:MyPass{k=2}                  a pass of an importable module
./mine.py:MyPass                        a pass in a file
"""

from __future__ import annotations

import abc
import dataclasses
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import onnx_ir as ir

from .errors import UsageError
from .targets import Target
from .weights import Scratch

if TYPE_CHECKING:
    from .guard.parts import Parts
    from .guard.task import Task
    from .tradeoff import Tradeoff


@dataclass
class Context:
    """What a pass may know besides the model.

    Attributes:
        target: where the model will run.
        inputs: named input arrays to measure with, at least one for each model input (given, or synthesised).
        runs: all sets of inputs, where there are more than one: for passes that calibrate.
        labels: the right class of each sample of all runs, in order, where the user gave any.
        given: whether the user gave `inputs`; synthesised ones say less about real activations.
        seed: for whatever is random; same seed, same output.
        scratch: where new big tensors go, so that they don't stay in memory.
        notes: why something was skipped; shown in the report under the pass that ran.
        max_error, min_snr: what the user allows the outputs to lose in all, as in `manager.Options`.
        metric: the task's own measure, where the user named one: `metric.measure(model)` runs a model on all labelled
            samples, `metric.drop(value)` says how many points worse than the original that is, `metric.max_drop` how
            many may be lost in all (None: any number). See `guard.task.Task`.
        original: the model as it was loaded, which what is lost in all is measured against; None: not known.
        resume: the file that a long search keeps its measurements in, to go on after an interrupt; None: none.
        progress: called in the course of a long search: what is being done, how far it is, of how many (0: unknown).
        tradeoff: what a search for the bits of weights found, for the report.
    """

    target: Target
    scratch: Scratch
    inputs: Mapping[str, np.ndarray] = field(default_factory=dict)
    given: bool = False
    seed: int = 0
    runs: Sequence[Mapping[str, np.ndarray]] = ()
    labels: np.ndarray | None = None
    notes: list[str] = field(default_factory=list)
    max_error: float | None = None
    min_snr: float | None = None
    metric: Task | None = None
    original: ir.Model | None = None
    resume: Path | None = None
    progress: Callable[[str, int, int], None] = lambda *_: None
    tradeoff: Tradeoff | None = None

    @property
    def budget(self) -> bool:
        """Whether the user has said what may be lost in all."""
        max_drop = None if self.metric is None else self.metric.max_drop
        return any(x is not None for x in (self.max_error, self.min_snr, max_drop))

    def measured(self, who: str, what: str) -> Sequence[Mapping[str, np.ndarray]]:
        """All sets of inputs, for what the option `what` of the pass `who` measures. Raises UsageError without any."""
        runs = self.runs or ((self.inputs,) if self.inputs else ())
        if not runs:
            raise UsageError(f"pass {who}: {what} needs inputs to run the model with; give --inputs")
        if not self.given:
            self.note(f"{what}: measured on synthesised inputs; real ones, with --inputs, tell more")
        return runs

    def note(self, why: str) -> None:
        """Say in the report why something was skipped or kept. Repeated notes are kept once."""
        if why not in self.notes:
            self.notes.append(why)


@dataclass(frozen=True)
class Pass(abc.ABC):
    """A named rewrite. Subclasses are frozen dataclasses; their fields are their options."""

    name: ClassVar[str]
    lossy: ClassVar[bool] = False
    """A lossy pass changes numbers only; an exact pass changes everything but the function."""
    unpacks: ClassVar[bool] = False
    """Whether it may make the stored weights grow, since the target can't store them packed: elsewhere a fault."""
    shrinks: ClassVar[bool] = False
    """Whether it removes parts of the model, so that it should run faster: the report then says whether it does."""

    prunes: ClassVar[bool] = False
    """Whether it looks at weights before they are packed or half: `--pass` puts it there. See `pipelines.placed`."""

    tied: ClassVar[bool] = False
    """Whether what it changes hangs together: over the budget, no single tensors are taken back. See `parts`."""

    @abc.abstractmethod
    def run(self, model: ir.Model, ctx: Context) -> int:
        """Rewrite `model` in place; return the number of rewrites made. Tensors are replaced, never mutated."""

    def parts(self, before: ir.Model, ctx: Context) -> Parts | None:
        """What can be taken back of it alone, once it has run on a clone of `before`; None: tensors, or all if tied."""
        return None

    @property
    def spec(self) -> str:
        """The spec that makes this pass; options at their default are left out."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if getattr(self, f.name) != f.default}
        changed = [f"{n}={'+'.join(map(str, v)) if isinstance(v, tuple) else v}" for n, v in values.items()]
        return self.name + ("{" + ",".join(changed) + "}" if changed else "")


@dataclass(frozen=True)
class Spec:
    """A parsed pass spec: the name and the options as text."""

    name: str
    options: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        return self.name + ("{" + ",".join(f"{k}={v}" for k, v in self.options) + "}" if self.options else "")


def split_specs(text: str) -> list[str]:
    """Split `a,b{x=1,y=2},c` at the commas outside braces."""
    parts, depth, start = [], 0, 0
    for i, c in enumerate(text):
        depth += (c == "{") - (c == "}")
        if c == "," and depth == 0:
            parts.append(text[start:i])
            start = i + 1
    parts.append(text[start:])
    return [p.strip() for p in parts if p.strip()]


def parse_spec(text: str) -> Spec:
    """Parse one spec. Raises UsageError when it is not of the form `name{option=value,…}`, each option once."""
    name, brace, rest = text.strip().partition("{")
    if not name or (brace and not rest.endswith("}")) or "}" in name:
        raise UsageError(f"'{text}' is not a pass spec; write name or name{{option=value,…}}")
    options: list[tuple[str, str]] = []
    for item in split_specs(rest[:-1] if brace else ""):
        key, eq, value = item.partition("=")
        if not eq or not key.strip():
            raise UsageError(f"'{item}' in pass spec '{text}' is not of the form option=value")
        if key.strip() in (k for k, _ in options):
            raise UsageError(f"option '{key.strip()}' is given twice in pass spec '{text}'")
        options.append((key.strip(), value.strip()))
    return Spec(name.strip(), tuple(options))


def build(cls: type[Pass], spec: Spec) -> Pass:
    """Make the pass that `spec` describes. Raises UsageError, listing the valid options, for an unknown one."""
    hints = typing.get_type_hints(cls)
    fields = {f.name: hints[f.name] for f in dataclasses.fields(cls)}
    values: dict[str, Any] = {}
    for key, text in spec.options:
        if key not in fields:
            valid = ", ".join(fields) or "none"
            raise UsageError(f"pass '{spec.name}' has no option '{key}'; its options: {valid}")
        try:
            values[key] = _convert(text, fields[key])
        except ValueError as e:
            raise UsageError(f"option '{key}' of pass '{spec.name}': {e}") from None
    try:
        return cls(**values)
    except (TypeError, ValueError) as e:
        raise UsageError(f"pass '{spec.name}': {e}") from None


def _convert(text: str, kind: Any) -> Any:
    """Text to the type that a field declares: int, float, bool, str, Literal, X | None, tuple of one of these."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        if text.lower() == "none" and type(None) in args:
            return None
        return _convert(text, next(a for a in args if a is not type(None)))
    if origin is typing.Literal:
        if text not in args:
            raise ValueError(f"'{text}' is not one of {', '.join(map(str, args))}")
        return text
    if origin is tuple:
        return tuple(_convert(t, args[0]) for t in text.split("+") if t)
    if kind is bool:
        if text.lower() not in ("true", "false", "yes", "no", "1", "0"):
            raise ValueError(f"'{text}' is not true or false")
        return text.lower() in ("true", "yes", "1")
    if kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            raise ValueError(f"'{text}' is not {'an integer' if kind is int else 'a number'}") from None
    return text
