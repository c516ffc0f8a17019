"""Group normalisation, exported as an instance normalisation of a reshaped value, becomes one node."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ..compiler import graph as g
from ..compiler.passbase import Context
from .layouts import axis, flat, regroup, resolve, sizes
from .scale_shift import absorb


def fuse_groups(model: ir.Model, ctx: Context) -> int:
    """Rewrite `Reshape → InstanceNormalization → Reshape [→ Mul → Add]` in all graphs; how many there were."""
    return sum(_fuse(node, ctx) for node in g.nodes(model, "InstanceNormalization"))


def _fuse(node: ir.Node, ctx: Context) -> bool:
    value, scale, bias = node.inputs
    before, after = g.producer(value, "Reshape"), g.sole_user(node.outputs[0], "Reshape")
    if before is None or after is None or value is None or not g.used_once(value):
        return False
    x, out = before.inputs[0], after.outputs[0]
    gains, offsets = g.const(scale), g.const(bias)
    if x is None or gains is None or offsets is None:
        return False
    dims = g.shape(x)
    groups = len(gains)
    if dims is None or len(dims) < 3 or not isinstance(dims[1], int) or not _groups(x, value, out, groups):
        return False
    channels, graph = dims[1], node.graph
    affine = absorb(out, len(dims), (1,), (channels,))
    end = affine.end
    anchor = end.producer()
    assert isinstance(graph, ir.Graph) and anchor is not None
    each = channels // groups
    factor, offset = affine.scale_or_ones((channels,)), affine.bias_or_zeros((channels,))
    total = (np.repeat(gains, each) * factor).astype(gains.dtype)
    shift = (np.repeat(offsets, each) * factor + offset).astype(gains.dtype)
    inputs = [
        x,
        *(g.initializer(graph, a, f"{end.name}_{n}", ctx.scratch) for a, n in ((total, "scale"), (shift, "bias"))),
    ]
    attributes = {"num_groups": groups, "epsilon": g.attr(node, "epsilon", 1e-5)}
    new = g.insert_before(anchor, "GroupNormalization", inputs, attributes, like=end)
    g.replace_value(end, new.outputs[0])
    g.remove([*reversed(affine.nodes), after, node, before], sources=True)
    return True


def _groups(x: ir.Value, grouped: ir.Value, out: ir.Value, groups: int) -> bool:
    """Whether `grouped` is `x` with its channels cut into groups, the rest behind them, and `out` is like `x` again."""
    start, middle, end = sizes(x), sizes(grouped), sizes(out)
    if start is None or middle is None or end is None or len(end) != len(start):
        return False
    axes = [axis(s) for s in start]
    cut = regroup(axes, middle)
    back = None if cut is None else regroup(cut, end)
    if cut is None or back is None:
        return False
    axes, cut, back = resolve(axes), resolve(cut), resolve(back)
    return (
        back == axes and cut[0] == axes[0] and cut[1] == (axes[1][:1] if groups > 1 else []) and flat(cut) == flat(axes)
    )
