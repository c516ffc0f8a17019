"""Rounding layers in turn: each by the inputs that it gets behind rounded ones, towards what it gave before."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from ..compiler.calibration.batching import spread
from ..compiler.calibration.linear_layers import linear_layers
from ..compiler.calibration.statistics import Moments, moments
from ..compiler.errors import UsageError
from ..compiler.graph import const
from ..compiler.passbase import Context
from ..compiler.quantization.grids import read
from ..compiler.quantization.towards import towards
from .biases import own_bias
from .calibrated import SAMPLES
from .grid_search import MANY, zero_share
from .weight_grid import Weight, recover

if TYPE_CHECKING:
    from .round_weights import Rounded

STEPS = 8
"""Parts of the layers that are rounded one after another: each runs the samples through both models again."""
Rounding = Callable[[Weight, Moments | None], "Rounded | None"]
Put = Callable[[ir.Model, Mapping[str, "Rounded"]], None]


def in_turn(
    model: ir.Model, weights: Sequence[Weight], ctx: Context, rounding: Rounding, put: Put
) -> dict[str, Rounded | None]:
    """What becomes of the weights, by name. `put` carries it out in a copy of the model, for later layers to see."""
    trial = model.clone()
    own = {n: v for graph in trial.graphs() for n, v in graph.initializers.items()}
    left = {v: replace(w, value=v) for w in weights if (v := own[w.value.name or ""])}
    layers, others = ([x for x in linear_layers(m) if x.weight.name in {v.name for v in left}] for m in (trial, model))
    found: dict[str, Rounded | None] = {}

    def round_one(weight: Weight, known: Moments | None) -> None:
        name = weight.value.name or ""
        found[name] = rounded = _one(weight, known, rounding)
        if rounded is not None:
            put(trial, {name: rounded})

    try:
        runs, most = spread(ctx.runs or (ctx.inputs,), SAMPLES), -(-len(layers) // STEPS)
        for known in moments(trial, layers, runs, reference=(model, others), most=most, seed=ctx.seed):
            if not known.shared and known.weight in left:
                round_one(left.pop(known.weight), known)
    except UsageError as e:
        ctx.note(f"{len(left)} weights are rounded without the given inputs: {e}")
    for weight in left.values():
        round_one(weight, None)
    return found


def _one(weight: Weight, known: Moments | None, rounding: Rounding) -> Rounded | None:
    """A weight rounded, or what has to be in its place; its bias with it."""
    tensor = weight.value.const_value
    assert tensor is not None
    array = tensor.numpy()
    done = read(weight.value) is not None or (weight.axis is not None and recover(array, weight.axis) is not None)
    if known is None or done or zero_share(array) >= MANY:  # zeros are to stay
        return rounding(weight, known)
    bias = own_bias(known.layer)
    goal = towards(known.layer.matrix(array), known, bias is not None)
    if goal is None:
        return rounding(weight, known)
    weight.value.const_value = ir.tensor(known.layer.shaped(goal[0]), name=weight.value.name)
    before = None if bias is None else bias.const_value
    if bias is not None and goal[1] is not None:
        old = const(bias)
        assert old is not None
        shift = (goal[1] * known.layer.scale).reshape(old.shape)
        bias.const_value = ir.tensor(np.asarray(old + shift, np.float32), name=bias.name)
    rounded = rounding(weight, known)
    moved = None if bias is None else bias.const_value
    weight.value.const_value = tensor
    if bias is None or moved is None:
        return rounded
    bias.const_value = before
    return None if rounded is None else replace(rounded, biases={bias.name or "": moved, **rounded.biases})
