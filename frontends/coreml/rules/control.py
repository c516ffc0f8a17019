"""Branches and loops (`ops/defs/iOS15/control_flow.py`)."""

from __future__ import annotations

import onnx_ir as ir

from ..call import Call, Result, rule
from ..graph import BOOL, INT64, Builder


def _graph(builder: Builder, name: str, inputs: list[ir.Value], outputs: list[ir.Value]) -> ir.Graph:
    """A subgraph whose outputs are all its own: a value from outside goes through Identity."""
    inside = {id(v) for node in builder.nodes for v in node.outputs}
    owned: list[ir.Value] = []
    for value in outputs:
        if id(value) in inside and value not in owned:
            owned.append(value)
        else:
            owned.append(builder.op("Identity", value))
    return ir.Graph(inputs, owned, nodes=builder.nodes, name=builder.names.fresh(name))


@rule("cond", exact=True)
def cond(o: Call) -> Result:
    graphs = {}
    for attribute, block in zip(("then_branch", "else_branch"), o.blocks, strict=True):
        inner = Builder(o.b)
        results = o.branch(inner, block, [])
        graphs[attribute] = _graph(inner, f"{o.name}.{attribute}", [], results)
    return o.b.nodes_of("If", [o.value("pred")], graphs, len(o.outputs))


@rule("while_loop", exact=True)
def while_loop(o: Call) -> Result:
    """MIL tests before the first round: the condition is computed outside once, and again at the end of each round.

    coremltools lets it have one element instead of being a scalar.
    """
    condition, body = o.blocks
    start = o.values("loop_vars")
    first = o.b.reshape(o.branch(o.b, condition, start)[0], [])
    inner = Builder(o.b)
    counter = ir.Value(name=o.b.names.fresh(f"{o.name}.round"), type=ir.TensorType(INT64), shape=ir.Shape([]))
    going = ir.Value(name=o.b.names.fresh(f"{o.name}.going"), type=ir.TensorType(BOOL), shape=ir.Shape([]))
    carried = [
        ir.Value(name=o.b.names.fresh(f"{o.name}.carried"), type=ir.TensorType(var.type.element.carried))
        for var in o.arguments["loop_vars"]
        if var.type is not None
    ]
    after = o.branch(inner, body, carried)
    again = inner.reshape(o.branch(inner, condition, after)[0], [])
    graph = _graph(inner, f"{o.name}.body", [counter, going, *carried], [again, *after])
    return o.b.nodes_of("Loop", [None, first, *start], {"body": graph}, len(o.outputs))
