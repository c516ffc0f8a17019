"""Pooling. `ceil_mode` becomes padding at the end; dilated windows are taken apart into strided slices."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from .build import F32, I32, Var
from .call import Call
from .ops_conv import Window, window
from .registry import lowers

MAX_TAPS = 256
"""Window elements up to which a dilated pool is written as slices."""


def _pool_window(c: Call) -> tuple[Window, tuple[int, ...]]:
    """The window as declared, and how much further it reaches at the end of each axis (ceil_mode)."""
    w = window(c, c.attr("kernel_shape"))
    sizes = zip(c.out_shape()[2:], w.strides, w.extent, c.shape()[2:], w.begins, w.ends, strict=True)
    return w, tuple(max(0, (out - 1) * s + e - (n + b + p)) for out, s, e, n, b, p in sizes)


def _longer(w: Window, extra: Sequence[int]) -> Window:
    return Window(w.kernel, w.strides, w.dilations, w.begins, tuple(e + x for e, x in zip(w.ends, extra, strict=True)))


def _pool(c: Call, name: str, x: Var, w: Window, **options: Any) -> Var:
    return c.op(
        name, x=x, kernel_sizes=w.kernel, strides=w.strides, pad_type="custom", pad=w.pad, ceil_mode=False, **options)


def _pad(c: Call, x: Var, w: Window, value: float) -> Var:
    if not any(w.pad):
        return x
    return c.op("pad", x=x, pad=np.array([0, 0, 0, 0, *w.pad], np.int32), mode="constant", constant_val=value)


def _taps(c: Call, padded: Var, w: Window) -> Iterator[tuple[tuple[int, ...], Var]]:
    """For each element of the window, its offset and the strided slice of what it sees."""
    if np.prod(w.kernel) > MAX_TAPS:
        c.missing(f"a window of {w.kernel} with dilations {w.dilations} is too large to be written as slices")
    out = c.out_shape()[2:]
    for offset in itertools.product(*(range(k) for k in w.kernel)):
        start = [o * d for o, d in zip(offset, w.dilations, strict=True)]
        end = [b + (n - 1) * s + 1 for b, n, s in zip(start, out, w.strides, strict=True)]
        yield offset, c.op(
            "slice_by_index", x=padded, begin=[0, 0, *start], end=[0, 0, *end], stride=[1, 1, *w.strides],
            end_mask=[True, True, *(False for _ in out)])  # fmt: skip


@lowers("MaxPool", exact=True)
def _max_pool(c: Call) -> list[Any]:
    w, extra = _pool_window(c)
    w = _longer(w, extra)
    x = c.x() if c.is_float_node() else c.cast(c.x(), F32)
    if c.used(1):
        return _max_pool_indices(c, x, w)
    if set(w.dilations) == {1}:
        y = _pool(c, "max_pool", x, w)
    else:
        padded = _pad(c, x, w, _lowest(c))
        y = functools.reduce(lambda a, b: c.op("maximum", x=a, y=b), (tap for _, tap in _taps(c, padded, w)))
    return [y if c.is_float_node() else c.cast(y, I32)]


def _lowest(c: Call) -> float:
    return -65504.0 if c.half else float(np.finfo(np.float32).min)


def _max_pool_indices(c: Call, x: Var, w: Window) -> list[Any]:
    """Values and their positions in the flattened input: the first of equal ones wins."""
    n, ch, *sizes = c.shape()
    best: Var = None
    where: Var = None
    planes = np.arange(n * ch).reshape(n, ch, *(1,) * len(sizes)) * int(np.prod(sizes))
    for offset, tap in _taps(c, _pad(c, x, w, _lowest(c)), w):
        axes = [
            np.arange(out) * s + o * d - b
            for out, s, o, d, b in zip(c.out_shape()[2:], w.strides, offset, w.dilations, w.begins, strict=True)
        ]
        order: Any = "F" if c.attr("storage_order", 0) else "C"
        grid = np.meshgrid(*axes, indexing="ij")
        inside: tuple[Any, ...] = tuple(g.clip(0, n - 1) for g, n in zip(grid, sizes, strict=True))
        position = planes + np.ravel_multi_index(inside, tuple(sizes), order=order)
        here = c.tensor(np.broadcast_to(position, c.out_shape()).astype(np.int32))
        if best is None:
            best, where = tap, here
        else:
            where = c.op("select", cond=c.op("greater", x=tap, y=best), a=here, b=where)
            best = c.op("maximum", x=tap, y=best)
    return [best if c.is_float_node() else c.cast(best, I32), where]


@lowers("AveragePool")
def _average_pool(c: Call) -> Var:
    """Padding counts if `count_include_pad` says so; what ceil_mode adds never does."""
    w, extra = _pool_window(c)
    counted = bool(c.attr("count_include_pad", 0))
    none = (0,) * len(w.kernel)
    if set(w.dilations) != {1}:
        return _dilated_average(c, w, extra, counted)
    if counted and not any(extra):
        return _pool(c, "avg_pool", c.x(), w, exclude_padding_from_average=False)
    x = _pad(c, c.x(), w, 0.0) if counted else c.x()
    rest = Window(w.kernel, w.strides, w.dilations, none, tuple(extra)) if counted else _longer(w, extra)
    return _pool(c, "avg_pool", x, rest, exclude_padding_from_average=True)


def _dilated_average(c: Call, w: Window, extra: Sequence[int], counted: bool) -> Var:
    longer = _longer(w, extra)
    total = functools.reduce(
        lambda a, b: c.op("add", x=a, y=b), (tap for _, tap in _taps(c, _pad(c, c.x(), longer, 0.0), longer)))
    count: Any = np.ones((1, 1))
    sizes = zip(c.shape()[2:], c.out_shape()[2:], w.kernel, w.strides, w.dilations, w.begins, w.ends, strict=True)
    per_axis = []
    for n, out, k, s, d, b, e in sizes:
        at = np.arange(out)[:, None] * s + np.arange(k)[None] * d - b
        low, high = (-b, n + e) if counted else (0, n)
        per_axis.append(((at >= low) & (at < high)).sum(1))
    count = functools.reduce(np.multiply.outer, per_axis)
    return c.op("mul", x=total, y=c.tensor(1.0 / count[None, None]))


@lowers("GlobalAveragePool")
def _global_average(c: Call) -> Var:
    return c.op("reduce_mean", x=c.x(), axes=list(range(2, c.rank())), keep_dims=True)


@lowers("GlobalMaxPool", exact=True)
def _global_max(c: Call) -> Var:
    return c.op("reduce_max", x=c.x(), axes=list(range(2, c.rank())), keep_dims=True)


def power(c: Call, x: Var, p: float) -> Var:
    """|x| to the power of p."""
    if p == 1:
        return c.op("abs", x=x)
    return c.op("mul", x=x, y=x) if p == 2 else c.op("pow", x=c.op("abs", x=x), y=float(p))


def root(c: Call, x: Var, p: float) -> Var:
    """The p-th root of a number that is not negative."""
    if p == 1:
        return x
    return c.op("sqrt", x=x) if p == 2 else c.op("pow", x=x, y=1.0 / p)


# Powers overflow float16 where their roots would not: computed in float32.
@lowers("LpPool", half=99)
def _lp_pool(c: Call) -> Var:
    p = c.attr("p", 2)
    w, extra = _pool_window(c)
    w = _longer(w, extra)
    x = power(c, c.x(), p)
    if set(w.dilations) == {1}:
        mean = _pool(c, "avg_pool", x, w, exclude_padding_from_average=False)
        total = c.op("mul", x=mean, y=float(np.prod(w.kernel)))
    else:
        taps = (tap for _, tap in _taps(c, _pad(c, x, w, 0.0), w))
        total = functools.reduce(lambda a, b: c.op("add", x=a, y=b), taps)
    return root(c, total, p)


@lowers("GlobalLpPool", half=99)
def _global_lp_pool(c: Call) -> Var:
    p = c.attr("p", 2)
    return root(c, c.op("reduce_sum", x=power(c, c.x(), p), axes=list(range(2, c.rank())), keep_dims=True), p)
