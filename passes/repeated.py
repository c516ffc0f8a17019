"""The same operator twice in a row, as one: Concat of Concat, Slice of Slice."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from ..compiler import graph
from ..compiler.shape_values import slice_args


def _flatten_concat(main: ir.Graph, node: ir.Node) -> int:
    """Concat of Concats along the same axis is one; parts of length 0 are none."""
    axis, rank = graph.attr(node, "axis"), graph.rank(node.outputs[0])
    if rank is None:
        return 0
    parts: list[ir.Value | None] = []
    for value in node.inputs:
        inner = graph.producer(value, "Concat")
        dims = graph.shape(value)
        if inner is not None and graph.used_once(value or node.outputs[0]) and inner.graph is node.graph and (
            graph.attr(inner, "axis") % rank == axis % rank
        ):
            parts += inner.inputs
        elif dims is None or dims[axis % rank] != 0:
            parts.append(value)
    if len(parts) == len(node.inputs) or not parts:
        return 0
    old = list(node.inputs)
    node.resize_inputs(len(parts))
    for i, value in enumerate(parts):
        node.replace_input_with(i, value)
    for value in old:
        if value is not None and (inner := graph.producer(value, "Concat")) is not None:
            graph.remove([inner])
    return 1


def _merge_slices(main: ir.Graph, node: ir.Node) -> int:
    """Slice of a Slice along other axes is one Slice."""
    inner = graph.producer(node.inputs[0], "Slice")
    rank = graph.rank(node.inputs[0])
    if inner is None or rank is None or not graph.used_once(inner.outputs[0]):
        return 0
    one, two = slice_args(inner), slice_args(node)
    if one is None or two is None or {a % rank for a in one[2]} & {a % rank for a in two[2]}:
        return 0
    node.resize_inputs(5)
    node.replace_input_with(0, inner.inputs[0])
    for i, (a, b) in enumerate(zip(one, two, strict=True)):
        node.replace_input_with(i + 1, graph.initializer(main, np.array(a + b, np.int64), "slice"))
    graph.remove([inner])
    return 1


REPEATED: dict[str, Callable[[ir.Graph, ir.Node], int]] = {"Concat": _flatten_concat, "Slice": _merge_slices}
"""Merges a node with the same operator before it; returns the number of rewrites."""
