"""Round weights to few bits; `pack-weights` stores them so afterwards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import numpy as np
import onnx_ir as ir

from ..compiler.calibration.statistics import Moments
from ..compiler.errors import EdgecError
from ..compiler.passbase import Context, Pass
from ..compiler.quantization import grids
from ..compiler.quantization.gridfit import GridSpec, fit
from ..compiler.quantization.scales import Unreachable
from ..compiler.session import Session
from ..compiler.synthesis import synthesise
from ..compiler.weights import release, release_tensor
from . import weight_grid
from .calibrated import Calibrated, calibrated, importance, with_moments
from .descended import descended
from .grid_options import Wish, bits_of, spec_for, spec_of_weight, spec_of_zeros
from .grid_search import MANY, zero_share
from .in_turn import in_turn
from .noise_search import budget, decibels, noise_power, search

MIN_SNR = 25.0
"""What `min_snr` is by default from 8 bits. Those who ask for fewer know what they may cost."""
_CALIBRATED = ("feedback", "descent", "sequential")
"""Ways that want data."""
MARGIN = 1.0
"""By how many dB the outputs must then be better than what --min-snr asks of the whole: the rest is for others."""


@dataclass(frozen=True)
class Rounded:
    """A rounded weight: the tensor, the grid that it lies on, and biases that make up for the mean error, by name.

    Attributes:
        loss: as in `Calibrated`.
    """

    tensor: ir.TensorProtocol
    grid: grids.Grid | grids.Sparse
    biases: Mapping[str, ir.TensorProtocol] = field(default_factory=dict)
    loss: float | None = None


@dataclass(frozen=True)
class RoundWeights(Pass):
    """Round the weights of linear operators and embeddings to a grid of few numbers.

    Before:  `y = Conv(x, w)`

    After:   `y = Conv(x, w')`, say w' = q · scale[channel], q whole, -127 … 127

    Only numbers change; the weights are still float32. A channel is an output channel of Conv, ConvTranspose, Gemm,
    MatMul, LSTM, GRU and RNN, and a row of a table that Gather reads. Weights that are shared are rounded once, if
    their readers agree on the axis: an embedding that is, transposed, also the last matrix has a scale for each word.
    What the target can't store is not chosen, or the nearest to it is, and said. docs/quantization.md explains grids.
    Zeros stay zeros where mask-weights made them, or where they are three eighths or more: the rest is rounded, to a
    grid of its own where the target stores zeros apart and that saves bytes.

    When the outputs lose too much, the few weights that cost them most stay as they are, and are named; where no few
    are to blame, nothing is rounded.

    Options:
        bits: 1 … 8.
        scheme: affine (whole numbers times a scale), table (any numbers, by k-means), ternary, binary, float16,
            bfloat16, float8e4m3, float8e5m2, float4, nf4. By default affine at 8 bits and with blocks, else table.
        symmetric: affine: 0 is in the middle; else there are zero points.
        per: what has a scale of its own: tensor, channel or block. By default channel, of float4 and nf4 block; tables
            have no scales per tensor, nor where the target doesn't multiply.
        block: inputs that share a scale; with it, `per` is block. 32 by default.
        group: channels that share a table; 0: all.
        vector: neighbouring channels that share an index into a table: 1, 2 or 4.
        by: nearest: scales that just reach the largest number; mse: scales of the least square error; feedback: that
            of the layers' outputs on the given inputs (--inputs). There, inputs that are rounded later make up for the
            errors of earlier ones (GPTQ), and biases for the mean error, as far as both pay on samples that are held
            out. descent: then the numbers are gone through a few times more, each given all others (twice the time).
            sequential: layers are rounded in turn, in eight steps, by the inputs that they get then, towards the
            outputs that they had: later layers make up for earlier ones (several times the time).
            By default feedback where inputs are given, else mse.
        min_size: elements from which a weight is rounded; small ones cost accuracy and save nothing.
        min_snr: signal-to-noise ratio that the outputs must keep against the model as it is, in dB; 0: any. By default
            25 from 8 bits, where most networks keep 30 to 50 dB (at 25 dB an error is 6 % of the signal), else any;
            1 dB more than --min-snr where that is more.
    """

    name: ClassVar[str] = "round-weights"
    lossy: ClassVar[bool] = True
    bits: int = 8
    scheme: str | None = None
    symmetric: bool = True
    per: Literal["tensor", "channel", "block"] | None = None
    block: int | None = None
    group: int = 0
    vector: int = 1
    by: Literal["nearest", "mse", "feedback", "descent", "sequential"] | None = None
    min_size: int = 2048
    min_snr: float | None = None

    def __post_init__(self) -> None:
        """Raise ValueError for options that no target has, or that contradict each other."""
        self._wish()

    def _wish(self) -> Wish:
        if self.block is not None and self.per not in (None, "block"):
            raise ValueError(f"block={self.block}, per={self.per}: a block has a scale of its own")
        per = "block" if self.block is not None else self.per
        return Wish(
            self.bits, self.scheme, self.symmetric, per, self.block, self.group, self.vector, self.by != "nearest"
        )

    def run(self, model: ir.Model, ctx: Context) -> int:
        """See the class. One weight is in memory at a time. Runs the model twice, at worst some 40 times."""
        spec, notes = spec_for(self._wish(), ctx.target)
        weights = weight_grid.weights(model, self.min_size) if spec else []
        weights = [w for w in weights if weight_grid.KEPT not in w.value.meta]
        for note in notes if weights or spec is None else ():
            ctx.note(note)
        if spec is None:
            return 0
        rounded = self._all_rounded(model, weights, spec, ctx)
        usual = max(MIN_SNR if bits_of(spec) >= 8 else 0.0, 0.0 if ctx.min_snr is None else ctx.min_snr + MARGIN)
        floor = usual if self.min_snr is None else self.min_snr
        for name in _spared(model, rounded, len(weights), floor, spec, ctx) if rounded and floor else ():
            del rounded[name]
        replace_weights(model, rounded)
        return len(rounded)

    def _all_rounded(
        self, model: ir.Model, weights: Sequence[weight_grid.Weight], spec: GridSpec, ctx: Context
    ) -> dict[str, Rounded]:
        """What becomes of the weights, by name."""
        if self.by in _CALIBRATED and not ctx.given:
            ctx.note("weights are rounded without data: no inputs are given (--inputs)")
        given = ctx.given and self.by in (None, *_CALIBRATED)
        names = [w.value.name or "" for w in weights]
        if given and self.by == "sequential":
            known = in_turn(model, weights, ctx, lambda w, m: round_weight(w, spec, ctx, m), replace_weights)
            return {n: found for n in names if (found := known[n]) is not None}
        pairs = with_moments(model, weights, ctx) if given else ((w, None) for w in weights)
        rounded = {w.value.name or "": round_weight(w, spec, ctx, known, self.by == "descent") for w, known in pairs}
        return {n: found for n in names if (found := rounded[n]) is not None}


def round_weight(
    weight: weight_grid.Weight, spec: GridSpec, ctx: Context, known: Moments | None, descent: bool = False
) -> Rounded | None:
    """The weight rounded; None where it can't be, which is noted, or lies on such a grid already."""
    name, tensor = weight.value.name or "", weight.value.const_value
    assert tensor is not None
    axis = weight.axis if weight.axis is not None or spec.per != "tensor" or spec.group else 0
    if axis is None:
        ctx.note(f"weight '{name}' is not rounded: its readers disagree on which axis holds the channels")
        return None
    array = tensor.numpy()
    try:
        if lies_on(weight, array, spec, axis):
            return None
        shape, inputs = array.shape, weight_grid.inputs(weight)
        own, why = spec_of_weight(spec, shape, axis, inputs, ctx.target.storage)
        share = zero_share(array)
        if share >= MANY or isinstance(grids.read(weight.value), grids.Sparse):
            own, other = spec_of_zeros(own, share, ctx.target.storage)
            why = why or other
        grid = fit(array, axis, own, importance(array, known), inputs=inputs)
        result = calibrated(array, grid, known) if known is not None else Calibrated(grid.round(array))
        if descent and known is not None:
            result = descended(array, result, grid, known)
        same = np.array_equal(result.array, array)
    except (Unreachable, EdgecError) as e:
        ctx.note(f"weight '{name}' is not rounded: {e}")
        return None
    finally:
        release_tensor(tensor)
    if why:
        ctx.note(f"weight '{name}' is rounded otherwise: {why}")
    if same:
        grids.write(weight.value, grid)
        return None
    shifted = {b.name or "": ir.Tensor(a, name=b.name) for b, a in result.biases.items()}
    return Rounded(ctx.scratch.tensor(result.array, name), grid, shifted, result.loss)


