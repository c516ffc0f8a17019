"""Round weights to 8 bits a channel; `pack-weights` stores them so afterwards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from ..compiler.passbase import Context, Pass
from ..compiler.session import Session
from ..compiler.synthesis import synthesise
from ..compiler.weights import release, release_tensor
from . import weight_grid as grid
from .noise_search import budget, decibels, noise_power, search

Tensors = Mapping[str, ir.TensorProtocol]


@dataclass(frozen=True)
class RoundWeights(Pass):
    """Round the weights of linear operators and embeddings to a symmetric 8-bit grid, a float16 scale for each channel.

    Before:  `y = Conv(x, w)`

    After:   `y = Conv(x, w')`, w' = q · scale[channel], q whole, -127 … 127

    Only numbers change; the weights are still float32. A channel is an output channel of Conv, ConvTranspose, Gemm,
    MatMul, LSTM, GRU and RNN, and a row of a table that Gather reads. Weights that are shared are rounded once, if
    their readers agree on the axis: an embedding that is, transposed, also the last matrix has a scale for each word.
    Targets that don't store 8-bit weights get nothing rounded.

    When the outputs lose too much, the few weights that cost them most stay as they are, and are named; where no few
    are to blame, nothing is rounded.

    Options:
        bits: 8.
        min_size: elements from which a weight is rounded; small ones cost accuracy and save nothing.
        min_snr: signal-to-noise ratio that the outputs must keep against the model as it is, in dB. 8-bit weights cost
            most networks 30 to 50 dB; at 25 dB an error is 6 % of the signal.
    """

    name: ClassVar[str] = "round-weights"
    lossy: ClassVar[bool] = True
    bits: int = 8
    min_size: int = 2048
    min_snr: float = 25.0

    def __post_init__(self) -> None:
        if self.bits != 8:
            raise ValueError(f"bits={self.bits}: weights are rounded to 8 bits")

    def run(self, model: ir.Model, ctx: Context) -> int:
        """See the class. One weight is in memory at a time. Runs the model twice, at worst some 40 times."""
        if self.bits not in ctx.target.weight_bits:
            ctx.note(f"{ctx.target.name} stores no {self.bits}-bit weights: nothing is rounded")
            return 0
        rounded: dict[str, ir.TensorProtocol] = {}
        weights = grid.weights(model, self.min_size)
        for weight in weights:
            name = weight.value.name or ""
            if weight.axis is None:
                ctx.note(f"weight '{name}' is not rounded: its readers disagree on which axis holds the channels")
                continue
            array = _rounded(weight.value, weight.axis)
            if (tensor := weight.value.const_value) is not None:
                release_tensor(tensor)
            if array is None:
                ctx.note(f"weight '{name}' is not rounded: no float16 scale reaches its largest value")
            elif array.size:
                rounded[name] = ctx.scratch.tensor(array, name)
        for name in self._spared(model, rounded, len(weights), ctx) if rounded else ():
            del rounded[name]
        _replace(model, rounded)
        return len(rounded)

    def _spared(self, model: ir.Model, rounded: Tensors, total: int, ctx: Context) -> list[str]:
        """The weights that must not be rounded for the outputs to keep `min_snr` dB."""
        floor = self.min_snr
        inputs = dict(ctx.inputs or synthesise(model, ctx.seed))
        reference = Session(model).run(inputs)
        release(model)

        def noise(kept: Sequence[str]) -> float:
            trial = model.clone()
            _replace(trial, {n: t for n, t in rounded.items() if n not in kept})
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
                f"no weight is rounded: with 8-bit weights the outputs would keep {decibels(whole)}, less than the "
                f"{floor:.0f} dB wanted, and no few weights are to blame. Measured on "
                + ("the given inputs." if ctx.given else "synthesised inputs; with real ones (--inputs) it may do.")
            )
            return list(rounded)
        return [n for stretch in result.kept for n in stretch.names]


def _replace(model: ir.Model, tensors: Tensors) -> None:
    for graph in model.graphs():
        for name in graph.initializers.keys() & tensors.keys():
            graph.initializers[name].const_value = tensors[name]


def _rounded(value: ir.Value, axis: int) -> np.ndarray | None:
    """The rounded weight; empty when it is on a grid already, None when it can't be rounded."""
    array = value.const_value.numpy()  # type: ignore[union-attr]
    top = grid.peaks(array, axis)
    scale = grid.scales(top)
    if not np.isfinite(scale).all():
        return None
    if grid.recover(array, axis, top) is not None:
        return array[:0]
    result = np.empty_like(array)
    for rows, part in grid.blocks(array):
        s = grid.spread(scale, axis, array.ndim, rows)
        np.multiply(grid.steps(part, s), s, out=result[rows])
    return result
