"""Shapes and movement of data (`ops/defs/*/tensor_operation.py`, `tensor_transformation.py`)."""

from __future__ import annotations

import numpy as np

from ..call import Call, Result, Unsupported, rule
from ..graph import INT32, INT64

_LAST = np.iinfo(np.int64).max
_FIRST = np.iinfo(np.int64).min


@rule("reshape", exact=True)
def reshape(o: Call) -> Result:
    """Up to iOS 16 a 0 copies the dimension at its own position; from iOS 17 positions count from the right."""
    b, x = o.b, o.value()
    if o.literal("shape") is None:
        return b.op("Reshape", x, b.cast(o.value("shape"), INT64))
    wanted, source = o.ints("shape"), o.type().shape
    if o.opset >= 7 and 0 in wanted:
        offset = len(source) - len(wanted)
        wanted = [_inherited(source, i + offset) if d == 0 else d for i, d in enumerate(wanted)]
    return b.reshape(x, wanted)


def _inherited(source: tuple[int | None, ...], position: int) -> int:
    if position < 0:
        return 1
    size = source[position]
    if size is None:
        raise Unsupported("a 0 in 'shape' stands for an open dimension of 'x'")
    return size


@rule("reshape_like", exact=True)
def reshape_like(o: Call) -> Result:
    b = o.b
    parts = []
    scalars = [[_scalar(o, name, i) for i in range(len(o.arguments[name]))] for name in ("begins", "ends", "end_masks")]
    for reference, begin, end, whole in zip(o.values("ref_tensors"), *scalars, strict=True):
        limits = {"start": begin} if whole else {"start": begin, "end": end}
        parts.append(b.op("Shape", reference, **limits))
    return b.op("Reshape", o.value(), b.concat(parts, 0))


def _scalar(o: Call, name: str, index: int) -> int:
    literal = o.arguments[name][index].literal
    if literal is None:
        raise Unsupported(f"its input '{name}' must be constant")
    return int(literal.numpy().item())


@rule("flatten2d", exact=True)
def flatten2d(o: Call) -> Result:
    return o.b.op("Flatten", o.value(), axis=o.axis("axis", 1))


@rule("expand_dims", exact=True)
def expand_dims(o: Call) -> Result:
    return o.b.op("Unsqueeze", o.value(), o.b.ints(o.ints("axes")))


@rule("squeeze", exact=True)
def squeeze(o: Call) -> Result:
    """Axes that are not of size 1 are left alone, as in PyTorch."""
    dims = o.type().shape
    axes = [a % len(dims) for a in o.ints("axes")] if o.has("axes") else list(range(len(dims)))
    axes = [a for a in axes if dims[a] == 1 or (dims[a] is None and o.has("axes"))]
    return o.b.op("Squeeze", o.value(), o.b.ints(axes)) if axes else o.b.op("Identity", o.value())


@rule("transpose", exact=True)
def transpose(o: Call) -> Result:
    rank = o.rank()
    return o.b.op("Transpose", o.value(), perm=[p % rank for p in o.ints("perm")]) if rank else o.value()


@rule("concat", exact=True)
def concat(o: Call) -> Result:
    b, values, rank = o.b, o.values("values"), o.rank("values")
    if rank == 0:
        return b.op("Concat", *(b.op("Unsqueeze", v, b.ints([0])) for v in values), axis=0)
    axis = o.integer("axis") % rank
    if not o.flag("interleave"):
        return b.op("Concat", *values, axis=axis)
    stacked = b.op("Concat", *(b.op("Unsqueeze", v, b.ints([axis + 1])) for v in values), axis=axis + 1)
    shape = list(o.shape("values"))
    shape[axis] *= len(values)
    return b.reshape(stacked, shape)


@rule("stack", exact=True)
def stack(o: Call) -> Result:
    b, axis = o.b, o.integer("axis") % (o.rank("values") + 1)
    return b.op("Concat", *(b.op("Unsqueeze", v, b.ints([axis])) for v in o.values("values")), axis=axis)


@rule("split", exact=True)
def split(o: Call) -> Result:
    b, axis, count = o.b, o.axis(), len(o.outputs)
    if o.has("split_sizes"):
        sizes = o.value("split_sizes") if o.literal("split_sizes") is None else None
        size_value = b.cast(sizes, INT64) if sizes is not None else b.ints(o.ints("split_sizes"))
        return b.nodes_of("Split", [o.value(), size_value], {"axis": axis}, count)
    return b.nodes_of("Split", [o.value()], {"axis": axis, "num_outputs": count}, count)


@rule("tile", exact=True)
def tile(o: Call) -> Result:
    return o.b.op("Tile", o.value(), o.b.cast(o.value("reps"), INT64))


@rule("shape")
def shape(o: Call) -> Result:
    return o.b.cast(o.b.op("Shape", o.value()), INT32)


@rule("fill", exact=True)
def fill(o: Call) -> Result:
    value = o.value("value") if o.has("value") else o.b.number(0.0)
    return o.b.op("Expand", value, o.b.cast(o.value("shape"), INT64))


@rule("fill_like", exact=True)
def fill_like(o: Call) -> Result:
    value = o.value("value") if o.has("value") else o.b.number(0.0)
    return o.b.op("Expand", value, o.b.op("Shape", o.value("ref_tensor")))


@rule("range_1d")
def range_1d(o: Call) -> Result:
    return o.b.op("Range", *(o.value(name) for name in ("start", "end", "step")))


