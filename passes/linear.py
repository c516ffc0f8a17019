"""Linear operators as several passes see them: where weight, bias and channels are.

A *linear operator* here is a node with constant weights: Conv, ConvTranspose, Gemm, MatMul (with the Add of its
bias, if there is one), or a normalization with its scale and bias.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from ..compiler import graph as g

FLOATS = frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE})
_OPERANDS: dict[str, tuple[int, int | None]] = {
    # operator: positions of weight and bias; None: no place for a bias
    "Conv": (1, 2),
    "ConvTranspose": (1, 2),
    "Gemm": (1, 2),
    "BatchNormalization": (1, 2),
    "InstanceNormalization": (1, 2),
    "GroupNormalization": (1, 2),
    "LayerNormalization": (1, 2),
    "RMSNormalization": (1, None),
    "MatMul": (1, None),
}
LINEAR_OPS = tuple(_OPERANDS)


class Side(NamedTuple):
    """Where the channels of a linear operator's input or output are.

    Attributes:
        rank: of the value.
        axis: of the value, along which its channels are.
        view: a shape of the weight in which …
        axes: … these axes together count the channels.
    """

    rank: int
    axis: int
    view: tuple[int, ...]
    axes: tuple[int, ...]

    @property
    def channels(self) -> int:
        """How many channels there are."""
        return math.prod(self.view[a] for a in self.axes)

    def spread(self, vector: np.ndarray) -> np.ndarray:
        """A vector over the channels, shaped to broadcast against the weight's view."""
        return vector.reshape([d if a in self.axes else 1 for a, d in enumerate(self.view)])

    def vector(self, array: np.ndarray) -> np.ndarray | None:
        """`array`, which broadcasts against the value, as float64 numbers per channel; None if it is no such thing."""
        if array.ndim > self.rank:
            return None
        dims = (1,) * (self.rank - array.ndim) + array.shape
        if any(d != 1 for a, d in enumerate(dims) if a != self.axis) or dims[self.axis] not in (1, self.channels):
            return None
        return np.broadcast_to(array.astype(np.float64).reshape(-1), (self.channels,))


