"""Moving data: reshape, transpose, slice, concat, pad, tile. All exact: float16 stays float16."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from .build import BOOL, I32, Slot, Var
from .call import Call
from .checks import MAX_RANK
from .constants import Constant
from .ops_elementwise import spread
from .registry import lowers


@lowers("Reshape", "Flatten", "Squeeze", "Unsqueeze", exact=True, floats=(0,))
def _reshape(c: Call) -> Any:
    """Shapes are fixed, so the result's shape says all: 0, -1, allowzero and axes are resolved already."""
    shape, constant = c.out_shape(), c.slot(0).constant
    if constant is not None:
        return Slot(constant=constant.map(f"R{shape}", lambda a: a.reshape(shape), shape))
    if shape == c.shape() or len(shape) > MAX_RANK:
        return c.same(0)
    return c.reshape(c.x(), shape)


@lowers("Transpose", exact=True)
def _transpose(c: Call) -> Any:
    perm = tuple(c.attr("perm") or reversed(range(c.rank())))
    slot = c.slot(0)
    if slot.constant is not None:
        return Slot(constant=slot.constant.map(f"T{perm}", lambda a: a.transpose(perm), c.out_shape()))
    if slot.affine is not None:
        packed = slot.affine.transpose(perm)
        if packed is not None:
            return Slot(affine=packed)
    if list(perm) == sorted(perm):
        return c.same(0)
    if c.rank() > MAX_RANK:
        return _transpose_merged(c, perm)
    return c.transpose(c.x(), perm)


def _transpose_merged(c: Call, perm: tuple[int, ...]) -> Var:
    """More dimensions than Core ML has: axes that stay neighbours move as one, those of size one don't count."""
    shape = c.shape()
    groups: list[list[int]] = []
    for axis in (p for p in perm if shape[p] != 1):
        between = range(groups[-1][-1] + 1, axis) if groups else range(0)
        if groups and axis > groups[-1][-1] and all(shape[k] == 1 for k in between):
            groups[-1].append(axis)
        else:
            groups.append([axis])
    if len(groups) > MAX_RANK:
        c.missing(f"it moves {len(groups)} dimensions separately; Core ML's tensors have at most {MAX_RANK}")
    order = sorted(groups)
    merged = [int(np.prod([shape[a] for a in group])) for group in order]
    return c.transpose(c.reshape(c.x(), merged or [1]), [order.index(group) for group in groups] or [0])


@lowers("Expand", exact=True, floats=(0,))
def _expand(c: Call) -> Any:
    return c.same(0) if c.out_shape() == c.shape() else spread(c, c.x(), c.out_shape())


@lowers("Tile", exact=True, floats=(0,))
def _tile(c: Call) -> Var:
    return c.op("tile", x=c.x(), reps=np.array(c.ints(1), np.int32))


@lowers("Concat", exact=True)
def _concat(c: Call) -> Any:
    if len(c.node.inputs) == 1:
        return c.same(0)
    return c.op("concat", values=c.all(), axis=c.axis())


@lowers("Split", exact=True, floats=(0,))
def _split(c: Call) -> Any:
    axis = c.axis(0)
    if len(c.node.outputs) == 1:
        return c.same(0)
    sizes = [c.out_shape(i)[axis] for i in range(len(c.node.outputs))]
    return c.op("split", x=c.x(), split_sizes=np.array(sizes, np.int32), axis=axis)


@lowers("Slice", exact=True, floats=(0,))
def _slice(c: Call) -> Any:
    shape = c.shape()
    starts, ends = c.ints(1), c.ints(2)
    axes = [a % len(shape) for a in c.ints(3, range(len(starts)))]
    steps = c.ints(4, [1] * len(starts))
    slices = [slice(None)] * len(shape)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        slices[axis] = slice(start, end if step > 0 or end >= -shape[axis] else None, step)
    return take(c, c.x(), slices)


