"""What a model would cost without some of its slices: parameters, bytes and MACs, from shapes alone."""

from __future__ import annotations

import math

import onnx_ir as ir

from ..cost.products import MACS, node_macs
from ..cost.sizes import Sizes
from ..cost.storage import parameters, weight_bytes
from ..dims import Dim
from ..graph import const_tensor, nodes
from .clock import Clock
from .coupling import Coupling
from .grids import Ids
from .reshaping import grouped
from .solve import Flags


class Price:
    """Prices of candidates, a millisecond or so each: only weights and operators with a label are looked at again."""

    def __init__(self, model: ir.Model, coupling: Coupling, clock: Clock | None = None) -> None:
        """With a `clock`, the time on its device is a figure, too."""
        self.coupling, self._clock = coupling, clock
        self._sizes = Sizes(model) if coupling.sizes is None else coupling.sizes
        self._linear = [n for n in nodes(model) if n.domain == "" and n.op_type in MACS]
        self._weights = {v: t for v in coupling.holds if (t := const_tensor(v)) is not None}
        self.parameters, self.bytes = parameters(model), weight_bytes(model)
        self.macs = self._macs(_Measures(self._sizes, coupling, None))

    def left(self, gone: Flags) -> dict[str, float]:
        """What is left of each figure, 0 to 1, without the ids that are `gone`; 1 of one that is unknown."""
        smaller = _Measures(self._sizes, self.coupling, gone)
        lost = lost_bytes = 0
        for value, tensor in self._weights.items():
            size = math.prod(int(n) for n in smaller.constant(value))
            lost += tensor.size - size
            lost_bytes += (tensor.size - size) * tensor.dtype.bitwidth // 8
        macs = self._macs(smaller)
        found = {
            "parameters": 1 - lost / max(self.parameters, 1),
            "bytes": 1 - lost_bytes / max(self.bytes, 1),
            "macs": macs / self.macs if macs and self.macs else 1.0,
        }
        if self._clock is not None:
            found["time"] = self._clock.left(smaller)
        return found

    def _macs(self, sizes: _Measures) -> float:
        """MACs where they are numbers. Free dimensions count as 1: they are the same before and after."""
        total = 0.0
        for node in self._linear:
            found = node_macs(node, sizes)
            total += found if isinstance(found, int) else sum(c for _, c in found.terms) if found is not None else 0
        return total


class _Measures:
    """Sizes without what is gone."""

    def __init__(self, sizes: Sizes, coupling: Coupling, gone: Flags | None) -> None:
        self._sizes, self._coupling, self._gone = sizes, coupling, gone
        self._extents: dict[int, list[int]] = {}

    def number(self, value: ir.Value | None) -> Dim | None:
        """See `Sizes`."""
        return self._sizes.number(value)

    def dims(self, value: ir.Value | None) -> list[Dim] | None:
        """The dimensions, labelled ones as far as something is left of them."""
        found = self._sizes.dims(value)
        if value is None or found is None or self._gone is None:
            return found
        if value in self._weights:
            return list(self.constant(value))
        label = self._coupling.labels.get(value)
        if label:
            found = list(found)
            for g in label:
                for axis, n in zip(g.axes, self._extent(g.ids), strict=True):
                    found[axis] = n
        return found

    @property
    def _weights(self) -> dict[ir.Value, list]:  # type: ignore[type-arg]
        return self._coupling.holds

    def constant(self, value: ir.Value) -> list[int]:
        """The shape of a held constant afterwards."""
        holds, shape = self._coupling.holds[value], [int(n) for n in value.shape or ()]  # type: ignore[arg-type]
        if not holds:
            return shape
        view = list(holds[0].view)
        for h in holds:
            for axis, n in zip(h.grid.axes, self._extent(h.grid.ids), strict=True):
                view[axis] = min(view[axis], n)
        new = []
        for here, there in grouped(shape, holds[0].view):
            merged = math.prod(view[a] for a in there)
            new += [merged] if len(here) == 1 else [merged if a == here[0] else 1 for a in here]
        return new

    def _extent(self, ids: Ids) -> list[int]:
        key = id(ids)
        if key not in self._extents:
            assert self._gone is not None
            alive = ~self._gone[ids]
            each = []
            for d in range(ids.ndim - 1):
                each.append(int(alive.any(tuple(i for i in range(ids.ndim) if i != d)).sum()))
            self._extents[key] = [*each, int(alive.sum(-1).max(initial=0))]
        return self._extents[key]
