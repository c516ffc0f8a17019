"""Weights as they are stored: who reads them first, their bits, how many are zero, and the work that they make.

A weight is followed from its tensor through what only unpacks or moves it (DequantizeLinear, Cast, a lookup table,
Transpose, Reshape) to the node that computes with it. Tensors that lie at one place are one weight.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import onnx_ir as ir

from .. import dims as d
from ..dims import Dim
from ..graph import attr, const_tensor, static_shape, subgraphs
from ..quantization import packed
from ..session import Session
from .products import operator
from .records import Layer
from .storage import PASS_ON, is_decoder, is_weight
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

OFFSETS: dict[str, dict[int, tuple[int, int]]] = {
    "ConvInteger": {1: (3, 0)},
    "MatMulInteger": {0: (2, -2), 1: (3, -1)},
    "QLinearConv": {3: (5, 0)},
    "QLinearMatMul": {0: (2, -2), 3: (5, -1)},
}
"""Operators on integers → input → the input that holds its zero points, and the axis that these go along."""

RECURRENT = frozenset({"GRU", "LSTM", "RNN"})
"""Operators with two weights, of the input and of the state, in inputs 1 and 2."""

UNPACKING = PASS_ON | {"Constant", "DequantizeLinear"}
"""Standard operators whose result can be a weight as it is stored, unpacked or moved."""

MOST_UNPACKED = 1 << 26
"""Elements up to which a weight is unpacked to count its zeros, where its form says nothing about them."""


@dataclass
class Weight:
    """A tensor as it is stored, and what it stands for.

    Attributes:
        tensor: the stored elements: quantised ones, indices into a table.
        size: elements of the weight that is computed with.
        unpack: the node that computes the weight from the stored parts; None where it is stored as it is.
        parts: all tensors that belong to it, with their bytes: scales, zero points, tables.
        offset: the zero points of a quantised one, which go along `axis`, or in blocks of it.
        bits: bits of a stored element, where these are packed into bytes; else 0.
    """

    tensor: ir.TensorProtocol
    size: int
    unpack: ir.Node | None = None
    parts: list[tuple[ir.TensorProtocol, int]] = field(default_factory=list)
    offset: ir.TensorProtocol | None = None
    axis: int = 0
    block: int = 0
    bits: int = 0

    @property
    def width(self) -> int:
        """Bits per element as stored, scales, tables and bitmaps not counted."""
        return self.bits or self.tensor.dtype.bitwidth


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
        self._weights: dict[ir.Value, Weight | None] = {}
        self._counted: dict[object, int | None] = {}
        self._learned: dict[ir.Value, bool] = {}
        self._bits: dict[ir.Value, int | None] = {}
        self._held: dict[ir.Node, Held] = {}
        owned: set[object] = set()
        for node in _all_nodes(model.graph):
            if not self._only_hands_on(node):
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

    # --- who reads what

    def _only_hands_on(self, node: ir.Node) -> bool:
        """Whether `node` unpacks or moves a constant, and computes nothing."""
        return (node.op_type == "Constant" and not node.domain) or self._unpacks(node)

    def _unpacks(self, node: ir.Node) -> bool:
        if is_decoder(node, self.model):
            return True
        moves = not node.domain and (node.op_type in PASS_ON or node.op_type == "DequantizeLinear")
        return moves and bool(node.inputs) and self.weight(node.inputs[0]) is not None

    def weight(self, value: ir.Value | None) -> Weight | None:
        """The stored weight that `value` is, unpacked and moved; None for what is computed when the model runs."""
        if value is None:
            return None
        if value not in self._weights:
            self._weights[value] = self._resolve(value)
        return self._weights[value]

    def _resolve(self, value: ir.Value) -> Weight | None:
        node = value.producer()
        if node is not None and not node.domain and node.op_type not in UNPACKING:
            return None
        tensor = const_tensor(value)
        if tensor is None and node is not None and node.op_type == "Constant" and not node.domain:
            tensor = ir.convenience.get_const_tensor(value)
        if tensor is not None:
            # Not `tensor.size`: a tensor of a protobuf makes its shape anew each time that it is asked.
            dims = static_shape(value)
            size = math.prod(dims) if dims is not None else tensor.size
            strings = tensor.dtype == ir.DataType.STRING
            return Weight(tensor, size, None, [(tensor, 0 if strings else -(-size * tensor.dtype.bitwidth // 8))])
        if node is None or not self._unpacks(node):
            return None
        masked = bool(node.domain) and node.op_type in ("SparseWeight", "MaskWeight") and len(node.inputs) > 1
        inputs = list(reversed(node.inputs)) if masked else list(node.inputs)
        inner = self.weight(inputs[0])
        if inner is None or (not node.domain and node.op_type != "DequantizeLinear"):
            return inner
        others = [part for v in inputs[1:] if (w := self.weight(v)) is not None for part in w.parts]
        dims = static_shape(value)
        size = inner.size if dims is None else math.prod(dims)
        found = Weight(inner.tensor, size, node, [*inner.parts, *others], bits=inner.bits)
        if node.domain and node.op_type == "UnpackBits":
            found.bits = attr(node, "bits", 0)
        if not node.domain and len(node.inputs) > 2 and (offset := self.weight(node.inputs[2])) is not None:
            found.offset = offset.tensor
            found.axis, found.block = attr(node, "axis", 1), attr(node, "block_size", 0)
        return found

    def _read(self, node: ir.Node, slot: int) -> Weight | None:
        """The weight in an input of `node`, with the zero points that the operator itself takes."""
        weight = self.weight(node.inputs[slot]) if slot < len(node.inputs) else None
        at, axis = OFFSETS.get(operator(node), {}).get(slot, (len(node.inputs), 0))
        value = node.inputs[at] if at < len(node.inputs) else None
        offset = const_tensor(value) if value is not None else None
        return weight if weight is None or offset is None else replace(weight, offset=offset, axis=axis)

    def _own(self, node: ir.Node, owned: set[object]) -> None:
        held = Held(zeros=0 if self.zeros else None)
        for slot, value in enumerate(node.inputs):
            if value is None or self.weight(value) is None or not self._is_parameter(value):
                continue
            weight = self._read(node, slot)
            assert weight is not None
            for part, size in weight.parts:
                if (place := _place(part)) in owned:
                    continue
                owned.add(place)
                held.weight_bits += 8 * size
                if part is weight.tensor:
                    held.parameters += weight.size
                    count = self._count(weight) if self.zeros else None
                    held.zeros = None if count is None or held.zeros is None else held.zeros + count
        if held.parameters:
            self._held[node] = held

    def _is_parameter(self, value: ir.Value) -> bool:
        """Whether the constant behind `value` is a parameter, by the rules of `storage.parameters`."""
        while value.producer() is not None:
            node = value.producer()
            assert node is not None
            if is_decoder(node, self.model) or node.op_type == "Constant":
                break
            if node.inputs[0] is None:
                return False
            value = node.inputs[0]
        node = value.producer()
        if node is not None and is_decoder(node, self.model):
            return True
        if value not in self._learned:  # a constant that thousands read is judged once, by all its readers
            weight = self.weight(value)
            tensor = None if weight is None or not len(weight.tensor.shape) else weight.tensor
            self._learned[value] = tensor is not None and is_weight(value, tensor.dtype, self.model)
        return self._learned[value]

    # --- zeros and widths

    def _factors(self, node: ir.Node) -> Iterator[Weight]:
        """The weights among the factors of what `node` multiplies and accumulates."""
        name = operator(node)
        slots = FACTORS.get(name, ())
        if name in RECURRENT:
            slots = (1, 2)
        elif name == "Einsum" and len(node.inputs) != 2:
            slots = ()
        for slot in slots:
            weight = self._read(node, slot)
            if weight is not None:
                yield weight

    def _count(self, weight: Weight) -> int | None:
        """How many elements are zero; None where that would mean to unpack a large weight."""
        key = (_place(weight.tensor), id(weight.unpack), id(weight.offset))
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
            weight = self.weight(value)
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


def _place(tensor: ir.TensorProtocol) -> object:
    return (tensor.path, tensor.offset) if isinstance(tensor, ir.ExternalTensor) else id(tensor)


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
