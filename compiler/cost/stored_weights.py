"""The stored weight behind a value: followed through what only unpacks or moves it.

What stands between a weight and the node that computes with it is DequantizeLinear, Cast, a lookup table, Transpose,
Reshape and the like.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import onnx_ir as ir

from ..graph import attr, const_tensor, static_shape
from .products import operator
from .storage import PASS_ON, is_decoder, is_weight

OFFSETS: dict[str, dict[int, tuple[int, int]]] = {
    "ConvInteger": {1: (3, 0)},
    "MatMulInteger": {0: (2, -2), 1: (3, -1)},
    "QLinearConv": {3: (5, 0)},
    "QLinearMatMul": {0: (2, -2), 3: (5, -1)},
}
"""Operators on integers → input → the input that holds its zero points, and the axis that these go along."""

UNPACKING = PASS_ON | {"Constant", "DequantizeLinear"}
"""Standard operators whose result can be a weight as it is stored, unpacked or moved."""


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


class Weights:
    """The stored weights of a model, by the values that they are."""

    def __init__(self, model: ir.Model) -> None:
        self.model = model
        self._weights: dict[ir.Value, Weight | None] = {}
        self._learned: dict[ir.Value, bool] = {}

    def behind(self, value: ir.Value | None) -> Weight | None:
        """The stored weight that `value` is, unpacked and moved; None for what is computed when the model runs."""
        if value is None:
            return None
        if value not in self._weights:
            self._weights[value] = self._resolve(value)
        return self._weights[value]

    def read(self, node: ir.Node, slot: int) -> Weight | None:
        """The weight in an input of `node`, with the zero points that the operator itself takes."""
        weight = self.behind(node.inputs[slot]) if slot < len(node.inputs) else None
        at, axis = OFFSETS.get(operator(node), {}).get(slot, (len(node.inputs), 0))
        value = node.inputs[at] if at < len(node.inputs) else None
        offset = const_tensor(value) if value is not None else None
        return weight if weight is None or offset is None else replace(weight, offset=offset, axis=axis)

    def is_parameter(self, value: ir.Value) -> bool:
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
            weight = self.behind(value)
            tensor = None if weight is None or not len(weight.tensor.shape) else weight.tensor
            self._learned[value] = tensor is not None and is_weight(value, tensor.dtype, self.model)
        return self._learned[value]

    def only_hands_on(self, node: ir.Node) -> bool:
        """Whether `node` unpacks or moves a constant, and computes nothing."""
        return (node.op_type == "Constant" and not node.domain) or self._unpacks(node)

    def _unpacks(self, node: ir.Node) -> bool:
        if is_decoder(node, self.model):
            return True
        moves = not node.domain and (node.op_type in PASS_ON or node.op_type == "DequantizeLinear")
        return moves and bool(node.inputs) and self.behind(node.inputs[0]) is not None

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
        inner = self.behind(inputs[0])
        if inner is None or (not node.domain and node.op_type != "DequantizeLinear"):
            return inner
        others = [part for v in inputs[1:] if (w := self.behind(v)) is not None for part in w.parts]
        dims = static_shape(value)
        size = inner.size if dims is None else math.prod(dims)
        found = Weight(inner.tensor, size, node, [*inner.parts, *others], bits=inner.bits)
        if node.domain and node.op_type == "UnpackBits":
            found.bits = attr(node, "bits", 0)
        if not node.domain and len(node.inputs) > 2 and (offset := self.behind(node.inputs[2])) is not None:
            found.offset = offset.tensor
            found.axis, found.block = attr(node, "axis", 1), attr(node, "block_size", 0)
        return found


def place(tensor: ir.TensorProtocol) -> object:
    """Where a tensor lies: equal for tensors that are one weight."""
    return (tensor.path, tensor.offset) if isinstance(tensor, ir.ExternalTensor) else id(tensor)
