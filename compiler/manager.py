"""Runs passes and checks each of them by running the model: what breaks its promise is undone and named."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import onnx_ir as ir

from . import shapes
from .checks import Interface, check_structure
from .cost import count_nodes
from .errors import EdgecError, ModelError, PassFailed
from .guard.backoff import back_off
from .guard.budget import Budget, judged
from .guard.layers import changed_layers
from .passbase import Context, Pass
from .records import PassRecord
from .verify import EXACT_TOLERANCE, Comparison, OtherSizes, compare_outputs, outputs_of, tolerance

VerifyMode = Literal["each", "end", "off"]
Outputs = Mapping[str, np.ndarray]

GROWTH = 1.25
"""How much an exact pass may enlarge the stored weights before it counts as a fault (a packed weight made dense)."""

LONG = 60.0
"""Seconds that looking at the layers behind a lossy pass may take."""
SIDE_BY_SIDE = 4
"""How many times longer than a run of the model that takes."""


@dataclass
class Options:
    """How passes are run and watched.

    Attributes:
        verify: run the model after every pass that rewrote something, only at the end, or never.
        strict: a pass that breaks its promise is an error instead of being undone.
        max_error: largest relative error that lossy passes may cause; None: no limit.
        min_snr: the same in decibels.
        bisect_limit: how many passes may run; the rest are skipped. To find the pass that breaks a model.
        reproducers: where the input of an undone pass is saved; None: nowhere.
        started, ended: called around each pass.
        layers: measure where the damage of lossy passes arises, layer by layer.
    """

    verify: VerifyMode = "each"
    strict: bool = False
    max_error: float | None = None
    min_snr: float | None = None
    bisect_limit: int | None = None
    reproducers: Path | None = None
    started: Callable[[Pass, int, int], None] = lambda *_: None
    ended: Callable[[PassRecord, ir.Model], None] = lambda *_: None
    layers: bool = False


@dataclass
class Manager:
    """Runs a list of passes over a model. `original` is what the lossy passes are measured against.

    With `other`, every check runs at those sizes as well: what froze a free dimension is right at one size only.
    """

    ctx: Context
    options: Options
    original: Outputs
    other: OtherSizes | None = None
    records: list[PassRecord] = field(default_factory=list)
    _exact_ref: Outputs | None = None
    _more: list[tuple[Outputs, Outputs]] | None = None

    @property
    def _runs(self) -> tuple[Outputs, ...]:
        """The inputs of every check."""
        return (self.ctx.inputs, self.other.inputs) if self.other is not None else (self.ctx.inputs,)

    def run(self, model: ir.Model, passes: Sequence[Pass]) -> ir.Model:
        """The model after all passes. Raises PassFailed (strict), ModelError (a pass breaks an unchecked model)."""
        interface = Interface.of(model)
        kept: ir.Model | None = None
        first = model.clone() if self.options.verify == "end" else None
        limit = self.options.bisect_limit
        for i, p in enumerate(passes):
            self.options.started(p, i, len(passes))
            record = PassRecord(p.spec, p.lossy, nodes=self.records[-1].nodes if self.records else count_nodes(model))
            self.records.append(record)
            if limit is not None and i >= limit:
                record.status = "skipped"
                continue
            if self.options.verify == "each" and kept is None:
                kept = model.clone()
            model = self._one(p, record, model, kept, interface)
            if record.status == "ok":
                kept = None
            self.options.ended(record, model)
        if self.options.verify == "end":
            lossy = any(r.lossy and r.rewrites for r in self.records)
            self._end(model, None if lossy else first, interface)
        return model

    def _one(
        self, p: Pass, record: PassRecord, model: ir.Model, kept: ir.Model | None, interface: Interface
    ) -> ir.Model:
        self.ctx.notes, self.ctx.tradeoff = record.notes, None
        start = time.perf_counter()
        try:
            record.rewrites = p.run(model, self.ctx)
            record.tradeoff = self.ctx.tradeoff
            if record.rewrites:
                shapes.infer(model)
            record.seconds = time.perf_counter() - start
            if record.rewrites:
                record.status = "ok"
                if kept is not None:
                    self._check(p, record, model, kept, interface)
        except EdgecError as e:
            if e.exit_code == 2:
                raise
            return self._undo(p, record, kept, str(e))
        except (MemoryError, OSError):
            raise
        except Exception as e:
            return self._undo(p, record, kept, f"{type(e).__name__}: {e}")
        record.nodes = count_nodes(model) if record.rewrites else record.nodes
        return model

    def _check(self, p: Pass, record: PassRecord, model: ir.Model, kept: ir.Model, interface: Interface) -> None:
        """Raise ModelError when the pass broke its promise."""
        start = time.perf_counter()
        try:
            check_structure(model, interface)
            if p.lossy:
                self._check_loss(p, record, model, kept)
                self._exact_ref = None
            else:
                if self._exact_ref is None:
                    self._exact_ref = outputs_of(kept, *self._runs, exact=True)
                got = outputs_of(model, *self._runs, exact=True)
                record.exact = compare_outputs(self._exact_ref, got, kept)
                if not self._same(record.exact, kept, self._exact_ref, EXACT_TOLERANCE):
                    raise ModelError(f"it changed the function: {record.exact.worst_line()}")
                if not p.unpacks:
                    _check_stored(kept, model)
                self._exact_ref = got
        finally:
            record.check_seconds = time.perf_counter() - start

    def _same(self, found: Comparison, model: ir.Model, reference: Outputs, base: float) -> bool:
        """Whether two exact forms agree; how shaky the model is gets measured only where it matters."""
        if found.within(base) or any(d.mismatch for d in found.outputs.values()):
            return found.within(base)
        return found.within(tolerance(model, self._runs, reference, base))

    def _check_loss(self, p: Pass, record: PassRecord, model: ir.Model, kept: ir.Model) -> None:
        """Measure what was lost in all; over the budget, take back as much of the pass as brings it within."""
        o = self.options
        more = self._judged()
        budget = Budget(self.original, self.ctx.inputs, o.max_error, o.min_snr, self.ctx.metric, self.other, more)
        start = time.perf_counter()
        loss = budget.loss(model)
        seconds = (time.perf_counter() - start) / (1 + len(more))
        record.loss, record.score = loss.outputs, loss.score
        why = budget.over(loss)
        if why and o.strict:
            raise ModelError(why)
        if why:
            retreat = back_off(p, kept, model, loss, budget, self.ctx)
            record.loss, record.score, record.kept = retreat.loss.outputs, retreat.loss.score, retreat.kept
            record.retreat = [why, *retreat.lines()]
            check_structure(model, Interface.of(kept))
        if o.layers:
            self._look_at_layers(record, model, kept, seconds)

    def _judged(self) -> list[tuple[Outputs, Outputs]]:
        """The further runs that a budget is held against, where there is one: as the proof will hold it."""
        if self._more is None:
            limited = (self.options.max_error, self.options.min_snr) != (None, None)
            original = self.ctx.original if limited else None
            self._more = judged(original, self.ctx.runs, self.original) if original is not None else []
        return self._more

    def _look_at_layers(self, record: PassRecord, model: ir.Model, kept: ir.Model, seconds: float) -> None:
        """Find out where the damage arises, unless that takes long; a run of the model took `seconds`."""
        if SIDE_BY_SIDE * seconds > LONG:
            self.ctx.note(f"layers are not looked at: it would take more than {LONG:.0f} s")
            return
        try:
            record.layers = changed_layers(kept, model, self.ctx.inputs)
        except ModelError as e:
            self.ctx.note(f"layers are not looked at: {e}")

    def _undo(self, p: Pass, record: PassRecord, kept: ir.Model | None, why: str) -> ir.Model:
        record.status, record.why = "undone", why
        if kept is None:
            raise PassFailed(
                f"pass {p.spec} failed: {why}\nWith --verify each it would be undone; "
                f'without it: --passes "…" with this pass left out.'
            )
        if self.options.reproducers is not None:
            record.reproducer = str(_reproduce(kept, p, self.ctx.inputs, self.options.reproducers))
        if self.options.strict:
            where = f"\nReproduce: see {record.reproducer}" if record.reproducer else ""
            raise PassFailed(f"pass {p.spec} broke its promise: {why}{where}")
        restored = kept.clone()
        shapes.infer(restored)
        return restored

    def _end(self, model: ir.Model, first: ir.Model | None, interface: Interface) -> None:
        """The one check of --verify end: structure, and, where no pass was lossy, numbers."""
        check_structure(model, interface)
        if first is not None and any(r.rewrites for r in self.records):
            reference = {**self.original, **(self.other.named() if self.other is not None else {})}
            worst = compare_outputs(reference, outputs_of(model, *self._runs, exact=True), first)
            if not self._same(worst, first, reference, 10 * EXACT_TOLERANCE):
                raise PassFailed(
                    f"the passes changed the function: {worst.worst_line()}\nRun with --verify each to see which."
                )


def _check_stored(before: ir.Model, after: ir.Model) -> None:
    old, new = _stored(before), _stored(after)
    if new > GROWTH * old + (1 << 16):
        raise ModelError(f"it made the stored weights grow from {old:,} to {new:,} bytes")


def _stored(model: ir.Model) -> int:
    return sum(
        v.const_value.nbytes for g in model.graphs() for v in g.initializers.values() if v.const_value is not None
    )


def _reproduce(model: ir.Model, p: Pass, inputs: Outputs, folder: Path) -> Path:
    """Save what the pass was given: model, inputs and the command that shows the fault."""
    name = p.name.replace("/", "_").replace(":", "_")
    path = folder / f"edgec-reproduce-{name}"
    path.mkdir(parents=True, exist_ok=True)
    ir.save(model.clone(), path / "model.onnx", external_data="model.onnx.data")
    np.savez(path / "inputs.npz", **inputs)  # type: ignore[arg-type]
    command = f'edgec model.onnx --target onnx --inputs inputs.npz --strict --passes "{p.spec}"\n'
    (path / "command.txt").write_text(command)
    return path
