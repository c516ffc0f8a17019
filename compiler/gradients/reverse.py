"""The gradient of a model, as a model: nodes from the last to the first, each by its operator's rule."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field

import onnx_ir as ir
from onnx_ir.passes import common

from .. import graph as g
from ..cost.sizes import Sizes
from ..dims import Dim
from ..errors import EdgecError, Missing, UnsupportedOp
from ..shapes import infer
from . import recurrent
from .rules import RULES, stops
from .step import Refused, Step
from .terms import Tape, Term
from .written import has_definition, inlined, write_out

SUFFIX = ".gradient"
"""The gradient with respect to the value `x` is the output `x.gradient`."""
SEED = ".seed"


def gradient(
    model: ir.Model, of: Sequence[str], wrt: Sequence[str], *, seeds: bool = False, keep: Sequence[str] = ()
) -> ir.Model:
    """A new model that computes the values `of` and the gradient of their sum with respect to each value of `wrt`.

    Values are inputs, initializers, or what a node makes. The outputs are those of `of`, then `NAME.gradient` for each
    of `wrt`, in its shape. With `seeds` there is an input `NAME.seed` for each of `of`, in its shape, and the gradient
    is that of the sum of all products with it (a vector-Jacobian product). The values `keep` are outputs as
    well. The model is left alone; both share weights. Where a function has a kink, a subgradient is taken: 0 for Relu,
    equal shares for a maximum of equals.

    Raises EdgecError for a name that the model doesn't have, UnsupportedOp listing all nodes on the way from `wrt` to
    `of` that can't be differentiated.
    """
    made = inlined(model)
    _infer(made)
    tried: set[str] = set()
    while True:
        values = _named(made.graph, {*of, *wrt, *keep})
        ends, starts = [values[n] for n in of], [values[n] for n in wrt]
        way = _Way.between(made.graph, starts, ends)
        if recurrent.unroll(way.nodes):
            _infer(made)
            continue
        lacking = {n.op_type for n in way.nodes if n.domain == "" and n.op_type not in RULES} - tried
        unknown = {op for op in lacking if has_definition(op)}
        if not unknown:
            break
        tried |= unknown
        made = write_out(made, unknown)
        _infer(made)
    found = _reversed(made.graph, way, ends, _seeds(made.graph, ends, seeds))
    made.graph.outputs.clear()
    made.graph.outputs.extend(_as_outputs(made.graph, [*ends, *(values[n] for n in keep)], starts, found))
    common.RemoveUnusedNodesPass()(made)
    infer(made)
    return made


def _infer(model: ir.Model) -> None:
    """Types, and dimensions as far as they can be told: equal ones that aren't numbers get the same name."""
    infer(model)
    sizes, names = Sizes(model), dict[Dim, str]()
    for node in model.graph:
        for out in node.outputs:
            dims = sizes.dims(out)
            if dims is not None:
                out.shape = ir.Shape([_name(d, names) for d in dims])


def _name(dim: Dim, names: dict[Dim, str]) -> int | str:
    if isinstance(dim, int):
        return dim
    return names.setdefault(dim, dim.symbol() or f"size.{len(names)}")


def _named(graph: ir.Graph, names: Collection[str]) -> dict[str, ir.Value]:
    found = {v.name: v for v in (*graph.inputs, *graph.initializers.values()) if v.name in names}
    found.update({v.name: v for n in graph for v in n.outputs if v.name in names})
    for name in names:
        if name not in found:
            raise EdgecError(f"the model has no value '{name}' to differentiate")
    return {str(n): v for n, v in found.items()}


@dataclass
class _Way:
    """What lies between the values that are differentiated and those that they are differentiated by.

    Attributes:
        nodes: in the order in which they run.
        values: all that depends on `wrt`, as far as its gradient isn't zero everywhere.
    """

    nodes: list[ir.Node] = field(default_factory=list)
    values: set[ir.Value] = field(default_factory=set)

    @classmethod
    def between(cls, graph: ir.Graph, starts: Iterable[ir.Value], ends: Iterable[ir.Value]) -> _Way:
        way = cls([], set(starts))
        reached = []
        for node in graph:
            if not stops(node) and any(v in way.values for v in _read(node)):
                way.values.update(v for v in node.outputs if is_float(v) or node.op_type not in RULES or node.domain)
                reached.append(node)
        needed = set(ends)
        for node in reversed(reached):
            if any(v in needed and v in way.values for v in node.outputs):
                way.nodes.append(node)
                needed.update(_read(node))
        way.nodes.reverse()
        return way


def is_float(value: ir.Value) -> bool:
    """Whether a gradient with respect to it makes sense; so it is taken where no type is known."""
    return value.dtype is None or value.dtype.is_floating_point()


def _read(node: ir.Node) -> list[ir.Value]:
    """The inputs whose numbers matter, and what graphs inside the node read."""
    if node.op_type == "CastLike" and not node.domain:
        return [v for v in node.inputs[:1] if v is not None]
    inner = (v for sub in g.subgraphs(node) for n in sub for v in _read(n))
    return [*(v for v in node.inputs if v is not None), *inner]


def _seeds(graph: ir.Graph, ends: Sequence[ir.Value], given: bool) -> list[Term]:
    tape = Tape(graph)
    if given:
        inputs = [ir.Value(name=f"{v.name}{SEED}", shape=v.shape, type=v.type) for v in ends]
        graph.inputs.extend(inputs)
        return [tape.term(v) for v in inputs]
    return [tape.const(1.0, tape.term(v)).expand(tape.term(v)) for v in ends]


def _reversed(graph: ir.Graph, way: _Way, ends: Sequence[ir.Value], seeds: Sequence[Term]) -> dict[ir.Value, Term]:
    """The gradient with respect to each value of the way that has one."""
    tape = Tape(graph)
    found: dict[ir.Value, Term] = {}
    missing: list[Missing] = []

    def add(value: ir.Value, part: Term) -> None:
        found[value] = found[value] + part if value in found else part

    for value, seed in zip(ends, seeds, strict=True):
        add(value, seed)
    for node in reversed(way.nodes):
        dys = [found.get(v) for v in node.outputs]
        if all(d is None for d in dys):
            continue
        wanted = [v is not None and v in way.values and is_float(v) for v in node.inputs]
        rule = RULES.get(node.op_type) if node.domain == "" else None
        try:
            if rule is None:
                known = node.op_type in recurrent.GATES and not node.domain
                raise Refused(recurrent.refused(node) if known else "there is no rule for its gradient")
            parts = rule(Step(node, tape, dys, wanted))
        except Refused as e:
            missing.append(Missing(node.name or "", node.op_type, str(e)))
            # Whatever is above it is asked as well, so that all that is missing is known at once.
            parts = [tape.term(v) if v is not None else None for v in node.inputs]
        for read, want, part in zip(node.inputs, wanted, parts, strict=False):
            if want and part is not None and read is not None:
                add(read, part)
    if missing:
        raise UnsupportedOp("the model can't be differentiated:", missing)
    return found


def _as_outputs(
    graph: ir.Graph, ends: Sequence[ir.Value], starts: Sequence[ir.Value], found: dict[ir.Value, Term]
) -> list[ir.Value]:
    tape = Tape(graph)
    outputs = []
    for value in ends:
        produced = value.producer() is not None
        outputs.append(value if produced else tape.term(value).op("Identity").value)
    for start in starts:
        part = found[start] if start in found else tape.term(start).zeros()
        out = part.op("Identity").value
        out.name, out.type, out.shape = f"{start.name}{SUFFIX}", start.type, start.shape
        outputs.append(out)
    return outputs
