"""What every pass needs when it reads or changes a graph: constants, users, new nodes, replacing a value."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from .weights import Scratch

GRAPH, GRAPHS = ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS


def graphs(model: ir.Model) -> Iterator[ir.Graph]:
    """The main graph, then every sub-graph of If, Loop and Scan, outermost first."""
    yield from _nested(model.graph)


def _nested(graph: ir.Graph) -> Iterator[ir.Graph]:
    yield graph
    for node in graph:
        if node.attributes.data:  # half of all nodes have none
            for inner in subgraphs(node):
                yield from _nested(inner)


def nodes(model: ir.Model, *op_types: str) -> Iterator[ir.Node]:
    """All nodes in all graphs, of these operators (of the standard domain) when any are named.

    A snapshot is taken of each graph: nodes may be removed and added while iterating; removed ones are not yielded.
    """
    wanted = frozenset(op_types)
    for graph in list(graphs(model)):
        found = list(graph) if not wanted else [n for n in graph if n.op_type in wanted and n.domain == ""]
        for node in found:
            if node.graph is not None:
                yield node


def const(value: ir.Value | None) -> np.ndarray | None:
    """The constant that `value` always holds, or None. Mapped, not copied: never write to it."""
    tensor = None if value is None else const_tensor(value)
    return None if tensor is None else tensor.numpy()


def const_tensor(value: ir.Value) -> ir.TensorProtocol | None:
    """The tensor of an initializer that is not a graph input, or None."""
    if value.const_value is not None and value.is_initializer() and not value.is_graph_input():
        return value.const_value
    return None


def is_const(value: ir.Value | None) -> bool:
    """Whether `value` is an initializer that no caller can override."""
    return value is not None and const_tensor(value) is not None


def scalar(value: ir.Value | None) -> float | None:
    """The number that a one-element constant holds, or None. Big tensors are not read."""
    tensor = None if value is None else const_tensor(value)
    if tensor is None or tensor.size != 1:
        return None
    return float(tensor.numpy().reshape(()).astype(np.float64))


def ints(value: ir.Value | None) -> list[int] | None:
    """The integers of a constant of rank 0 or 1 (axes, shapes, pads), or None."""
    array = const(value)
    return None if array is None or array.dtype.kind not in "iu" else [int(i) for i in array.reshape(-1)]


def attr(node: ir.Node, name: str, default: Any = None) -> Any:
    """An attribute's value, or the default; strings as str, lists as tuples."""
    found = node.attributes.get(name)
    if found is None or found.value is None:
        return default
    return found.value


def shape(value: ir.Value | None) -> tuple[int | str | None, ...] | None:
    """The dimensions: an int, a symbol's name, or None where nothing is known; None for an unknown rank."""
    if value is None or value.shape is None:
        return None
    return tuple(d if isinstance(d, int) else d.value for d in value.shape)


def static_shape(value: ir.Value | None) -> tuple[int, ...] | None:
    """The dimensions when all are fixed, else None."""
    dims = shape(value)
    if dims is None or not all(isinstance(d, int) for d in dims):
        return None
    return dims  # type: ignore[return-value]


def rank(value: ir.Value | None) -> int | None:
    """The number of dimensions, or None."""
    return None if value is None or value.shape is None else len(value.shape)


def producer(value: ir.Value | None, *op_types: str) -> ir.Node | None:
    """The node that makes `value`, if it is one of these standard operators (any, when none is named)."""
    node = None if value is None else value.producer()
    if node is None or (op_types and (node.op_type not in op_types or node.domain)):
        return None
    return node


def users(value: ir.Value) -> list[ir.Node]:
    """The nodes that read `value`, each once, in no particular graph order."""
    return list(dict.fromkeys(node for node, _ in value.uses()))


def sole_user(value: ir.Value, *op_types: str) -> ir.Node | None:
    """The one node that reads `value`, if nothing else does (no graph output either) and it is of these operators."""
    found = users(value)
    if len(found) != 1 or value.is_graph_output() or len(value.uses()) != 1:
        return None
    node = found[0]
    if op_types and (node.op_type not in op_types or node.domain):
        return None
    return node


def used_once(value: ir.Value) -> bool:
    """Whether exactly one node input reads `value`, and no graph output."""
    return len(value.uses()) == 1 and not value.is_graph_output()


def fresh_name(graph: ir.Graph, hint: str) -> str:
    """A value name that `graph` (and the graphs around and inside it) doesn't hold yet. `hint` when free."""
    taken: set[str] | None = graph.meta.get("edgec.names")
    if taken is None or graph.num_nodes() > graph.meta.get("edgec.names.size", 0):
        taken = set(taken or ()) | set(_value_names(graph))
        graph.meta["edgec.names"], graph.meta["edgec.names.size"] = taken, graph.num_nodes()
    name = hint
    tried: dict[str, int] = graph.meta.setdefault("edgec.names.tried", {})
    for i in itertools.count(tried.get(hint, 1)):
        if name not in taken and name not in graph.initializers:
            tried[hint] = i
            break
        name = f"{hint}_{i}"
    taken.add(name)
    return name


def _value_names(graph: ir.Graph) -> Iterator[str]:
    for value in itertools.chain(graph.inputs, graph.initializers.values()):
        yield value.name or ""
    for node in graph.all_nodes():
        for out in node.outputs:
            yield out.name or ""


