"""Where the damage of a lossy pass arises: each changed layer's output, and how much of its error is its own.

The model before the pass and the one behind it run side by side in one graph, node by node, with every changed layer a
third time: as it is now, but on what it read before. Only sums of squares leave the graph, so that no more is held than
twice what a run of the model needs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ..graph import subgraphs
from ..session import Session
from ..weights import release

LINEAR = ("Attention", "Conv", "ConvTranspose", "Einsum", "Gemm", "GRU", "LSTM", "MatMul", "RNN")
"""Operators that count as layers where what they read is rounded; with other weights, any does."""

FLOATS = (ir.DataType.FLOAT, ir.DataType.DOUBLE)


@dataclass(frozen=True)
class Layer:
    """A layer that a pass changed.

    Attributes:
        name: of the node, or of its output where it has none.
        op: the operator.
        snr_db: of its output against the output before the pass, in dB.
        own_db: the same where it alone is changed and reads what it read before; inf where that makes no difference.
    """

    name: str
    op: str
    snr_db: float
    own_db: float

    @property
    def own(self) -> float:
        """The share of its error that is its own, 0 to 1: of the noise power. The rest is inherited."""
        if not math.isfinite(self.own_db) or not math.isfinite(self.snr_db):
            return 0.0 if self.own_db == math.inf else 1.0
        return min(1.0, 10 ** ((self.snr_db - self.own_db) / 10))


def changed_layers(before: ir.Model, after: ir.Model, inputs: Mapping[str, np.ndarray]) -> list[Layer]:
    """The layers that differ between two states of a model, in the order in which they run.

    Layers inside If, Loop and Scan are not looked at. Raises ModelError where the two can't be run side by side.
    """
    pair = _Pair(before.clone(), after.clone())
    layers = pair.merged()
    if not layers:
        return []
    session = Session(pair.model)
    found = session.run(inputs)
    release(pair.model)
    result = []
    for node, sums in layers:
        signal, error, own = (float(found[name]) for name in sums)
        if all(map(math.isfinite, (signal, error, own))):
            result.append(Layer(*node, _decibels(signal, error), _decibels(signal, own)))
    return result


def _decibels(signal: float, noise: float) -> float:
    return math.inf if noise == 0 else 10 * math.log10(signal / noise) if signal else -math.inf


class _Pair:
    """Two states of a model, put into the graph of the first."""

    def __init__(self, before: ir.Model, after: ir.Model) -> None:
        self.model, self._after = before, after
        self._old = {v.name: v for v in before.graph.inputs} | {
            v.name: v for n in before.graph for v in n.outputs if v.name
        }
        self._constants = {v.name: v for v in before.graph.initializers.values()}
        self._index = {n: i for i, n in enumerate(before.graph)}
        self._names = {v: v.name for g in after.graphs() for v in _values(g)}
        self._fixed: dict[ir.Value, bool] = {}
        """Values of the second that no input changes → whether they have other numbers than in the first."""
        self._copies: dict[ir.Value, ir.Value] = {}
        self._place: ir.Node | None = None
        self._reached = -1
        self._added = 0

    def merged(self) -> list[tuple[tuple[str, str], tuple[str, str, str]]]:
        """Put both together; the changed layers, each with the outputs that are its sums of squares."""
        graph, other = self.model.graph, self._after.graph
        nodes = list(other)
        found = []
        for node in nodes:
            self._judge(node)
            if self._is_layer(node):
                found.append(node)
        other.outputs.clear()
        other.remove(nodes)
        ports = {v.name: v for v in graph.inputs}
        for value in list(other.inputs):
            _replace(value, ports[value.name])
        for value in list(other.initializers.values()):
            other.initializers.pop(value.name or "")
            self._rename(value)
            graph.register_initializer(value)
        for inner in list(self._after.graphs())[1:]:
            for value in _values(inner):
                self._rename(value)
        for key, function in self._after.functions.items():
            self.model.functions.setdefault(key, function)
        graph.outputs.clear()
        wanted, layers = set(found), []
        for node in nodes:
            self._put(node, self._counterpart(node))
            if node in wanted:
                layers.append(((node.name or self._names[node.outputs[0]] or "", node.op_type), self._measure(node)))
        for node in nodes:
            node.name = f"edgec.after.{node.name}"
        return layers

    def _counterpart(self, node: ir.Node) -> ir.Node | None:
        """The node of the first that makes the same value; None for what was inserted."""
        name = self._names.get(node.outputs[0])
        old = self._old[name].producer() if name in self._old else None
        return old if old is not None and (old.op_type, old.domain) == (node.op_type, node.domain) else None

    def _judge(self, node: ir.Node) -> None:
        """Note whether a node computes with constants alone, and whether these are others than before."""
        if any(subgraphs(node)):
            return
        states = [self._state(v) for v in node.inputs if v is not None]
        if all(s is not None for s in states):
            changed = any(states) or self._counterpart(node) is None
            self._fixed.update(dict.fromkeys(node.outputs, changed))

    def _state(self, value: ir.Value) -> bool | None:
        """Whether a constant has other numbers than before; None for what is none."""
        if value.is_initializer() and not value.is_graph_input():
            old = self._constants.get(value.name)
            return old is None or old.const_value is not value.const_value
        return self._fixed.get(value)

    def _is_layer(self, node: ir.Node) -> bool:
        old = self._counterpart(node)
        if old is None or node.outputs[0] in self._fixed or any(subgraphs(node)):
            return False
        if old.outputs[0].dtype not in FLOATS or len(old.inputs) != len(node.inputs):
            return False
        for value in node.inputs:
            state = None if value is None else self._state(value)
            if state:
                return True
            if value is not None and state is None and self._inserted(value) and node.op_type in LINEAR:
                return True
        return False

    def _inserted(self, value: ir.Value) -> bool:
        node = value.producer()
        return node is not None and node.graph is self._after.graph and self._counterpart(node) is None

    def _measure(self, node: ir.Node) -> tuple[str, str, str]:
        """Add what tells the damage of a layer; the names of Σ before², Σ (after - before)², Σ (own - before)²."""
        old = self._counterpart(node)
        assert old is not None
        copy = ir.Node(
            node.domain, node.op_type, [self._before(v) for v in node.inputs], list(node.attributes.values()),
            overload=node.overload, num_outputs=len(node.outputs), version=node.version,
        )  # fmt: skip
        self._put(copy, old)
        reference = old.outputs[0]
        return (
            self._sum(reference),
            self._sum(self._op("Sub", node.outputs[0], reference)),
            self._sum(self._op("Sub", copy.outputs[0], reference)),
        )

    def _before(self, value: ir.Value | None) -> ir.Value | None:
        """What a layer would read if nothing before it were changed: rounding that was inserted stays."""
        if value is None or value in self._fixed or value.is_initializer() or value in self._copies:
            return value if value is None else self._copies.get(value, value)
        maker = value.producer()
        if maker is None or self._counterpart(maker) is not None:
            return self._old.get(self._names.get(value, value.name), value)
        copy = ir.Node(
            maker.domain, maker.op_type, [self._before(v) for v in maker.inputs], list(maker.attributes.values()),
            overload=maker.overload, num_outputs=len(maker.outputs), version=maker.version,
        )  # fmt: skip
        self._put(copy, None)
        for mine, theirs in zip(maker.outputs, copy.outputs, strict=True):
            theirs.type, theirs.shape = mine.type, mine.shape
            self._copies[mine] = theirs
        return self._copies[value]

    def _op(self, op: str, *inputs: ir.Value) -> ir.Value:
        node = ir.Node("", op, inputs, [ir.AttrInt64("keepdims", 0)] if op.startswith("Reduce") else [])
        self._put(node, None)
        return node.outputs[0]

    def _sum(self, value: ir.Value) -> str:
        found = self._op("ReduceSumSquare", value)
        self.model.graph.outputs.append(found)
        return found.name or ""

    def _put(self, node: ir.Node, counterpart: ir.Node | None) -> None:
        """Insert a node behind the last one, and behind `counterpart`, with names of its own."""
        graph = self.model.graph
        if counterpart is not None and self._index[counterpart] > self._reached:
            self._reached, self._place = self._index[counterpart], counterpart
        if self._place is None:
            graph.insert_before(graph[0], node)
        else:
            graph.insert_after(self._place, node)
        self._place = node
        for value in node.outputs:
            self._rename(value)

    def _rename(self, value: ir.Value) -> None:
        self._added += 1
        if value.name != "":
            value.name = f"edgec.after.{self._added}"


def _values(graph: ir.Graph | ir.GraphView) -> Sequence[ir.Value]:
    return [*graph.inputs, *graph.initializers.values(), *(v for n in graph for v in n.outputs)]


def _replace(old: ir.Value, new: ir.Value) -> None:
    for node, i in list(old.uses()):
        node.replace_input_with(i, new)
