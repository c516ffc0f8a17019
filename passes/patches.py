"""Patches cut out with strides and stacked as channels (the "focus" of YOLO networks) are SpaceToDepth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ..compiler import graph as g
from ..compiler.passbase import Context


@dataclass(frozen=True)
class _Cut:
    """Every `step`-th element of height and width of `source`, from `start` on, to the end."""

    source: ir.Value
    start: tuple[int, int] = (0, 0)
    step: tuple[int, int] = (1, 1)
    nodes: tuple[ir.Node, ...] = ()


def fuse_patches(concat: ir.Node, ctx: Context) -> bool:
    """`Concat` over channels of all b x b strided slices of one image; a Conv behind it takes its channels' new order.

    Where something else reads the channels, a Gather puts them in their old order.
    """
    if g.rank(concat.outputs[0]) != 4 or g.attr(concat, "axis") not in (1, -3) or len(concat.inputs) < 4:
        return False
    cuts = [_cut(v) for v in concat.inputs]
    if any(c is None for c in cuts):
        return False
    found = [c for c in cuts if c is not None]
    source, block = found[0].source, found[0].step[0]
    starts = [c.start for c in found]
    every = [(i, j) for i in range(block) for j in range(block)]
    alike = all(c.source is source and c.step == (block, block) for c in found)
    _, channels, height, width = g.shape(source) or (None,) * 4
    if not alike or sorted(starts) != every or block < 2 or not isinstance(channels, int):
        return False
    if not isinstance(height, int) or not isinstance(width, int) or height % block or width % block:
        return False
    order = np.concatenate([np.arange(channels) + (i * block + j) * channels for i, j in starts])
    _replace(concat, source, block, order, ctx)
    g.remove([n for c in found for n in c.nodes], sources=True)
    return True


def _replace(concat: ir.Node, source: ir.Value, block: int, order: np.ndarray, ctx: Context) -> None:
    old = concat.outputs[0]
    new = g.insert_before(concat, "SpaceToDepth", [source], {"blocksize": block}, like=old)
    made = new.outputs[0]
    if (order != np.arange(order.size)).any() and not _reorder(old, order, ctx):
        assert isinstance(concat.graph, ir.Graph)
        index = g.initializer(concat.graph, order.astype(np.int64), f"{concat.name}_order")
        made = g.insert_before(concat, "Gather", [made, index], {"axis": 1}, like=old).outputs[0]
    g.replace_value(old, made)
    g.remove([concat])


def _reorder(channels: ir.Value, order: np.ndarray, ctx: Context) -> bool:
    """Put the input channels of the only Conv that reads them in the new order: channel k is now number order[k]."""
    conv = g.sole_user(channels, "Conv")
    if conv is None or conv.inputs[0] is not channels or g.attr(conv, "group", 1) != 1:
        return False
    weight = conv.inputs[1]
    array = g.const(weight)
    if weight is None or array is None:
        return False
    assert isinstance(conv.graph, ir.Graph)
    new = g.initializer(conv.graph, array[:, np.argsort(order)], f"{weight.name}_ordered", ctx.scratch)
    conv.replace_input_with(1, new)
    return True


def _cut(value: ir.Value | None) -> _Cut | None:
    """What a chain of slices over height and width takes; None if it is anything else."""
    slices: list[ir.Node] = []
    while (node := g.producer(value, "Slice")) is not None and len(slices) < 2:
        slices.append(node)
        value = node.inputs[0]
    if value is None or not slices:
        return None
    start, step = [0, 0], [1, 1]
    for node in reversed(slices):
        size = g.shape(node.inputs[0])
        given = [g.ints(v) for v in node.inputs[1:]]
        if size is None or len(size) != 4 or len(given) != 4 or any(a is None for a in given):
            return None
        for first, end, axis, stride in zip(*(a for a in given if a is not None), strict=True):
            at, whole = axis % 4 - 2, size[axis]
            if at < 0 or not isinstance(whole, int) or stride < 1 or not 0 <= first < whole or end < whole:
                return None
            start[at] += first * step[at]
            step[at] *= stride
    return _Cut(value, _pair(start), _pair(step), tuple(slices))


def _pair(numbers: Sequence[int]) -> tuple[int, int]:
    return numbers[0], numbers[1]
