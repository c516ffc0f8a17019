"""Weights as they are stored: who reads them first, their bits, how many are zero, and the work that they make.

Tensors that lie at one place are one weight.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from .. import dims as d
from ..dims import Dim
from ..graph import const_tensor, subgraphs
from ..quantization import packed
from ..session import Session
from .products import operator
from .records import Layer
from .stored_weights import Weight, Weights, place
from .widths import VIEWS, bits
from .zeros import count_zeros, zero_points

FACTORS: dict[str, tuple[int, int]] = {
    "Attention": (0, 1),
    "Conv": (0, 1),
    "ConvInteger": (0, 1),
    "ConvTranspose": (0, 1),
    "DeformConv": (0, 1),
    "Einsum": (0, 1),
    "GRU": (0, 1),
    "Gemm": (0, 1),
    "LSTM": (0, 1),
    "MatMul": (0, 1),
    "MatMulInteger": (0, 1),
    "QLinearConv": (0, 3),
    "QLinearMatMul": (0, 3),
    "RNN": (0, 1),
}
"""Operators that multiply and accumulate → the inputs that are the two factors."""

RECURRENT = frozenset({"GRU", "LSTM", "RNN"})
"""Operators with two weights, of the input and of the state, in inputs 1 and 2."""

MOST_UNPACKED = 1 << 26
"""Elements up to which a weight is unpacked to count its zeros, where its form says nothing about them."""


@dataclass
class Held:
    """The weights that a node is the first to read; see `records.Layer` for the fields."""

    parameters: int = 0
    weight_bits: int = 0
    zeros: int | None = None


class Stored:
    """The weights of a model, by the nodes that read them.

    Args:
        model: as it was flattened for counting.
        zeros: count the weights that are zero. Only then is a weight read, in blocks of a few megabytes.
    """

    def __init__(self, model: ir.Model, *, zeros: bool = False) -> None:
        self.model, self.zeros = model, zeros
        self.weights = Weights(model)
        self._counted: dict[object, int | None] = {}
        self._bits: dict[ir.Value, int | None] = {}
        self._held: dict[ir.Node, Held] = {}
        owned: set[object] = set()
        for node in _all_nodes(model.graph):
            if not self.weights.only_hands_on(node):
                self._own(node, owned)

    def held(self, node: ir.Node) -> Held:
        """The weights that `node` is the first to read, in the order of the nodes."""
        return self._held.get(node) or Held(zeros=0 if self.zeros else None)

    def effective(self, node: ir.Node, macs: Dim) -> Dim:
        """The MACs of `node` but those with a weight that is zero.

        Every element of a weight takes part equally often; what padding leaves out is not looked at. Without `zeros`,
        or where no factor is a weight, these are all.
        """
        if not self.zeros or macs == 0:
            return macs
        size = nonzero = 0
        for weight in self._factors(node):
            count = self._count(weight)
            if count is None:
                return macs
            size, nonzero = size + weight.size, nonzero + weight.size - count
        if not size:
            return macs
        left = d.exact_div(d.mul(macs, nonzero), size)
        return macs if left is None else left

    def bops(self, node: ir.Node, macs: Dim) -> Dim:
        """Bit operations of so many MACs: times the bits of one factor, times the bits of the other.

        A weight's are those of an element as stored (of the indices where it is looked up in a table), an activation's
        those that it is rounded to. In a recurrent cell the state is as wide as the input, and in an attention the
        weights of the values as the queries: what stays inside an operator is not seen.
        """
        slots = FACTORS.get(operator(node))
        if slots is None or macs == 0 or max(slots) >= len(node.inputs):
            return 0
        return d.mul(macs, self._width(node.inputs[slots[0]]) * self._width(node.inputs[slots[1]]))

    def _own(self, node: ir.Node, owned: set[object]) -> None:
        held = Held(zeros=0 if self.zeros else None)
        for slot, value in enumerate(node.inputs):
            if value is None or self.weights.behind(value) is None or not self.weights.is_parameter(value):
                continue
            weight = self.weights.read(node, slot)
            assert weight is not None
            for part, size in weight.parts:
                if (where := place(part)) in owned:
                    continue
                owned.add(where)
                held.weight_bits += 8 * size
                if part is weight.tensor:
                    held.parameters += weight.size
                    count = self._count(weight) if self.zeros else None
                    held.zeros = None if count is None or held.zeros is None else held.zeros + count
        if held.parameters:
            self._held[node] = held

    def _factors(self, node: ir.Node) -> Iterator[Weight]:
        """The weights among the factors of what `node` multiplies and accumulates."""
        name = operator(node)
        slots = FACTORS.get(name, ())
        if name in RECURRENT:
            slots = (1, 2)
        elif name == "Einsum" and len(node.inputs) != 2:
            slots = ()
        for slot in slots:
            weight = self.weights.read(node, slot)
            if weight is not None:
                yield weight

    def _count(self, weight: Weight) -> int | None:
        """How many elements are zero; None where that would mean to unpack a large weight."""
        key = (place(weight.tensor), id(weight.unpack), id(weight.offset))
        if key not in self._counted:
            self._counted[key] = self._zeros(weight)
        return self._counted[key]

    def _zeros(self, weight: Weight) -> int | None:
        chain = None if weight.unpack is None else packed.decoders(weight.unpack.outputs[0])
        if weight.unpack is not None and (weight.unpack.domain or (chain and any(n.domain for n in chain))):
            if weight.size > MOST_UNPACKED:
                return None
            last = weight.unpack
            numbers = packed.dense(self.model, last.outputs[0], chain) if chain else _unpack(last, self.model)
            return int(weight.size - np.count_nonzero(numbers))
        if weight.offset is None:
            return count_zeros(weight.tensor)
        shape = tuple(int(n) for n in weight.tensor.shape.numpy())
        return count_zeros(weight.tensor, zero_points(weight.offset, shape, weight.axis, weight.block))

    def _width(self, value: ir.Value | None) -> int:
        """Bits of one element of a factor."""
        while value is not None:
            weight = self.weights.behind(value)
            if weight is not None:
                return weight.width
            node = value.producer()
            moved = node is not None and not node.domain and node.op_type in VIEWS | {"Transpose"}
            width = bits(value, self._bits)
            if not moved or node is None or (width is not None and value.dtype and width < value.dtype.bitwidth):
                return width or 0
            value = node.inputs[0]
        return 0


def weigh(layers: Sequence[Layer], nodes: Sequence[ir.Node], stored: Stored) -> None:
    """Write down, in each layer, what its node holds, and its effective MACs and bit operations."""
    for layer, node in zip(layers, nodes, strict=True):
        held = stored.held(node)
        layer.parameters, layer.weight_bits, layer.zeros = held.parameters, held.weight_bits, held.zeros
        layer.effective_macs = stored.effective(node, layer.macs)
        layer.bops = stored.bops(node, layer.effective_macs)


def _all_nodes(graph: ir.Graph) -> Iterator[ir.Node]:
    """The nodes of a graph, each followed by those of the graphs inside it."""
    for node in graph:
        yield node
        for inner in subgraphs(node):
            yield from _all_nodes(inner)


def _unpack(call: ir.Node, model: ir.Model) -> np.ndarray:
    """What a local function makes of constants alone, run in onnxruntime."""
    values = [
        None if v is None else ir.Value(name=f"in{i}", shape=v.shape, type=v.type, const_value=const_tensor(v))
        for i, v in enumerate(call.inputs)
    ]
    node = ir.node(call.op_type, values, call.attributes, domain=call.domain, overload=call.overload)
    out = node.outputs[0]
    out.name, out.type, out.shape = "out", call.outputs[0].type, call.outputs[0].shape
    graph = ir.Graph([], [out], nodes=[node], initializers=[v for v in values if v is not None])
    graph.opset_imports.update(model.opset_imports)
    alone = ir.Model(graph, ir_version=model.ir_version, functions=list(model.functions.values()))
    return Session(alone).run({})["out"]
