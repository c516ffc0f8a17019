"""Linear layers with constant weights: which matrix a weight is, and what rows it is multiplied with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ..graph import attr, const_tensor, nodes, producer, rank
from .streaming import pads, windows

Pick = Callable[[tuple[int, ...]], np.ndarray]
"""Of places in an array of this shape, the flat indices of those that are looked at."""
Fetched = Mapping[ir.Value, np.ndarray]
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
    return _layer(node, weight, turn, seen, (node.inputs[0],), key, _conv_rows, ((0, groups),))


def _conv_rows(layer: Layer, fetched: Fetched, pick: Pick) -> np.ndarray:
    x = fetched[layer.reads[0]]
    kernel = layer.weight.shape.numpy()[2:]  # type: ignore[union-attr]
    return _unfolded(layer.node, x, kernel, layer.sizes[0], pick)


def _unfolded(node: ir.Node, x: np.ndarray, kernel: tuple[int, ...], groups: int, pick: Pick) -> np.ndarray:
    shape = (x.shape[0], *_out_sizes(node, x.shape[2:], kernel))
    seen = windows(node, x, np.unravel_index(pick(shape), shape), kernel)
    split = seen.reshape(len(seen), groups, seen.shape[1] * seen.shape[2] // groups)
    return np.ascontiguousarray(split.transpose(1, 0, 2))


def _out_sizes(node: ir.Node, sizes: tuple[int, ...], kernel: tuple[int, ...]) -> tuple[int, ...]:
    n = len(kernel)
    strides, dilations = attr(node, "strides", [1] * n), attr(node, "dilations", [1] * n)
    edges = pads(node, sizes, kernel)
    wide = [s + a + b - (k - 1) * d - 1 for s, (a, b), k, d in zip(sizes, edges, kernel, dilations, strict=True)]
    return tuple(w // s + 1 for w, s in zip(wide, strides, strict=True))


def _conv_transpose(node: ir.Node, weight: ir.Value, turn: tuple[int, ...]) -> Layer | None:
    groups, n = attr(node, "group", 1), len(turn)
    if turn != tuple(range(n)) or attr(node, "auto_pad", "NOTSET") != "NOTSET" or attr(node, "output_shape"):
        return None
    seen = ((0,), (2,), (1, *range(3, n + 1)))
    kernel = weight.shape.numpy()[2:]  # type: ignore[union-attr]
    names = ("pads", "strides", "dilations", "output_padding")
    key = ("ConvTranspose", groups, tuple(kernel), *(str(attr(node, a)) for a in names))
    return _layer(node, weight, turn, seen, (node.inputs[0],), key, _conv_transpose_rows, ((0, groups),))


def _conv_transpose_rows(layer: Layer, fetched: Fetched, pick: Pick) -> np.ndarray:
    """As a convolution with stride 1 over the input with zeros between its places; its taps are in reverse."""
    node, x = layer.node, fetched[layer.reads[0]]
    kernel = layer.weight.shape.numpy()[2:]  # type: ignore[union-attr]
    n = len(kernel)
    strides, dilations = attr(node, "strides", [1] * n), attr(node, "dilations", [1] * n)
    cut, extra = attr(node, "pads", [0] * 2 * n), attr(node, "output_padding", [0] * n)
    wide = np.zeros((*x.shape[:2], *((s - 1) * t + 1 for s, t in zip(x.shape[2:], strides, strict=True))), x.dtype)
    every = (slice(None), slice(None))
    wide[(*every, *(slice(None, None, t) for t in strides))] = x
    reach = [(k - 1) * d for k, d in zip(kernel, dilations, strict=True)]
    edges = [(r - cut[d], r - cut[n + d] + extra[d]) for d, r in enumerate(reach)]
    wide = np.pad(wide, [(0, 0), (0, 0), *((max(0, a), max(0, b)) for a, b in edges)])
    inside = tuple(slice(max(0, -a), wide.shape[2 + d] - max(0, -b)) for d, (a, b) in enumerate(edges))
    plain = ir.node("Conv", [], attributes={"dilations": list(dilations)})
    seen = _unfolded(plain, wide[(*every, *inside)], kernel, layer.sizes[0], pick)
    size = int(np.prod(kernel))
    taps = seen.reshape(*seen.shape[:2], seen.shape[2] // size, size)
    return np.ascontiguousarray(taps[..., ::-1]).reshape(seen.shape)


def _matmul(node: ir.Node, weight: ir.Value, turn: tuple[int, ...], at: int) -> Layer | None:
    n = len(turn)
    last = ((n - 1,), (n - 2,)) if at == 1 else ((n - 2,), (n - 1,))
    other = node.inputs[1 - at]
    if at == 0 and (rank(other) or 0) < 2:
        return None
    seen = (tuple(range(n - 2)), *last)
    batch = tuple(int(weight.shape.numpy()[a]) for a in turn[:-2])  # type: ignore[union-attr]
    return _layer(node, weight, turn, seen, (other,), ("MatMul", at, batch), _matmul_rows)


def _matmul_rows(layer: Layer, fetched: Fetched, pick: Pick) -> np.ndarray:
    _, at, batch, *_ = layer.key
    x = fetched[layer.reads[0]]
    return _rows_of(x if at == 1 else np.swapaxes(x, -1, -2), batch, pick)  # type: ignore[arg-type]


def _rows_of(x: np.ndarray, batch: tuple[int, ...], pick: Pick) -> np.ndarray:
    """The rows along the last axis; of an input with one part for each of a batch of matrices, each part apart."""
    count = int(np.prod(batch, dtype=np.int64))
    if count == 1:
        return x.reshape(-1, x.shape[-1])[pick(x.shape[:-1])][None]
    full = np.broadcast_shapes(x.shape[:-2], batch)
    x = np.broadcast_to(x, (*full, *x.shape[-2:]))
    first = len(full) - len(batch)
    x = np.moveaxis(x, range(first, len(full)), range(len(batch)))
    places = x.shape[len(batch) : -1]
    return x.reshape(count, int(np.prod(places)), x.shape[-1])[:, pick(places)]


def _gemm(node: ir.Node, weight: ir.Value, turn: tuple[int, ...], at: int) -> Layer | None:
    turned = bool(attr(node, "transB" if at else "transA", 0))
    contracted = 1 - turned if at == 0 else int(turned)
    seen = ((), (1 - contracted,), (contracted,))
    flip = bool(attr(node, "transA", 0)) if at else not attr(node, "transB", 0)
    key = ("columns",) if flip else _ROWS
    return _layer(node, weight, turn, seen, (node.inputs[1 - at],), key, _column_rows if flip else _plain_rows)


def _column_rows(layer: Layer, fetched: Fetched, pick: Pick) -> np.ndarray:
    return _rows_of(fetched[layer.reads[0]].T, (), pick)


def _recurrent(node: ir.Node, weight: ir.Value, turn: tuple[int, ...], at: int) -> Layer | None:
    if turn != (0, 1, 2):
        return None
    seen = ((0,), (1,), (2,))
    how = (attr(node, "layout", 0), attr(node, "direction", "forward"))
    if at == 1:
        return _layer(node, weight, turn, seen, (node.inputs[0],), _ROWS, _plain_rows)
    initial = node.inputs[5] if len(node.inputs) > 5 else None
    states = node.outputs[0] if node.outputs else None
    return _layer(node, weight, turn, seen, (states, initial), ("states", *how), _state_rows)


def _plain_rows(layer: Layer, fetched: Fetched, pick: Pick) -> np.ndarray:
    return _rows_of(fetched[layer.reads[0]], (), pick)


def _state_rows(layer: Layer, fetched: Fetched, pick: Pick) -> np.ndarray:
    """The states before each step: directions x places x states. GRU's reset gate is left out of account."""
    layout, direction = layer.key[1:3]
    states, *rest = (fetched[v] for v in layer.reads)
    start = rest[0] if rest else np.zeros(states[0].shape if not layout else states[:, 0].shape, np.float32)
    if layout:  # batch x steps x directions x states; the first states are batch x directions x states
        states, start = states.transpose(1, 2, 0, 3), start.transpose(1, 0, 2)
    before = []
    for d in range(states.shape[1]):
        back = direction == "reverse" or d == 1
        each = [states[1:, d], start[None, d]] if back else [start[None, d], states[:-1, d]]
        before.append(np.concatenate(each).reshape(-1, states.shape[-1]))
    at = pick((states.shape[0], states.shape[2]))
    return np.stack([b[at] for b in before])


def _gather(node: ir.Node, weight: ir.Value, turn: tuple[int, ...]) -> Layer | None:
    n = len(turn)
    axis = int(attr(node, "axis", 0)) % n
    others = tuple(a for a in range(n) if a != axis)
    return _layer(node, weight, turn, ((), others, (axis,)), (node.inputs[1],), ("Gather",), _gather_rows)


def _gather_rows(layer: Layer, fetched: Fetched, pick: Pick) -> np.ndarray:
    indices = np.asarray(fetched[layer.reads[0]])
    chosen = indices.reshape(-1)[pick(indices.shape)].astype(np.int64)
    return np.where(chosen < 0, chosen + layer.sizes[2], chosen)


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
