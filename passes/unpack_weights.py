"""Packs weights anew, or writes them out, where the target can't store them in the form that they have."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from ..compiler import graph as g
from ..compiler.passbase import Context, Pass
from ..compiler.quantization.packed import dense, lacks, newer, roots
from ..compiler.targets import TARGETS, Storage
from .pack_weights import replace, smallest


@dataclass(frozen=True)
class UnpackWeights(Pass):
    """Give packed weights the nearest form that the target stores; write out those for which it has none.

    Before: w = DequantizeLinear(q, scale, zero)        (q: int4 constant)
            v = LookupWeight(i, tables)                 (a table for each channel)
            u = Cast<to=FLOAT>(b)                       (b: bfloat16 constant)
    After:  w = DequantizeLinear(q8, scale, zero)       (ios17: 8 bits; ios15: a float32 constant)
            v, u                                        (float32 constants)

    Options:
        opset: ONNX targets: the opset whose types and operators may stay.
    """

    name: ClassVar[str] = "unpack-weights"
    unpacks: ClassVar[bool] = True
    opset: int | None = None

    def run(self, model: ir.Model, ctx: Context) -> int:
        """See the class. Weights go through the scratch file one by one, so that no two are in memory at once."""
        if self.opset is not None and self.opset < 23:
            for node in g.nodes(model, "DequantizeLinear"):
                _widen_scale(node, ctx)
        storage, anew, written = ctx.target.storage, 0, 0
        first: set[str] = set()
        done: set[ir.Node] = set()
        for value, chain in list(roots(model)):
            if chain[-1] in done or not self._lacks(chain, storage):
                continue
            done.add(chain[-1])
            if value.is_graph_output() or value.dtype != ir.DataType.FLOAT:
                continue
            if (name := _first_with(chain)) is not None:
                first.add(name)
            if self._anew(model, value, chain, ctx):
                anew += 1
            else:
                written += 1
        if anew + written:
            ctx.note(self._why(ctx.target.name, anew, written, min(first, default=None, key=_version)))
        return anew + written

    def _lacks(self, chain: list[ir.Node], storage: Storage) -> bool:
        return newer(chain, self.opset) if self.opset is not None else lacks(chain, storage)

    def _anew(self, model: ir.Model, value: ir.Value, chain: list[ir.Node], ctx: Context) -> bool:
        """Replace a packed weight by its numbers, and these by another form where there is one."""
        array = dense(model, value, chain)
        made = g.initializer(model.graph, array, f"{value.name}_dense", ctx.scratch)
        g.replace_node(chain[-1], made)
        if self.opset is not None or array.size < 10:
            return False
        form = smallest(array, None, list(range(min(2, array.ndim))), ctx.target)
        if form is None:
            return False
        replace(model, made, form, {node: i for i, node in enumerate(g.nodes(model))}, ctx)
        return True

    def _why(self, target: str, anew: int, written: int, first: str | None) -> str:
        where = f"opset {self.opset}" if self.opset is not None else target
        since = f"; {first} is the first that does" if first is not None and self.opset is None else ""
        what = [f"{anew} packed anew in the nearest form that it has"] * bool(anew) + [
            f"{written} written out"
        ] * bool(written)
        return f"{where} does not store {anew + written} weights in the form that they have{since}: {', '.join(what)}"


def _widen_scale(node: ir.Node, ctx: Context) -> None:
    """Give a result its type by the scale's, for opsets in which nothing else does."""
    scale = node.inputs[1]
    array = g.const(scale)
    if scale is None or array is None or g.attr(node, "output_dtype", 0) != ir.DataType.FLOAT:
        return
    if scale.dtype != ir.DataType.FLOAT:
        assert isinstance(node.graph, ir.Graph)
        node.replace_input_with(
            1, g.initializer(node.graph, array.astype(np.float32), f"{scale.name}_wide", ctx.scratch)
        )
    node.attributes.pop("output_dtype")


def _first_with(chain: list[ir.Node]) -> str | None:
    """The oldest Core ML target that stores such a weight."""
    return next((t.name for t in TARGETS.values() if t.version and not lacks(chain, t.storage)), None)


def _version(name: str) -> int:
    return TARGETS[name].version


def dequantised(node: ir.Node) -> np.ndarray:
    """(q - zero) · scale as the standard defines it: per tensor, along `axis`, or in blocks along it."""
    data, scale = g.const(node.inputs[0]), g.const(node.inputs[1])
    zero = g.const(node.inputs[2]) if len(node.inputs) > 2 else None
    assert data is not None and scale is not None
    axis, block = int(g.attr(node, "axis", 1)), int(g.attr(node, "block_size", 0))

    def spread(values: np.ndarray) -> np.ndarray:
        if block:
            return np.repeat(values, block, axis).take(range(data.shape[axis]), axis)
        if values.ndim == 1 and data.ndim > 0:
            return values.reshape([-1 if a == axis % data.ndim else 1 for a in range(data.ndim)])
        return values

    whole = data.astype(np.float32)
    if zero is not None:
        whole -= spread(zero.astype(np.float32))
    kind = ir.DataType(g.attr(node, "output_dtype", 0) or ir.DataType.from_numpy(scale.dtype)).numpy()
    found: np.ndarray = (whole * spread(scale.astype(np.float32))).astype(kind)
    return found