@dataclass(frozen=True)
class Linear:
    """A linear operator: the node, where its weight and its bias are read, and the value that comes out."""

    node: ir.Node
    weight_at: int
    bias_node: ir.Node | None
    bias_at: int

    @property
    def result(self) -> ir.Value:
        """What comes out, bias included."""
        return (self.bias_node or self.node).outputs[0]

    @property
    def data(self) -> ir.Value:
        """What goes in."""
        value = self.node.inputs[1 - self.weight_at if self.node.op_type == "MatMul" else 0]
        assert value is not None
        return value

    @property
    def weight(self) -> ir.Value:
        """The constant weight, or a normalization's scale."""
        value = self.node.inputs[self.weight_at]
        assert value is not None
        return value

    @property
    def bias(self) -> ir.Value | None:
        """The constant bias, if there is one."""
        if self.bias_node is None or len(self.bias_node.inputs) <= self.bias_at:
            return None
        return self.bias_node.inputs[self.bias_at]

    @property
    def dims(self) -> tuple[int, ...]:
        """The weight's shape."""
        tensor = g.const_tensor(self.weight)
        dims = g.static_shape(self.weight) if tensor is None else tuple(tensor.shape.numpy())
        assert dims is not None
        return dims

    def output_side(self) -> Side | None:
        """How the result's channels lie; None when the rank is unknown or the channels span several axes."""
        node, dims = self.node, self.dims
        match node.op_type:
            case "Conv":
                return Side(len(dims), 1, dims, (0,))
            case "ConvTranspose":
                groups = g.attr(node, "group", 1)
                return Side(len(dims), 1, (groups, dims[0] // groups, dims[1], math.prod(dims[2:])), (0, 2))
            case "Gemm":
                return Side(2, 1, dims, (0 if g.attr(node, "transB", 0) else 1,))
            case "MatMul":
                return self._matmul_side(self.node.outputs[0], 1 if self.weight_at else 2, 1 if self.weight_at else 2)
        shape = g.shape(self.data)
        if shape is None or len(shape) < 2 or len(dims) != 1:
            return None
        rank = len(shape)
        if node.op_type not in ("LayerNormalization", "RMSNormalization"):
            return Side(rank, 1, dims, (0,))
        last = g.attr(node, "axis", -1) in (-1, rank - 1) and shape[-1] == dims[0]
        return Side(rank, rank - 1, dims, (0,)) if last else None

    def input_side(self) -> Side | None:
        """How the input's channels lie; None when unknown or when the operator isn't linear in its input."""
        node, dims = self.node, self.dims
        match node.op_type:
            case "Conv":
                groups = g.attr(node, "group", 1)
                return Side(len(dims), 1, (groups, dims[0] // groups, dims[1], math.prod(dims[2:])), (0, 2))
            case "ConvTranspose":
                return Side(len(dims), 1, dims, (0,))
            case "Gemm":
                return Side(2, 0 if g.attr(node, "transA", 0) else 1, dims, (1 if g.attr(node, "transB", 0) else 0,))
            case "MatMul":
                return self._matmul_side(self.data, 1 if self.weight_at else 2, 2 if self.weight_at else 1)
            case "BatchNormalization":
                return self.output_side()
        return None

    def _matmul_side(self, value: ir.Value, axis: int, weight_axis: int) -> Side | None:
        rank, dims = g.rank(value), self.dims
        if rank is None or rank < axis or len(dims) < 2:
            return None
        return Side(rank, rank - axis, dims, (len(dims) - weight_axis,))

    def takes_shift(self) -> bool:
        """Whether a shift of the input is the same everywhere in the output: no zero padding meets it."""
        node = self.node
        if node.op_type == "Conv":
            return g.attr(node, "auto_pad", "NOTSET") in ("NOTSET", "VALID") and not any(g.attr(node, "pads", ()))
        if node.op_type == "MatMul":
            return self.bias_node is not None and len(self.dims) == 2
        return node.op_type in ("Gemm", "BatchNormalization")


def weight_dtype(value: ir.Value | None) -> ir.DataType | None:
    """The type of a weight that is constant, or a constant dequantised; None for values that vary."""
    dequantize = g.producer(value, "DequantizeLinear")
    operands = [value] if dequantize is None else [v for v in dequantize.inputs if v is not None]
    return value.dtype if value is not None and all(map(g.is_const, operands)) else None


def linear_at(node: ir.Node, *, packed: bool = False) -> Linear | None:
    """The linear operator that `node` is, with the Add behind a MatMul; None if it is none or its weights vary.

    With `packed`, its weight may be a constant dequantised.
    """
    is_weight = _is_packed_or_float if packed else _is_float
    if node.op_type not in _OPERANDS or node.domain:
        return None
    weight_at, bias_at = _OPERANDS[node.op_type]
    bias_node: ir.Node | None = node if bias_at is not None else None
    if node.op_type == "BatchNormalization" and not _is_inference(node):
        return None
    if node.op_type == "MatMul":
        weight_at = 1 if is_weight(node.inputs[1]) else 0
        bias_node = g.sole_user(node.outputs[0], "Add")
        bias_node = bias_node if bias_node is not None and bias_node.graph is node.graph else None
        bias_at = None if bias_node is None else 1 - bias_node.inputs.index(node.outputs[0])
        if bias_node is not None and not _is_float(bias_node.inputs[bias_at or 0]):
            bias_node = None
    found = Linear(node, weight_at, bias_node, bias_at or 0)
    if len(node.inputs) <= weight_at or not is_weight(node.inputs[weight_at]) or g.is_const(found.data):
        return None
    return found if found.bias is None or _is_float(found.bias) else None


def linear_of(value: ir.Value | None) -> Linear | None:
    """The linear operator whose result `value` is, when nothing else reads what comes out of it on the way."""
    node = g.producer(value, "Add", *LINEAR_OPS)
    if node is None:
        return None
    if node.op_type == "Add":
        products = [p for p in map(_matmul, node.inputs) if p is not None]
        node = products[0] if len(products) == 1 else None
    found = None if node is None else linear_at(node)
    return found if found is not None and found.result is value else None


def _matmul(value: ir.Value | None) -> ir.Node | None:
    return g.producer(value, "MatMul")


def _is_float(value: ir.Value | None) -> bool:
    tensor = None if value is None else g.const_tensor(value)
    return tensor is not None and tensor.dtype in FLOATS


def _is_packed_or_float(value: ir.Value | None) -> bool:
    return weight_dtype(value) in FLOATS and g.static_shape(value) is not None


def _is_inference(node: ir.Node) -> bool:
    return not g.attr(node, "training_mode", 0) and all(_is_float(v) for v in node.inputs[1:5])


VIEWS = ("Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze")
"""Operators that move elements and compute nothing."""


def through_view(array: np.ndarray | None, view: ir.Node) -> np.ndarray | None:
    """What broadcasts against the input of `view` as `array` does against its output; None if nothing simple does."""
    if array is None or array.size == 1:
        return array if array is None else array.reshape(())
    out, source = g.shape(view.outputs[0]), g.shape(view.inputs[0])
    if out is None or source is None or array.ndim > len(out):
        return None
    array = array.reshape((1,) * (len(out) - array.ndim) + array.shape)
    if view.op_type == "Transpose":
        return array.transpose(np.argsort(g.attr(view, "perm", range(len(out))[::-1])))
    axis = int(np.argmax(array.shape))
    if array.shape[axis] != array.size or out[axis] != array.size:
        return None
    # The axis survives a reshape if everything in front of it is the same, or everything behind it.
    for found in {axis, axis - len(out) + len(source)}:
        if 0 <= found < len(source) and source[found] == out[axis]:
            front, behind = (source[:found], out[:axis]), (source[found + 1 :], out[axis + 1 :])
            if any(a == b and None not in a for a, b in (front, behind)):
                return array.reshape([array.size if i == found else 1 for i in range(len(source))])
    return None
