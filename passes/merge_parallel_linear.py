"""Products of one input with several constant matrices, computed as one: query, key and value; gate and up."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from ..compiler import graph as g
from ..compiler.passbase import Context, Pass
from ..compiler.weights import SMALL
from .folding import drop
from .linear import Linear, linear_at


@dataclass(frozen=True)
class MergeParallelLinear(Pass):
    """Compute several products of the same input as one, where that makes fewer nodes.

    Before: `q = Add(MatMul(x, Wq), bq); k = Add(MatMul(x, Wk), bk); v = Add(MatMul(x, Wv), bv)`
    After:  `q, k, v = Split(Add(MatMul(x, [Wq | Wk | Wv]), [bq | bk | bv]))`

    The same for Gemm. A product without a bias gets zeros. Weights that others read too stay apart, for the model
    would grow. 8-bit weights behind a DequantizeLinear stay packed: each column keeps its scale and zero point.
    """

    name: ClassVar[str] = "merge-parallel-linear"

    def run(self, model: ir.Model, ctx: Context) -> int:
        """Merge what can be merged; returns the number of products merged into others."""
        groups: dict[Hashable, list[Linear]] = {}
        for node in g.nodes(model, "MatMul", "Gemm"):
            found = _member(node)
            if found is not None:
                stored = tuple(part.dtype for part in _stored(found) or ())
                key = (found.data, node.op_type, g.attr(node, "transB", 0), stored, node.graph)
                groups.setdefault(key, []).append(found)
        return sum(_merge(members, ctx) for members in groups.values() if _gain(members) > 0)


def _member(node: ir.Node) -> Linear | None:
    """The product with its bias, if it has the form that can be merged: `x @ W`, or that and a bias per column."""
    found = linear_at(node, packed=True)
    if found is None or found.weight_at != 1 or len(found.dims) != 2 or (g.rank(found.data) or 0) < 2:
        return None
    if g.attr(node, "transA", 0) or g.attr(node, "alpha", 1.0) != 1.0 or g.attr(node, "beta", 1.0) != 1.0:
        return None
    parts = _stored(found)
    if parts is None or (_is_shared(found.weight) and parts[0].nbytes > SMALL):
        return None
    if found.bias is not None and _bias(found) is None:
        return None if node.op_type == "Gemm" else Linear(node, 1, None, 0)
    return found


def _stored(member: Linear) -> list[np.ndarray] | None:
    """What the weight is stored as: its numbers, or 8-bit integers and, per column, their scale and any zero point."""
    node = g.producer(member.weight, "DequantizeLinear")
    if node is None:
        dense = g.const(member.weight)
        return None if dense is None else [dense]
    parts = [part for part in map(g.const, node.inputs) if part is not None]
    if len(parts) < len(node.inputs) or parts[0].dtype not in (np.int8, np.uint8) or g.attr(node, "output_dtype", 0):
        return None
    axis = _output_axis(member)
    if any(p.size > 1 and (p.ndim > 1 or g.attr(node, "axis", 1) % 2 != axis) for p in parts[1:]):
        return None
    return [parts[0], *(np.broadcast_to(p.reshape(-1), (member.dims[axis],)) for p in parts[1:])]


def _is_shared(weight: ir.Value) -> bool:
    node = g.producer(weight, "DequantizeLinear")
    source = weight if node is None else node.inputs[0]
    return len(weight.uses()) > 1 or source is None or len(source.uses()) > 1


def _output_axis(member: Linear) -> int:
    """The axis of the weight, a matrix, that counts the columns of the result."""
    return 0 if g.attr(member.node, "transB", 0) else 1


def _bias(member: Linear) -> np.ndarray | None:
    """The bias as one number per column; zeros where there is none; None if it has another shape."""
    side = member.output_side()
    array = g.const(member.bias)
    dtype = member.weight.dtype
    if side is None or dtype is None or (member.bias is not None and member.bias.dtype != dtype):
        return None
    if array is None:
        return np.zeros(side.channels, dtype.numpy())
    row = side.vector(array)
    return None if row is None else row.astype(array.dtype)


def _gain(members: list[Linear]) -> int:
    """How many nodes fewer: each member's product and Add (one Gemm, for matrices), against one of each and a Split."""
    gemm = g.rank(members[0].data) == 2
    adds = 0 if gemm else sum(m.bias_node is not None for m in members)
    return len(members) + adds - (1 + (adds > 0) + 1)


def _merge(members: list[Linear], ctx: Context) -> int:
    """Put one product, one Add if there is a bias, and a Split in front of the first member, which comes first."""
    first = members[0].node
    graph, out = first.graph, first.outputs[0]
    assert isinstance(graph, ir.Graph)
    sizes = [m.dims[_output_axis(m)] for m in members]
    weight = _joined(members, ctx)
    bias = None
    if any(m.bias is not None for m in members):
        array = np.concatenate([np.asarray(_bias(m)) for m in members])
        name = next(m.bias.name for m in members if m.bias is not None)
        bias = g.initializer(graph, array, f"{name}_merged", ctx.scratch)
    dims = None if out.shape is None else ir.Shape([*out.shape[:-1], sum(sizes)])
    value = _product(first, members[0].data, weight, bias, dims)
    sections = g.initializer(graph, np.array(sizes, np.int64), f"{weight.name}_sizes")
    split = g.insert_before(
        first, "Split", [value, sections], {"axis": -1}, hint=f"{weight.name}_part", num_outputs=len(members)
    )
    for member, part in zip(members, split.outputs, strict=True):
        part.type, part.shape = member.result.type, member.result.shape
        _replace(member, part)
    return len(members) - 1


def _joined(members: list[Linear], ctx: Context) -> ir.Value:
    """The weights side by side, packed if they were."""
    first, axis, name = members[0].node, _output_axis(members[0]), f"{members[0].weight.name}_merged"
    assert isinstance(first.graph, ir.Graph)
    columns = zip(*(_stored(m) or () for m in members), strict=True)
    values = [
        g.initializer(first.graph, np.concatenate(parts, axis=0 if i else axis), name, ctx.scratch)
        for i, parts in enumerate(columns)
    ]
    if len(values) == 1:
        return values[0]
    dense = g.insert_before(first, "DequantizeLinear", values, {"axis": axis}, hint=f"{name}_dense").outputs[0]
    dense.type, dense.shape = members[0].weight.type, values[0].shape
    return dense


def _product(
    first: ir.Node, data: ir.Value, weight: ir.Value, bias: ir.Value | None, dims: ir.Shape | None
) -> ir.Value:
    """The merged product, and the Add of its bias where it isn't Gemm's own."""
    hint = f"{weight.name}_product"
    gemm = first.op_type == "Gemm"
    inputs = [data, weight, bias] if gemm and bias is not None else [data, weight]
    value = g.insert_before(first, first.op_type, inputs, first.attributes if gemm else {}, hint=hint).outputs[0]
    value.type, value.shape = first.outputs[0].type, dims
    if bias is None or gemm:
        return value
    added = g.insert_before(first, "Add", [value, bias], like=value, hint=f"{hint}_bias")
    return added.outputs[0]


def _replace(member: Linear, part: ir.Value) -> None:
    result, dead = member.result, [member.bias_node, member.node]
    dequantize = g.producer(member.weight, "DequantizeLinear")
    operands = [member.weight, member.bias, *(dequantize.inputs if dequantize is not None else ())]
    g.replace_value(result, part)
    g.remove(dict.fromkeys(n for n in [*dead, dequantize] if n is not None))
    for value in operands:
        drop(value)
