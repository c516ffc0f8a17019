"""Operators that move numbers, pick some, or combine those of one channel: ids are moved along. See `channel_gains`."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from ..compiler import graph as g
from .channel_gains import FAR, Ids, Rule, Trace, Unscalable


def same(trace: Trace, node: ir.Node) -> Ids:
    """What comes out has the ids of the first input."""
    return trace.ids(node.inputs[0])


def _pool(trace: Trace, node: ir.Node) -> Ids:
    ids = same(trace, node)
    if any(n != 1 for n in ids.shape[2:]) or any(v.uses() for v in node.outputs[1:]):
        raise Unscalable
    return ids


def _transpose(trace: Trace, node: ir.Node) -> Ids:
    ids = same(trace, node)
    return ids.transpose(g.attr(node, "perm", range(ids.ndim)[::-1]))


def _reshape(trace: Trace, node: ir.Node) -> Ids:
    """Axes are matched from the front while they are alike, and from the back as their products agree."""
    ids, old, new = same(trace, node), g.shape(node.inputs[0]), g.shape(node.outputs[0])
    if old is None or new is None:
        raise Unscalable
    front = 0
    while front < min(len(old), len(new)) and old[front] == new[front] is not None:
        front += 1
    i, j, full = len(old), len(new), list(ids.shape)
    made = [1] * len(new)
    while i > front and j > front:
        a, b = i - 1, j - 1
        left, right = old[a], new[b]
        while isinstance(left, int) and isinstance(right, int) and left != right and max(left, right) > 0:
            if left < right:
                a -= 1
                more = old[a] if a >= front else None
                left = left * more if isinstance(more, int) else None
            else:
                b -= 1
                more = new[b] if b >= front else None
                right = right * more if isinstance(more, int) else None
        if left is None or left != right:
            break
        if any(ids.shape[k] != 1 for k in range(a, i)):
            full[a:i], made[b:j] = old[a:i], new[b:j]  # type: ignore[assignment]
        i, j = a, b
    made[:front] = ids.shape[:front]
    if any(ids.shape[k] != 1 for k in range(front, i)) or math.prod(full) > FAR:
        raise Unscalable
    return _narrow(np.broadcast_to(ids, full).reshape(made))


def _narrow(ids: Ids) -> Ids:
    """Ids without the axes along which they are all the same."""
    for axis in range(ids.ndim):
        first = ids.take([0], axis)
        if ids.shape[axis] != 1 and (ids == first).all():
            ids = first
    return ids


def _expand(trace: Trace, node: ir.Node) -> Ids:
    ids, depth = same(trace, node), g.rank(node.outputs[0])
    if depth is None:
        raise Unscalable
    return ids.reshape((1,) * (depth - ids.ndim) + ids.shape)


def size_of(value: ir.Value | None, axis: int) -> int:
    """How long a value is on an axis. Raises Unscalable where that is not known."""
    dims = g.shape(value)
    found = None if dims is None else dims[axis]
    if not isinstance(found, int):
        raise Unscalable
    return found


def _wide(ids: Ids, value: ir.Value | None, axis: int) -> Ids:
    """Ids as long as the value on one axis."""
    return np.repeat(ids, size_of(value, axis), axis) if ids.shape[axis] == 1 else ids


def _concat(trace: Trace, node: ir.Node) -> Ids:
    all_ids = [trace.ids(v) for v in node.inputs]
    depth = all_ids[0].ndim
    axis = g.attr(node, "axis", 0) % max(1, depth)
    if not depth:
        raise Unscalable
    if any(ids.shape[axis] != 1 for ids in all_ids) or len({(ids.shape, ids.tobytes()) for ids in all_ids}) > 1:
        all_ids = [_wide(ids, v, axis) for ids, v in zip(all_ids, node.inputs, strict=True)]
        rest = np.broadcast_shapes(*((*ids.shape[:axis], 1, *ids.shape[axis + 1 :]) for ids in all_ids))
        spread = [np.broadcast_to(x, (*rest[:axis], x.shape[axis], *rest[axis + 1 :])) for x in all_ids]
        return np.concatenate(spread, axis)
    return all_ids[0]


def _split(trace: Trace, node: ir.Node) -> list[Ids]:
    ids = same(trace, node)
    axis = g.attr(node, "axis", 0) % max(1, ids.ndim)
    if not ids.ndim:
        raise Unscalable
    if ids.shape[axis] == 1:
        return [ids] * len(node.outputs)
    ends = np.cumsum([size_of(v, axis) for v in node.outputs])
    if ends[-1] != ids.shape[axis]:
        raise Unscalable
    return np.split(ids, ends[:-1].tolist(), axis)


def _slice(trace: Trace, node: ir.Node) -> Ids:
    ids = same(trace, node)
    given = [g.ints(v) for v in node.inputs[1:]]
    if not ids.ndim or any(x is None for x in given):
        raise Unscalable
    starts, ends, *more = given
    axes = more[0] if more else list(range(len(starts or ())))
    steps = more[1] if len(more) > 1 else [1] * len(starts or ())
    for start, end, axis, step in zip(starts or (), ends or (), axes or (), steps or (), strict=True):
        k = axis % ids.ndim
        if ids.shape[k] != 1:
            low = None if step < 0 and end < -ids.shape[k] else end
            ids = ids[(slice(None),) * k + (slice(start, low, step),)]
    return ids


def _gather(trace: Trace, node: ir.Node) -> Ids:
    ids, picked = same(trace, node), g.rank(node.inputs[1])
    if not ids.ndim or picked is None:
        raise Unscalable
    axis = g.attr(node, "axis", 0) % ids.ndim
    if ids.shape[axis] == 1:
        return ids.reshape((*ids.shape[:axis], *(1,) * picked, *ids.shape[axis + 1 :]))
    indices = g.const(node.inputs[1])
    if indices is None:
        raise Unscalable
    return np.asarray(ids.take(indices, axis))


def _reduce(trace: Trace, node: ir.Node) -> Ids:
    ids, axes = same(trace, node), g.attr(node, "axes")
    if axes is None and len(node.inputs) > 1 and node.inputs[1] is not None:
        axes = g.ints(node.inputs[1])
    if not ids.ndim or axes is None:
        raise Unscalable
    gone = {a % ids.ndim for a in axes}
    if any(ids.shape[a] != 1 for a in gone) or not gone:
        raise Unscalable
    return ids if g.attr(node, "keepdims", 1) else ids.squeeze(tuple(gone))


def _spatial(trace: Trace, node: ir.Node) -> Ids:
    """Pad and Resize, if they leave the axes alone along which factors differ."""
    ids, old, new = same(trace, node), g.shape(node.inputs[0]), g.shape(node.outputs[0])
    if old is None or new is None:
        raise Unscalable
    varying = {a for a, n in enumerate(ids.shape) if n != 1}
    padded = node.op_type == "Pad"
    if any(not isinstance(old[a], int) or old[a] != new[a] for a in varying):
        raise Unscalable
    if not padded and g.attr(node, "coordinate_transformation_mode") == "tf_crop_and_resize":
        raise Unscalable
    fill = node.inputs[2] if padded and len(node.inputs) > 2 else None
    if fill is not None and g.attr(node, "mode", "constant") == "constant" and g.scalar(fill) != 0:
        raise Unscalable
    at = 1 if padded else 2
    given = node.inputs[at] if at < len(node.inputs) else None
    amounts = None if given is None else g.const(given)
    if given is not None and amounts is None:
        raise Unscalable
    axes = g.attr(node, "axes") if not padded else None
    if padded and len(node.inputs) > 3 and node.inputs[3] is not None:
        axes = g.ints(node.inputs[3])
        if axes is None:
            raise Unscalable
    places = [a % ids.ndim for a in axes] if axes is not None else list(range(ids.ndim))
    nothing = 0 if padded else 1
    if amounts is not None and any(n != nothing and places[k % len(places)] in varying for k, n in enumerate(amounts)):
        raise Unscalable
    return ids


VIEWS: dict[str, Rule] = {
    **dict.fromkeys(("Relu", "LeakyRelu", "Abs", "Neg", "Identity", "Dropout"), same),
    **dict.fromkeys(("MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool"), _pool),
    **dict.fromkeys(("Reshape", "Flatten", "Squeeze", "Unsqueeze"), _reshape),
    **dict.fromkeys(("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL1", "ReduceL2"), _reduce),
    **dict.fromkeys(("Pad", "Resize"), _spatial),
    "Transpose": _transpose,
    "Expand": _expand,
    "Concat": _concat,
    "Split": _split,
    "Slice": _slice,
    "Gather": _gather,
}
