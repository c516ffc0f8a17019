"""Linear layers with constant weights: which matrix each weight is; `layer_rows` says what it is multiplied with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ..graph import attr, const_tensor, nodes, producer, rank
from .layer_rows import (
    Fetched,
    Pick,
    column_rows,
    conv_rows,
    conv_transpose_rows,
    gather_rows,
    matmul_rows,
    plain_rows,
    state_rows,
)

_ROWS = ("MatMul", 1, ())
"""The key of layers that multiply the last axis of their input with one matrix."""


@dataclass(frozen=True, eq=False)
class Layer:
    """A constant weight in a linear operator: `y[place, o] = sum_i matrix[g, o, i] · x[g, place, i]` for each group.

    Attributes:
        node: the operator: Conv, ConvTranspose, MatMul, Gemm, LSTM, GRU, RNN (inputs or states) or Gather.
        weight: the initializer; between it and `node` there may be a Transpose.
        sizes: groups, outputs of a group, inputs of a group. For Gather, each row of the table is an input.
        reads: the values that the inputs are made from: the first has to be known, others may be constant.
        key: equal for layers whose inputs are the same.
        split, perm: the weight reshaped to `split` and transposed by `perm` has the axes groups, outputs, inputs.
    """

    node: ir.Node
    weight: ir.Value
    sizes: tuple[int, int, int]
    reads: tuple[ir.Value, ...]
    key: tuple[object, ...]
    split: tuple[int, ...]
    perm: tuple[int, ...]
    _rows: Callable[[Layer, Fetched, Pick], np.ndarray]

    @property
    def counted(self) -> bool:
        """Whether its inputs are rows of a table, of which one is read at each place (Gather)."""
        return self.node.op_type == "Gather"

    @property
    def scale(self) -> float:
        """What the product is multiplied with (Gemm's alpha)."""
        return float(attr(self.node, "alpha", 1.0)) if self.node.op_type == "Gemm" else 1.0

    def matrix(self, array: np.ndarray) -> np.ndarray:
        """An array of the weight's shape as groups x outputs x inputs, a view where possible."""
        return array.reshape(self.split).transpose(self.perm).reshape(self.sizes)

    def shaped(self, matrix: np.ndarray) -> np.ndarray:
        """The inverse of `matrix`: an array of the weight's shape."""
        turned = matrix.reshape([self.split[p] for p in self.perm]).transpose(np.argsort(self.perm))
        assert self.weight.shape is not None
        return np.ascontiguousarray(turned.reshape(self.weight.shape.numpy()))

    def rows(self, fetched: Fetched, pick: Pick) -> np.ndarray:
        """The inputs at the places that `pick` chooses: groups (or 1, when all get the same) x places x inputs.

        Gather: the indices of the rows that are read, one axis.
        """
        return self._rows(self, fetched, pick)


def linear_layers(model: ir.Model, min_size: int = 1, *, inner: bool = False) -> list[Layer]:
    """The uses of float32 weights of at least `min_size` elements in the main graph, in the order in which they run.

    A weight that several operators read has a layer for each; one operator has several layers when it has several
    weights. Left out: products of two constants and, unless `inner`, what is in sub-graphs, where no inputs can be
    fetched.
    """
    found = []
    for node in nodes(model) if inner else model.graph:
        for i, make in _MAKERS.get(node.op_type, {}).items() if not node.domain else ():
            value = node.inputs[i] if i < len(node.inputs) else None
            weight, turn = _source(value)
            if weight is None or int(np.prod(weight.shape.numpy())) < min_size:  # type: ignore[union-attr]
                continue
            layer = make(node, weight, turn)
            if layer is not None and const_tensor(layer.reads[0]) is None:
                found.append(layer)
    return found


def _source(value: ir.Value | None) -> tuple[ir.Value | None, tuple[int, ...]]:
    """The float32 initializer behind `value` and the transposition between them; (None, ()) if there is none."""
    if value is None:
        return None, ()
    view = producer(value, "Transpose")
    weight = value if view is None else view.inputs[0]
    tensor = None if weight is None else const_tensor(weight)
    if weight is None or tensor is None or tensor.dtype != ir.DataType.FLOAT or len(tensor.shape) < 2:
        return None, ()
    order = tuple(range(len(tensor.shape)))
    return weight, order if view is None else tuple(attr(view, "perm", order[::-1]))


def _layer(
    node: ir.Node,
    weight: ir.Value,
    turn: tuple[int, ...],
    seen: tuple[tuple[int, ...], ...],
    reads: tuple[ir.Value | None, ...],
    key: tuple[object, ...],
    rows: Callable[[Layer, Fetched, Pick], np.ndarray],
    parts: tuple[tuple[int, int], ...] = (),
) -> Layer | None:
    """A layer; `seen` names the axes that are groups, outputs and inputs of what the operator reads.

    `parts` splits axes of the weight in two first: (axis, size of the first).
    """
    if reads[0] is None:
        return None
    shape = weight.shape.numpy()  # type: ignore[union-attr]
    split: list[int] = []
    where: list[list[int]] = []
    cut = dict(parts)
    for axis in turn:
        size = shape[axis]
        where.append([])
        for s in (cut[axis], size // cut[axis]) if axis in cut else (size,):
            where[-1].append(len(split))
            split.append(s)
    # `split` is in the order that the operator sees; the array's own order is that of its axes.
    flat = [i for axis in sorted(range(len(turn)), key=lambda a: turn[a]) for i in where[axis]]
    place = {i: k for k, i in enumerate(flat)}
    perm = tuple(place[i] for group in seen for i in group)
    sizes = tuple(int(np.prod([split[i] for i in group], dtype=np.int64)) for group in seen)
    values = tuple(v for v in reads if v is not None)
    own = tuple(split[i] for i in flat)
    return Layer(node, weight, sizes, values, (*key, *values), own, perm, rows)  # type: ignore[arg-type]


def _conv(node: ir.Node, weight: ir.Value, turn: tuple[int, ...]) -> Layer | None:
    groups, n = attr(node, "group", 1), len(turn)
    if turn != tuple(range(n)):
        return None
    seen = ((0,), (1,), tuple(range(2, n + 1)))
    kernel = weight.shape.numpy()[2:]  # type: ignore[union-attr]
    key = ("Conv", groups, tuple(kernel), *(str(attr(node, a)) for a in ("pads", "strides", "dilations", "auto_pad")))
    return _layer(node, weight, turn, seen, (node.inputs[0],), key, conv_rows, ((0, groups),))


def _conv_transpose(node: ir.Node, weight: ir.Value, turn: tuple[int, ...]) -> Layer | None:
    groups, n = attr(node, "group", 1), len(turn)
    if turn != tuple(range(n)) or attr(node, "auto_pad", "NOTSET") != "NOTSET" or attr(node, "output_shape"):
        return None
    seen = ((0,), (2,), (1, *range(3, n + 1)))
    kernel = weight.shape.numpy()[2:]  # type: ignore[union-attr]
    names = ("pads", "strides", "dilations", "output_padding")
    key = ("ConvTranspose", groups, tuple(kernel), *(str(attr(node, a)) for a in names))
    return _layer(node, weight, turn, seen, (node.inputs[0],), key, conv_transpose_rows, ((0, groups),))


def _matmul(node: ir.Node, weight: ir.Value, turn: tuple[int, ...], at: int) -> Layer | None:
    n = len(turn)
    last = ((n - 1,), (n - 2,)) if at == 1 else ((n - 2,), (n - 1,))
    other = node.inputs[1 - at]
    if at == 0 and (rank(other) or 0) < 2:
        return None
    seen = (tuple(range(n - 2)), *last)
    batch = tuple(int(weight.shape.numpy()[a]) for a in turn[:-2])  # type: ignore[union-attr]
    return _layer(node, weight, turn, seen, (other,), ("MatMul", at, batch), matmul_rows)


def _gemm(node: ir.Node, weight: ir.Value, turn: tuple[int, ...], at: int) -> Layer | None:
    turned = bool(attr(node, "transB" if at else "transA", 0))
    contracted = 1 - turned if at == 0 else int(turned)
    seen = ((), (1 - contracted,), (contracted,))
    flip = bool(attr(node, "transA", 0)) if at else not attr(node, "transB", 0)
    key = ("columns",) if flip else _ROWS
    return _layer(node, weight, turn, seen, (node.inputs[1 - at],), key, column_rows if flip else plain_rows)


def _recurrent(node: ir.Node, weight: ir.Value, turn: tuple[int, ...], at: int) -> Layer | None:
    if turn != (0, 1, 2):
        return None
    seen = ((0,), (1,), (2,))
    how = (attr(node, "layout", 0), attr(node, "direction", "forward"))
    if at == 1:
        return _layer(node, weight, turn, seen, (node.inputs[0],), _ROWS, plain_rows)
    initial = node.inputs[5] if len(node.inputs) > 5 else None
    states = node.outputs[0] if node.outputs else None
    return _layer(node, weight, turn, seen, (states, initial), ("states", *how), state_rows)


def _gather(node: ir.Node, weight: ir.Value, turn: tuple[int, ...]) -> Layer | None:
    n = len(turn)
    axis = int(attr(node, "axis", 0)) % n
    others = tuple(a for a in range(n) if a != axis)
    return _layer(node, weight, turn, ((), others, (axis,)), (node.inputs[1],), ("Gather",), gather_rows)


_Maker = Callable[[ir.Node, ir.Value, tuple[int, ...]], Layer | None]


def _at(make: Callable[[ir.Node, ir.Value, tuple[int, ...], int], Layer | None], at: int) -> _Maker:
    return lambda node, weight, turn: make(node, weight, turn, at)


_STATES = {1: _at(_recurrent, 1), 2: _at(_recurrent, 2)}
_MAKERS: dict[str, dict[int, _Maker]] = {
    "Conv": {1: _conv},
    "ConvTranspose": {1: _conv_transpose},
    "MatMul": {0: _at(_matmul, 0), 1: _at(_matmul, 1)},
    "Gemm": {0: _at(_gemm, 0), 1: _at(_gemm, 1)},
    "LSTM": _STATES,
    "GRU": _STATES,
    "RNN": _STATES,
    "Gather": {0: _gather},
}
"""By operator and input: how the weight there becomes a layer."""
