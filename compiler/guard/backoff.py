"""Going back on a lossy pass that costs too much: the tensors that cost the outputs most get their numbers back.

A pass that only replaced initializers is taken back in units: an initializer, with those of the layer that reads it (a
bias that makes up for the weight's error is wrong without it). Each unit, or stretch of neighbours where there are
many, is changed alone and its noise at the outputs measured. Then as few as suffice, those of the most noise per
element first, get back the very tensors that they had; how many, is found by halving, each time against the budget.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import onnx_ir as ir

from ..errors import ModelError
from ..passbase import Context, Pass
from ..shapes import infer
from ..verify import Comparison, compare_outputs, outputs_of
from .budget import Budget, Loss

RUNS = 24
"""Stretches that are measured alone, at most; finding how many to give back takes some five runs more."""

CUTS = 4
STRETCHES = 8

STRICTER = (1.0, 6.0, 12.0)
"""By how many dB more than should do the floor of a pass that spares places for itself is raised, one by one."""

MOST_FLOOR = 140.0
"""No two runs of float32 agree better, in dB."""

NAMED = 6
"""How many tensors are named in words; the report has all."""


@dataclass(frozen=True)
class Unit:
    """Initializers that only make sense together.

    Attributes:
        names: of them, the largest first.
        size: elements of all.
    """

    names: tuple[str, ...]
    size: int


@dataclass(frozen=True)
class Stretch:
    """Neighbouring units, and noise power over signal power at the outputs when only they are changed."""

    units: tuple[Unit, ...]
    noise: float

    @property
    def size(self) -> int:
        """Elements of all of them."""
        return sum(u.size for u in self.units)


@dataclass(frozen=True)
class Retreat:
    """What a pass was taken back to.

    Attributes:
        kept: the initializers that have their old numbers, the largest first.
        changed: how many initializers still have new ones.
        loss: what the model has lost now.
        spec: of the pass, where it was run anew with a higher floor; its notes say what it kept.
    """

    kept: tuple[str, ...]
    changed: int
    loss: Loss
    spec: str = ""

    def lines(self) -> list[str]:
        """What was taken back, in words."""
        if self.spec:
            return [f"run anew as {self.spec}"]
        names = ", ".join(f"'{n}'" for n in self.kept[:NAMED])
        more = f" and {len(self.kept) - NAMED} more" if len(self.kept) > NAMED else ""
        total = len(self.kept) + self.changed
        return [f"{len(self.kept)} of {total} tensors keep the numbers that they had: {names}{more}"]


def back_off(p: Pass, before: ir.Model, after: ir.Model, loss: Loss, budget: Budget, ctx: Context) -> Retreat:
    """Bring `after`, which is over the budget, within it, in place, by taking back as little as suffices.

    Raises ModelError, saying why, where only the whole can be taken back.
    """
    try:
        before_loss = budget.loss(before)
        if why := budget.over(before_loss):
            raise _Whole(f"the model was over the budget before ({why})")
        if p.tied:
            raise _Whole("what it changes hangs together")
        if _same_structure(before, after):
            return _tensors(before, after, budget)
        return _again(p, before, after, loss, before_loss, budget, ctx)
    except _Whole as e:
        raise ModelError(f"{budget.over(loss)}. All of it is taken back: {e}") from e


class _Whole(Exception):
    """Why no part of a pass can stay."""


def _tensors(before: ir.Model, after: ir.Model, budget: Budget) -> Retreat:
    """Give as few tensors as suffice their old numbers back."""
    units = changed_units(before, after)
    if len(units) < 2:
        raise _Whole("it changed no more than one tensor")
    order = _measured(units, before, after, budget)
    low, high = 0, len(order)
    found: Loss | None = None
    while high - low > 1:
        middle = (low + high) // 2
        tried = _tried(after, before, order[:middle], budget)
        low, high, found = (low, middle, tried) if tried is not None else (middle, high, found)
    if found is None:
        raise _Whole(f"it changed {len(units)} tensors, and whichever one of them stays changed costs too much")
    back = sorted((u for s in order[:high] for u in s.units), key=lambda u: -u.size)
    names = [n for u in back for n in u.names]
    restore(after, before, names)
    return Retreat(tuple(names), sum(len(u.names) for u in units) - len(names), found)


def _tried(after: ir.Model, before: ir.Model, back: Sequence[Stretch], budget: Budget) -> Loss | None:
    """What is lost with these taken back; None where that is still too much."""
    trial = after.clone()
    restore(trial, before, [n for s in back for u in s.units for n in u.names])
    try:
        loss = budget.loss(trial)
    except ModelError:
        return None
    return None if budget.over(loss) else loss


def _again(
    p: Pass, before: ir.Model, after: ir.Model, loss: Loss, before_loss: Loss, budget: Budget, ctx: Context
) -> Retreat:
    """Run a pass that spares places for itself anew, with a higher floor for what the outputs must keep."""
    if "min_snr" not in {f.name for f in dataclasses.fields(p)}:
        raise _Whole("it changed more than the numbers of tensors")
    floor, notes = _floor(loss, before_loss, budget), list(ctx.notes)
    for more in STRICTER:
        ctx.notes.clear()
        trial = before.clone()
        stricter = dataclasses.replace(p, min_snr=round(floor + more, 1))  # type: ignore[call-arg]
        if not stricter.run(trial, ctx):
            break
        infer(trial)
        found = budget.loss(trial)
        if not budget.over(found):
            after.graph = trial.graph
            return Retreat((), 0, found, stricter.spec)
    ctx.notes[:] = notes
    raise _Whole(f"nor would it do to spare what costs most, so that min_snr={floor:.1f} dB are kept")


def _floor(loss: Loss, before: Loss, budget: Budget) -> float:
    """The signal-to-noise ratio that a pass alone would have to keep for the budget, in dB: an estimate."""
    now = loss.outputs.snr_db if math.isfinite(loss.outputs.snr_db) else 0.0
    floor = now
    if budget.min_snr is not None:
        left = 10 ** (-budget.min_snr / 10) - 10 ** (-before.outputs.snr_db / 10)
        floor = max(floor, -10 * math.log10(left) if left > 0 else math.inf)
    if budget.max_error:
        over = loss.outputs.max_rel / budget.max_error
        floor = max(floor, now + 20 * math.log10(over) if 1 < over < math.inf else now)
    return min(floor, MOST_FLOOR)


def changed_units(before: ir.Model, after: ir.Model) -> list[Unit]:
    """What has other numbers than before, in the order of the nodes that read it."""
    old = _initializers(before)
    changed = {
        v: n
        for n, v in _initializers(after).items()
        if n in old and v.const_value is not old[n].const_value and v.const_value is not None
    }
    of: dict[ir.Value, ir.Value] = {}

    def root(v: ir.Value) -> ir.Value:
        while of.get(v, v) is not v:
            v = of[v]
        return v

    readers: dict[ir.Node, ir.Value] = {}
    for value in changed:
        for node in _layers(value):
            first = readers.setdefault(node, value)
            of[root(value)] = root(first)
    groups: dict[ir.Value, list[ir.Value]] = {}
    for value in changed:
        groups.setdefault(root(value), []).append(value)
    return [_unit(values) for values in groups.values()]


def restore(model: ir.Model, before: ir.Model, names: Sequence[str]) -> None:
    """Give the named initializers of `model` the tensors that they have in `before`, and what is noted of these."""
    old, wanted = _initializers(before), set(names)
    for name, value in _initializers(model).items():
        if name in wanted:
            value.const_value = old[name].const_value
            value.meta.clear()
            value.meta.update(old[name].meta)


def _measured(units: Sequence[Unit], before: ir.Model, after: ir.Model, budget: Budget) -> list[Stretch]:
    """The units in stretches, those of the most noise per element first."""
    reference = outputs_of(before, budget.inputs)
    runs = 0

    def alone(part: Sequence[Unit]) -> Stretch:
        nonlocal runs
        runs += 1
        trial = before.clone()
        restore(trial, after, [n for u in part for n in u.names])
        try:
            noise = _noise(compare_outputs(reference, outputs_of(trial, budget.inputs)))
        except ModelError:
            noise = float("inf")
        return Stretch(tuple(part), noise)

    stretches = [alone(part) for part in _cut(units, len(units) if len(units) <= RUNS else STRETCHES)]
    while runs + CUTS <= RUNS:
        long = [s for s in stretches if len(s.units) > 1 and s.noise > 0]
        if not long:
            break
        worst = max(long, key=lambda s: s.noise)
        stretches.remove(worst)
        stretches += [alone(part) for part in _cut(worst.units, CUTS)]
    return sorted(stretches, key=lambda s: -s.noise / max(1, s.size))


def _noise(found: Comparison) -> float:
    """Noise power over signal power of the worst output; infinite where one can't be compared."""
    return max((10 ** (-d.snr_db / 10) for d in found.outputs.values()), default=0.0)


