"""Round each weight to as many bits as it needs: few where the outputs hardly notice, more where they do."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import onnx_ir as ir

from ..compiler.errors import EdgecError, UsageError
from ..compiler.passbase import Context, Pass
from ..compiler.quantization.gridfit import GridSpec
from ..compiler.weights import Scratch, release_tensor
from . import weight_grid
from .bit_budget import Curve
from .bit_search import Limits, Search
from .calibrated import held_back
from .grid_options import Wish, spec_for
from .measurements import Measurements, key
from .probe import Allowed, Probe, allowed_by, judge, some_runs
from .round_weights import lies_on
from .sensitivity import Fits, by_gradients, by_outputs

_UNITS = {"": 1e6, "B": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9}
SHARE = 0.8
"""Of the noise that the user allows all passes together, where the pass itself has no budget."""
PLANS = ("size", "bits", "max_error", "min_snr", "drop", "resume", "jobs", "asked")
"""Options that don't change what is measured."""


@dataclass(frozen=True)
class Quantize(Pass):
    """Round weights to different numbers of bits, within a budget that the whole model has.

    Before:  `y = MatMul(Relu(MatMul(x, w0)), w1)`

    After:   the same with w0 on a grid of 3 bits, say, and w1, whose errors cost the outputs more, on one of 6

    Only numbers change. Each weight is rounded alone, to few bits, and the noise at the outputs measured; what it would
    be at other widths follows from the errors of the layer's own outputs (with --inputs, on samples held out). Bits
    then go where they save most noise per byte. First and last layers and embeddings are weights like others. Where the
    same bits everywhere do as well, by expectation or measured on samples held out, they are taken. Then all samples
    say how to round.

    Outputs that are scores of classes are compared as probabilities: what adds the same to all of them is no error.

    Options:
        size: of all weights of the model as stored, say 2.5MB or 800kB.
        bits: so many bits for an average weight: as many bytes as with the same bits everywhere.
        max_error: the largest error of an output, relative to its largest value.
        min_snr: the least signal-to-noise ratio of an output, in dB. With an error for a budget, the smallest weights
            that keep it are looked for. Where no budget is given: what --max-error, --min-snr and --max-drop allow,
            but for a fifth of it, which is left to others; without these, 25 dB.
        drop: how many points --metric may lose.
        by: how the noise of a weight is measured: `output`, a run of the model with that weight rounded; `fisher`,
            from gradients of the outputs, which take one run back for each sample however many weights there are.
        choices: numbers of bits that a weight may have, joined by +. What the target can't store is left out.
        scheme: affine or table; by default affine at 8 bits, else table.
        scores: whether outputs are scores of classes; by default those that look like it.
        min_size: elements from which a weight is rounded.
        resume: a file that measurements are kept in; after an interrupt, or with another budget, they are taken from
            it. By default that of --resume.
        jobs: how many weights are measured at once; 0: as many as there are cores.
        asked: without given inputs round nothing, unless the user has set a budget: synthesised ones say little.
    """

    name: ClassVar[str] = "quantize"
    lossy: ClassVar[bool] = True
    size: str | None = None
    bits: float | None = None
    max_error: float | None = None
    min_snr: float | None = None
    drop: float | None = None
    by: Literal["output", "fisher"] = "output"
    choices: tuple[int, ...] = (2, 3, 4, 6, 8)
    scheme: Literal["affine", "table"] | None = None
    scores: bool | None = None
    min_size: int = 2048
    resume: str | None = None
    jobs: int = 0
    asked: bool = False

    def __post_init__(self) -> None:
        """Raise ValueError for budgets that contradict each other, or are none."""
        errors = any(x is not None for x in (self.max_error, self.min_snr, self.drop))
        if sum((self.size is not None, self.bits is not None, errors)) > 1:
            raise ValueError("size, bits, and an error (max_error, min_snr, drop): one of them is the budget")
        if self.size is not None and _bytes(self.size) is None:
            raise ValueError(f"size={self.size}: a number and a unit, say 2.5MB or 800kB")
        if self.bits is not None and not 1 <= self.bits <= 16:
            raise ValueError(f"bits={self.bits}: from 1 to 16, on average")
        if self.max_error is not None and self.max_error <= 0:
            raise ValueError(f"max_error={self.max_error}: larger than 0")
        if self.drop is not None and self.drop < 0:
            raise ValueError(f"drop={self.drop}: 0 points or more")
        if self.jobs < 0:
            raise ValueError(f"jobs={self.jobs}: a number of cores, or 0 for all")
        if not self.choices:
            raise ValueError("choices: one number of bits at least, 1 to 8")
        for bits in self.choices:
            Wish(bits, self.scheme)

    def run(self, model: ir.Model, ctx: Context) -> int:
        """See the class. One weight is in memory at a time, at all widths; on disk, all are."""
        if self.drop is not None and ctx.metric is None:
            raise UsageError(f"pass {self.name}: drop={self.drop:g} needs a metric to measure; give --metric")
        if self.asked and not ctx.given and not ctx.budget:
            ctx.note("all weights are left to others: how few bits each needs, given inputs tell (--inputs)")
            return 0
        specs = self._specs(ctx)
        weights = [w for w in weight_grid.weights(model, self.min_size) if specs and _open(w)]
        if not specs or not weights:
            if specs:
                ctx.note(f"no weight of {self.min_size} elements or more that is not rounded yet was found")
            return 0
        known = self._known(model, ctx)
        with Scratch(ctx.scratch.dir) as spool:
            fits = Fits(model, weights, specs, ctx, spool, known, self.jobs)
            if not fits.found:
                ctx.note("no weight can be stored in fewer bytes on any of the grids")
                return 0
            limits = Limits(None if self.size is None else _bytes(self.size), self.bits, _allowed(self, ctx))
            probe = Probe(model, some_runs(model, ctx), self.scores)
            curves = self._curves(fits, probe, ctx)
            apart = held_back(model, weights, ctx) if ctx.given else ()
            comparing = Probe(model, apart, self.scores) if apart else probe
            judging = comparing if limits.allowed is None else judge(model, ctx, self.scores)
            return Search(fits, curves, comparing, judging, limits, ctx).run()

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

    def _known(self, model: ir.Model, ctx: Context) -> Measurements:
        """What an earlier search has measured on this model, with these inputs and options."""
        path = Path(self.resume) if self.resume is not None else ctx.resume
        if path is None:
            return Measurements()
        plain = {f.name: f.default for f in dataclasses.fields(self) if f.name in PLANS}
        options = dataclasses.replace(self, **plain).spec  # type: ignore[arg-type]
        metric = None if ctx.metric is None else (ctx.metric.name, ctx.metric.samples, ctx.metric.original)
        on = (ctx.target.name, ctx.given, ctx.seed, metric)
        found = Measurements(path, key(model, ctx.runs or (ctx.inputs,), options, *on))
        if found.stale:
            ctx.note(f"{path} held what was measured of another model, or with other inputs or options: it began anew")
        elif len(found):
            ctx.note(f"{len(found)} measurements of an earlier search were taken from {path}")
        return found

    def _curves(self, fits: Fits, probe: Probe, ctx: Context) -> list[Curve]:
        if self.by == "fisher":
            try:
                return by_gradients(fits, probe, ctx)
            except EdgecError as e:
                ctx.note(f"by=output in place of fisher: {e}")
        return by_outputs(fits, probe, ctx)


def _allowed(options: Quantize, ctx: Context) -> Allowed | None:
    """The errors that the outputs may have: the pass's own budget, else the user's for all; None: any."""
    own = (options.max_error, options.min_snr, options.drop)
    if any(x is not None for x in own):
        return Allowed(options.max_error, options.min_snr, max_drop=options.drop)
    if ctx.budget:
        return allowed_by(ctx, SHARE)
    return None if options.size is not None or options.bits is not None else allowed_by(ctx, 1.0)


def _open(weight: weight_grid.Weight) -> bool:
    """Whether a weight is neither rounded yet nor was left as it is."""
    tensor = weight.value.const_value
    assert tensor is not None
    if weight_grid.KEPT in weight.value.meta:
        return False
    array = tensor.numpy()
    rounded = weight.axis is not None and lies_on(weight, array, GridSpec(), weight.axis)
    release_tensor(tensor)
    return not rounded


def _bytes(text: str) -> float | None:
    found = re.fullmatch(r"([0-9.]+)\s*(|B|kB|MB|GB)", text.strip())
    try:
        return float(found[1]) * _UNITS[found[2]] if found else None
    except ValueError:
        return None
