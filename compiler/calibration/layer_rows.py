"""The rows that a linear layer's matrix is multiplied with, picked from what the layer reads.

Every function gives groups (or 1, when all get the same) x places x inputs, at the places that `pick` chooses.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from ..graph import attr
from .streaming import pads, windows

if TYPE_CHECKING:
    from .linear_layers import Layer

Pick = Callable[[tuple[int, ...]], np.ndarray]
"""Of places in an array of this shape, the flat indices of those that are looked at."""
Fetched = Mapping[ir.Value, np.ndarray]
"""Values of the graph, and what they were in a run."""


def conv_rows(layer: Layer, fetched: Fetched, pick: Pick) -> np.ndarray:
    """Convolution: the window around each place."""
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


def conv_transpose_rows(layer: Layer, fetched: Fetched, pick: Pick) -> np.ndarray:
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


def matmul_rows(layer: Layer, fetched: Fetched, pick: Pick) -> np.ndarray:
    """MatMul: the rows, or columns, of the other factor."""
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


def plain_rows(layer: Layer, fetched: Fetched, pick: Pick) -> np.ndarray:
    """The last axis of the input."""
    return _rows_of(fetched[layer.reads[0]], (), pick)


def column_rows(layer: Layer, fetched: Fetched, pick: Pick) -> np.ndarray:
    """The columns of the input."""
    return _rows_of(fetched[layer.reads[0]].T, (), pick)


def state_rows(layer: Layer, fetched: Fetched, pick: Pick) -> np.ndarray:
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


def gather_rows(layer: Layer, fetched: Fetched, pick: Pick) -> np.ndarray:
    """Gather: the indices of the rows that are read, one axis."""
    indices = np.asarray(fetched[layer.reads[0]])
    chosen = indices.reshape(-1)[pick(indices.shape)].astype(np.int64)
    return np.where(chosen < 0, chosen + layer.sizes[2], chosen)