@rule("band_part", exact=True)
def band_part(o: Call) -> Result:
    """Zero outside the band; a negative width keeps that whole triangle. Trilu has no INT32 kernel."""
    b, x = o.b, o.value()
    carried = o.type().element.carried
    if carried == INT32:
        x = b.cast(x, INT64)
    lower, upper = o.integer("lower", -1), o.integer("upper", -1)
    if lower >= 0:
        x = b.op("Trilu", x, b.ints(-lower), upper=1)
    if upper >= 0:
        x = b.op("Trilu", x, b.ints(upper), upper=0)
    return b.cast(x, INT32) if carried == INT32 else x


@rule("reverse", exact=True)
def reverse(o: Call) -> Result:
    axes = o.ints("axes") if o.has("axes") else list(range(o.rank()))
    n = len(axes)
    return o.b.slice(o.value(), [-1] * n, [_FIRST] * n, axes, [-1] * n)


@rule("reverse_sequence", exact=True)
def reverse_sequence(o: Call) -> Result:
    """ONNX has the operator for the first two axes only."""
    b, rank = o.b, o.rank()
    batch, time = o.axis("batch_axis", 0), o.axis("seq_axis", 0)
    if batch == time:
        raise Unsupported("seq_axis equals batch_axis")
    perm = [batch, time, *(a for a in range(rank) if a not in (batch, time))]
    x = b.transpose(o.value(), perm)
    result = b.op("ReverseSequence", x, b.cast(o.value("lengths"), INT64), batch_axis=0, time_axis=1)
    return b.transpose(result, [perm.index(a) for a in range(rank)])


@rule("pad", exact=True)
def pad(o: Call) -> Result:
    """MIL interleaves begin and end, for the last axes only; ONNX lists all begins, then all ends."""
    b, x = o.b, o.value()
    mode = {"constant": "constant", "reflect": "reflect", "replicate": "edge"}.get(o.text("mode", "constant"))
    if mode is None:
        raise Unsupported(f"mode '{o.text('mode')}' is none of constant, reflect, replicate")
    if o.literal("pad") is not None:
        pairs = o.ints("pad")
        missing = [0] * (o.rank() - len(pairs) // 2)
        pads = b.ints([*missing, *pairs[0::2], *missing, *pairs[1::2]])
    else:
        both = b.op("Transpose", b.reshape(b.cast(o.value("pad"), INT64), [-1, 2]), perm=[1, 0])
        pads = b.reshape(both, [-1])
    fill_value = o.optional("constant_val") if mode == "constant" else None
    return b.op("Pad", x, pads, fill_value, mode=mode)


@rule("sliding_windows", exact=True)
def sliding_windows(o: Call) -> Result:
    axis, size, stride = o.axis(), o.integer("size"), o.integer("stride", 1)
    count = (o.shape()[axis] - size) // stride + 1
    index = np.arange(count)[:, None] * stride + np.arange(size)
    return o.b.op("Gather", o.value(), o.b.constant(index.astype(np.int64)), axis=axis)


# Blocks of pixels ---------------------------------------------------------------------------------------------------


@rule("depth_to_space", exact=True)
def depth_to_space(o: Call) -> Result:
    return o.b.op("DepthToSpace", o.value(), blocksize=o.integer("block_size"), mode="DCR")


@rule("pixel_shuffle", exact=True)
def pixel_shuffle(o: Call) -> Result:
    return o.b.op("DepthToSpace", o.value(), blocksize=o.integer("upscale_factor"), mode="CRD")


@rule("space_to_depth", exact=True)
def space_to_depth(o: Call) -> Result:
    return o.b.op("SpaceToDepth", o.value(), blocksize=o.integer("block_size"))


@rule("pixel_unshuffle", exact=True)
def pixel_unshuffle(o: Call) -> Result:
    """The inverse of pixel_shuffle: channels outside, offsets within the block inside."""
    f = o.integer("downscale_factor")
    n, c, h, w = o.shape()
    parts = o.b.reshape(o.value(), [n, c, h // f, f, w // f, f])
    return o.b.reshape(o.b.transpose(parts, [0, 1, 3, 5, 2, 4]), [n, c * f * f, h // f, w // f])


@rule("space_to_batch", exact=True)
def space_to_batch(o: Call) -> Result:
    """The offset within the block becomes the outer part of the batch, as in TensorFlow."""
    (bh, bw), pads = o.ints("block_shape"), o.ints("paddings")
    n, c, h, w = o.shape()
    h, w = h + pads[0] + pads[1], w + pads[2] + pads[3]
    x = o.b.op("Pad", o.value(), o.b.ints([0, 0, pads[0], pads[2], 0, 0, pads[1], pads[3]]))
    parts = o.b.transpose(o.b.reshape(x, [n, c, h // bh, bh, w // bw, bw]), [3, 5, 0, 1, 2, 4])
    return o.b.reshape(parts, [n * bh * bw, c, h // bh, w // bw])


@rule("batch_to_space", exact=True)
def batch_to_space(o: Call) -> Result:
    (bh, bw), crops = o.ints("block_shape"), o.ints("crops")
    n, c, h, w = o.shape()
    parts = o.b.reshape(o.value(), [bh, bw, n // (bh * bw), c, h, w])
    whole = o.b.reshape(o.b.transpose(parts, [2, 3, 4, 0, 5, 1]), [n // (bh * bw), c, h * bh, w * bw])
    return o.b.slice(whole, [crops[0], crops[2]], [h * bh - crops[1], w * bw - crops[3]], [2, 3])


@rule("crop", exact=True)
def crop(o: Call) -> Result:
    (top, bottom), (left, right) = o.ints("crop_height"), o.ints("crop_width")
    ends = [-bottom if bottom else _LAST, -right if right else _LAST]
    return o.b.slice(o.value(), [top, left], ends, [-2, -1])
