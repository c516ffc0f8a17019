"""Round each weight to as many bits as it needs: few where the outputs hardly notice, more where they do."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import onnx_ir as ir

from ..compiler.cost import constants
from ..compiler.passbase import Context, Pass
from ..compiler.quantization import grids
from ..compiler.quantization.gridfit import GridSpec
from ..compiler.weights import Scratch, release_tensor
from . import weight_grid
from .bit_budget import Curve, Path, Plan, noise, size, size_of_bits, uniform
from .grid_options import Wish, spec_for
from .round_weights import MIN_SNR, Rounded, lies_on, replace_weights
from .sensitivity import Allowed, Damage, Fitted, Probe, fitted, some_runs, widths
from .stored_forms import store

KEPT = "edgec.kept"
"""Key of `Value.meta` of a weight that was best left as it is: another run leaves it so."""

_UNITS = {"": 1e6, "B": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9}
SHARE = 0.8
"""Of the noise that the user allows all passes together, where the pass itself has no budget."""


@dataclass(frozen=True)
class Quantize(Pass):
    """Round weights to different numbers of bits, within a budget that the whole model has.

    Before:  `y = MatMul(Relu(MatMul(x, w0)), w1)`

    After:   the same with w0 on a grid of 3 bits, say, and w1, whose errors cost the outputs more, on one of 6

    Only numbers change. Each weight is rounded alone, to few bits, and the noise at the outputs measured; what it would
    be at other widths follows from the errors of the layer's own outputs (with --inputs, on samples held out). Bits
    then go where they save most noise per byte. First and last layers and embeddings are weights like others. Where the
    same bits everywhere do as well, by expectation or by measurement, they are taken.

    Outputs that are scores of classes are compared as probabilities: what adds the same to all of them is no error.

    Options:
        size: of all weights of the model as stored, say 2.5MB or 800kB.
        bits: so many bits for an average weight: as many bytes as with the same bits everywhere.
        max_error: the largest error of an output, relative to its largest value.
        min_snr: the least signal-to-noise ratio of an output, in dB. With an error for a budget, the smallest weights
            that keep it are looked for. Where no budget is given: what --max-error and --min-snr allow, but for a fifth
            of the noise, which is left to others; without these, 25 dB.
        choices: numbers of bits that a weight may have, joined by +. What the target can't store is left out.
        scheme: affine or table; by default affine at 8 bits, else table.
        scores: whether outputs are scores of classes; by default those that look like it.
        min_size: elements from which a weight is rounded.
    """

    name: ClassVar[str] = "quantize"
    lossy: ClassVar[bool] = True
    size: str | None = None
    bits: float | None = None
    max_error: float | None = None
    min_snr: float | None = None
    choices: tuple[int, ...] = (2, 3, 4, 6, 8)
    scheme: Literal["affine", "table"] | None = None
    scores: bool | None = None
    min_size: int = 2048

    def __post_init__(self) -> None:
        """Raise ValueError for budgets that contradict each other, or are none."""
        errors = self.max_error is not None or self.min_snr is not None
        if sum((self.size is not None, self.bits is not None, errors)) > 1:
            raise ValueError("size, bits, and an error (max_error, min_snr): one of them is the budget")
        if self.size is not None and _bytes(self.size) is None:
            raise ValueError(f"size={self.size}: a number and a unit, say 2.5MB or 800kB")
        if self.bits is not None and not 1 <= self.bits <= 16:
            raise ValueError(f"bits={self.bits}: from 1 to 16, on average")
        if self.max_error is not None and self.max_error <= 0:
            raise ValueError(f"max_error={self.max_error}: larger than 0")
        if not self.choices:
            raise ValueError("choices: one number of bits at least, 1 to 8")
        for bits in self.choices:
            Wish(bits, self.scheme)

    @property
    def counts(self) -> bool:
        """Whether bytes are the budget."""
        return self.size is not None or self.bits is not None

    def run(self, model: ir.Model, ctx: Context) -> int:
        """See the class. One weight is in memory at a time, at all widths; on disk, all are."""
        specs = self._specs(ctx)
        weights = [w for w in weight_grid.weights(model, self.min_size) if specs and _open(w)]
        if not specs or not weights:
            if specs:
                ctx.note(f"no weight of {self.min_size} elements or more that is not rounded yet was found")
            return 0
        with Scratch(ctx.scratch.dir) as spool:
            found = fitted(model, weights, specs, ctx, spool)
            if not found:
                ctx.note("no weight can be stored in fewer bytes on any of the grids")
                return 0
            return _Search(self, model, ctx, found).run()

    def _specs(self, ctx: Context) -> dict[int, GridSpec]:
        """The kinds of grids that the target stores, by bits."""
        specs: dict[int, GridSpec] = {}
        for bits in dict.fromkeys(self.choices):
            spec, notes = spec_for(Wish(bits, self.scheme), ctx.target)
            if spec is not None and spec.bits == bits:
                specs[bits] = spec
            else:
                ctx.note(f"no weight gets {bits} bits: {notes[0] if notes else 'the target does not store them'}")
        return specs


def _allowed(options: Quantize, ctx: Context) -> Allowed | None:
    """The errors that the outputs may have: the pass's own budget, else the user's for all; None: any."""
    for o, share in ((options, 1.0), (ctx, SHARE)):
        if o.max_error is not None or o.min_snr is not None:
            return Allowed(o.max_error, o.min_snr, share)
    return None if options.counts else Allowed(None, MIN_SNR)


class _Search:
    """Looks for the plan of a pass, and carries it out."""

    def __init__(self, options: Quantize, model: ir.Model, ctx: Context, found: Sequence[Fitted]) -> None:
        self._options, self._model, self._ctx, self._found = options, model, ctx, found
        self._allowed = _allowed(options, ctx)
        runs = some_runs(model, ctx)
        self._probe = self._judge = Probe(model, runs, options.scores)
        if self._allowed is not None and ctx.inputs and (len(runs) > 1 or runs[0] is not ctx.inputs):
            # Whoever checks the pass runs all of these.
            self._judge = Probe(model, [ctx.inputs], options.scores)
        self._curves: list[Curve] = [widths(f, self._probe) for f in found]
        self._rest = _rest(model, {f.name for f in found}, ctx)
        self._damages: dict[tuple[object, ...], Damage] = {}

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
        chosen = self._chosen(plan)
        self._say(plan)
        for f, w, c in zip(self._found, plan, self._curves, strict=True):
            if w is c[-1]:
                f.weight.value.meta[KEPT] = True
        replace_weights(self._model, {n: _moved(n, r, self._ctx) for n, r in chosen.items()})
        return len(chosen)

    def _planned(self, path: Path, limit: float) -> Plan | None:
        """The best plan within the budget; of two, of bytes and an error, the error counts. None: there is none."""
        allowed = self._allowed
        if self._options.counts:
            plan = path.of_size(limit)
            if plan is None or allowed is None:
                return plan
            found = self._worst(plan)
            if allowed.excess(found) <= 1:
                return plan
            self._ctx.note(
                f"weights of {_megabytes(plan)} would leave the outputs {_db(10 ** (-found.snr / 10))} and errors of "
                f"{found.error:.2g}, more than --max-error or --min-snr allow: as many bits more as are needed"
            )
        assert allowed is not None
        return path.of_error(lambda p: allowed.excess(self._worst(p)), allowed.guess)

    def _limit(self) -> float:
        """Bytes that the weights may have; any number of them where an error is the budget."""
        o = self._options
        if o.bits is not None:
            return size_of_bits(self._curves, o.bits)
        return math.inf if o.size is None else (_bytes(o.size) or 0.0) - self._rest

    def _chosen(self, plan: Plan) -> dict[str, Rounded]:
        return {f.name: f.rounded[w.bits] for f, w in zip(self._found, plan, strict=True) if w.bits in f.rounded}

    def _damage(self, plan: Plan, probe: Probe | None = None) -> Damage:
        probe = probe or self._probe
        key = (probe, *(w.bits for w in plan))
        if key not in self._damages:
            self._damages[key] = probe.damage(self._chosen(plan))
        return self._damages[key]

    def _worst(self, plan: Plan) -> Damage:
        """The damage on the samples of both probes."""
        a, b = self._damage(plan), self._damage(plan, self._judge)
        return Damage(max(a.noise, b.noise), min(a.snr, b.snr), max(a.error, b.error))

    def _better(self, plan: Plan, limit: float) -> Plan:
        """The plan, or the same bits everywhere where these do no worse in so many bytes."""
        same = uniform(self._curves, limit)
        if same is None or [w.bits for w in same] == [w.bits for w in plan]:
            return plan
        allowed = self._allowed is None or self._allowed.excess(self._worst(same)) <= 1
        expected, measured = noise(same) <= noise(plan), self._damage(same).noise <= self._damage(plan).noise
        bits = next(w.bits for w, c in zip(same, self._curves, strict=True) if w is not c[-1])
        if allowed and (expected or measured):
            how = "expected" if expected else "measured"
            self._ctx.note(f"all weights get {bits} bits: no more noise is {how} than with different ones")
            return same
        self._ctx.note(f"{bits} bits everywhere, {_megabytes(same)}, would leave {_db(self._damage(same).noise)}")
        return plan

    def _say(self, plan: Plan) -> None:
        """What became of the weights: all, then each."""
        note, damage, worst = self._ctx.note, self._damage(plan), self._worst(plan)
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
            f"outputs: {_db(noise(plan))} expected, {_db(damage.noise)} measured{how}; "
            f"as they are {_db(10 ** (-worst.snr / 10))}, largest error {worst.error:.2g}"
            + ("" if self._ctx.given else "; on synthesised inputs, which say little (--inputs)")
        )
        for f, w, c in zip(self._found, plan, self._curves, strict=True):
            cheapest = c[0]
            if w is c[-1]:
                note(f"'{f.name}' stays as it is: of {cheapest.bits} bits it alone would leave {_db(cheapest.noise)}")
            else:
                note(f"'{f.name}': {w.bits} bits, {w.nbytes:,} bytes, alone {_db(w.noise)} expected")


def _open(weight: weight_grid.Weight) -> bool:
    """Whether a weight is neither rounded yet nor was left as it is."""
    tensor = weight.value.const_value
    assert tensor is not None
    if KEPT in weight.value.meta:
        return False
    array = tensor.numpy()
    rounded = weight.axis is not None and lies_on(weight, array, GridSpec(), weight.axis)
    release_tensor(tensor)
    return not rounded


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


def _bytes(text: str) -> float | None:
    found = re.fullmatch(r"([0-9.]+)\s*(|B|kB|MB|GB)", text.strip())
    try:
        return float(found[1]) * _UNITS[found[2]] if found else None
    except ValueError:
        return None


def _megabytes(plan: Plan) -> str:
    return f"{size(plan) / 1e6:.3f} MB"


def _db(power: float) -> str:
    """A noise power over signal power as a signal-to-noise ratio."""
    if power <= 0:
        return "no noise"
    return f"{-10 * math.log10(power):.1f} dB" if power < math.inf else "nothing but NaN or infinities"
