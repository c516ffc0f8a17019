"""Removes what no output depends on."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import ClassVar

import onnx
import onnx_ir as ir

from ..compiler import graph
from ..compiler.passbase import Context, Pass
from ..compiler.targets import OPSET


@dataclass(frozen=True)
class RemoveDeadCode(Pass):
    """Remove nodes, initializers, local functions and trailing optional outputs that nothing reads.

    before:  y = Relu(x); z = Neg(x); v, mask = Dropout(y); unused initializer w         (output v)
    after:   y = Relu(x); v = Dropout(y)
    """

    name: ClassVar[str] = "remove-dead-code"

    def run(self, model: ir.Model, ctx: Context) -> int:
        count = _dead_nodes(model.graph)
        count += sum(_unused_initializers(g) for g in graph.graphs(model))
        return count + _unused_functions(model)


def _dead_nodes(g: ir.Graph) -> int:
    """Nodes are visited users first, so that one sweep finds whole dead chains."""
    count = 0
    for node in reversed(list(g)):
        if not any(o.uses() or o.is_graph_output() for o in node.outputs):
            graph.release(node)
            g.remove(node, safe=True)
            count += 1
            continue
        count += _drop_outputs(node) + sum(_dead_nodes(sub) for sub in graph.subgraphs(node))
    return count


def _drop_outputs(node: ir.Node) -> int:
    keep = len(node.outputs)
    if keep < 2:
        return 0
    required = _required_outputs(node.op_type, node.domain)
    while keep > required and not (node.outputs[keep - 1].uses() or node.outputs[keep - 1].is_graph_output()):
        keep -= 1
    dropped = len(node.outputs) - keep
    node.resize_outputs(keep)
    return dropped


@cache
def _required_outputs(op_type: str, domain: str) -> int:
    """How many leading outputs the operator must have; a large number where that isn't known."""
    try:
        schema = onnx.defs.get_schema(op_type, OPSET, domain)
    except onnx.defs.SchemaError:
        return 1 << 30
    if any(o.option == onnx.defs.OpSchema.FormalParameterOption.Variadic for o in schema.outputs):
        return 1 << 30
    single = onnx.defs.OpSchema.FormalParameterOption.Single
    return max((i + 1 for i, o in enumerate(schema.outputs) if o.option == single), default=1)


def _unused_initializers(g: ir.Graph) -> int:
    unused = [
        v for v in g.initializers.values() if not (v.uses() or v.is_graph_output() or v.is_graph_input())
    ]
    for value in unused:
        assert value.name is not None
        g.initializers.pop(value.name)
    return len(unused)


def _unused_functions(model: ir.Model) -> int:
    called = set()
    stack = [n.op_identifier() for n in model.graph.all_nodes()]
    while stack:
        key = stack.pop()
        if key in model.functions and key not in called:
            called.add(key)
            stack += [n.op_identifier() for n in model.functions[key].all_nodes()]
    unused = [key for key in model.functions if key not in called]
    for key in unused:
        del model.functions[key]
    return len(unused)
