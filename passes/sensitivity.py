"""What rounding each weight costs the outputs, measured: one run of the model for each weight.

A weight is rounded alone, to few bits, and the noise at the outputs measured. At other widths the noise follows the
error of its own layer's outputs, which second moments of the layer's inputs give without a run, for samples that were
held out. So a rounding that fits the samples too well does not look better than it is.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import onnx_ir as ir

from ..compiler.calibration.statistics import Moments
from ..compiler.parallel import cores, each
from ..compiler.passbase import Context
from ..compiler.quantization import grids
from ..compiler.quantization.feedback import centred
from ..compiler.quantization.gridfit import GridSpec
from ..compiler.targets import Storage
from ..compiler.weights import Scratch, release_tensor
from .bit_budget import Curve, Plan, Width
from .calibrated import with_moments
from .fisher_noise import fisher_noise
from .measurements import Measurements
from .probe import Alone, Probe, alone
from .round_weights import Rounded, round_weight
from .stored_forms import store
from .weight_grid import Weight

BITS = 3
"""Bits that a weight is rounded to while its noise is measured: few, so that the noise stands out."""
LOUD = 0.1
"""Noise power over signal power above which noise no longer grows with the error: then measured with more bits."""
COMMON = 4
"""Bits that all weights are rounded to at once, to see how much of the noise gradients tell."""


@dataclass(eq=False)
class Fitted:
    """A weight, rounded to several widths.

    Attributes:
        plain: bits and bytes of the weight as it is.
        rounded: by bits, as far as it is needed.
        nbytes: as stored, by bits: the widths that the weight may have.
        losses: by bits: the error of its layer's outputs to be expected, and on the samples that it was fitted to.
        biases: the names of biases that change with it.
    """

    weight: Weight
    elements: int
    plain: Width
    rounded: dict[int, Rounded] = field(default_factory=dict)
    nbytes: dict[int, int] = field(default_factory=dict)
    losses: dict[int, tuple[float, float]] = field(default_factory=dict)
    biases: set[str] = field(default_factory=set)

    @property
    def name(self) -> str:
        """The initializer's name."""
        return self.weight.value.name or ""


