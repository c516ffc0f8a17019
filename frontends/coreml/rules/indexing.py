"""Slices, gathers and scatters (`ops/defs/*/tensor_transformation.py`, `scatter_gather.py`)."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ..call import Call, Result, Unsupported, rule
from ..graph import INT32, INT64

_LAST = np.iinfo(np.int64).max
_FIRST = np.iinfo(np.int64).min
_REDUCTION = {"update": "none", "add": "add", "sub": "add", "mul": "mul", "div": "mul", "max": "max", "min": "min"}


def _mask(o: Call, name: str, rank: int) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    return o.const(name, np.zeros(rank, np.bool_)).reshape(-1).astype(np.bool_)


def _steps(o: Call) -> list[int]:
    squeezed = _mask(o, "squeeze_mask", o.rank())
    return [1 if s else v for s, v in zip(squeezed, o.ints("stride", [1] * o.rank()), strict=True)]


def _bounds(o: Call) -> tuple[ir.Value, ir.Value]:
    """Starts and ends of slice_by_index for ONNX, from constants or computed, with the masks applied."""
    b, rank, steps = o.b, o.rank(), np.array(_steps(o))
    squeezed = _mask(o, "squeeze_mask", rank)
    open_begin, open_end = _mask(o, "begin_mask", rank), _mask(o, "end_mask", rank) & ~squeezed
    first = np.where(steps > 0, 0, _LAST)
    last = np.where(steps > 0, _LAST, _FIRST)
    if o.literal("begin") is not None and o.literal("end") is not None:
        begin = np.where(open_begin, first, o.const("begin").astype(np.int64))
        end = np.where(open_end, last, o.const("end").astype(np.int64))
        end = np.where(squeezed, np.where(begin == -1, _LAST, begin + 1), end)
        return b.constant(begin.astype(np.int64)), b.constant(end.astype(np.int64))
    starts = _override(o, b.cast(o.value("begin"), INT64), open_begin, b.constant(first.astype(np.int64)))
    ends = _override(o, b.cast(o.value("end"), INT64), open_end, b.constant(last.astype(np.int64)))
    if squeezed.any():
        is_last = b.op("Equal", starts, b.ints(-1))
        after = b.op("Where", is_last, b.ints(_LAST), b.op("Add", starts, b.ints(1)))
        ends = _override(o, ends, squeezed, after)
    return starts, ends


def _override(o: Call, value: ir.Value, mask: np.ndarray[tuple[int], np.dtype[np.bool_]], by: ir.Value) -> ir.Value:
    return o.b.op("Where", o.b.constant(mask), by, value) if mask.any() else value


@rule("slice_by_index", exact=True)
def slice_by_index(o: Call) -> Result:
    b, rank = o.b, o.rank()
    starts, ends = _bounds(o)
    result = b.op("Slice", o.value(), starts, ends, b.ints(list(range(rank))), b.ints(_steps(o)))
    squeezed = np.flatnonzero(_mask(o, "squeeze_mask", rank)).tolist()
    return b.op("Squeeze", result, b.ints(squeezed)) if squeezed else result


@rule("slice_by_size", exact=True)
def slice_by_size(o: Call) -> Result:
    """Size −1 takes all that is left."""
    b, x = o.b, o.value()
    begin, size = b.cast(o.value("begin"), INT64), b.cast(o.value("size"), INT64)
    begin = b.op("Where", b.op("Less", begin, b.ints(0)), b.op("Add", begin, b.op("Shape", x)), begin)
    end = b.op("Where", b.op("Equal", size, b.ints(-1)), b.op("Shape", x), b.op("Add", begin, size))
    return b.op("Slice", x, begin, end, b.ints(list(range(o.rank()))))


@rule("slice_update", exact=True)
def slice_update(o: Call) -> Result:
    """Gather the update to where each element belongs, axis by axis, and choose it there: constants stay vectors."""
    b, x, shape = o.b, o.value(), o.shape()
    update = o.value("update")
    squeezed = np.flatnonzero(_mask(o, "squeeze_mask", len(shape))).tolist()
    if squeezed and o.rank("update") < len(shape):
        update = b.op("Unsqueeze", update, b.ints(squeezed))
    starts, ends = _bounds(o)
    inside: ir.Value | None = None
    for axis, (size, step) in enumerate(zip(shape, _steps(o), strict=True)):
        taken = b.op(
            "Slice",
            b.constant(np.arange(size)),
            *(b.slice(v, [axis], [axis + 1], [0]) for v in (starts, ends)),
            b.ints([0]),
            b.ints([step]),
        )
        count = b.op("Shape", taken)
        order = b.op("Range", b.ints(0), b.op("Squeeze", count), b.ints(1))
        place = b.op("ScatterElements", b.constant(np.full(size, -1)), taken, order, axis=0)
        hit = b.op("GreaterOrEqual", place, b.ints(0))
        update = b.op("Gather", update, b.op("Max", place, b.ints(0)), axis=axis)
        hit = b.reshape(hit, [-1] + [1] * (len(shape) - 1 - axis))
        inside = hit if inside is None else b.op("And", inside, hit)
    return update if inside is None else b.op("Where", inside, update, x)


def _indices(o: Call) -> ir.Value:
    """Indices in a type that ONNX gathers with; MIL also has 8- and 16-bit ones."""
    narrow = o.type("indices").dtype in ("int8", "uint8")
    return o.b.cast(o.value("indices"), INT32) if narrow else o.value("indices")


@rule("gather", exact=True)
def gather(o: Call) -> Result:
    """With batch_dims, the axis is moved behind the batch axes and GatherND does the rest."""
    b, rank, axis, batch = o.b, o.rank(), o.axis("axis", 0), o.integer("batch_dims", 0)
    if batch == 0:
        return b.op("Gather", o.value(), _indices(o), axis=axis)
    rest = [a for a in range(batch, rank) if a != axis]
    moved = b.transpose(o.value(), [*range(batch), axis, *rest])
    indices = b.op("Unsqueeze", b.cast(o.value("indices"), INT64), b.ints([-1]))
    picked = b.op("GatherND", moved, indices, batch_dims=batch)
    first = o.rank("indices")
    end = first + axis - batch
    perm = [*range(batch), *range(first, end), *range(batch, first), *range(end, first + len(rest))]
    return b.transpose(picked, perm)


@rule("gather_along_axis", exact=True)
def gather_along_axis(o: Call) -> Result:
    return o.b.op("GatherElements", o.value(), _indices(o), axis=o.integer("axis", 0))


@rule("gather_nd", exact=True)
def gather_nd(o: Call) -> Result:
    indices = o.b.cast(o.value("indices"), INT64)
    return o.b.op("GatherND", o.value(), indices, batch_dims=o.integer("batch_dims", 0))


def _updates(o: Call) -> tuple[ir.Value, str]:
    """Updates and ONNX reduction of a scatter; subtraction adds the negative, division multiplies by the inverse."""
    mode = o.text("mode", "add")
    if mode not in _REDUCTION:
        raise Unsupported(f"mode '{mode}' is none of {', '.join(_REDUCTION)}")
    updates = o.value("updates")
    if mode == "div" and o.type("updates").dtype not in ("fp16", "fp32"):
        raise Unsupported("mode 'div' on integers")
    unary = {"sub": "Neg", "div": "Reciprocal"}.get(mode)
    return (o.b.op(unary, updates) if unary else updates), _REDUCTION[mode]


@rule("scatter")
def scatter(o: Call) -> Result:
    """`indices` is a vector along `axis`."""
    b, rank, axis = o.b, o.rank("data"), o.axis("axis", 0, of="data")
    updates, reduction = _updates(o)
    indices = b.reshape(b.cast(o.value("indices"), INT64), [-1] + [1] * (rank - 1 - axis))
    indices = b.op("Expand", indices, b.op("Shape", updates))
    return b.op("ScatterElements", o.value("data"), indices, updates, axis=axis, reduction=reduction)


@rule("scatter_along_axis")
def scatter_along_axis(o: Call) -> Result:
    updates, reduction = _updates(o)
    indices = o.b.cast(o.value("indices"), INT64)
    return o.b.op("ScatterElements", o.value("data"), indices, updates, axis=o.integer("axis", 0), reduction=reduction)


@rule("scatter_nd")
def scatter_nd(o: Call) -> Result:
    updates, reduction = _updates(o)
    return o.b.op("ScatterND", o.value("data"), o.b.cast(o.value("indices"), INT64), updates, reduction=reduction)
