"""Convolutions and matrix products with constant weights, seen alike: the channels that are read, and those made."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ..graph import attr, const, const_tensor, is_const, sole_user
from .zeros import alive_in


@dataclass(frozen=True)
class Linear:
    """One node and its weight, of which `columns` is the axis that is read and `rows` the axis that is made.

    Attributes:
        in_axis, out_axis: the axes of the input and the output that channels lie on.
        bias_node, bias_at: the node of which that input is the bias, or would be: for a MatMul the Add behind it, or
            none.
        pads: whether positions outside of the input are read as zeros.
    """

    node: ir.Node
    x: ir.Value
    weight: ir.Value
    rows: int
    columns: int
    in_axis: int
    out_axis: int
    bias_at: int
    bias_node: ir.Node | None
    pads: bool

    @classmethod
    def of(cls, node: ir.Node) -> Linear | None:
        """The node as such, or None. Groups, computed weights, and scaled or flipped products are left alone."""
        kind = _KINDS.get(node.op_type)
        if kind is None or len(node.inputs) < 2:
            return None
        x, weight = node.inputs[0], node.inputs[1]
        if x is None or weight is None or is_const(x) or not is_const(weight) or weight.shape is None:
            return None
        if weight.dtype not in (ir.DataType.FLOAT, ir.DataType.DOUBLE):
            return None
        if node.op_type == "Conv":
            same = attr(node, "auto_pad", "NOTSET") not in ("NOTSET", "VALID")
            pads = same or any(attr(node, "pads", ()))
            return cls(node, x, weight, 0, 1, 1, 1, 2, node, pads) if attr(node, "group", 1) == 1 else None
        if node.op_type == "Gemm":
            flip = attr(node, "transB", 0)
            plain = not attr(node, "transA", 0) and attr(node, "alpha", 1.0) == attr(node, "beta", 1.0) == 1.0
            return cls(node, x, weight, 1 - flip, int(flip), 1, 1, 2, node, False) if plain else None
        rank = len(x.shape) if x.shape is not None else 0
        if len(weight.shape) != 2 or rank < 2:
            return None
        after = sole_user(node.outputs[0], "Add")
        at = 0 if after is not None and is_const(after.inputs[0]) else 1
        return cls(node, x, weight, 1, 0, rank - 1, rank - 1, at, after, False)

    @property
    def owned(self) -> bool:
        """Whether nobody else reads the weight."""
        return len(self.weight.uses()) == 1 and not self.weight.is_graph_output()

    @property
    def dtype(self) -> np.dtype:
        assert self.weight.dtype is not None
        return np.dtype(self.weight.dtype.numpy())

    @property
    def bias(self) -> ir.Value | None:
        """The bias inside the node, constant or not."""
        return None if self.bias_node is not self.node else self.added

    @property
    def added(self) -> ir.Value | None:
        """What is added to the product, inside the node or right behind it."""
        inputs = self.bias_node.inputs if self.bias_node is not None else ()
        return inputs[self.bias_at] if self.bias_at < len(inputs) else None

    def tensor(self) -> ir.TensorProtocol:
        found = const_tensor(self.weight)
        assert found is not None
        return found

    @property
    def count(self) -> int:
        """How many channels it makes."""
        return int(self.tensor().shape.numpy()[self.rows])

    def array(self) -> np.ndarray:
        return self.tensor().numpy()

    def live_rows(self) -> np.ndarray:
        return alive_in(self.tensor(), (self.rows,))

    def live_columns(self) -> np.ndarray:
        return alive_in(self.tensor(), (self.columns,))

    def bias_array(self, added: bool = False) -> np.ndarray | None:
        """A number per row that the node (or the Add behind it) adds; None where it is something else, or nothing can.

        Zeros where nothing is added.
        """
        count = self.count
        value = self.added if added else self.bias
        if value is None:
            return None if added and self.bias_node is None else np.zeros(count)
        found = const(value)
        if found is None or found.size not in (1, count) or found.shape[-1:] not in ((), (1,), (count,)):
            return None
        return np.broadcast_to(found.reshape(-1).astype(np.float64), count)

    def given(self, k: np.ndarray) -> np.ndarray:
        """What channels that hold the numbers `k` give to each row."""
        if not k.any():
            return np.zeros(self.count)
        front = np.moveaxis(self.array().take(np.flatnonzero(k), self.columns), (self.rows, self.columns), (0, 1))
        summed = front.reshape(*front.shape[:2], -1).sum(-1, dtype=np.float64)
        return np.asarray(summed @ k[k != 0])

    def without_columns(self, gone: np.ndarray) -> np.ndarray:
        """The weight with zeros where these channels are read."""
        array = np.array(self.array())
        np.moveaxis(array, self.columns, 0)[gone] = 0
        return array

    def without_rows(self, gone: np.ndarray) -> np.ndarray:
        """The weight with zeros where these channels are made."""
        array = np.array(self.array())
        np.moveaxis(array, self.rows, 0)[gone] = 0
        return array


_KINDS = {"Conv": 1, "Gemm": 1, "MatMul": 1}
