"""Puts the nodes of a model in order, and says what is wrong where there is none: a cycle, a value that nobody makes.

ONNX wants nodes sorted and their names unique. onnxruntime sorts; so a file that isn't sorted is one that people use.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Container, Iterator, Mapping, MutableSequence, Sequence
from typing import Any

import onnx

from ...compiler.errors import ModelError

_GRAPH_KINDS = (onnx.AttributeProto.UNDEFINED, onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS)


def settle(proto: onnx.ModelProto) -> None:
    """Sort the nodes of all graphs and functions where they aren't, give those that share a name one of their own.

    Raises ModelError, naming the nodes: a cycle, a value that is read and made nowhere, or made twice.
    """
    _graph(proto.graph, frozenset())
    for function in proto.functions:
        _nodes(function.node, frozenset(function.input), function.output, f"function '{function.name}'")


def _graph(graph: onnx.GraphProto, outer: Container[str]) -> None:
    twice = [n for n, count in Counter(i.name for i in graph.input).items() if count > 1]
    if twice:
        raise ModelError(f"two inputs are called '{twice[0]}'")
    held = {t.name for t in graph.initializer} | {t.values.name for t in graph.sparse_initializer}
    given = _Names({i.name for i in graph.input} | held, outer)
    _nodes(graph.node, given, [o.name for o in graph.output], "the graph")


class _Names:
    """The names that a graph may read: its own and those of the graphs around it."""

    def __init__(self, own: set[str], outer: Container[str]) -> None:
        self._own, self._outer = own, outer

    def __contains__(self, name: object) -> bool:
        return name in self._own or name in self._outer


def _nodes(nodes: Any, given: Container[str], outputs: Sequence[str], where: str) -> None:
    """Check and sort the nodes of one graph; `given` is what they may read besides what they make."""
    makers: dict[str, onnx.NodeProto] = {}
    names: Counter[str] = Counter()
    ordered = True
    for node in nodes:
        ordered = ordered and all(n in makers or n in given for n in _reads(node))
        for name in node.output:
            if not name:
                continue
            if name in makers:
                raise ModelError(f"{_called(node)} makes '{name}', which {_called(makers[name])} makes already")
            makers[name] = node
        names[node.name] += 1
    _require_text(nodes, makers, names)
    if not ordered:
        _sort(nodes, makers, given)
    if lost := [n for n in outputs if n not in makers and n not in given]:
        raise ModelError(f"no node makes '{lost[0]}', an output of {where}")
    if len(names) < len(nodes):
        _rename(nodes, names)
    for node in nodes:
        for graph in _graphs(node):
            _graph(graph, _Names(set(makers), given))


def _require_text(nodes: Sequence[onnx.NodeProto], *names: Mapping[str, object]) -> None:
    """Names that are not UTF-8 arrive as bytes: somebody's disk or line has changed them."""
    for name in (n for found in ({n.op_type: 0 for n in nodes}, *names) for n in found):
        if not isinstance(name, str):
            raise ModelError(f"{name!r} is no name, but bytes that are no text: the file is damaged")


def _sort(nodes: MutableSequence[onnx.NodeProto], makers: dict[str, onnx.NodeProto], given: Container[str]) -> None:
    """Every node behind those that it reads from, otherwise as they were."""
    index = {name: i for i, node in enumerate(nodes) for name in node.output if name}
    waits: list[set[int]] = []
    for node in nodes:
        if lost := [n for n in _reads(node) if n not in makers and n not in given]:
            raise ModelError(f"{_called(node)} reads '{lost[0]}', which nothing makes")
        waits.append({index[n] for n in _reads(node) if n in index})
    readers: dict[int, list[int]] = {}
    for i, before in enumerate(waits):
        for b in before:
            readers.setdefault(b, []).append(i)
    missing = [len(w) for w in waits]
    ready = [i for i, n in enumerate(missing) if not n]
    order: list[int] = []
    while ready:
        order.append(heapq.heappop(ready))
        for reader in readers.get(order[-1], ()):
            missing[reader] -= 1
            if not missing[reader]:
                heapq.heappush(ready, reader)
    if len(order) < len(nodes):
        raise ModelError(_cycle(nodes, waits, set(order)))
    kept = [onnx.NodeProto.FromString(nodes[i].SerializeToString()) for i in order]
    del nodes[:]
    nodes.extend(kept)


def _cycle(nodes: Sequence[onnx.NodeProto], waits: Sequence[set[int]], placed: set[int]) -> str:
    """The message for a graph in which some nodes wait for each other."""
    at = min(set(range(len(nodes))) - placed)
    path: list[int] = []
    while at not in path:
        path.append(at)
        at = min(waits[at] - placed)
    ring = [_called(nodes[i]) for i in path[path.index(at) :]]
    shown = ring if len(ring) <= 5 else [*ring[:4], f"{len(ring) - 4} more"]
    return f"the graph has a cycle, so nothing in it can run first: {' reads from '.join([*shown, ring[0]])}"


def _rename(nodes: Sequence[onnx.NodeProto], names: Counter[str]) -> None:
    """onnxruntime refuses two nodes of one name."""
    shared = {n for n, count in names.items() if n and count > 1}
    seen: Counter[str] = Counter()
    for node in nodes:
        if node.name in shared:
            base = node.name
            seen[base] += 1
            while seen[base] > 1 and names[name := f"{base}_{seen[base]}"]:
                seen[base] += 1
            if seen[base] > 1:
                node.name = name
                names[name] += 1


def _reads(node: onnx.NodeProto) -> Iterator[str]:
    """What a node reads; what graphs inside it read from outside, too."""
    yield from filter(None, node.input)
    for graph in _graphs(node):
        made = {i.name for i in graph.input} | {t.name for t in graph.initializer}
        made |= {t.values.name for t in graph.sparse_initializer} | {o for n in graph.node for o in n.output}
        yield from (n for inner in graph.node for n in _reads(inner) if n not in made)


def _graphs(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    held = [a for a in node.attribute if a.type in _GRAPH_KINDS]
    return [g for a in held for g in [*([a.g] if a.HasField("g") else []), *a.graphs]]


def _called(node: onnx.NodeProto) -> str:
    return f"node '{node.name or ', '.join(node.output)}' ({node.op_type})"
