"""Make activations even across channels, so that integers fit them: what is large there moves into the weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from ..compiler import graph as g
from ..compiler.calibration.batching import spread
from ..compiler.calibration.histograms import streamed
from ..compiler.passbase import Context, Pass
from ..compiler.weights import release
from .channel_gains import Network, Use
from .channel_ranges import even, largest_by, ranges_of, sets_of
from .folding import remove
from .gain_rules import network

SAMPLES = 128
"""Given samples that are looked at: more cost time and teach little."""
LINEAR = ("MatMul", "Gemm")
"""Operators that get a Mul of their own with `insert`. In convolutional networks it would cost more than it gains."""


@dataclass(frozen=True)
class SmoothActivations(Pass):
    """Divide activations by a number for each channel, and multiply the weights that read them; outputs stay.

    Before:  `y = LayerNormalization(x, scale, bias)   z = MatMul(y, w)`

    After:   `y = LayerNormalization(x, scale / s, bias / s)   z = MatMul(y, w · s)`, s > 0 a number for each channel

    Integers of one scale for a whole activation are wasted where few channels are much larger than the others, as
    behind the normalisations of transformers. With s = (range of y)^alpha / (range of w)^(1 - alpha), by channel, a
    part of this goes to the weights, which usually have a scale for each output channel (SmoothQuant: Xiao et al.,
    arXiv 2211.10438, section 4). Ranges of activations are those of the given inputs (--inputs); without any, nothing
    changes. Where factors can go is described in `equalize-channels`.

    Options:
        alpha: 0 … 1: how much of the activations' unevenness moves. The paper has 0.5, which helps less where weights
            have a scale for each output channel: these bear more.
        insert: whether Gemm and MatMul whose input nobody can divide (behind Gelu, or where a residual sum reads it as
            well) get a Mul before them.
    """

    name: ClassVar[str] = "smooth-activations"
    alpha: float = 0.75
    insert: bool = False

    def __post_init__(self) -> None:
        """Raise ValueError for an alpha beyond 0 … 1."""
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha={self.alpha:g}: choose a number from 0 to 1")

    def run(self, model: ir.Model, ctx: Context) -> int:
        """See the class. Returns the constants that changed and the operators that came."""
        net = network(model, ctx)
        if not ctx.given:
            if net.count > 1:
                ctx.note("activations are not smoothed: their ranges can only be measured on given inputs (--inputs)")
            return 0
        inserted = _insert(model, net, ctx) if self.insert else []
        net = network(model, ctx) if inserted else net
        count = net.write(self._factors(model, net, ctx), ctx) if net.count > 1 else 0
        return count + len(inserted) - _withdrawn(inserted)

    def _factors(self, model: ir.Model, net: Network, ctx: Context) -> np.ndarray:
        """By number, what activations are multiplied with."""
        reads = [u for u in net.uses if u.role == "read" and u.data in net.labels and u.node.op_type != "Mul"]
        sides = np.zeros((2, net.count))
        for value, peaks in _peaks(model, net, reads, ctx).items():
            # A key has the inverse factor of its query: it is what gets smaller there.
            largest_by(np.maximum(net.labels[value], 0), peaks, sides)
        for use in reads:
            largest_by(np.minimum(use.ids, 0), ranges_of(use), sides)
        found = np.ones(net.count)
        for numbers, _ in sets_of(net.uses, net.count):
            found[numbers] = even(sides[0, numbers], sides[1, numbers], self.alpha)
        return found


def _peaks(model: ir.Model, net: Network, reads: Sequence[Use], ctx: Context) -> Mapping[ir.Value, np.ndarray]:
    """The largest magnitudes of the values that are read, one for each id over them."""
    values = list(dict.fromkeys(u.data for u in reads if u.data is not None))
    found: dict[ir.Value, np.ndarray] = {}
    for value, array in streamed(model, values, spread(ctx.runs or (ctx.inputs,), SAMPLES)):
        axes = tuple(a for a, n in enumerate(net.labels[value].shape) if n == 1)
        peak = np.maximum(array.max(axes, keepdims=True), -array.min(axes, keepdims=True))
        found[value] = np.maximum(found[value], peak) if value in found else peak
    release(model)
    for value in [v for v, peak in found.items() if not np.isfinite(peak).all()]:
        ctx.note(f"activation '{value.name}' is not smoothed: it is not finite for the given inputs")
        del found[value]
    return found


def _insert(model: ir.Model, net: Network, ctx: Context) -> list[ir.Node]:
    """Mul nodes with ones before Gemm and MatMul of constant weights whose inputs have no factors."""
    free = {(u.node, u.data) for u in net.uses if u.role == "read"}
    made: dict[ir.Value, ir.Node] = {}
    for node in list(model.graph):
        if node.op_type not in LINEAR or node.domain or not g.is_const(node.inputs[1]):
            continue
        value = node.inputs[0]
        dims = g.shape(value)
        size = dims[-1] if dims else None
        if value is None or g.is_const(value) or (node, value) in free or value.dtype != ir.DataType.FLOAT:
            continue
        if not isinstance(size, int) or g.attr(node, "transA", 0) or size < 2:
            continue
        if value not in made:
            ones = g.initializer(model.graph, np.ones(size, np.float32), f"{value.name}_smooth", ctx.scratch)
            made[value] = g.insert_before(node, "Mul", [value, ones], like=value, hint=f"{value.name}_smoothed")
        node.replace_input_with(0, made[value].outputs[0])
    return list(made.values())


def _withdrawn(inserted: Sequence[ir.Node]) -> int:
    """Take those out again that still multiply by ones; how many."""
    idle = [n for n in inserted if np.all(np.asarray(g.const(n.inputs[1])) == 1)]
    for node in idle:
        assert node.inputs[0] is not None
        g.replace_value(node.outputs[0], node.inputs[0])
        remove(node)
    return len(idle)
