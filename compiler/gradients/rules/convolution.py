"""Convolutions: each one's gradient is the other's forward."""

from __future__ import annotations

from ... import graph as g
from ..step import Grads, Refused, Rule, Step
from ..terms import Term
from ..windows import Windows


def _bias(s: Step, dy: Term) -> Term | None:
    return dy.sum([0, *range(2, s.rank())], keep=False) if s.wants(2) else None


def _conv(s: Step) -> Grads:
    """dx = ConvTranspose(dy, w); dw by `_weight`."""
    w = s.input(1)
    windows = Windows.of(s, (g.shape(w.value) or ())[2:])
    group = s.attr("group", 1)
    dx = windows.spread(s.dy, w, s.x, group) if s.wants(0) else None
    dw = _weight(windows, s.x, s.dy, w, group) if s.wants(1) else None
    return [dx, dw, _bias(s, s.dy)]


def _conv_transpose(s: Step) -> Grads:
    """y = spread(x, w): its adjoint is the convolution of dy with w, and w sees x and dy in each other's place."""
    w = s.input(1)
    if s.attr("auto_pad", "NOTSET") != "NOTSET" or s.attr("output_shape"):
        raise Refused("its padding is not given in numbers")
    windows = Windows.of(s, (g.shape(w.value) or ())[2:])
    group = s.attr("group", 1)
    dx = dw = None
    if s.wants(0):
        dx = s.dy.op(
            "Conv", w, strides=windows.strides, dilations=windows.dilations, group=group,
            pads=[*windows.before, *windows.after],
        )  # fmt: skip
        # A remainder that no window filled may be long enough for another one.
        dx = _cut(dx, s.x, windows.rank)
    if s.wants(1):
        dw = _weight(windows, s.dy, s.x, w, group)
    return [dx, dw, _bias(s, s.dy)]


def _cut(found: Term, like: Term, rank: int) -> Term:
    """The first positions of the spatial axes, as many as `like` has."""
    tape, axes = found.tape, list(range(2, rank + 2))
    ends = tape.vector([like.dim(a) for a in axes])
    return found.op("Slice", tape.const([0] * rank), ends, tape.const(axes))


def _weight(windows: Windows, x: Term, dy: Term, w: Term, group: int) -> Term:
    """dw[m, c, k] = sum over n, o of x[n, c, o stride + k dilation - pad] dy[n, m, o].

    That is a convolution in which channels take the place of samples and strides that of dilations. With groups,
    those are the groups of its channels, n of each.
    """
    rank = windows.rank
    spatial = list(range(2, rank + 2))
    if group == 1:
        images = x.transpose(1, 0, *spatial)
    else:
        sizes = [x.dim(a) for a in spatial]
        split = x.reshape(x.dim(0), group, w.dim(1), *sizes)
        turned = split.transpose(2, 1, 0, *(a + 1 for a in spatial))
        images = turned.reshape(w.dim(1), -1, *sizes)
    found = images.op(
        "Conv", dy.transpose(1, 0, *spatial), strides=windows.dilations, dilations=windows.strides, group=group,
        pads=[*windows.before, *windows.after],
    )  # fmt: skip
    return _cut(found, w, rank).transpose(1, 0, *spatial)


RULES: dict[str, Rule] = {"Conv": _conv, "ConvTranspose": _conv_transpose}
