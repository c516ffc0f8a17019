"""Probes of single operators: what no run of the whole model shows, shown on inputs made for it.

An epsilon matters only where what it is added to is as small, and no picture makes a variance inside a trained network
1e-5. So each such operator is cut out of the model, and what it became is cut out of the file that was read back; both
run on the same small inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from .graph import attr, const_tensor, static_shape
from .numerics import difference
from .session import Session

TOLERANCE = 0.01
"""Relative error allowed: the file's own rounding stays far below, an epsilon of another size far above."""

MOST_NODES = 200
"""Nodes that one operator may have become; what is larger is no operator of this table."""


def _spread(default: float) -> Callable[[ir.Node], float]:
    """Inputs whose variance is the operator's epsilon, so that half of the result hangs on it."""
    return lambda node: float(np.sqrt(attr(node, "epsilon", default)))


# Operator → the scale of inputs that shows its epsilon, its own or one that a file format adds.
SCALES: dict[str, Callable[[ir.Node], float]] = {
    "GroupNormalization": _spread(1e-5),
    "InstanceNormalization": _spread(1e-5),
    "LayerNormalization": _spread(1e-5),
    "RMSNormalization": _spread(1e-5),
    "LpNormalization": lambda _: 1e-3,
    "Log": lambda _: 1e-3,
    "Reciprocal": lambda _: 1e-2,
}
POSITIVE = frozenset({"Log", "Reciprocal"})


class Unreachable(Exception):
    """A piece needs a value that lies outside of it."""


@dataclass
class Cut:
    """A piece of a model as a model of its own: inputs by name, and the one output that is compared."""

    graph: ir.Graph
    output: ir.Value
    _made: dict[ir.Value, ir.Value] = field(default_factory=dict)

    @classmethod
    def new(cls, opset: int) -> Cut:
        """An empty piece."""
        return cls(ir.Graph([], [], nodes=[], opset_imports={"": opset}, name="probe"), ir.Value(name=""))

    def feed(self, value: ir.Value, name: str) -> None:
        """Let the piece begin at `value`."""
        new = ir.Value(name=name, type=value.type, shape=value.shape)
        self.graph.inputs.append(new)
        self._made[value] = new

    def value(self, value: ir.Value | None) -> ir.Value | None:
        """The piece's own copy of a value that it holds already, or of a constant."""
        if value is None or value in self._made:
            return None if value is None else self._made[value]
        tensor = const_tensor(value)
        if tensor is None:
            raise Unreachable(value.name)
        new = ir.Value(name=f"c{len(self._made)}", type=value.type, shape=value.shape, const_value=tensor)
        self.graph.register_initializer(new)
        self._made[value] = new
        return new

    def add(self, node: ir.Node) -> None:
        """Copy a node whose inputs the piece holds."""
        inputs = [self.value(v) for v in node.inputs]
        new = ir.Node(node.domain, node.op_type, inputs, list(node.attributes.values()), num_outputs=len(node.outputs))
        for old, out in zip(node.outputs, new.outputs, strict=True):
            out.name, out.type, out.shape = f"v{len(self._made)}", old.type, old.shape
            self._made[old] = out
        self.graph.append(new)

    def run(self, output: ir.Value, feeds: Mapping[str, np.ndarray]) -> np.ndarray:
        """What the piece computes for `output`."""
        self.graph.outputs.append(self._made[output])
        model = ir.Model(self.graph, ir_version=11)
        fitted = {v.name or "": _fit(feeds[v.name or ""], v) for v in self.graph.inputs}
        (found,) = Session(model).run(fitted).values()
        return found


def probe(model: ir.Model, lifted: ir.Model, names: Mapping[str, str]) -> tuple[int, list[str]]:
    """Probe every operator of `SCALES` in `model` against what it became in `lifted`.

    `names` maps values of `model` to those of `lifted`. Returns how many could be probed, and what differed, a line
    each. Operators that are alike but for their weights are probed each: an epsilon is written each time.
    """
    theirs = {o.name or "": o for n in lifted.graph for o in n.outputs} | {v.name or "": v for v in lifted.graph.inputs}
    count, found = 0, []
    for node in model.graph:
        if node.op_type in SCALES and node.domain == "":
            why = _probe(node, theirs, names, model.opset_imports[""])
            count += why is not None
            if why:
                found.append(why)
    return count, found


def _probe(node: ir.Node, theirs: Mapping[str, ir.Value], names: Mapping[str, str], opset: int) -> str | None:
    """What differs, "" for nothing, None where the operator can't be told apart in the file."""
    ours = [v for v in node.inputs if v is not None and const_tensor(v) is None]
    ends = [theirs.get(names.get(v.name or "", "")) for v in [*ours, node.outputs[0]]]
    if any(e is None for e in ends) or any(static_shape(v) is None for v in ours):
        return None
    mine, other = Cut.new(opset), Cut.new(opset)
    feeds = {}
    for i, (a, b) in enumerate(zip(ours, ends[:-1], strict=True)):
        assert b is not None
        mine.feed(a, f"i{i}")
        other.feed(b, f"i{i}")
        feeds[f"i{i}"] = _values(node, static_shape(a) or ())
    last = ends[-1]
    assert last is not None
    try:
        mine.add(node)
        for n in _between([b for b in ends[:-1] if b is not None], last):
            other.add(n)
        ref, got = mine.run(node.outputs[0], feeds), other.run(last, feeds)
    except Unreachable:
        return None
    d = difference(ref, got.reshape(ref.shape) if got.size == ref.size else got, types=False)
    if d.mismatch is None and d.max_rel <= TOLERANCE:
        return ""
    what = d.mismatch or f"relative error {d.max_rel:.2g} on inputs of size {SCALES[node.op_type](node):.1g}"
    return f"{node.op_type} '{node.name}': {what}"


def _values(node: ir.Node, dims: tuple[int, ...]) -> np.ndarray:
    values = np.random.default_rng(0).standard_normal(dims)
    if node.op_type in POSITIVE:
        values = np.abs(values) + 0.1
    return (values * SCALES[node.op_type](node)).astype(np.float32)


def _between(starts: list[ir.Value], end: ir.Value) -> list[ir.Node]:
    """The nodes that compute `end` from `starts` and constants, in order. Raises Unreachable when more is needed."""
    found: dict[ir.Node, None] = {}
    border = set(starts)

    def visit(value: ir.Value) -> Iterator[ir.Node]:
        node = value.producer()
        if value in border or node is None or node in found:
            if node is None and value not in border and const_tensor(value) is None:
                raise Unreachable(value.name)
            return
        for source in node.inputs:
            if source is not None:
                yield from visit(source)
        if node not in found:
            found[node] = None
            if len(found) > MOST_NODES:
                raise Unreachable(value.name)
            yield node

    return list(visit(end))


def _fit(array: np.ndarray, port: ir.Value) -> np.ndarray:
    dims = static_shape(port)
    dtype = (port.dtype or ir.DataType.FLOAT).numpy()
    return (array if dims is None else array.reshape(dims)).astype(dtype)
