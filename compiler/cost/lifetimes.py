"""Which activations a graph holds, how large they are, who makes and who reads them: what ordering.py orders.

Several values can be one buffer: a view (Reshape, Squeeze, Unsqueeze, Flatten, Identity) has the bytes of its source;
what a rounding pair makes is held in the type that it rounds to, and so is the source where nobody else reads it. No
activations are constants, what is computed from constants alone, and what is known once the shapes of the inputs are
(the arithmetic of sizes). What no output depends on never runs. A local function counts as one operator.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import onnx_ir as ir

from .. import dims as d
from ..dims import Dim
from ..graph import attr, subgraphs
from ..rounding import pair_source
from .polynomial import evaluate, symbols
from .problem import Problem
from .sizes import Sizes
from .walk import Liveness, chosen
from .widths import carried_bits, data, hands_on, is_rounding, is_view


@dataclass
class Buffer:
    """Bytes that one or more values share."""

    value: ir.Value
    bits: int
    bytes: Dim = 0


@dataclass
class Lifetimes:
    """The operators and buffers of one graph.

    Attributes:
        nodes: the graph's nodes.
        ops: indices of the nodes that run, in the graph's order; the others only name bytes otherwise, or are constant.
        buffers: the buffers, as numbered in `problem`.
        problem: with sizes in bytes at `at`.
        inside: bytes inside each operator beyond what it makes, as in `problem`, as polynomials.
        unsized: names of activations whose size is not known; they count nothing.
    """

    nodes: list[ir.Node]
    ops: list[int] = field(default_factory=list)
    buffers: list[Buffer] = field(default_factory=list)
    problem: Problem = field(default_factory=lambda: Problem([], [], [], [], [], [], []))
    inside: list[Dim] = field(default_factory=list)
    unsized: list[str] = field(default_factory=list)


class Numbers:
    """The numbers that polynomials are at certain sizes of their symbols; a symbol that is not given counts as 1.

    Attributes:
        at: symbol → size, those that were taken to be 1 included.
    """

    def __init__(self, at: Mapping[str, int]) -> None:
        self.at = dict(at)
        self._known: dict[Dim, int] = {}

    def __call__(self, size: Dim) -> int:
        if isinstance(size, int):
            return size
        if size not in self._known:
            for name in symbols(size):
                self.at.setdefault(name, 1)
            self._known[size] = evaluate(size, self.at)
        return self._known[size]


def outer_reads(node: ir.Node) -> list[ir.Value]:
    """What `node` and the graphs inside it read, each once; values made inside are among them."""
    found = [v for v in node.inputs if v is not None]
    for graph in subgraphs(node):
        found += (v for v in graph.outputs if v is not None)
        for inner in graph:
            found += outer_reads(inner)
    return list(dict.fromkeys(found))


class Builder:
    """Works out the lifetimes of one graph."""

    def __init__(self, graph: ir.Graph, sizes: Sizes, numbers: Numbers, live: Liveness) -> None:
        self.graph, self.sizes, self.numbers, self.live = graph, sizes, numbers, live
        self.nodes = list(graph)
        self.outputs = set(graph.outputs)
        self.home: dict[ir.Value, ir.Value] = {}  # value → the one that stands for its buffer
        self.bits: dict[ir.Value, int] = {}
        self.free: set[ir.Node] = set()
        self.reads: dict[ir.Node, list[ir.Value]] = {}

    def build(self) -> Lifetimes:
        """The graph's operators and buffers."""
        for value in self.graph.inputs:
            self._own(value)
        for node in self.nodes:
            self._place(node)
        self._merge_rounded()
        return self._number()

    # --- values and their buffers

    def _own(self, value: ir.Value) -> None:
        self.home[value] = value
        kind = value.dtype if value.type is None or isinstance(value.type, ir.TensorType) else None  # no sequences
        self.bits[value] = 0 if kind is None or kind == ir.DataType.STRING else kind.bitwidth

    def _place(self, node: ir.Node) -> None:
        """Give the outputs of `node` their buffers."""
        if not self.live.runs(node):
            self.free.add(node)
            return
        read = [v for v in (outer_reads(node) if subgraphs(node) else node.inputs) if v is not None]
        self.reads[node] = [v for v in dict.fromkeys(read) if v in self.home]
        source = node.inputs[0] if node.inputs else None
        view = source in self.home and (self._ends_pair(node) or (is_view(node) and not is_rounding(node)))
        for i, out in enumerate(node.outputs):
            if view and not i and source is not None:
                self.home[out] = self.home[source]
            else:
                self._own(out)
        if hands_on(node) and not view and node.outputs[0] not in self.outputs:
            narrow = carried_bits(node, [self.bits.get(self.home.get(v, v)) for v in data(node)])
            self.bits[node.outputs[0]] = narrow or self.bits[node.outputs[0]]
        if view and len(self.reads[node]) == 1:
            self.free.add(node)

    def _ends_pair(self, node: ir.Node) -> bool:
        """Whether `node` widens what a rounding pair has rounded. A graph output is handed out as it is declared."""
        cast = node.op_type in ("Cast", "DequantizeLinear")
        return cast and node.outputs[0] not in self.outputs and pair_source(node) is not None

    def _merge_rounded(self) -> None:
        """Hold in the small type what is only ever read to be rounded to it."""
        readers: dict[ir.Value, list[ir.Node]] = {}
        fixed = {self.home.get(v) for v in (*self.graph.inputs, *self.outputs)}
        starts = []
        for node, read in self.reads.items():
            if node.op_type in ("Cast", "QuantizeLinear") and self._starts_pair(node):
                starts.append(node)
            if node not in self.free:
                for v in read:
                    readers.setdefault(self.home[v], []).append(node)
        moved: dict[ir.Value, ir.Value] = {}
        for node in starts:
            source, out = self.home[node.inputs[0]], node.outputs[0]  # type: ignore[index]
            source = _root(moved, source)
            if source not in fixed and all(self._same_rounding(r, node) for r in readers.get(source, ())):
                moved[out] = source
                readers[source] = readers.get(out, [])
                self.bits[source] = self.bits[out]
                self.free.add(node)
        if moved:
            self.home = {value: _root(moved, home) for value, home in self.home.items()}

    def _starts_pair(self, node: ir.Node) -> bool:
        out = node.outputs[0]
        ends = [n for n, _ in out.uses()]
        return out not in self.outputs and bool(ends) and all(pair_source(n) is not None for n in ends)

    def _same_rounding(self, a: ir.Node, b: ir.Node) -> bool:
        return a is b or (a.op_type == b.op_type == "Cast" and self.bits[a.outputs[0]] == self.bits[b.outputs[0]])

    # --- numbers

    def _number(self) -> Lifetimes:
        found = Lifetimes(self.nodes)
        number: dict[ir.Value, int] = {}
        for value in self.home.values():
            if value not in number:
                number[value] = len(found.buffers)
                found.buffers.append(self._buffer(value, found.unsized))
        needs: dict[ir.Value, tuple[int, ...]] = {}  # value → the operators that must have run
        p = found.problem
        p.size = [self.numbers(b.bytes) for b in found.buffers]
        p.kept = [False] * len(found.buffers)
        p.start = sorted({number[self.home[v]] for v in self.graph.inputs})
        for value in self.graph.outputs:
            if value in self.home:
                p.kept[number[self.home[value]]] = True
        for i, node in enumerate(self.nodes):
            read = self.reads.get(node, [])
            before = {op for v in read for op in needs.get(v, ())}
            op = len(found.ops)
            makers = tuple(before) if node in self.free else (op,)
            for out in node.outputs:
                needs[out] = makers
            if node in self.free:
                continue
            found.ops.append(i)
            p.after.append(sorted(before))
            p.reads.append(list(dict.fromkeys(number[self.home[v]] for v in read)))
            own = [v for v in node.outputs if self.home.get(v) is v]
            p.makes.append([number[v] for v in own])
            found.inside.append(self._inside(node, found.unsized))
            p.inside.append(self.numbers(found.inside[-1]))
        return found

    def _buffer(self, value: ir.Value, unsized: list[str]) -> Buffer:
        bits, count = self.bits[value], self.sizes.count(value)
        if count is None or not bits:
            if value.name and (value.uses() or value in self.outputs):
                unsized.append(value.name)
            return Buffer(value, bits)
        total = d.mul(count, bits)
        whole = -(-total // 8) if isinstance(total, int) else d.exact_div(total, 8)
        return Buffer(value, bits, whole if whole is not None else d.div(d.add(total, 7), 8) or 0)

    def _inside(self, node: ir.Node, unsized: list[str]) -> Dim:
        """Bytes live inside an If, Loop or Scan beyond its results: the most that a body holds, in its own order.

        The results of a branch are the results of the If, and the last states those of the loop: they count once.
        """
        only = chosen(node) if node.op_type == "If" else None
        graphs = [only] if only is not None else subgraphs(node)
        if not graphs:
            return 0
        bodies = []
        for graph in graphs:
            inner = Builder(graph, self.sizes, self.numbers, self.live).build()
            unsized += inner.unsized
            bodies.append(most(inner, self.numbers))
        largest = max(bodies, key=self.numbers)
        shared: Dim = 0
        for value in self._handed_out(node):
            if self.home.get(value) is value:
                shared = d.add(shared, self.sizes.nbytes(value) or 0)
        rest = d.sub(largest, shared)
        return rest if self.numbers(rest) > 0 else 0

    def _handed_out(self, node: ir.Node) -> Iterator[ir.Value]:
        """The outputs that are, byte for byte, what the body made last."""
        states = {
            "If": len(node.outputs),
            "Loop": len(node.inputs) - 2,
            "Scan": len(node.inputs) - attr(node, "num_scan_inputs", 0),
        }
        yield from node.outputs[: states.get(node.op_type, 0)]


def most(found: Lifetimes, numbers: Numbers) -> Dim:
    """The most bytes that are live at once, in the graph's own order."""
    return max(walk(found, range(len(found.ops))), key=numbers, default=0)


def walk(found: Lifetimes, order: Sequence[int]) -> list[Dim]:
    """The bytes that are live while each operator of `order` runs, as polynomials; see problem.steps."""
    p, sizes = found.problem, [b.bytes for b in found.buffers]
    left = p.readers()
    live: Dim = 0
    for b in p.start:
        if left[b] or p.kept[b]:
            live = d.add(live, sizes[b])
    steps: list[Dim] = []
    for op in order:
        for b in p.makes[op]:
            live = d.add(live, sizes[b])
        steps.append(d.add(live, found.inside[op]))
        for b in p.reads[op]:
            left[b] -= 1
        for b in (*p.reads[op], *p.makes[op]):
            if not left[b] and not p.kept[b]:
                live = d.sub(live, sizes[b])
    return steps


def _root(moved: dict[ir.Value, ir.Value], value: ir.Value) -> ir.Value:
    while value in moved:
        value = moved[value]
    return value
