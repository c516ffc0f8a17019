"""Looks for the plan of `quantize`: which width each weight gets, within its budget, and carries it out."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, replace

import onnx_ir as ir

from ..compiler.cost import constants
from ..compiler.passbase import Context
from ..compiler.quantization import grids
from ..compiler.tradeoff import Choice, Point, Tradeoff
from .bit_budget import Curve, Path, Plan, noise, size, size_of_bits, uniform, uniforms
from .probe import Allowed, Damage, Probe
from .round_weights import Rounded, replace_weights
from .sensitivity import Fits
from .stored_forms import store
from .weight_grid import KEPT


@dataclass(frozen=True)
class Limits:
    """What a plan may take: bytes of all constants, or bits of an average weight, and what the outputs may lose."""

    nbytes: float | None = None
    bits: float | None = None
    allowed: Allowed | None = None

    @property
    def counts(self) -> bool:
        """Whether bytes are the budget."""
        return self.nbytes is not None or self.bits is not None


class Search:
    """Plans for the weights of `fits`, which `curves` tells the widths of.

    `probe` measures what plans lose of the model at hand, on samples that nothing was fitted to; `judge` what they do
    of the original.
    """

    def __init__(
        self, fits: Fits, curves: list[Curve], probe: Probe, judge: Probe, limits: Limits, ctx: Context
    ) -> None:
        self._fits, self._curves, self._probe, self._judge = fits, curves, probe, judge
        self._limits, self._ctx = limits, ctx
        self._rest = _rest(fits.model, {f.name for f in fits.found}, ctx)

    def run(self) -> int:
        """Rewrite the model; how many weights are rounded."""
        path, limit = Path(self._curves), self._limit()
        plan = self._planned(path, limit)
        if plan is None:
            least = (size(path.start) + self._rest) / 1e6
            self._ctx.note(
                f"nothing is rounded: with the fewest bits for each weight, all constants still have {least:.3f} MB, "
                f"more than the {(limit + self._rest) / 1e6:.3f} MB wanted"
            )
            return 0
        plan = self._better(plan, limit if size(plan) <= limit < math.inf else size(plan))
        chosen = self._finished(plan)
        self._say(plan)
        self._ctx.tradeoff = self._tradeoff(path, plan)
        for f, w, c in zip(self._fits.found, plan, self._curves, strict=True):
            if w is c[-1]:
                f.weight.value.meta[KEPT] = True
        replace_weights(self._fits.model, {n: _moved(n, r, self._ctx) for n, r in chosen.items()})
        return len(chosen)

    def _finished(self, plan: Plan) -> dict[str, Rounded]:
        """The weights rounded by all samples; as they were measured, where all would break what is allowed."""
        chosen, allowed = self._fits.finished(plan), self._limits.allowed
        if allowed is None or allowed.excess(self._judged(plan)) > 1 or allowed.excess(self._judge.damage(chosen)) <= 1:
            return chosen
        return self._fits.rounded(plan)

    def _planned(self, path: Path, limit: float) -> Plan | None:
        """The best plan within the budget; of two, of bytes and an error, the error counts. None: there is none."""
        allowed = self._limits.allowed
        if self._limits.counts:
            plan = path.of_size(limit)
            if plan is None or allowed is None:
                return plan
            found = self._judged(plan)
            if allowed.excess(found) <= 1:
                return plan
            lost = f", and lose {found.drop:.4g} of the metric" if found.drop else ""
            self._ctx.note(
                f"weights of {_megabytes(plan)} would leave the outputs {decibels(10 ** (-found.snr / 10))} and errors "
                f"of {found.error:.2g}{lost}: more than --max-error, --min-snr or --max-drop allow, so there are as "
                "many bits more as are needed"
            )
        assert allowed is not None
        return path.of_error(lambda p: allowed.excess(self._judged(p)), allowed.guess)

    def _limit(self) -> float:
        """Bytes that the weights may have; any number of them where an error is the budget."""
        limits = self._limits
        if limits.bits is not None:
            return size_of_bits(self._curves, limits.bits)
        return math.inf if limits.nbytes is None else limits.nbytes - self._rest

    def _damage(self, plan: Plan, judge: bool = False) -> Damage:
        """What a plan loses, measured once."""
        name = ("judged" if judge else "compared", "-".join(str(w.bits) for w in plan))
        known = self._fits.known.get(*name)
        if known is None:
            self._ctx.progress("measuring plans", len(self._fits.known), 0)
            found = (self._judge if judge else self._probe).damage(self._fits.rounded(plan))
            self._fits.known.put(*name, noise=found.noise, snr=found.snr, error=found.error, drop=found.drop)
            return found
        return Damage(known["noise"], known["snr"], known["error"], known["drop"])

    def _judged(self, plan: Plan) -> Damage:
        """The damage that counts."""
        return self._damage(plan, judge=self._judge is not self._probe)

    def _within(self, plan: Plan) -> bool:
        return self._limits.allowed is None or self._limits.allowed.excess(self._judged(plan)) <= 1

    def _better(self, plan: Plan, limit: float) -> Plan:
        """The plan, or the same bits everywhere where these do no worse in so many bytes, or as well in fewer."""
        if not self._limits.counts:
            # Where noise doesn't add up, the path may have led past them.
            for bits, smaller in uniforms(self._curves).items():
                if size(smaller) < size(plan) and math.isfinite(noise(smaller)) and self._within(smaller):
                    self._ctx.note(f"all weights get {bits} bits: different ones were measured to need more bytes")
                    return smaller
        same = uniform(self._curves, limit)
        if same is None or [w.bits for w in same] == [w.bits for w in plan]:
            return plan
        expected, measured = noise(same) <= noise(plan), self._damage(same).noise <= self._damage(plan).noise
        bits = next(w.bits for w, c in zip(same, self._curves, strict=True) if w is not c[-1])
        if (expected or measured) and self._within(same):
            how = "expected" if expected else "measured"
            self._ctx.note(f"all weights get {bits} bits: no more noise is {how} than with different ones")
            return same
        self._ctx.note(f"{bits} bits everywhere, {_megabytes(same)}, would leave {decibels(self._damage(same).noise)}")
        return plan

    def _say(self, plan: Plan) -> None:
        """What became of the weights: all, then each."""
        note, damage, worst = self._ctx.note, self._damage(plan), self._judged(plan)
        counts = Counter(w.bits for w, c in zip(plan, self._curves, strict=True) if w is not c[-1])
        kept = len(plan) - counts.total()
        parts = [f"{n} of {b} bits" for b, n in sorted(counts.items())] + ([f"{kept} as they are"] if kept else [])
        before = sum(c[-1].nbytes for c in self._curves) / 1e6
        note(
            f"{len(plan)} weights: {', '.join(parts)}; {_megabytes(plan)} instead of {before:.3f} MB, "
            f"{(size(plan) + self._rest) / 1e6:.3f} MB with all other constants"
        )
        as_classes = self._probe.as_classes
        how = f" (probabilities of {', '.join(repr(n) for n in as_classes)})" if as_classes else ""
        note(
            f"outputs: {decibels(noise(plan))} expected, {decibels(damage.noise)} measured{how}; "
            f"as they are {decibels(10 ** (-worst.snr / 10))}, largest error {worst.error:.2g}"
            + ("" if self._ctx.given else "; on synthesised inputs, which say little (--inputs)")
        )
        for f, w, c in zip(self._fits.found, plan, self._curves, strict=True):
            if w is c[-1]:
                note(f"'{f.name}' stays as it is: of {c[0].bits} bits it alone would leave {decibels(c[0].noise)}")
            else:
                note(f"'{f.name}': {w.bits} bits, {w.nbytes:,} bytes, alone {decibels(w.noise)} expected")

    def _tradeoff(self, path: Path, plan: Plan) -> Tradeoff:
        """For the report: what bytes are worth, with different bits and with the same, and what was chosen."""
        same = [
            Point(size(p), noise(p), self._damage(p).noise, bits)
            for bits, p in uniforms(self._curves).items()
            if math.isfinite(noise(p))
        ]
        chosen = Point(size(plan), noise(plan), self._damage(plan).noise)
        each = [
            Choice(f.name, w.bits, w.nbytes, c[-1].nbytes, w.noise)
            for f, w, c in zip(self._fits.found, plan, self._curves, strict=True)
        ]
        frontier = [Point(*at) for at in zip(path.sizes, path.noises, strict=True)]
        return Tradeoff(self._rest, chosen, tuple(same), tuple(frontier), tuple(each), tuple(self._probe.as_classes))


def _rest(model: ir.Model, names: set[str], ctx: Context) -> int:
    """Bytes of the constants that stay as they are, as they are stored."""
    total = 0
    for value, tensor in constants(model):
        if value.name in names:
            continue
        grid = grids.read(value)
        form = None if grid is None else store(grid, tensor.numpy(), ctx.target.storage)
        half = ctx.target.float16 and tensor.dtype == ir.DataType.FLOAT
        total += form.nbytes if form is not None else tensor.nbytes // (2 if half else 1)
    return total


def _moved(name: str, rounded: Rounded, ctx: Context) -> Rounded:
    """The same, where it may stay."""
    return replace(rounded, tensor=ctx.scratch.tensor(rounded.tensor.numpy().copy(), name))


def _megabytes(plan: Plan) -> str:
    return f"{size(plan) / 1e6:.3f} MB"


def decibels(power: float) -> str:
    """A noise power over signal power as a signal-to-noise ratio."""
    if power <= 0:
        return "no noise"
    return f"{-10 * math.log10(power):.1f} dB" if power < math.inf else "nothing but NaN or infinities"