def initializer(graph: ir.Graph, array: np.ndarray, hint: str, scratch: Scratch | None = None) -> ir.Value:
    """Add a constant to `graph` under a free name like `hint`. With `scratch`, big arrays go to disk."""
    name = fresh_name(graph, hint)
    array = np.asarray(array)
    tensor = scratch.tensor(array, name) if scratch else ir.Tensor(array, name=name)
    value = ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.register_initializer(value)
    return value


def insert_before(
    anchor: ir.Node,
    op_type: str,
    inputs: Sequence[ir.Value | None],
    attributes: Mapping[str, Any] | None = None,
    *,
    like: ir.Value | None = None,
    hint: str | None = None,
    domain: str = "",
    num_outputs: int = 1,
) -> ir.Node:
    """Insert a new node before `anchor`. `like` gives the first output its type and shape; `hint` its name."""
    graph = anchor.graph
    assert isinstance(graph, ir.Graph)
    base = hint or (like.name if like is not None and like.name else f"{anchor.name or anchor.op_type}_{op_type}")
    node = ir.node(op_type, list(inputs), dict(attributes or {}), domain=domain, num_outputs=num_outputs)
    for i, out in enumerate(node.outputs):
        out.name = fresh_name(graph, base if i == 0 else f"{base}_{i}")
    node.name = node.outputs[0].name
    if like is not None:
        node.outputs[0].type, node.outputs[0].shape = like.type, like.shape
    node.metadata_props.update(anchor.metadata_props)
    graph.insert_before(anchor, node)
    note_named(graph, 1)
    return node


def note_named(graph: ir.Graph, count: int) -> None:
    """Say that `count` nodes were added under fresh names, so that the next fresh name need not collect them again."""
    if "edgec.names.size" in graph.meta:
        graph.meta["edgec.names.size"] += count


def can_replace(old: ir.Value, new: ir.Value) -> bool:
    """Whether `replace_value(old, new)` is possible: two graph outputs, or an output that is an input, need a node."""
    return not old.is_graph_output() or (
        new.producer() is not None and not new.is_graph_output() and new.graph is old.graph
    )


def replace_value(old: ir.Value, new: ir.Value) -> None:
    """Make all users of `old` read `new`. A graph output keeps its name, type and shape. See `can_replace`."""
    if old.is_graph_output():
        name = old.name
        new.type, new.shape = old.type or new.type, old.shape or new.shape
        ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
        old.name, new.name = f"{name}__replaced", name
    else:
        ir.convenience.replace_all_uses_with(old, new)
    if new.shape is None:
        new.shape = old.shape
    if new.type is None:
        new.type = old.type


def replace_node(node: ir.Node, value: ir.Value) -> None:
    """Make all users of `node`'s first output read `value`; `node` goes, with what only it read. See `can_replace`."""
    replace_value(node.outputs[0], value)
    remove_upwards(node)


def rewire(node: ir.Node, index: int, value: ir.Value | None) -> None:
    """Make input `index` of `node` read `value`; what made the old input goes if nobody else reads it."""
    old = producer(node.inputs[index])
    node.replace_input_with(index, value)
    if old is not None:
        remove_upwards(old)


def subgraphs(node: ir.Node) -> list[ir.Graph]:
    """The graphs in the node's attributes (If, Loop, Scan, SequenceMap)."""
    found: list[ir.Graph] = []
    for a in node.attributes.data.values():  # `.data`: what the mapping around it does for each item takes long
        kind = a.type
        if kind is GRAPH:
            found.append(a.as_graph())
        elif kind is GRAPHS:
            found.extend(a.as_graphs())
    return found


def release(node: ir.Node) -> None:
    """Make the graphs inside a node that is about to go let go of the outer values that they read."""
    for sub in subgraphs(node):
        for inner in sub:
            release(inner)
            for i in range(len(inner.inputs)):
                inner.replace_input_with(i, None)


def remove(dead: Iterable[ir.Node], *, sources: bool = False) -> None:
    """Remove nodes whose outputs only other nodes of `dead` read, given in any order; those still read are left.

    With `sources`, what only they read goes as well, such as a shape that is computed for a Reshape.
    """
    left = [node for node in dict.fromkeys(dead) if node.graph is not None]
    if sources:
        above = [v.producer() for node in left for v in node.inputs if v is not None]
        remove(left)
        for source in above:
            if source is not None:
                remove_upwards(source)
        return
    while left:
        kept = []
        for node in left:
            if any(o.uses() or o.is_graph_output() for o in node.outputs):
                kept.append(node)
            elif node.graph is not None:
                release(node)
                node.graph.remove(node, safe=True)
        if len(kept) == len(left):
            return
        left = kept


def remove_upwards(node: ir.Node) -> int:
    """Remove `node` if nobody reads it, then its producers that nobody reads either. Returns how many went."""
    stack, count = [node], 0
    while stack:
        n = stack.pop()
        if n.graph is None or any(o.uses() or o.is_graph_output() for o in n.outputs):
            continue
        sources = [v.producer() for v in n.inputs if v is not None]
        release(n)
        n.graph.remove(n, safe=True)
        count += 1
        stack += [s for s in sources if s is not None]
    return count