def take(c: Call, x: Var, slices: Sequence[slice]) -> Var:
    """numpy's `x[slices]`, one slice for each axis."""
    shape = [int(d) for d in x.shape]
    spans = [s.indices(n) for s, n in zip(slices, shape, strict=True)]
    if all(span == (0, n, 1) for span, n in zip(spans, shape, strict=True)):
        return x
    begin, end, stride = (np.array([span[k] for span in spans], np.int32) for k in range(3))
    # Reading backwards to the first element has no end that could be written as a number.
    mask = [bool(e < 0 or (s > 0 and e == n)) for e, s, n in zip(end, stride, shape, strict=True)]
    return c.op("slice_by_index", x=x, begin=begin, end=np.maximum(end, 0), stride=stride, end_mask=mask)


@lowers("Pad", exact=True)
def _pad(c: Call) -> Any:
    shape, pads = c.shape(), c.ints(1)
    axes = [a % len(shape) for a in c.ints(3, range(len(shape)))]
    begins, ends = [0] * len(shape), [0] * len(shape)
    for k, axis in enumerate(axes):
        begins[axis], ends[axis] = pads[k], pads[k + len(axes)]
    # A negative pad cuts. Do that first: what is mirrored or repeated is what is left.
    cut = [slice(max(0, -b), n - max(0, -e)) for b, e, n in zip(begins, ends, shape, strict=True)]
    x = take(c, c.x(), cut)
    begins, ends = [max(0, b) for b in begins], [max(0, e) for e in ends]
    mode = c.attr("mode", "constant")
    if not any(begins) and not any(ends):
        return c.same(0) if tuple(x.shape) == shape else x
    if mode == "constant":
        return _pad_constant(c, x, begins, ends)
    return _pad_copied(c, x, begins, ends, mode)


def _pad_constant(c: Call, x: Var, begins: list[int], ends: list[int]) -> Var:
    if c.is_float_node():
        pad = np.array([n for pair in zip(begins, ends, strict=True) for n in pair], np.int32)
        return c.op("pad", x=x, pad=pad, mode="constant", constant_val=c.number(2, 0.0))
    fill = c.array(2).reshape(()) if c.has(2) else 0
    for axis, (b, e) in enumerate(zip(begins, ends, strict=True)):
        shape = [int(d) for d in x.shape]
        parts = []
        for n in (b, e):
            block = np.full([n if i == axis else d for i, d in enumerate(shape)], fill)
            parts.append(c.tensor(block, np.bool_ if c.kind() == ir.DataType.BOOL else np.int32) if n else None)
        values = [v for v in (parts[0], x, parts[1]) if v is not None]
        x = c.op("concat", values=values, axis=axis) if len(values) > 1 else x
    return x


_COPY = {"reflect": "reflect", "edge": "edge", "wrap": "wrap"}


def _pad_copied(c: Call, x: Var, begins: list[int], ends: list[int], mode: str) -> Var:
    """MIL mirrors and repeats on the last two axes of floats; elsewhere the elements are gathered by their index."""
    if mode not in _COPY:
        c.missing(f"mode '{mode}'")
    outer = any(begins[:-2]) or any(ends[:-2])
    sizes = [int(d) for d in x.shape]
    fits = all(max(b, e) < n for b, e, n in zip(begins, ends, sizes, strict=True))
    if mode != "wrap" and not outer and fits and len(sizes) >= 2 and c.is_float_node():
        pad = np.array([begins[-2], ends[-2], begins[-1], ends[-1]], np.int32)
        return c.op("pad", x=x, pad=pad, mode="reflect" if mode == "reflect" else "replicate", constant_val=0.0)
    for axis, (b, e) in enumerate(zip(begins, ends, strict=True)):
        if b or e:
            index = np.pad(np.arange(sizes[axis]), (b, e), mode=_COPY[mode])  # type: ignore[call-overload]
            x = gather(c, x, c.tensor(index), axis)
    return x


def gather(c: Call, x: Var, indices: Var, axis: int) -> Var:
    """MIL's gather; booleans, which it doesn't take, travel as integers."""
    if c.builder.dtype(x) == BOOL:
        return c.cast(c.op("gather", x=c.cast(x, I32), indices=indices, axis=axis), BOOL)
    return c.op("gather", x=x, indices=indices, axis=axis)


