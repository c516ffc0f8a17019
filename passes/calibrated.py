"""Rounding weights by what calibration samples say about the inputs of their layers."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from ..compiler.calibration.batching import held_out, spread
from ..compiler.calibration.linear_layers import Layer, linear_layers
from ..compiler.calibration.statistics import Moments, moments
from ..compiler.calibration.streaming import Runs
from ..compiler.errors import UsageError
from ..compiler.graph import const
from ..compiler.passbase import Context
from ..compiler.quantization.feedback import choose
from ..compiler.quantization.grids import Grid, Sparse
from .biases import own_bias
from .weight_grid import Weight

SAMPLES = 256
"""Given samples that are looked at: more cost time and teach little."""

LEAST = 1e-4
"""Of the mean: importance that inputs have that were 0 in all samples."""


@dataclass(frozen=True)
class Calibrated:
    """A rounded weight, and what becomes of the bias that makes up for the mean of what rounding takes away.

    Attributes:
        loss: mean square error of the layer's outputs, summed, to be expected on other samples; None: not known.
    """

    array: np.ndarray
    biases: Mapping[ir.Value, np.ndarray] = field(default_factory=dict)
    loss: float | None = None


def with_moments(model: ir.Model, weights: Sequence[Weight], ctx: Context) -> Iterator[tuple[Weight, Moments | None]]:
    """Each weight with what the given samples tell about its inputs: a few layers at a time, the rest with None.

    A weight that operators read in several ways comes with None: no one set of inputs stands for all of them.
    """
    wanted = {w.value: w for w in weights}
    layers = _layers(model, wanted)
    try:
        for known in moments(model, layers, spread(ctx.runs or (ctx.inputs,), SAMPLES), seed=ctx.seed):
            if not known.shared:
                yield wanted.pop(known.weight), known
    except UsageError as e:
        ctx.note(f"{len(wanted)} weights are rounded without the given inputs: {e}")
    for weight in wanted.values():
        yield weight, None


def held_back(model: ir.Model, weights: Sequence[Weight], ctx: Context) -> Runs:
    """Of the given samples those that don't say how to round, in batches: none where there is only one, or no layer."""
    layers = _layers(model, {w.value for w in weights})
    return held_out(model, layers, spread(ctx.runs or (ctx.inputs,), SAMPLES)) if layers else ()


def _layers(model: ir.Model, weights: Container[ir.Value]) -> list[Layer]:
    return [layer for layer in linear_layers(model) if layer.weight in weights]


def importance(array: np.ndarray, known: Moments | None) -> np.ndarray | None:
    """What a square error costs the layer's outputs, for each element of a weight; None where nothing is known.

    That is the second moment of its input. Tables are fitted to errors in units of a channel's own mean square, unlike
    the outputs: so that comes on top. How often a row of a table was read says little about rows that were not.
    """
    if known is None or known.layer.counted:
        return None
    groups, _, inputs = known.layer.sizes
    diagonal = np.broadcast_to(known.whole.diagonal, (groups, inputs))
    if not diagonal.any():
        return None
    wide = np.maximum(diagonal, diagonal.mean() * LEAST)
    squares = np.square(known.layer.matrix(array)).mean(2, keepdims=True)
    found = wide[:, None] * (squares / max(float(squares.max()), np.finfo(np.float32).tiny))
    return known.layer.shaped(found.astype(np.float32))


def calibrated(array: np.ndarray, grid: Grid | Sparse, known: Moments) -> Calibrated:
    """The weight on the grid, with error feedback where it pays; and the bias, if there is one and a shift pays."""
    bias = own_bias(known.layer)
    found = choose(array, grid, known, bias=bias is not None)
    if bias is None or found.shift is None:
        return Calibrated(found.array, {}, found.loss)
    old = const(bias)
    assert old is not None
    return Calibrated(found.array, {bias: old + found.shift.reshape(old.shape)}, found.loss)
