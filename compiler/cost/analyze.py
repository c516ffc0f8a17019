"""All that is known of a model's cost without running it, put together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import onnx_ir as ir

from .. import dims as d
from ..dims import Dim
from ..errors import UsageError
from ..freeze import Shapes, fix
from ..graph import subgraphs
from ..rounding import has_rounding
from . import modules
from .arithmetic import work
from .bounds import COUNTED
from .flatten import flattened
from .memory import memory
from .node import Op, Unknown
from .products import MACS, costlier, operator
from .records import Analysis, Layer, Shape, Totals
from .sizes import Sizes
from .storage import parameters, weight_bytes
from .stored import Stored, weigh
from .traffic import Traffic
from .walk import Liveness, chosen, trips
from .widths import is_rounding
from .work import Work

COUNTS = ("macs", "flops", "special", "int_ops", "read", "written")
"""What is counted of one run of a node, and then for all of them."""

SUMS = (*COUNTS, "effective_macs", "bops")
"""Fields of a layer that are summed up."""


def analyze(model: ir.Model, source: str = "", *, zeros: bool = False, shapes: Shapes | None = None) -> Analysis:
    """What one run of `model` costs, and where. Nothing is run; weights are read only with `zeros`.

    Args:
        model: with inferred shapes, as a frontend gives it. Local functions are counted as what they call.
        source: what the analysis shall say that it is of.
        zeros: count the weights that are zero, which reads them.
        shapes: sizes of free dimensions, as for `compile`, and of what only a run tells ("#trips[Loop_1]"); the model
            itself is left as it is. Raises UsageError for an unknown name.

    Counts are numbers, or polynomials in the free dimensions. What can't be told is listed in `unknown`.
    """
    given = {name: size for name, size in (shapes or {}).items() if name.startswith(COUNTED)}
    if shapes and len(shapes) > len(given):
        model = model.clone()
        fix(model, {name: size for name, size in shapes.items() if name not in given})
    flat = flattened(model)
    sizes = Sizes(flat, told := {name: _one(name, size) for name, size in given.items()})
    counter = _Counter(flat, sizes)
    layers = counter.layers(flat.graph, 1)
    weigh(layers, counter.nodes, Stored(flat, zeros=zeros))
    symbols = sizes.symbols | counter.symbols
    if strangers := told.keys() - symbols:
        raise UsageError(f"--shape {min(strangers)}: no such size. Only a run tells: {', '.join(symbols) or 'nothing'}")
    found = Analysis(
        source,
        {name: where for name, where in symbols.items() if name not in told},
        _ports(flat.graph.inputs, sizes),
        _ports(flat.graph.outputs, sizes),
        layers,
        memory=memory(flat, sizes, live=counter.live),
        unknown=[f"{x.name} ({x.op}): {x.unknown}" for x in layers if x.unknown],
        warnings=counter.warnings,
        limits=sizes.limits,
    )
    found.totals = _totals(layers)
    found.totals.parameters, found.totals.bytes = parameters(model), weight_bytes(model)
    found.totals.peak_activation_bytes = found.memory.peak
    nodes, index = list(flat.graph), {node: i for i, node in enumerate(counter.nodes)}
    found.memory.layers = [index.get(nodes[i]) for i in found.memory.order]
    if zeros:
        found.totals.zeros = sum(x.zeros or 0 for x in layers)
    return found


class _Counter:
    """Goes over graphs and makes a layer of each node.

    Attributes:
        nodes: the node of each layer, in the order of the layers.
        symbols: trip counts that only running the model tells.
    """

    def __init__(self, model: ir.Model, sizes: Sizes) -> None:
        self.sizes = sizes
        self.live = Liveness(model, sizes)
        self.traffic = Traffic(self.live, rounded=has_rounding(model))
        self.paths = modules.paths(model.graph)
        self.counts: dict[ir.Value, Dim] = {}
        self.nodes: list[ir.Node] = []
        self.symbols: dict[str, str] = {}
        self.warnings: list[str] = []

    def layers(self, graph: ir.Graph, runs: Dim) -> list[Layer]:
        """The layers of `graph`, which runs so often, each followed by those of the graphs inside it.

        A Constant is a value, no layer.
        """
        found: list[Layer] = []
        for node in graph:
            if node.op_type == "Constant" and not node.domain:
                continue
            often = runs if self.live.runs(node) else 0
            self.nodes.append(node)
            found.append(self._layer(node, often))
            found += self._inside(node, often)
        return found

    def _layer(self, node: ir.Node, runs: Dim) -> Layer:
        dims = self.sizes.dims
        layer = Layer(
            node.name or (node.outputs[0].name if node.outputs else "") or "",
            operator(node),
            self.paths[node],
            [None if v is None else dims(v) for v in node.inputs],
            [dims(v) for v in node.outputs],
            runs,
        )
        if runs != 0:
            try:
                self._count(layer, Op(node, self.sizes, self.counts))
            except Unknown as e:
                layer.unknown = str(e)
        return layer

    def _count(self, layer: Layer, op: Op) -> None:
        rule = MACS.get(layer.op)
        macs = rule(op) if rule is not None else 0
        done = Work() if is_rounding(op.node) else work(op, macs)
        layer.macs = macs
        layer.flops, layer.special, layer.int_ops = done
        try:
            layer.read, layer.written = self.traffic.of(op)
        except Unknown as e:
            layer.unknown = str(e)
        if layer.runs != 1:
            for field in COUNTS:
                setattr(layer, field, d.mul(layer.runs, getattr(layer, field)))

    def _inside(self, node: ir.Node, runs: Dim) -> list[Layer]:
        inner = subgraphs(node)
        if not inner:
            return []
        if node.op_type == "If" and not node.domain:
            return self._branches(node, inner, runs)
        count: Dim = 0
        if runs != 0:
            known = trips(node, self.sizes)
            count = known if known is not None else self._unknown_trips(node)
        return [layer for g in inner for layer in self.layers(g, d.mul(runs, count))]

    def _unknown_trips(self, node: ir.Node) -> Dim:
        symbol = _trips_symbol(node)
        self.symbols[symbol] = f"how often {node.op_type} '{node.name}' runs: known only by running it"
        return self.sizes.given.get(symbol, d.atom(symbol))

    def _branches(self, node: ir.Node, inner: list[ir.Graph], runs: Dim) -> list[Layer]:
        """Both branches; the one that costs less, as far as it can be told, runs never."""
        both = [self.layers(g, runs) for g in inner]
        only = chosen(node)
        if only is not None:
            loser = 1 - next(i for i, g in enumerate(inner) if g is only)
        else:
            loser = self._cheaper(node, both)
        for layer in both[loser]:
            # Of a branch that may run, what couldn't be counted is still said: it might be the dearer one.
            why = layer.unknown if only is None else ""
            _never(layer)
            layer.unknown = why
        return [layer for branch in both for layer in branch]

    def _cheaper(self, node: ir.Node, both: list[list[Layer]]) -> int:
        sums = [_totals(b) for b in both]
        for field in ("macs", "flops", "int_ops"):
            a, b = (getattr(s, field) for s in sums)
            if a == b:
                continue
            first = costlier(a, b)
            if first is None:
                names = [a.name for a in node.attributes.values() if a.type == ir.AttributeType.GRAPH]
                self.warnings.append(
                    f"If '{node.name}': which branch costs more depends on free dimensions; {names[0]} is counted"
                )
                return 1
            return 1 if first else 0
        return 1


def _trips_symbol(node: ir.Node) -> str:
    """The symbol for a trip count that only running the model tells: #trips[Loop_12]."""
    return f"{COUNTED}trips[{node.name or node.outputs[0].name or node.op_type}]"


def _one(name: str, size: int | Sequence[int]) -> int:
    """The size given for what only a run tells, which is one number, and may be zero."""
    sizes = (size,) if isinstance(size, int) else tuple(size)
    if len(sizes) != 1 or sizes[0] < 0:
        raise UsageError(f"--shape {name}: one number is needed, not {list(sizes)}")
    return sizes[0]


def _never(layer: Layer) -> None:
    layer.runs, layer.unknown = 0, ""
    for field in SUMS:
        setattr(layer, field, 0)


def _totals(layers: list[Layer]) -> Totals:
    sums = {field: d.total(getattr(layer, field) for layer in layers) for field in SUMS}
    return Totals(**sums, nodes=len(layers))  # type: ignore[arg-type]


def _ports(values: Iterable[ir.Value], sizes: Sizes) -> dict[str, tuple[str, Shape]]:
    return {v.name or "": (v.dtype.name.lower() if v.dtype is not None else "?", sizes.dims(v)) for v in values}