def _cut(units: Sequence[Unit], parts: int) -> list[Sequence[Unit]]:
    edges = [len(units) * i // parts for i in range(parts + 1)]
    return [units[a:b] for a, b in pairwise(edges) if b > a]


def _initializers(model: ir.Model) -> dict[str, ir.Value]:
    """All initializers by name; names are unique over all graphs."""
    return {n: v for g in model.graphs() for n, v in g.initializers.items()}


def _unit(values: Sequence[ir.Value]) -> Unit:
    sized = sorted(
        ((v.const_value.size if v.const_value is not None else 0, v.name or "") for v in values), reverse=True
    )
    return Unit(tuple(n for _, n in sized), sum(s for s, _ in sized))


def _layers(value: ir.Value) -> Iterator[ir.Node]:
    """The nodes that an initializer belongs to, through what is worked out of constants alone.

    The bias that an Add adds to a product belongs to both.
    """
    for node in value.consumers():
        if all(v is None or v is value or v.is_initializer() for v in node.inputs):
            yield node
            for out in node.outputs:
                yield from _layers(out)
            continue
        yield node
        if node.op_type == "Add":
            maker = next((v.producer() for v in node.inputs if v is not None and v is not value), None)
            if maker is not None and maker.op_type in ("MatMul", "Conv", "ConvTranspose", "Gemm"):
                yield maker


def _same_structure(before: ir.Model, after: ir.Model) -> bool:
    """Whether both have the same nodes, connected in the same way."""
    return _structure(before) == _structure(after)


def _structure(model: ir.Model) -> list[object]:
    return [
        (n.domain, n.op_type, tuple(v.name if v is not None else None for v in n.inputs), sorted(n.attributes))
        for g in model.graphs()
        for n in g
    ]
