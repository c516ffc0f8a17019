"""Pools over windows and over everything."""

from __future__ import annotations

import math

import numpy as np

from ... import graph as g
from ..step import Grads, Refused, Rule, Step
from ..terms import Term
from ..windows import Windows
from .reduce import count


def _by_channel(value: Term) -> Term:
    """[N, C, …] as [N C, 1, …]: what is done to each channel by itself."""
    dims = value.dims or ()
    return value.reshape(-1, 1, *(value.dim(a) for a in range(2, len(dims))))


def _max_pool(s: Step) -> Grads:
    """To the elements that were taken; of equal ones in a window the first."""
    if s.attr("storage_order", 0):
        raise Refused("its storage is column-major")
    dy = s.dy
    attributes = {k: s.attr(k) for k in ("auto_pad", "ceil_mode", "dilations", "kernel_shape", "pads", "strides")}
    _, places = s.tape.ops("MaxPool", s.x, outputs=2, **attributes)
    # The places are counted through the whole tensor.
    flat = s.x.zeros().reshape(-1)
    found = flat.op("ScatterElements", places.reshape(-1), dy.reshape(-1), axis=0, reduction="add")
    return [s.as_input(found)]


def _average_pool(s: Step) -> Grads:
    """dy over the number of elements in its window, to each of them."""
    windows = Windows.of(s, s.attr("kernel_shape"))
    share = s.dy / _counts(s, windows)
    if g.rank(share.value) is None:
        share.has_dims(s.y.dims or (None,) * s.rank())
    ones = s.tape.const(np.ones((1, 1, *windows.kernel)), s.x)
    x, each = _by_channel(s.x), _by_channel(share)
    for flat, whole in ((x, s.x), (each, s.y)):
        flat.has_dims((None, 1, *(whole.dims or ())[2:]))
    return [s.as_input(windows.spread(each, ones, x, 1))]


def _counts(s: Step, windows: Windows) -> Term | float:
    """How many elements an average is over: a number, or [1, 1, …] where it differs from place to place."""
    everything = float(math.prod(windows.kernel))
    padded = any((*windows.before, *windows.after))
    overhang, with_pads = s.attr("ceil_mode", 0), s.attr("count_include_pad", 0)
    if not overhang and (with_pads or not padded):
        return everything
    sizes, places = g.static_shape(s.node.inputs[0]), g.static_shape(s.node.outputs[0])
    if sizes is not None and places is not None:
        found = np.ones((1, 1), np.float64)
        for d in range(windows.rank):
            first, last = (-windows.before[d], sizes[2 + d] + windows.after[d]) if with_pads else (0, sizes[2 + d])
            at = np.arange(places[2 + d])[:, None] * windows.strides[d] - windows.before[d]
            at = at + np.arange(windows.kernel[d]) * windows.dilations[d]
            inside = ((at >= first) & (at < last)).sum(1)
            found = found[..., None] * inside
        return s.tape.const(found, s.x)
    if overhang:
        raise Refused("it rounds up the number of windows, and the size of its input is not known")
    ones = s.tape.const(np.ones((1, 1, *windows.kernel)), s.x)
    image = s.tape.const(1.0, s.x).op("Expand", s.tape.vector([1, 1, *(s.x.dim(d + 2) for d in range(windows.rank))]))
    return image.op(
        "Conv", ones, pads=[*windows.before, *windows.after], strides=windows.strides, dilations=windows.dilations
    )


def _global_average(s: Step) -> Grads:
    return [(s.dy / count(s, list(range(2, s.rank())))).expand(s.x)]


def _global_max(s: Step) -> Grads:
    """To the elements that are the largest, in equal shares."""
    hits = s.x.equals(s.y).op("Cast", to=int(s.x.dtype))
    return [s.dy / hits.sum(range(2, s.rank())) * hits]


def _lrn(s: Step) -> Grads:
    """Krizhevsky et al. 2012: y = x / r^beta, r = bias + alpha / size · (sum of squares in a window of channels)."""
    size, rank = s.attr("size"), s.rank()
    alpha, beta, bias = s.attr("alpha", 1e-4), s.attr("beta", 0.75), s.attr("bias", 1.0)

    def window(value: Term, before: int) -> Term:
        pads = [0, before, *[0] * (rank - 2), 0, size - 1 - before, *[0] * (rank - 2)]
        total = value.op("Pad", s.tape.vector(pads)).op("CumSum", s.tape.const(1))
        low = total.op("Pad", s.tape.vector([0, 1, *[0] * (rank - 2), *[0] * rank]))
        channels = s.x.size(1)
        ends = channels.op("Add", s.tape.const([size]))
        high = total.op("Slice", s.tape.const([size - 1]), ends, s.tape.const([1]))
        return high - low.op("Slice", s.tape.const([0]), channels, s.tape.const([1]))

    before = (size - 1) // 2
    r = bias + alpha / size * window(s.x * s.x, before)
    back = window(s.dy * s.y / r, size - 1 - before)
    return [s.dy * r**-beta - (2 * alpha * beta / size) * (s.x * back)]


RULES: dict[str, Rule] = {
    "AveragePool": _average_pool,
    "GlobalAveragePool": _global_average,
    "GlobalMaxPool": _global_max,
    "LRN": _lrn,
    "MaxPool": _max_pool,
}
