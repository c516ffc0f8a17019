"""Means and maxima over a whole picture take the form with the fewest nodes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from ..compiler import graph as g
from ..compiler.passbase import Context, Pass
from ..compiler.rewriting import FLOATS
from .layouts import axis, regroup, resolve, sizes

REDUCE = {"ReduceMean": "ReduceMean", "AveragePool": "ReduceMean", "GlobalAveragePool": "ReduceMean"} | {
    "ReduceMax": "ReduceMax",
    "MaxPool": "ReduceMax",
    "GlobalMaxPool": "ReduceMax",
}
GLOBAL = {"ReduceMean": "GlobalAveragePool", "ReduceMax": "GlobalMaxPool"}
VIEWS = ("Reshape", "Flatten", "Squeeze", "Unsqueeze")


@dataclass(frozen=True)
class FuseGlobalPool(Pass):
    """Write pooling over all of height and width as one node.

    | before | after |
    |---|---|
    | `ReduceMean<keepdims = 1>(x, axes = [2, 3])`, `AveragePool` with a kernel as large as `x` | `GlobalAveragePool` |
    | `ReduceMax`, `MaxPool` likewise | `GlobalMaxPool` |
    | either, then `Flatten`, `Squeeze` or `Reshape` to `[batch, channels]` | `ReduceMean<keepdims = 0>`, `ReduceMax` |
    | `ReduceMean<keepdims = 0>`, then `Unsqueeze` or `Reshape` to `[batch, channels, 1, 1]` | `GlobalAveragePool` |
    """

    name: ClassVar[str] = "fuse-global-pool"

    def run(self, model: ir.Model, ctx: Context) -> int:
        return sum(_fuse(node) for node in g.nodes(model, *REDUCE))


def _fuse(node: ir.Node) -> bool:
    x, out = node.inputs[0], node.outputs[0]
    rank = g.rank(x)
    if x is None or rank is None or x.dtype not in FLOATS or not _pools_everything(node, rank):
        return False
    kind = REDUCE[node.op_type]
    kept = g.rank(out) == rank
    view = g.sole_user(out, *VIEWS)
    after = _rank_after(x, view) if view is not None and view.inputs[0] is out else None
    if after == 2 and view is not None and kept:
        _replace(node, view, kind, flat=True)
    elif after == rank and view is not None and not kept:
        _replace(node, view, GLOBAL[kind], flat=False)
    elif kept and node.op_type != GLOBAL[kind]:
        _replace(node, node, GLOBAL[kind], flat=False)
    else:
        return False
    return True


def _pools_everything(node: ir.Node, rank: int) -> bool:
    """Whether every axis after the channels is reduced to one value. Sequences of vectors don't count as pictures."""
    if node.op_type.startswith("Global"):
        return True
    if node.op_type.startswith("Reduce"):
        axes = g.ints(node.inputs[1]) if len(node.inputs) > 1 else None
        return rank > 3 and axes is not None and sorted(a % rank for a in axes) == list(range(2, rank))
    dims = g.shape(node.inputs[0]) or ()
    return (
        tuple(g.attr(node, "kernel_shape", ())) == dims[2:]
        and not any(g.attr(node, "pads", ()))
        and g.attr(node, "auto_pad", "NOTSET") in ("NOTSET", "VALID")
        and all(d == 1 for d in g.attr(node, "dilations", ()))
        and not (len(node.outputs) > 1 and node.outputs[1].uses())
        and not any(o.is_graph_output() for o in node.outputs[1:])
    )


def _rank_after(x: ir.Value, view: ir.Node) -> int | None:
    """The rank that a view gives to `[batch, channels]`, with or without ones after them; None if it does more."""
    dims, target = sizes(x), sizes(view.outputs[0])
    if dims is None or target is None or len(target) not in (2, len(dims)):
        return None
    axes = [axis(d) for d in dims[:2]]
    found = regroup(axes, target)
    want = [*resolve(axes), *([] for _ in target[2:])]
    return len(target) if found is not None and resolve(found) == want else None


def _replace(node: ir.Node, last: ir.Node, op_type: str, flat: bool) -> None:
    x, old = node.inputs[0], last.outputs[0]
    rank, graph = g.rank(x), node.graph
    assert isinstance(graph, ir.Graph) and rank is not None
    inputs = [x]
    if flat:
        inputs.append(g.initializer(graph, np.arange(2, rank, dtype=np.int64), f"{old.name}_axes"))
    new = g.insert_before(last, op_type, inputs, {"keepdims": 0} if flat else {}, like=old)
    g.replace_value(old, new.outputs[0])
    g.remove([last, node], sources=True)
