"""What a model costs without some of its blocks: what only their branches need, added up per operator and constant."""

from __future__ import annotations

from collections.abc import Collection, Iterable

import onnx_ir as ir

from ..channels.clock import Clock
from ..cost.products import node_macs
from ..cost.sizes import Sizes
from ..cost.storage import parameters, weight_bytes
from ..dims import Dim, Poly
from ..graph import const_tensor, subgraphs
from .find import Block

OF = ("macs", "parameters", "bytes", "time")


class Savings:
    """Shares of the model that go with blocks."""

    def __init__(self, model: ir.Model, of: str, sizes: Sizes, clock: Clock | None = None) -> None:
        """`of` is one of OF; time needs a clock. Free dimensions count as 1 but for time."""
        self._graph, self._of = model.graph, of
        self._constants: dict[ir.Value, float] = {}
        self._nodes: dict[ir.Node, float] = {}
        if of == "time":
            assert clock is not None
            self._nodes = dict(zip(clock.nodes, clock.each.tolist(), strict=True))
            total = clock.seconds
        elif of == "macs":
            self._nodes = {n: _macs(n, sizes) for n in model.graph}
            total = sum(self._nodes.values())
        else:
            total = float(parameters(model) if of == "parameters" else weight_bytes(model))
            for value in model.graph.initializers.values():
                tensor = const_tensor(value)
                if tensor is not None:
                    self._constants[value] = float(tensor.size if of == "parameters" else tensor.nbytes)
        self._total = max(float(total), 1e-300)

    def of(self, blocks: Collection[Block]) -> float:
        """The share, 0 to 1, that is not needed once the branches of all these blocks are left out."""
        gone = without(self._graph, blocks)
        lost = sum(self._nodes.get(n, 0.0) for n in gone)
        if self._constants:
            read = {v for n in gone for v in n.inputs if v in self._constants}
            lost += sum(self._constants[v] for v in read if all(use.node in gone for use in v.uses()))
        return lost / self._total


def without(graph: ir.Graph, blocks: Iterable[Block]) -> set[ir.Node]:
    """The nodes of the graph that run for nothing but the branches of these blocks, their sums included."""
    stream = {b.add: b.stream for b in blocks}
    needed: set[ir.Node] = set()
    stack: list[ir.Value | None] = list(graph.outputs)
    while stack:
        value = stack.pop()
        node = None if value is None else value.producer()
        if node is None or node in needed:
            continue
        needed.add(node)
        stack += node.inputs if node not in stream else (stream[node],)
        for inner in subgraphs(node):
            stack += [v for n in inner.all_nodes() for v in n.inputs] + list(inner.outputs)
    return {n for n in graph if n in stream or n not in needed}


def _macs(node: ir.Node, sizes: Sizes) -> float:
    found: Dim | None = node_macs(node, sizes)
    if isinstance(found, Poly):
        return float(sum(factor for _, factor in found.terms))
    return float(found or 0)
