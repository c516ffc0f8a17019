"""Round weights to 8 bits a channel; `pack-weights` stores them so afterwards."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from ..compiler.graph import initializer
from ..compiler.passbase import Context, Pass
from . import grid


@dataclass(frozen=True)
class RoundWeights(Pass):
    """Round the weights of linear operators and embeddings to a symmetric 8-bit grid, a float16 scale for each channel.

    Before:  `y = Conv(x, w)`

    After:   `y = Conv(x, w')`, w' = q · scale[channel], q whole, -127 … 127

    Only numbers change; the weights are still float32. A channel is an output channel of Conv, ConvTranspose, Gemm,
    MatMul, LSTM, GRU and RNN, and a row of a table that Gather reads. Weights that are shared are rounded once, if
    their readers agree on the axis. Targets that don't store 8-bit weights get nothing rounded.

    Options:
        bits: 8.
        min_size: elements from which a weight is rounded; small ones cost accuracy and save nothing.
    """

    name: ClassVar[str] = "round-weights"
    lossy: ClassVar[bool] = True
    bits: int = 8
    min_size: int = 2048

    def __post_init__(self) -> None:
        if self.bits != 8:
            raise ValueError(f"bits={self.bits}: weights are rounded to 8 bits")

    def run(self, model: ir.Model, ctx: Context) -> int:
        """See the class. One weight is in memory at a time."""
        if self.bits not in ctx.target.weight_bits:
            ctx.note(f"{ctx.target.name} stores no {self.bits}-bit weights: nothing is rounded")
            return 0
        count = 0
        for weight in grid.weights(model, self.min_size):
            name = weight.value.name
            if weight.axis is None:
                ctx.note(f"weight '{name}' is not rounded: its readers disagree on which axis holds the channels")
                continue
            rounded = _rounded(weight.value, weight.axis)
            if rounded is None:
                ctx.note(f"weight '{name}' is not rounded: no float16 scale reaches its largest value")
            elif rounded.size:
                _replace(weight, rounded, ctx)
                count += 1
        return count


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


def _replace(weight: grid.Weight, array: np.ndarray, ctx: Context) -> None:
    old = weight.value
    graph = old.graph
    assert isinstance(graph, ir.Graph)
    new = initializer(graph, array, f"{old.name}__int8", ctx.scratch)
    for node, i in weight.readers:
        node.replace_input_with(i, new)
    graph.initializers.pop(old.name or "")
