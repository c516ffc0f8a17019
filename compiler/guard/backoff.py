"""Going back on a lossy pass that costs too much: what costs the outputs most is taken back, and no more than that.

Each part of the pass (a tensor, a family of channels), or stretch of neighbours where there are many, is changed alone
and its noise at the outputs measured. Then as few as suffice are taken back, those of the most noise per element first;
how many, is found by halving, each time against the whole budget.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import onnx_ir as ir

from ..errors import ModelError
from ..passbase import Context, Pass
from ..session import Session
from ..shapes import infer
from ..verify import Comparison
from ..weights import Scratch, release
from .budget import Budget, Loss, together
from .parts import Parts, Unit, tensors

RUNS = 64
"""Stretches that are measured alone, at most; finding how many to give back takes some five runs more."""

CUTS = 4
STRETCHES = 32

STRICTER = (1.0, 6.0, 12.0)
"""By how many dB more than should do the floor of a pass that spares places for itself is raised, one by one."""

MOST_FLOOR = 140.0
"""No two runs of float32 agree better, in dB."""

NAMED = 6
"""How many tensors are named in words; the report has all."""


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
        kept: the names of the parts that were taken back, the largest first.
        changed: how many names still stand for something changed.
        loss: what the model has lost now.
        what: what the names stand for.
        spec: of the pass, where it was run anew with a higher floor; its notes say what it kept.
    """

    kept: tuple[str, ...]
    changed: int
    loss: Loss
    what: str = ""
    spec: str = ""

    def lines(self) -> list[str]:
        """What was taken back, in words."""
        if self.spec:
            return [f"run anew as {self.spec}"]
        names = ", ".join(f"'{n}'" for n in self.kept[:NAMED])
        more = f" and {len(self.kept) - NAMED} more" if len(self.kept) > NAMED else ""
        total = len(self.kept) + self.changed
        return [f"{len(self.kept)} of {total} {self.what} keep the numbers that they had: {names}{more}"]


def back_off(p: Pass, before: ir.Model, after: ir.Model, loss: Loss, budget: Budget, ctx: Context) -> Retreat:
    """Bring `after`, which is over the budget, within it, in place, by taking back as little as suffices.

    Raises ModelError, saying why, where only the whole can be taken back.
    """
    try:
        before_loss = budget.loss(before)
        if why := budget.over(before_loss):
            raise _Whole(f"the model was over the budget before ({why})")
        parts = p.parts(before, ctx) or (None if p.tied else tensors(before, after))
        if parts is not None:
            return _partly(parts, before, after, budget, ctx)
        if p.tied:
            raise _Whole("what it changes hangs together")
        return _again(p, before, after, loss, before_loss, budget, ctx)
    except _Whole as e:
        raise ModelError(f"{budget.over(loss)}. All of it is taken back: {e}") from e


class _Whole(Exception):
    """Why no part of a pass can stay."""


def _partly(parts: Parts, before: ir.Model, after: ir.Model, budget: Budget, ctx: Context) -> Retreat:
    """Take back as few parts as suffice."""
    count = len(parts.units)
    if count < 2:
        raise _Whole(f"it changed no more than one of the {parts.what}")
    stretches = _measured(parts, before, budget, ctx)
    # What costs least for its size may be too large: then what costs least at all.
    orders = (lambda s: -s.noise / max(1, s.size)), (lambda s: -s.noise)
    for order in (sorted(stretches, key=by) for by in orders):
        high, found = _halved(parts, order, budget, ctx)
        if found is not None:
            break
    else:
        raise _Whole(f"it changed {count} {parts.what}, and those that cost least are too much already")
    after.graph = parts.make(_names(order[high:]), ctx.scratch).graph
    infer(after)
    back = sorted((u for s in order[:high] for u in s.units), key=lambda u: -u.size)
    names = tuple(n for u in back for n in u.names)
    return Retreat(names, sum(len(u.names) for u in parts.units) - len(names), found, parts.what)


def _halved(parts: Parts, order: Sequence[Stretch], budget: Budget, ctx: Context) -> tuple[int, Loss | None]:
    """How many of the first stretches must go back, and what is then lost; None where all must."""
    low, high = 0, len(order)
    found: Loss | None = None
    while high - low > 1:
        middle = (low + high) // 2
        tried = _tried(parts, order[middle:], budget, ctx)
        low, high, found = (low, middle, tried) if tried is not None else (middle, high, found)
    return high, found


def _names(stretches: Sequence[Stretch]) -> list[str]:
    return [n for s in stretches for u in s.units for n in u.names]


def _tried(parts: Parts, changed: Sequence[Stretch], budget: Budget, ctx: Context) -> Loss | None:
    """What is lost with only these changed; None where that is still too much."""
    with Scratch(ctx.scratch.dir) as spool:
        try:
            loss = budget.loss(parts.make(_names(changed), spool))
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
            return Retreat((), 0, found, spec=stricter.spec)
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


def _measured(parts: Parts, before: ir.Model, budget: Budget, ctx: Context) -> list[Stretch]:
    """The units in stretches, each with the noise that it makes alone."""
    session, units, runs = Session(before), parts.units, 0
    wanted = [(feeds, session.run(feeds)) for feeds in budget.few]
    del session
    release(before)

    def alone(part: Sequence[Unit]) -> Stretch:
        nonlocal runs
        runs += 1
        with Scratch(ctx.scratch.dir) as spool:
            try:
                trial = parts.make([n for u in part for n in u.names], spool)
                noise = _noise(together(Session(trial), wanted))
                release(trial)
            except ModelError:
                noise = math.inf
        return Stretch(tuple(part), noise)

    stretches = [alone(part) for part in _cut(units, len(units) if len(units) <= RUNS else STRETCHES)]
    while runs + CUTS <= RUNS:
        long = [s for s in stretches if len(s.units) > 1 and s.noise > 0]
        if not long:
            break
        worst = max(long, key=lambda s: s.noise)
        stretches.remove(worst)
        stretches += [alone(part) for part in _cut(worst.units, CUTS)]
    return stretches


def _noise(found: Comparison) -> float:
    """Noise power over signal power of the worst output; infinite where one can't be compared."""
    return max((10 ** (-d.snr_db / 10) for d in found.outputs.values()), default=0.0)


def _cut(units: Sequence[Unit], parts: int) -> list[Sequence[Unit]]:
    edges = [len(units) * i // parts for i in range(parts + 1)]
    return [units[a:b] for a, b in pairwise(edges) if b > a]
