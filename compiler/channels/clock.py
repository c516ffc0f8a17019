"""The roofline's time of a model without some of its slices, from shapes alone: what `of=time` is a share of.

Each operator of the main graph takes the longer of the time for its MACs and that for its bytes, as in
`cost.roofline`; graphs inside others and constants that are computed when loading stay what they are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from ..cost.analyze import analyze
from ..cost.devices import Device, device
from ..cost.node import Measures, Op, Unknown
from ..cost.polynomial import evaluate, symbols
from ..cost.products import MACS, operator
from ..cost.roofline import roofline
from ..cost.sizes import Sizes
from ..cost.traffic import Traffic
from ..cost.walk import Liveness
from ..dims import Dim, atom
from ..graph import const_tensor
from ..rounding import has_rounding
from ..targets import Target

DEFAULT = {"coreml": "m4", "onnx": "snapdragon-x-elite"}
"""Backend → the device that is meant where none is named: one of which both roofs are published."""


def device_of(name: str, target: Target) -> Device:
    """The device of that name, or the target's. Raises UsageError, listing all."""
    return device(name or DEFAULT[target.backend])


def sizes_of(model: ir.Model, sizes: Sizes, inputs: Mapping[str, np.ndarray]) -> dict[str, int]:
    """How large free dimensions are in these inputs; those that no input tells count as 1."""
    found = dict.fromkeys(sizes.symbols, 1)
    for value in model.graph.inputs:
        array = inputs.get(value.name or "")
        for dim, n in zip(sizes.dims(value) or (), array.shape if array is not None else (), strict=False):
            for name in [s for s in symbols(dim) if dim == atom(s)]:
                found[name] = int(n)
    return found




class Clock:
    """Times of candidates, some milliseconds each.

    Attributes:
        seconds: of the whole model as it is.
        nodes: the operators of the main graph that run.
        each: the seconds of each of them as it is; 0 of one whose cost is not known.
    """

    def __init__(self, model: ir.Model, on: Device, inputs: Mapping[str, np.ndarray] | None = None) -> None:
        self.device, self.sizes = on, Sizes(model)
        self.at = sizes_of(model, self.sizes, inputs or {})
        self._live = Liveness(model, self.sizes)
        self._rounded = has_rounding(model)
        self.nodes = [n for n in model.graph if self._live.runs(n)]
        self.each = self.of(self.sizes)
        found = analyze(model)
        self.seconds = roofline(found, on, {**dict.fromkeys(found.symbols, 1), **self.at}).seconds

    def of(self, sizes: Measures) -> np.ndarray:
        """The seconds of each of `nodes` where values are as large as this says."""
        traffic = _Smaller(self._live, sizes, rounded=self._rounded)
        counts: dict[ir.Value, Dim] = {}
        return np.array([self._seconds(Op(n, sizes, counts), traffic) for n in self.nodes])

    def left(self, sizes: Measures) -> float:
        """What is left of the model's time, 0 to 1."""
        return 1 - float((self.each - self.of(sizes)).sum()) / self.seconds if self.seconds else 1.0

    def _seconds(self, op: Op, traffic: Traffic) -> float:
        try:
            rule = MACS.get(operator(op.node))
            ops = 2 * self._number(rule(op)) if rule is not None and self.device.ops else 0
            moved = sum(map(self._number, traffic.of(op))) if self.device.bandwidth else 0
        except Unknown:
            return 0.0
        return max(ops / (self.device.ops or 1), moved / (self.device.bandwidth or 1))

    def _number(self, count: Dim) -> int:
        return count if isinstance(count, int) else evaluate(count, self.at)


class _Smaller(Traffic):
    """Traffic whose constants are as large as `sizes` says."""

    def __init__(self, live: Liveness, sizes: Measures, *, rounded: bool) -> None:
        super().__init__(live, rounded=rounded)
        self.sizes = sizes

    def weight_bytes(self, constant: ir.Value) -> int:
        tensor, dims = const_tensor(constant), self.sizes.dims(constant)
        if tensor is None or dims is None:
            return 0
        return -(-math.prod(n for n in dims if isinstance(n, int)) * tensor.dtype.bitwidth // 8)