class Fits:
    """Weights rounded to each width of `specs`: all at first, as far as `known` doesn't tell what comes of it.

    They are rounded without the samples that were held out, so that these tell what plans are worth; `finished` rounds
    the weights of the plan that is chosen by all samples.

    Rounded weights lie in `spool`. Those that can't be rounded are left out of `found`, which keeps the order.
    """

    def __init__(
        self,
        model: ir.Model,
        weights: Sequence[Weight],
        specs: Mapping[int, GridSpec],
        ctx: Context,
        spool: Scratch,
        known: Measurements,
        jobs: int = 0,
    ) -> None:
        self.model, self.known, self.jobs = model, known, cores(jobs)
        self._specs, self._ctx = specs, ctx
        self._inside = replace(ctx, scratch=spool, notes=ctx.notes)
        wide = 16 if ctx.target.float16 else 32
        stored = ctx.target.storage
        every = [Fitted(w, _elements(w), _plain(w, wide, stored)) for w in weights]
        new = [f for f in every if not self._recall(f)]
        self._fit([(f, list(specs)) for f in new], "rounding weights to all widths")
        self.found = [f for f in every if f.nbytes]

    def rounded(self, plan: Plan) -> dict[str, Rounded]:
        """The weights of a plan of all `found`, by name, those that it rounds."""
        pairs = [(f, w.bits) for f, w in zip(self.found, plan, strict=True) if w.bits in f.nbytes]
        self.need((f, [b]) for f, b in pairs)
        return {f.name: f.rounded[b] for f, b in pairs}

    def finished(self, plan: Plan) -> dict[str, Rounded]:
        """The same, rounded by all samples, those that were held out included."""
        if not self._ctx.given:
            return self.rounded(plan)
        pairs = zip(self.found, plan, strict=True)
        bits = {f.weight.value: w.bits for f, w in pairs if w.bits in f.nbytes}
        weights = [f.weight for f in self.found if f.weight.value in bits]
        done = each(
            lambda p: (p[0].value.name or "", round_weight(p[0], self._specs[bits[p[0].value]], self._inside, p[1])),
            with_moments(self.model, weights, self._ctx) if weights else (),
            self.jobs,
        )
        found: dict[str, Rounded] = {}
        for name, rounded in done:
            assert rounded is not None  # it was, by fewer samples
            found[name] = rounded
            self._ctx.progress("rounding weights by all samples", len(found), len(weights))
        return found

    def need(self, wanted: Iterable[tuple[Fitted, Collection[int]]]) -> None:
        """Round weights, to these bits, that are known from an earlier search only.

        To more bits, too, as then: what does best at one width is where the search at the next begins.
        """
        missing = [(f, [b for b in bits if b not in f.rounded]) for f, bits in wanted]
        again = [(f, [b for b in self._specs if b >= min(bits)]) for f, bits in missing if bits]
        self._fit(again, "rounding weights again")

    def _recall(self, fitted: Fitted) -> bool:
        found = self.known.get("weight", fitted.name)
        if found is None:
            return False
        for bits, (nbytes, expected, seen) in found["widths"].items():
            fitted.nbytes[int(bits)], fitted.losses[int(bits)] = nbytes, (expected, seen)
        fitted.biases.update(found["biases"])
        return True

    def _fit(self, wanted: Sequence[tuple[Fitted, Sequence[int]]], what: str) -> None:
        by_value = {f.weight.value: (f, bits) for f, bits in wanted}
        weights = [f.weight for f, _ in wanted]
        if not weights:
            return
        pairs = with_moments(self.model, weights, self._ctx) if self._ctx.given else ((w, None) for w in weights)
        done = each(lambda p: self._one(*by_value[p[0].value], p[1]), pairs, self.jobs)
        for i, _ in enumerate(done):
            self._ctx.progress(what, i + 1, len(weights))

    def _one(self, fitted: Fitted, wanted: Sequence[int], moments: Moments | None) -> None:
        weight, first, storage = fitted.weight, not fitted.nbytes, self._ctx.target.storage
        tensor = weight.value.const_value
        assert tensor is not None
        for bits in sorted(wanted, reverse=True):
            rounded = round_weight(weight, self._specs[bits], self._inside, moments and moments.trial())
            if rounded is None:
                fitted.nbytes.clear()
                break
            array, made = tensor.numpy(), rounded.tensor.numpy()
            form = store(_whole(rounded.grid, storage), made, storage)
            if form is not None and form.nbytes < fitted.plain.nbytes:
                fitted.rounded[bits], fitted.nbytes[bits] = rounded, form.nbytes
                fitted.losses[bits] = _losses(array - made, rounded, moments)
                fitted.biases.update(rounded.biases)
            release_tensor(tensor)
            release_tensor(rounded.tensor)
        if first:
            found = {b: (n, *fitted.losses[b]) for b, n in fitted.nbytes.items()}
            self.known.put("weight", fitted.name, widths=found, biases=sorted(fitted.biases))


def _elements(weight: Weight) -> int:
    assert weight.value.const_value is not None
    return int(weight.value.const_value.size)


def _whole(grid: grids.Grid | grids.Sparse, storage: Storage) -> grids.Grid | grids.Sparse:
    """The grid with zeros among its numbers, where the target can't store them apart."""
    if isinstance(grid, grids.Sparse) and grid.inner is not None and not storage.joint:
        return grid.inner
    return grid


