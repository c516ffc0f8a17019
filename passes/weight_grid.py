"""Weights on an integer grid: q · scale with 8-bit q and a float16 scale for each output channel."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ..compiler.graph import attr, const_tensor, nodes, producer, rank

TOP = 127
"""The largest q. The grid is symmetric: -128 is not used."""

KEPT = "edgec.kept"
"""Key of `Value.meta` of a weight that was best left as it is: later passes leave it so."""

BLOCK = 1 << 18
"""Elements that are worked on at a time: they fit a cache, and a big weight needs no second copy."""


@dataclass(frozen=True)
class Weight:
    """A constant that linear operators read as their weight, or as its transpose.

    Attributes:
        value: the initializer.
        axis: its output-channel axis, or None where its readers disagree or one is no linear operator.
        readers: which inputs of which nodes it is; a Transpose between it and a linear operator is one of them.
    """

    value: ir.Value
    axis: int | None
    readers: tuple[tuple[ir.Node, int], ...]


def weights(model: ir.Model, min_size: int) -> list[Weight]:
    """The float32 weights of at least `min_size` elements, each once, in the order of their first readers."""
    found: dict[ir.Value, None] = {}
    for node in nodes(model, *_AXES):
        for i in _POSITIONS[node.op_type]:
            value = _untransposed(node.inputs[i]) if i < len(node.inputs) else None
            tensor = None if value is None else const_tensor(value)
            if value is None or tensor is None or tensor.dtype != ir.DataType.FLOAT:
                continue
            if tensor.size >= min_size and len(tensor.shape) > 1:
                found[value] = None
    return [_weight(value) for value in found]


def _untransposed(value: ir.Value | None) -> ir.Value | None:
    """What `value` is a transposed view of, or itself: a tied embedding is read by rows, and transposed by the head."""
    view = producer(value, "Transpose")
    return value if view is None else view.inputs[0]


def _weight(value: ir.Value) -> Weight:
    readers = tuple((node, i) for node, i in value.uses())
    return Weight(value, _shared_axis(value), readers)


def _shared_axis(value: ir.Value) -> int | None:
    """The output-channel axis that all readers of `value` agree on, seen through Transposes; None if there is none."""
    axes = {_axis(node, i) for node, i in value.uses()}
    return axes.pop() if len(axes) == 1 and not value.is_graph_output() else None


def _axis(node: ir.Node, i: int) -> int | None:
    """The output-channel axis of input `i`, or None where it is no weight."""
    if node.op_type == "Transpose" and node.domain == "":
        axis, perm = _shared_axis(node.outputs[0]), attr(node, "perm")
        n = rank(node.inputs[0]) or 0
        return None if axis is None else int(perm[axis]) if perm is not None else n - 1 - axis
    if node.domain != "" or node.op_type not in _AXES or i not in _POSITIONS[node.op_type]:
        return None
    value = node.inputs[i]
    n = rank(value) or 0
    match node.op_type:
        case "MatMul":
            return n - 1 if i == 1 else n - 2
        case "Gemm":
            return (0 if attr(node, "transB", 0) else 1) if i == 1 else (1 if attr(node, "transA", 0) else 0)
        case "Gather":
            return int(attr(node, "axis", 0)) % n if n else None
    return _AXES[node.op_type]


def inputs(weight: Weight) -> tuple[int, ...]:
    """The axes that all readers sum over, that of the input channels first; none where they disagree.

    Of a table that Gather reads all but that of the rows.
    """
    return _shared_inputs(weight.value)


def _shared_inputs(value: ir.Value) -> tuple[int, ...]:
    found = {_inputs(node, i) for node, i in value.uses()}
    return found.pop() if len(found) == 1 else ()


def _inputs(node: ir.Node, i: int) -> tuple[int, ...]:
    n, axis = rank(node.inputs[i]) or 0, _axis(node, i)
    if axis is None:
        return ()
    match node.op_type:
        case "Transpose":
            perm = attr(node, "perm")
            seen = _shared_inputs(node.outputs[0])
            return tuple(int(perm[a]) if perm is not None else n - 1 - a for a in seen)
        case "MatMul":
            return (n - 2,) if i == 1 else (n - 1,)
        case "LSTM" | "GRU" | "RNN":
            return (2,)
    return tuple(a for a in range(n) if a != axis)


_AXES = {"Conv": 0, "ConvTranspose": 1, "Gemm": 0, "MatMul": 0, "Gather": 0, "LSTM": 1, "GRU": 1, "RNN": 1}
"""Output-channel axis of the weight. Gather: each row of an embedding table has a scale of its own."""

_POSITIONS = {
    "Conv": (1,), "ConvTranspose": (1,), "Gemm": (0, 1), "MatMul": (0, 1), "Gather": (0,),
    "LSTM": (1, 2), "GRU": (1, 2), "RNN": (1, 2),
}  # fmt: skip


def blocks(array: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """Consecutive pieces of `array` along its first axis, about `BLOCK` elements each."""
    step = max(1, BLOCK // max(1, array[0].size)) if len(array) else 1
    for i in range(0, len(array), step):
        yield slice(i, i + step), array[i : i + step]


def spread(scale: np.ndarray, axis: int, ndim: int, rows: slice) -> np.ndarray:
    """The scales, shaped to broadcast against the rows of a weight."""
    shaped = scale.reshape([-1 if a == axis else 1 for a in range(ndim)])
    return shaped[rows] if axis == 0 else shaped


def peaks(array: np.ndarray, axis: int) -> np.ndarray:
    """The largest magnitude in each channel, float32."""
    others = tuple(a for a in range(array.ndim) if a != axis)
    found = np.zeros(array.shape[axis], np.float32)
    for rows, part in blocks(array):
        top = np.maximum(part.max(others, initial=0), -part.min(others, initial=0))
        if axis == 0:
            found[rows] = top
        else:
            np.maximum(found, top, out=found)
    return found


def scales(top: np.ndarray) -> np.ndarray:
    """The least float16 scales (as float32) whose grids reach `top`; 1 for zero channels, inf where there is none."""
    with np.errstate(over="ignore"):
        scale = (top / TOP).astype(np.float16)
        short = scale.astype(np.float32) * TOP < top
        scale = np.where(short, np.nextafter(scale, np.float16(np.inf)), scale)
    return np.where(top == 0, 1, scale).astype(np.float32)


def steps(part: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """The nearest grid points of a weight, as float32 integers."""
    found = part / scale
    np.rint(found, out=found)
    np.clip(found, -TOP, TOP, out=found)
    return np.asarray(found)


def recover(array: np.ndarray, axis: int, top: np.ndarray | None = None) -> np.ndarray | None:
    """The float16 scales (as float32) of the grid that `array` lies on exactly, or None.

    The peak of a channel (`top`) is a whole number of steps, near 127 on a grid made for it: so all are tried.
    """
    top = peaks(array, axis) if top is None else top
    found = np.where(top == 0, np.float32(1), np.float32(0))
    for q in range(TOP, 0, -1):
        open_ = found == 0
        if not open_.any():
            return found
        with np.errstate(over="ignore"):
            tried = (top / np.float32(q)).astype(np.float16).astype(np.float32)
        fits = np.flatnonzero(open_ & (tried > 0) & (tried * np.float32(q) == top))
        if fits.size:
            fits = fits[_lie_on(array, axis, fits, tried)]
            found[fits] = tried[fits]
    return None if (found == 0).any() else found


def _lie_on(array: np.ndarray, axis: int, channels: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Which of these channels are exact multiples of their scale, at most `TOP` times."""
    good = np.ones(channels.size, bool)
    others = tuple(a for a in range(array.ndim) if a != axis)
    if axis == 0:
        step = max(1, BLOCK // max(1, array[0].size))
        for i in range(0, channels.size, step):
            some = channels[i : i + step]
            good[i : i + step] = _exact(array[some], scale[some], axis).all(others)
        return good
    every = channels.size == array.shape[axis]
    for _, part in blocks(array):
        good &= _exact(part if every else part.take(channels, axis), scale[channels], axis).all(others)
        if not good.any():
            break
    return good


def _exact(part: np.ndarray, scale: np.ndarray, axis: int) -> np.ndarray:
    s = spread(scale, axis, part.ndim, slice(None))
    return np.asarray(steps(part, s) * s == part)
