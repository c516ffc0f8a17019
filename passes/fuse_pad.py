"""Lets convolutions and pools do their padding themselves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from ..compiler import graph
from ..compiler.passbase import Context, Pass
from .value_ranges import at_least


@dataclass(frozen=True)
class FusePad(Pass):
    """Move a constant Pad of spatial axes into the Conv or pool that reads it, and write `auto_pad` out.

    before:  p = Pad(x, [0,0,1,1, 0,0,1,1]); y = Conv<auto_pad=VALID>(p, w)
    after:   y = Conv<pads=[1,1,1,1]>(x, w)

    Conv pads with zeros, so zeros may go into it; AveragePool counts padded elements only with `count_include_pad`;
    MaxPool ignores them, so only a padding of -inf, or one that no element is below, may go into it.
    """

    name: ClassVar[str] = "fuse-pad"

    def run(self, model: ir.Model, ctx: Context) -> int:
        count = 0
        for node in graph.nodes(model, *_WINDOWED):
            count += _explicit_pads(node, ctx)
            while _fuse(node, ctx):
                count += 1
        return count


_WINDOWED = ("Conv", "ConvInteger", "ConvTranspose", "AveragePool", "MaxPool", "LpPool")


def window(node: ir.Node) -> tuple[list[int], list[int], list[int]] | None:
    """Kernel, strides and dilations of a Conv or pool, defaults filled in; None where the kernel's size isn't known."""
    kernel = graph.attr(node, "kernel_shape")
    if kernel is None:
        dims = graph.static_shape(node.inputs[1]) if len(node.inputs) > 1 else None
        if dims is None:
            return None
        kernel = dims[2:]
    ones = [1] * len(kernel)
    return list(kernel), list(graph.attr(node, "strides", ones)), list(graph.attr(node, "dilations", ones))


def _explicit_pads(node: ir.Node, ctx: Context) -> int:
    mode = graph.attr(node, "auto_pad", "NOTSET")
    if mode == "NOTSET" or node.op_type == "ConvTranspose":
        return 0
    sizes = window(node)
    if mode == "VALID":
        pads: list[int] | None = [0] * (2 * len(sizes[0])) if sizes else None
    else:
        pads = _same_pads(node, sizes, upper=mode == "SAME_UPPER")
    if pads is None:
        ctx.note(f"{node.name}: {node.op_type} keeps auto_pad={mode}: its input has no fixed size; give --shape")
        return 0
    if mode != "VALID" and graph.attr(node, "ceil_mode", 0):
        return 0
    node.attributes.pop("auto_pad")
    node.attributes["pads"] = ir.AttrInt64s("pads", pads)
    return 1


def _same_pads(node: ir.Node, sizes: tuple[list[int], list[int], list[int]] | None, upper: bool) -> list[int] | None:
    """output = ceil(input / stride); the odd element goes to the end, or to the beginning."""
    dims = graph.shape(node.inputs[0])
    if sizes is None or dims is None:
        return None
    begins, ends = [], []
    for size, kernel, stride, dilation in zip(dims[2:], *sizes, strict=True):
        if stride == 1:  # whatever the size
            total = (kernel - 1) * dilation
        elif isinstance(size, int):
            total = max(0, (-(-size // stride) - 1) * stride + (kernel - 1) * dilation + 1 - size)
        else:
            return None
        begins.append(total // 2 if upper else total - total // 2)
        ends.append(total - begins[-1])
    return begins + ends


def _fuse(node: ir.Node, ctx: Context) -> bool:
    pad = graph.producer(node.inputs[0], "Pad")
    sizes = window(node)
    if pad is None or sizes is None or graph.attr(node, "auto_pad", "NOTSET") != "NOTSET":
        return False
    if node.op_type not in _MAY_PAD:
        return False
    amounts = _amounts(pad)
    if amounts is None or len(amounts) != 2 * (len(sizes[0]) + 2) or graph.attr(pad, "mode", "constant") != "constant":
        return False
    rank = len(amounts) // 2
    if any(amounts[i] or amounts[rank + i] for i in (0, 1)) or min(amounts) < 0:
        return False
    why_not = _MAY_PAD[node.op_type](node, pad)
    spatial = [*amounts[2:rank], *amounts[rank + 2 :]]
    total = [a + b for a, b in zip(spatial, graph.attr(node, "pads", [0] * len(spatial)), strict=True)]
    too_much = any(p >= k for p, k in zip(total, sizes[0] * 2, strict=True))
    if why_not is None and node.op_type != "Conv" and too_much:
        why_not = "a pool may not be padded by its whole window"
    if why_not is not None:
        ctx.note(f"{pad.name}: Pad stays before {node.op_type} {node.name}: {why_not}")
        return False
    node.attributes["pads"] = ir.AttrInt64s("pads", total)
    if node.op_type == "AveragePool":
        node.attributes["count_include_pad"] = ir.AttrInt64("count_include_pad", 1)
    graph.rewire(node, 0, pad.inputs[0])
    return True


def _amounts(pad: ir.Node) -> list[int] | None:
    """The pads for all axes, beginnings first."""
    given, rank = graph.ints(pad.inputs[1]), graph.rank(pad.inputs[0])
    if given is None or rank is None or len(pad.inputs) < 4 or pad.inputs[3] is None:
        return given
    axes = graph.ints(pad.inputs[3])
    if axes is None:
        return None
    amounts = [0] * (2 * rank)
    for i, axis in enumerate(axes):
        amounts[axis % rank], amounts[axis % rank + rank] = given[i], given[i + len(axes)]
    return amounts


def _fill(pad: ir.Node) -> float | None:
    value = pad.inputs[2] if len(pad.inputs) > 2 else None
    return 0.0 if value is None else graph.scalar(value)


def _pads(node: ir.Node) -> Sequence[int]:
    return tuple(graph.attr(node, "pads", ()))


def _conv(node: ir.Node, pad: ir.Node) -> str | None:
    return None if _fill(pad) == 0 else f"it pads with {_fill(pad)}, a convolution with 0"


def _average(node: ir.Node, pad: ir.Node) -> str | None:
    if _fill(pad) != 0:
        return f"it pads with {_fill(pad)}, a pool with 0"
    if graph.attr(node, "ceil_mode", 0):
        return "with ceil_mode the last window's divisor would change"
    if any(_pads(node)) and not graph.attr(node, "count_include_pad", 0):
        return "the pool has padding of its own that it doesn't count"
    return None


def _max(node: ir.Node, pad: ir.Node) -> str | None:
    if len(node.outputs) > 1:
        return "the pool's indices would change"
    if graph.attr(node, "ceil_mode", 0):
        return "with ceil_mode the number of windows could change"
    fill = _fill(pad)
    if fill == -np.inf:
        return None
    sizes = window(node)
    if fill == 0 and at_least(pad.inputs[0], 0) and sizes is not None and max(sizes[2]) == 1:
        return None  # every window holds an element of the input, and none is below 0
    return f"it pads with {fill}, a pool with -inf"


_MAY_PAD: dict[str, Callable[[ir.Node, ir.Node], str | None]] = {
    "Conv": _conv,
    "AveragePool": _average,
    "MaxPool": _max,
}
"""Says why a Pad may not go into this operator, or None."""