def _plain(weight: Weight, bits: int, storage: Storage) -> Width:
    """A weight as it is. Zeros that were masked are stored as a bit each, where that is less and the target can."""
    tensor, count = weight.value.const_value, _elements(weight)
    nbytes = count * bits // 8
    if storage.sparse and isinstance(grids.read(weight.value), grids.Sparse):
        assert tensor is not None
        nbytes = min(nbytes, -(-count // 8) + int(np.count_nonzero(tensor.numpy() != 0)) * bits // 8)
        release_tensor(tensor)
    return Width(bits, nbytes, 0.0)


def _losses(error: np.ndarray, rounded: Rounded, known: Moments | None) -> tuple[float, float]:
    # Rows of a table that no sample has read are as good as others: each error counts.
    if known is None or known.layer.counted or not rounded.loss:
        square = float(np.vdot(error, error))
        return square, square
    whole = known.whole
    if rounded.biases and whole.gram is not None:
        whole = centred(whole, whole)
    return rounded.loss, whole.loss(known.layer.matrix(error))


def curves(fits: Fits, probe: Probe, ctx: Context, by: str) -> list[Curve]:
    """The widths of each weight and the noise to be expected at each."""
    return by_gradients(fits, probe, ctx) if by == "fisher" else by_outputs(fits, probe, ctx)


def by_outputs(fits: Fits, probe: Probe, ctx: Context) -> list[Curve]:
    """One run for each weight, a few where noise is loud."""
    every: dict[int, Curve] = {}
    left: list[int] = []
    for i, f in enumerate(fits.found):
        known = fits.known.get("alone", f.name)
        if known is None:
            left.append(i)
        else:
            every[i] = _widths(f, known["scale"])
    fits.need((fits.found[i], [next(_measured(fits.found[i].nbytes))]) for i in left)
    ways = alone(probe, [(f.name, sorted(f.biases)) for f in (fits.found[i] for i in left)], _threads(fits.jobs))

    def one(job: tuple[int, Alone]) -> tuple[int, Curve]:
        i, way = left[job[0]], job[1]
        f = fits.found[i]
        scale = _scale(f, way, fits)
        fits.known.put("alone", f.name, scale=scale)
        return i, _widths(f, scale)

    for i, curve in each(one, ways, fits.jobs):
        every[i] = curve
        ctx.progress("measuring weights one by one", len(every), len(fits.found))
    return [every[i] for i in range(len(fits.found))]


def _threads(jobs: int) -> int:
    """Threads of each session: with several sessions at work, one."""
    return 0 if jobs == 1 else 1


def _scale(weight: Fitted, way: Alone, fits: Fits) -> float:
    """Noise at the outputs for each unit of error of the layer's outputs."""
    for bits in _measured(weight.nbytes):
        fits.need([(weight, [bits])])
        measured, seen = way.damage(weight.name, weight.rounded[bits]).noise, weight.losses[bits][1]
        scale = 0.0 if measured == 0 else measured / seen if seen > 0 else math.inf
        if measured <= LOUD:
            break
    return scale


def _widths(weight: Fitted, scale: float) -> list[Width]:
    found = [Width(b, n, _times(scale, weight.losses[b][0])) for b, n in sorted(weight.nbytes.items())]
    return [*found, weight.plain]


def _times(scale: float, loss: float) -> float:
    return scale * loss if math.isfinite(scale) else math.inf


def _measured(bits: Collection[int]) -> Iterator[int]:
    """At which widths to measure, in order: the usual one, then wider ones."""
    ordered = sorted(bits)
    first = next((b for b in ordered if b >= BITS), ordered[-1])
    yield from (b for b in ordered if b >= first)


def by_gradients(fits: Fits, probe: Probe, ctx: Context) -> list[Curve]:
    """What gradients of the outputs say of the errors at each width, in the unit of what is measured.

    Raises UnsupportedOp where the model can't be differentiated.
    """
    found = fits.found
    known = {f.name: e for f in found if (e := fits.known.get("gradients", f.name)) is not None}
    if len(known) < len(found):
        fits.need((f, list(f.nbytes)) for f in found)
        errors = {f.name: {b: f.rounded[b] for b in f.nbytes} for f in found}
        noises = fisher_noise(probe, errors, ctx.seed, ctx.progress)
        common = tuple(min(_widths(f, 1.0)[:-1], key=lambda w: abs(w.bits - COMMON)) for f in found)
        told = math.fsum(noises[f.name][w.bits] for f, w in zip(found, common, strict=True))
        measured = probe.damage(fits.rounded(common)).noise
        unit = measured / told if told > 0 and math.isfinite(measured) else 1.0
        for f in found:
            fits.known.put("gradients", f.name, noise={b: n * unit for b, n in noises[f.name].items()})
            known[f.name] = fits.known.get("gradients", f.name) or {}
    curves: list[Curve] = []
    for f in found:
        noise = {int(b): n for b, n in known[f.name]["noise"].items()}
        # What was fitted to the samples whose gradients these are does worse on others.
        over = {b: expected / seen if seen > 0 else 1.0 for b, (expected, seen) in f.losses.items()}
        curves.append([*(Width(b, n, noise[b] * over[b]) for b, n in sorted(f.nbytes.items())), f.plain])
    return curves
