"""Windows that slide over the spatial axes of [N, C, …]: convolutions and pools, there and back."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .. import graph as g
from .step import Refused, Step
from .terms import Term


@dataclass(frozen=True)
class Windows:
    """Where windows lie, a number for each spatial axis.

    Window o of an axis sees positions o · stride + k · dilation - before, k = 0 … kernel - 1.
    """

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]

    @classmethod
    def of(cls, s: Step, kernel: Sequence[int | str | None]) -> Windows:
        """Those of a node. Raises Refused where their size, or that of "same" padding, isn't known."""
        if not all(isinstance(k, int) for k in kernel):
            raise Refused("the size of its kernel is not known")
        sizes, n = tuple(int(k) for k in kernel), len(kernel)  # type: ignore[arg-type]
        strides, dilations = s.attr("strides", [1] * n), s.attr("dilations", [1] * n)
        pads = list(s.attr("pads", [0] * 2 * n))
        auto = s.attr("auto_pad", "NOTSET")
        if auto == "VALID":
            pads = [0] * 2 * n
        elif auto != "NOTSET":
            pads = _same(s, sizes, strides, dilations, auto == "SAME_UPPER")
        return cls(sizes, tuple(strides), tuple(dilations), tuple(pads[:n]), tuple(pads[n:]))

    @property
    def rank(self) -> int:
        """How many spatial axes there are."""
        return len(self.kernel)

    def span(self, d: int) -> int:
        """From the first to the last position that a window sees, both included."""
        return (self.kernel[d] - 1) * self.dilations[d] + 1

    def spread(self, dy: Term, weight: Term, x: Term, group: int) -> Term:
        """What comes back to each position of x: the sum over all windows that see it of dy times the weight there.

        dy is [N, M, …]; the weight [M, C / group, …]; the result [N, C, …] in the spatial size of x.
        """
        n, axes = self.rank, range(2, self.rank + 2)
        common = {"strides": self.strides, "dilations": self.dilations, "group": group, "kernel_shape": self.kernel}
        sizes, places = ([v.dim(a) for a in axes] for v in (x, dy))
        if all(isinstance(d, int) for d in (*sizes, *places)):
            rest = [
                int(size) + self.before[d] + self.after[d] - (int(o) - 1) * self.strides[d] - self.span(d)  # type: ignore[arg-type]
                for d, (size, o) in enumerate(zip(sizes, places, strict=True))
            ]
            if all(0 <= r < stride for r, stride in zip(rest, self.strides, strict=True)):
                pads = [*self.before, *self.after]
                return dy.op("ConvTranspose", weight, pads=pads, output_padding=rest, **common)
        # All that windows reach, with as many zeros behind it as none reaches, and of that the part that is x.
        whole = dy.op("ConvTranspose", weight, **common)
        tail = [stride - 1 for stride in self.strides]
        if any(tail):
            whole = whole.op("Pad", whole.tape.vector([0] * (n + 2) + [0, 0] + tail))
        starts = dy.tape.const(np.array(self.before, np.int64))
        spatial = [x.size(a) for a in axes]
        ends = (spatial[0] if n == 1 else dy.tape.op("Concat", *spatial, axis=0)).op("Add", starts)
        return whole.op("Slice", starts, ends, dy.tape.const(np.array(axes, np.int64)))


def _same(
    s: Step, kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int], upper: bool
) -> list[int]:
    """Pads with which there are ceil(size / stride) windows."""
    dims = g.static_shape(s.node.inputs[0])
    if dims is None:
        raise Refused('it has "same" padding, but the size of its input is not known')
    total = []
    for size, k, stride, dilation in zip(dims[2:], kernel, strides, dilations, strict=True):
        total.append(max((math.ceil(size / stride) - 1) * stride + (k - 1) * dilation + 1 - size, 0))
    less, more = [t // 2 for t in total], [t - t // 2 for t in total]
    return [*less, *more] if upper else [*more, *less]