@lowers("DepthToSpace", exact=True)
def _depth_to_space(c: Call) -> Var:
    block, crd = int(c.attr("blocksize")), c.attr("mode", "DCR") == "CRD"
    if c.is_float_node():
        if crd:
            return c.op("pixel_shuffle", x=c.x(), upscale_factor=block)
        return c.op("depth_to_space", x=c.x(), block_size=block)
    n, ch, h, w = c.shape()
    small = ch // block**2
    if crd:
        x = c.reshape(c.x(), (n * small, block, block, h, w))
        return c.reshape(c.transpose(x, (0, 3, 1, 4, 2)), c.out_shape())
    if n > 1:
        c.missing("batches of integers; Core ML moves floats only, and tensors of five dimensions")
    x = c.reshape(c.x(), (block, block, small, h, w))
    return c.reshape(c.transpose(x, (2, 3, 0, 4, 1)), c.out_shape())


@lowers("SpaceToDepth", exact=True)
def _space_to_depth(c: Call) -> Var:
    block, crd = int(c.attr("blocksize")), c.attr("mode", "DCR") == "CRD"
    n, ch, h, w = c.shape()
    if c.is_float_node() and not crd:
        return c.op("space_to_depth", x=c.x(), block_size=block)
    if crd:
        x = c.reshape(c.x(), (n * ch, h // block, block, w // block, block))
        return c.reshape(c.transpose(x, (0, 2, 4, 1, 3)), c.out_shape())
    if n > 1:
        c.missing("batches of integers; Core ML moves floats only, and tensors of five dimensions")
    x = c.reshape(c.x(), (ch, h // block, block, w // block, block))
    return c.reshape(c.transpose(x, (2, 4, 0, 1, 3)), c.out_shape())


@lowers("Trilu", exact=True, floats=(0,))
def _trilu(c: Call) -> Var:
    """MIL's band_part keeps a band that holds the diagonal; other bands are selected by a mask."""
    k, upper = (c.ints(1)[0] if c.has(1) else 0), c.attr("upper", 1)
    x = c.x()
    if upper and k <= 0:
        return c.op("band_part", x=x, lower=-k, upper=-1)
    if not upper and k >= 0:
        return c.op("band_part", x=x, lower=-1, upper=k)
    rows, cols = c.shape()[-2:]
    distance = np.arange(cols)[None] - np.arange(rows)[:, None]
    mask = distance >= k if upper else distance <= k
    return c.op("select", cond=c.tensor(np.broadcast_to(mask, c.shape())), a=x, b=c.like(x, 0))


@lowers("Shape")
def _shape(c: Call) -> Slot:
    start, end = c.attr("start", 0), c.attr("end", None)
    return known(np.array(c.shape()[start:end], np.int64))


@lowers("Size")
def _size(c: Call) -> Slot:
    return known(np.array(np.prod(c.shape(), dtype=np.int64)))


def known(array: np.ndarray) -> Slot:
    """A result that is a constant."""
    return Slot(constant=Constant(lambda: array, array.shape, array.dtype, (array.tobytes(), array.dtype.name)))


@lowers("CenterCropPad", exact=True, floats=(0,))
def _center_crop_pad(c: Call) -> Any:
    """Cropped or padded with zeros on both sides; the odd one goes to the end."""
    x, slices, pads = c.x(), [], []
    for n, size in zip(c.shape(), c.out_shape(), strict=True):
        start = max(0, (n - size) // 2)
        slices.append(slice(start, start + min(n, size)))
        missing = max(0, size - n)
        pads += [missing // 2, missing - missing // 2]
    x = take(c, x, slices)
    if not any(pads):
        return x if tuple(x.shape) != c.shape() else c.same(0)
    if not c.is_float_node():
        return _pad_constant(c, x, pads[::2], pads[1::2])
    return c.op("pad", x=x, pad=np.array(pads, np.int32), mode="constant", constant_val=0.0)


@lowers("ReverseSequence", exact=True, floats=(0,))
def _reverse_sequence(c: Call) -> Var:
    batch, time = int(c.attr("batch_axis", 1)), int(c.attr("time_axis", 0))
    return c.op("reverse_sequence", x=c.x(), lengths=c.x(1), seq_axis=time % c.rank(), batch_axis=batch % c.rank())
