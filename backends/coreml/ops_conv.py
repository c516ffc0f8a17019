"""Convolutions. Padding is always written out in numbers: Core ML's `same` is not SAME_LOWER."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .build import Var
from .call import Call
from .registry import lowers


@dataclass(frozen=True)
class Window:
    """A sliding window over the spatial axes: one number for each of them."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    begins: tuple[int, ...]
    ends: tuple[int, ...]

    @property
    def extent(self) -> tuple[int, ...]:
        """What the window spans, holes included."""
        return tuple((k - 1) * d + 1 for k, d in zip(self.kernel, self.dilations, strict=True))

    @property
    def pad(self) -> list[int]:
        """MIL's order: begin and end of each axis in turn."""
        return [n for pair in zip(self.begins, self.ends, strict=True) for n in pair]


def window(c: Call, kernel: Sequence[int]) -> Window:
    """The window of a convolution or pool over input 0; `auto_pad` resolved. Output sizes are those of the graph."""
    n = len(kernel)
    strides = tuple(c.attr("strides") or (1,) * n)
    dilations = tuple(c.attr("dilations") or (1,) * n)
    pads = tuple(c.attr("pads") or (0,) * (2 * n))
    auto = c.attr("auto_pad", "NOTSET")
    begins, ends = pads[:n], pads[n:]
    if auto != "NOTSET":
        begins = ends = (0,) * n
    found = Window(tuple(kernel), strides, dilations, begins, ends)
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        sizes = zip(c.shape()[2:], found.extent, strides, strict=True)
        totals = [max(0, (-(-size // stride) - 1) * stride + extent - size) for size, extent, stride in sizes]
        return Window(found.kernel, strides, dilations, *_halves(totals, auto == "SAME_UPPER"))
    return found


def _halves(totals: Sequence[int], more_at_end: bool) -> tuple[tuple[int, ...], tuple[int, ...]]:
    small, big = tuple(t // 2 for t in totals), tuple(t - t // 2 for t in totals)
    return (small, big) if more_at_end else (big, small)


@lowers("Conv")
def _conv(c: Call) -> Var:
    w = window(c, c.shape(1)[2:])
    if not 3 <= c.rank() <= 5:
        c.missing("Core ML convolves 1 to 3 spatial dimensions")
    kwargs: dict[str, Any] = {
        "x": c.x(), "weight": c.x(1), "strides": w.strides, "pad_type": "custom", "pad": w.pad,
        "dilations": w.dilations, "groups": int(c.attr("group", 1)),
    }  # fmt: skip
    return _with_bias(c, "conv", kwargs)


def _with_bias(c: Call, name: str, kwargs: dict[str, Any]) -> Var:
    if not c.has(2):
        return c.op(name, **kwargs)
    if c.is_const(2):
        return c.op(name, bias=c.x(2), **kwargs)
    return c.op("add", x=c.op(name, **kwargs), y=_channels(c, c.x(2)))


def _channels(c: Call, bias: Var) -> Var:
    return c.reshape(bias, (1, -1, *(1,) * (c.rank() - 2)))


@lowers("ConvTranspose")
def _conv_transpose(c: Call) -> Var:
    """MIL has no output padding: it shortens the crop at the end, and zeros are appended where there is no crop."""
    n = c.rank() - 2
    if not 1 <= n <= 3:
        c.missing("Core ML convolves 1 to 3 spatial dimensions")
    w = window(c, c.shape(1)[2:])
    begins, ends = _transpose_pads(c, w, tuple(c.attr("output_padding") or (0,) * n))
    if min(begins) < 0:
        c.missing(f"its output_shape {c.out_shape()} is larger than what the kernel covers")
    extra = [max(0, -e) for e in ends]
    crop = Window(w.kernel, w.strides, w.dilations, begins, tuple(max(0, e) for e in ends))
    kwargs: dict[str, Any] = {
        "x": c.x(), "weight": c.x(1), "strides": w.strides, "pad_type": "custom", "pad": crop.pad,
        "dilations": w.dilations, "groups": int(c.attr("group", 1)),
    }  # fmt: skip
    if not any(extra):
        return _with_bias(c, "conv_transpose", kwargs)
    pad = [0, 0, 0, 0, *(k for e in extra for k in (0, e))]
    y = c.op("pad", x=c.op("conv_transpose", **kwargs), pad=np.array(pad, np.int32), mode="constant", constant_val=0.0)
    return c.op("add", x=y, y=_channels(c, c.x(2))) if c.has(2) else y


def _transpose_pads(c: Call, w: Window, output_padding: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """How much of the full result is cut at the begin and end of each axis; output padding makes the end negative."""
    full = [s * (n - 1) + e for s, n, e in zip(w.strides, c.shape()[2:], w.extent, strict=True)]
    auto, wanted = c.attr("auto_pad", "NOTSET"), c.attr("output_shape")
    if wanted or auto in ("SAME_UPPER", "SAME_LOWER"):
        sizes = wanted or [n * s for n, s in zip(c.shape()[2:], w.strides, strict=True)]
        totals = [f + p - n for f, p, n in zip(full, output_padding, sizes, strict=True)]
        begins, ends = _halves(totals, auto == "SAME_UPPER")
    else:
        begins, ends = w.begins, w.ends
    return begins, tuple(e - p for e, p in zip(ends, output_padding, strict=True))


