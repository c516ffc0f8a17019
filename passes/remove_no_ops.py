"""Removes nodes that hand on what they get."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from ..compiler import graph
from ..compiler.passbase import Context, Pass
from .no_op_rules import RULES
from .repeated import REPEATED


@dataclass(frozen=True)
class RemoveNoOps(Pass):
    """Remove nodes whose output always equals one of their inputs.

    before:  a = Add(x, 0); b = Dropout(a); c = Reshape(b, [2, 3]); y = Relu(c)      (x is float[2,3])
    after:   y = Relu(x)

    A Concat of Concats, and a Slice of a Slice along other axes, become one.

    That it is so follows from constants, known shapes (the same number, or the same symbol), known types and the range
    of what an operator returns. An Identity from a model input, or from a constant, to a model output has to stay.
    """

    name: ClassVar[str] = "remove-no-ops"

    def run(self, model: ir.Model, ctx: Context) -> int:
        count = 0
        for node in graph.nodes(model):
            if node.op_type in REPEATED and node.domain == "":
                count += REPEATED[node.op_type](model.graph, node)
            rule = RULES.get(node.op_type) if node.domain == "" else None
            source = rule(node) if rule is not None else None
            if source is not None and _bypass(node, source):
                count += 1
        return count


def _bypass(node: ir.Node, source: ir.Value) -> bool:
    out = node.outputs[0]
    if any(o.uses() or o.is_graph_output() for o in node.outputs[1:]):
        return False
    if out.dtype is not None and source.dtype is not None and out.dtype != source.dtype:
        return False
    if not graph.can_replace(out, source):
        if node.op_type == "Identity":
            return False
        source = graph.insert_before(node, "Identity", [source], like=out).outputs[0]
    graph.replace_node(node, source)
    return True