def lies_on(weight: weight_grid.Weight, array: np.ndarray, spec: GridSpec, axis: int) -> bool:
    """Whether a weight has been rounded to so few bits already, by us or, 8-bit integers, by anybody."""
    known = grids.read(weight.value)
    if known is not None and known.bits <= bits_of(spec) and known.indices(array) is not None:
        return True
    if spec.scheme != "affine" or spec.bits != 8 or spec.per == "tensor" or not spec.symmetric:
        return False
    return bool(np.isfinite(array).all()) and weight_grid.recover(array, axis) is not None


def _spared(
    model: ir.Model, rounded: Mapping[str, Rounded], total: int, floor: float, spec: GridSpec, ctx: Context
) -> list[str]:
    """The weights that must not be rounded for the outputs to keep `floor` dB."""
    inputs = dict(ctx.inputs or synthesise(model, ctx.seed))
    reference = Session(model).run(inputs)
    release(model)

    def noise(kept: Sequence[str]) -> float:
        trial = model.clone()
        replace_weights(trial, {n: t for n, t in rounded.items() if n not in kept})
        found = Session(trial).run(inputs)
        release(trial)
        return noise_power(reference, found)

    whole = noise(())
    if whole <= budget(floor):
        return []
    result = search(list(rounded), budget(floor), noise, total)
    for stretch in result.kept:
        names = ", ".join(f"'{n}'" for n in stretch.names)
        ctx.note(f"not rounded: {names}: rounding here alone would leave the outputs {decibels(stretch.noise)}")
    if not result.found:
        # Nothing rounded is better than something broken: this pass runs at the default level.
        ctx.note(
            f"no weight is rounded: with {bits_of(spec)}-bit weights the outputs would keep {decibels(whole)}, less "
            f"than the {floor:.0f} dB wanted, and no few weights are to blame. Measured on "
            + ("the given inputs." if ctx.given else "synthesised inputs; with real ones (--inputs) it may do.")
        )
        return list(rounded)
    return [n for stretch in result.kept for n in stretch.names]


def replace_weights(model: ir.Model, rounded: Mapping[str, Rounded]) -> None:
    """Put rounded weights, and the biases that go with them, in the place of the initializers of these names."""
    for graph in model.graphs():
        for name in graph.initializers.keys() & rounded.keys():
            value = graph.initializers[name]
            value.const_value = rounded[name].tensor
            grids.write(value, rounded[name].grid)
        biases = {name: tensor for each in rounded.values() for name, tensor in each.biases.items()}
        for name in graph.initializers.keys() & biases.keys():
            graph.initializers[name].const_value = biases[name]
