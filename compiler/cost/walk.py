"""Which nodes run, and how often: loops, branches, constants that are computed when loading, and what nobody reads."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import onnx_ir as ir

from .. import dims as d
from ..dims import Dim
from ..graph import attr, is_const, static_shape, subgraphs
from ..ops import is_random
from .node import Measures, Numbers, held
from .products import MACS, node_macs, operator

if TYPE_CHECKING:
    from .sizes import Sizes

MOST_TRIPS = 1 << 31
"""Trip counts from here on mean "until the condition fails": exporters write the largest integer."""


class Liveness:
    """Which nodes of a model run when the model does.

    Attributes:
        read: nodes that an output depends on, in all graphs. The others never run.
        constant: values that depend on no input: constants, and what is computed from them alone, once, when loading.
            With `sizes`, what follows from the shapes of the inputs as well: the arithmetic of sizes.
    """

    def __init__(self, model: ir.Model, sizes: Sizes | None = None) -> None:
        self.read: set[ir.Node] = set()
        self.constant: set[ir.Value] = set()
        self._sizes = sizes
        self._trace(model.graph.outputs)
        self._fold(model.graph)

    def runs(self, node: ir.Node) -> bool:
        """Whether `node` runs at each run of the graph that it is in."""
        return node in self.read and not all(o in self.constant for o in node.outputs)

    def is_constant(self, value: ir.Value) -> bool:
        """Whether `value` is the same in every run."""
        return value in self.constant or is_const(value)

    def _trace(self, ends: Iterable[ir.Value]) -> None:
        stack: list[ir.Value | None] = list(ends)
        while stack:
            value = stack.pop()
            node = None if value is None else value.producer()
            if node is None or node in self.read:
                continue
            self.read.add(node)
            stack += node.inputs
            for inner in subgraphs(node):
                stack += list(inner.outputs)

    def _fold(self, graph: ir.Graph) -> None:
        for node in graph:
            inner = subgraphs(node)
            for g in inner:
                self._fold(g)
            if inner or not self._is_foldable(node):
                continue
            self.constant.update(node.outputs)

    def _is_foldable(self, node: ir.Node) -> bool:
        if node.op_type in ("Shape", "Size") and not node.domain and static_shape(node.inputs[0]) is not None:
            return True
        # Of what it is cast like, only the type matters.
        inputs = node.inputs[:1] if node.op_type == "CastLike" else node.inputs
        if all(v is None or v in self.constant or is_const(v) for v in inputs):
            return not is_random(node)
        return self._sizes is not None and all(_is_known(self._sizes, o) for o in node.outputs)


def _is_known(sizes: Sizes, value: ir.Value) -> bool:
    found = sizes.found.get(value)
    return found is not None and all(x is not None for x in found.flat)


def trips(node: ir.Node, sizes: Measures) -> Dim | None:
    """How often the graph inside a Loop, Scan or SequenceMap runs at most; None where that is known only by running."""
    if node.op_type == "Loop" and node.inputs[0] is not None:
        limit = sizes.number(node.inputs[0])
        return None if limit is None or (isinstance(limit, int) and limit >= MOST_TRIPS) else limit
    if node.op_type == "Scan":
        scanned = attr(node, "num_scan_inputs")
        axes = attr(node, "scan_input_axes") or [0] * scanned
        dims = sizes.dims(node.inputs[len(node.inputs) - scanned])
        return None if dims is None else dims[axes[0]]
    return None


def chosen(node: ir.Node) -> ir.Graph | None:
    """The branch that an If takes in every run, where its condition is a constant."""
    found = held(node.inputs[0])
    if found is None:
        return None
    branch: ir.Graph = node.attributes["then_branch" if found else "else_branch"].as_graph()
    return branch


# --- the sum alone ---------------------------------------------------------------------------------------------------


def macs(model: ir.Model) -> int | None:
    """Multiply-accumulates of the model's costliest run: of If the costlier branch, Loop and Scan times their trips.

    None where a shape is symbolic, a trip count is not a constant, or an operator is unknown. Linear in nodes.
    """
    from .flatten import flattened

    flat = flattened(model, needed=_has_products)
    found = _Sum(flat, Numbers()).of(flat.graph)
    return found if isinstance(found, int) else None


def _has_products(model: ir.Model, function: ir.Function) -> bool:
    """Whether a local function may multiply and accumulate, itself or through what it calls."""
    seen: set[ir.OperatorIdentifier] = set()
    stack = [function]
    while stack:
        for node in stack.pop().all_nodes():
            key = node.op_identifier()
            if operator(node) in MACS or subgraphs(node) or (node.domain and key not in model.functions):
                return True
            if key in model.functions and key not in seen:
                seen.add(key)
                stack.append(model.functions[key])
    return False


class _Sum:
    """Adds up graphs, with the graphs inside them."""

    def __init__(self, model: ir.Model, sizes: Measures) -> None:
        self.functions, self.sizes, self.runs = model.functions, sizes, Liveness(model).runs

    def of(self, graph: ir.Graph) -> Dim | None:
        total: Dim = 0
        for node in graph:
            found = self._node(node) if self.runs(node) else 0
            if found is None:
                return None
            total = d.add(total, found)
        return total

    def _node(self, node: ir.Node) -> Dim | None:
        if operator(node) in MACS:
            return node_macs(node, self.sizes)
        if node.domain:
            # A function that is still there multiplies nothing; an unknown operator may.
            return 0 if node.op_identifier() in self.functions else None
        inside = subgraphs(node)
        if not inside:
            return 0
        only = chosen(node) if node.op_type == "If" else None
        inner = [self.of(g) for g in ([only] if only is not None else inside)]
        if any(i is None for i in inner):
            return None
        known = [i for i in inner if isinstance(i, int)]
        if node.op_type == "If" or not any(known):
            return max(known)
        count = trips(node, self.sizes)
        return None if count is None else d.mul(count, sum(known))
