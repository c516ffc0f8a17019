"""Computes once what is computed twice, and keeps one copy of equal constants."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Hashable, MutableMapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from ..compiler import graph, ops
from ..compiler.passbase import Context, Pass
from .tied_tables import tie_tables


@dataclass(frozen=True)
class MergeCommonSubexpressions(Pass):
    """Merge nodes of equal operator, attributes and inputs, and initializers of equal content.

    before:  a = Relu(x); b = Relu(x); y = Add(a, b)
    after:   a = Relu(x); y = Add(a, a)

    before:  e = Gather(table, ids); y = MatMul(x, w), where w is the transpose of table (see `tied_tables`)
    after:   e = Gather(table, ids); y = MatMul(x, Transpose(table))

    A node inside an If, Loop or Scan may be replaced by an equal one before it in a graph around it, not the other way
    round. Random operators and nodes that hold graphs are never merged.
    """

    name: ClassVar[str] = "merge-common-subexpressions"

    def run(self, model: ir.Model, ctx: Context) -> int:
        merged = sum(_merge_initializers(g) for g in graph.graphs(model))
        return merged + tie_tables(model.graph) + _merge_nodes(model.graph, {})


def _merge_nodes(g: ir.Graph, seen: MutableMapping[Hashable, ir.Node]) -> int:
    count = 0
    added: list[Hashable] = []
    for node in list(g):
        subs = graph.subgraphs(node)
        count += sum(_merge_nodes(sub, seen) for sub in subs)
        if subs or ops.is_random(node) or not node.outputs:
            continue
        key = _key(node)
        first = seen.get(key)
        if first is None:
            seen[key] = node
            added.append(key)
        elif _merge(node, first):
            count += 1
    for key in added:  # what a branch computed is not there outside of it
        del seen[key]
    return count


def _key(node: ir.Node) -> Hashable:
    inputs = [id(v) for v in node.inputs]
    while inputs and node.inputs[len(inputs) - 1] is None:
        inputs.pop()
    if node.op_type in ops.COMMUTATIVE and node.domain == "":
        inputs.sort()
    attributes = tuple(sorted((a.name, _content(a)) for a in node.attributes.values())) if node.attributes else ()
    return node.op_identifier(), tuple(inputs), attributes


def _content(a: ir.Attr) -> Hashable:
    if a.is_ref():
        return ("ref", a.ref_attr_name)
    if a.type == ir.AttributeType.TENSOR:
        t = a.as_tensor()
        content = repr(t.numpy().tolist()) if t.dtype == ir.DataType.STRING else t.tobytes()
        return (str(t.dtype), tuple(t.shape), content)
    return (str(a.type), repr(a.value))


def _merge(node: ir.Node, first: ir.Node) -> bool:
    """Let the users of `node` read `first`. False where an output of the graph stands in the way."""
    pairs = list(zip(node.outputs, first.outputs, strict=False))
    extra = [o for o in node.outputs[len(first.outputs) :] if o.uses() or o.is_graph_output()]
    if extra or not all(graph.can_replace(old, new) for old, new in pairs):
        return False
    for old, new in pairs:
        graph.replace_value(old, new)
    graph.remove([node])
    return True


def _merge_initializers(g: ir.Graph) -> int:
    """Content is only looked at where type and shape agree, and hashed as a whole only where a sample agrees."""
    alike: dict[Hashable, list[ir.Value]] = defaultdict(list)
    for value in g.initializers.values():
        tensor = graph.const_tensor(value)
        if tensor is not None:
            alike[tensor.dtype, tuple(tensor.shape)].append(value)
    count = 0
    for level in (_sample, _digest):
        finer: dict[Hashable, list[ir.Value]] = defaultdict(list)
        for key, group in alike.items():
            if len(group) > 1:
                for value in group:
                    finer[key, level(value)].append(value)
        alike = finer
    for group in alike.values():
        for value in group[1:]:
            if not value.is_graph_output():
                graph.replace_value(value, group[0])
                assert value.name is not None
                g.initializers.pop(value.name)
                count += 1
    return count


_EDGE = 64


def _sample(value: ir.Value) -> Hashable:
    tensor = value.const_value
    assert tensor is not None
    if tensor.dtype == ir.DataType.STRING:
        return repr(tensor.numpy().tolist())
    if tensor.dtype.bitwidth < 8 or tensor.nbytes <= 4 * _EDGE:
        return tensor.tobytes()
    flat = tensor.numpy().reshape(-1)
    middle = flat.size // 2
    return flat[:_EDGE].tobytes() + flat[middle : middle + _EDGE].tobytes() + flat[-_EDGE:].tobytes()


def _digest(value: ir.Value) -> Hashable:
    tensor = value.const_value
    assert tensor is not None
    if tensor.dtype == ir.DataType.STRING or tensor.dtype.bitwidth < 8 or tensor.nbytes <= 4 * _EDGE:
        return None  # the sample was the whole
    data = np.ascontiguousarray(tensor.numpy()).reshape(-1).view(np.uint8)
    return hashlib.blake2b(data.data, digest_size=16).digest()
