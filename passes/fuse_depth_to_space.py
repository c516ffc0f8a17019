"""Pixel shuffles, exported as Reshape, Transpose, Reshape, become DepthToSpace and SpaceToDepth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import onnx_ir as ir

from ..compiler import graph as g
from ..compiler.passbase import Context, Pass
from .layouts import Axis, Leaf, axis, resolve, sizes
from .patches import fuse_patches
from .tracing import step


@dataclass(frozen=True)
class FuseDepthToSpace(Pass):
    """Replace moves of channels into space, and back, by their operators.

    Before: `Reshape [n, b, b, c, h, w]` → `Transpose [0, 3, 4, 1, 5, 2]` → `Reshape [n, c, h · b, w · b]`.
    After: `DepthToSpace<blocksize = b, mode = "DCR">`; with `c` outside the blocks (torch.nn.PixelShuffle) mode "CRD".
    The reverse becomes `SpaceToDepth` where the blocks are outside the channels, the one order that ONNX has. So do all
    b · b strided slices of an image that a Concat stacks as channels; a Conv that reads them takes their new order.
    """

    name: ClassVar[str] = "fuse-depth-to-space"

    def run(self, model: ir.Model, ctx: Context) -> int:
        found = sum(_fuse(node, ctx) for node in g.nodes(model, "Reshape"))
        return found + sum(fuse_patches(node, ctx) for node in g.nodes(model, "Concat"))


def _fuse(last: ir.Node, ctx: Context) -> bool:
    middle = g.producer(last.inputs[0], "Transpose")
    first = None if middle is None else g.producer(middle.inputs[0], "Reshape")
    x = None if first is None else first.inputs[0]
    start = None if x is None else sizes(x)
    if middle is None or first is None or x is None or start is None or len(start) != 4:
        return False
    axes = [axis(s) for s in start]
    dims: list[Axis] | None = axes
    for node in (first, middle, last):
        dims = None if dims is None else step(node.outputs[0], dims)
    if dims is None or len(dims) != 4:
        return False
    found = _spread(resolve(axes), resolve(dims)) or _gather(resolve(axes), resolve(dims))
    if found is None:
        return False
    if isinstance(found, str):
        ctx.note(f"{last.name or last.op_type}: looks like SpaceToDepth, but {found}")
        return False
    if not (g.used_once(first.outputs[0]) and g.used_once(middle.outputs[0])):
        ctx.note(f"{last.name or last.op_type}: looks like {found[0]}, but its inner values are read elsewhere, too")
        return False
    old = last.outputs[0]
    new = g.insert_before(last, found[0], [x], found[1], like=old)
    g.replace_value(old, new.outputs[0])
    g.remove([last, middle, first], sources=True)
    return True


def _spread(axes: Sequence[Axis], dims: Sequence[Axis]) -> tuple[str, dict[str, Any]] | None:
    """Channels that become the inner part of height and width."""
    (n, c, h, w), (n_, c_, h_, w_) = axes, dims
    blocks = _inner(h, h_), _inner(w, w_)
    if n != n_ or blocks[0] is None or blocks[1] is None or blocks[0].size != blocks[1].size:
        return None
    for mode, order in (("DCR", [*blocks, *c_]), ("CRD", [*c_, *blocks])):
        if c == order:
            return "DepthToSpace", {"blocksize": blocks[0].size, "mode": mode}
    return None


def _gather(axes: Sequence[Axis], dims: Sequence[Axis]) -> tuple[str, dict[str, Any]] | str | None:
    """Inner parts of height and width that become channels."""
    (n, c, h, w), (n_, c_, h_, w_) = axes, dims
    blocks = _inner(h_, h), _inner(w_, w)
    if n != n_ or blocks[0] is None or blocks[1] is None or blocks[0].size != blocks[1].size:
        return None
    if c_ == [*blocks, *c]:
        return "SpaceToDepth", {"blocksize": blocks[0].size}
    return "its channels are outside the blocks, an order that ONNX lacks" if c_ == [*c, *blocks] else None


def _inner(outer: Axis, whole: Axis) -> Leaf | None:
    """The one leaf that `whole` has within `outer`."""
    return whole[-1] if whole[:-1] == outer and len(whole) == len(outer) + 1 else None
