"""The least time that a model can take on a device: each layer waits for its arithmetic, or for its bytes.

S. Williams, A. Waterman, D. Patterson, "Roofline: an insightful visual performance model for multicore architectures",
CACM 52(4), 2009. The roofs are those that the maker states; no device reaches them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from ..dims import Dim
from ..errors import UsageError
from .devices import Device
from .polynomial import evaluate, symbols
from .records import Analysis

Bound = Literal["compute", "memory", ""]

ASSUMED = (
    "two operations per multiply-accumulate, at the stated peak; other arithmetic is free",
    "each layer reads its inputs and weights from memory and writes its results there; nothing is kept on the chip",
    "layers run one after the other: the model's time is the sum of theirs",
)
"""What `seconds` rests on, a sentence each."""


@dataclass(frozen=True)
class Roof:
    """The least time of one layer.

    Attributes:
        name: the layer's.
        compute, memory: seconds that its MACs and its bytes take at the peak rates; None where no rate is known.
        seconds: the larger of both.
        bound: which that is; "" where the layer does nothing.
        intensity: operations per byte; None where it moves none.
    """

    name: str
    compute: float | None
    memory: float | None
    seconds: float
    bound: Bound
    intensity: float | None


@dataclass
class Roofline:
    """The least time of a model on a device.

    Attributes:
        device: whose roofs these are.
        layers: one for each layer of the analysis, in order.
        seconds: the sum over the layers, see `ASSUMED`.
        floor: seconds that even a device with all activations on the chip needs: for all MACs, or to read the weights
            once, whichever is longer.
        compute_bound, memory_bound: how many layers are bound by what.
        ridge: operations per byte above which a layer is bound by compute; None where one of the roofs is unknown.
        notes: what is not known of the device, and what the figures rest on.
    """

    device: Device
    layers: list[Roof] = field(default_factory=list)
    seconds: float = 0.0
    floor: float = 0.0
    compute_bound: int = 0
    memory_bound: int = 0
    ridge: float | None = None
    notes: list[str] = field(default_factory=list)


def roofline(analysis: Analysis, device: Device, at: Mapping[str, int] | None = None) -> Roofline:
    """The least time of each layer and of the whole on `device`, at these sizes of the free dimensions.

    Raises UsageError when a count depends on a size that is not given.
    """
    numbers = _Numbers(at or {})
    found = Roofline(device, notes=_notes(device))
    macs = 0
    for layer in analysis.layers:
        ops, moved = 2 * numbers(layer.macs), numbers(layer.read) + numbers(layer.written)
        macs += numbers(layer.macs)
        found.layers.append(_roof(layer.name, ops, moved, device))
    found.seconds = sum(r.seconds for r in found.layers)
    weights = sum(layer.weight_bits for layer in analysis.layers) / 8
    floors = [2 * macs / device.ops if device.ops else 0, weights / device.bandwidth if device.bandwidth else 0]
    found.floor = max(floors)
    found.compute_bound = sum(r.bound == "compute" for r in found.layers)
    found.memory_bound = sum(r.bound == "memory" for r in found.layers)
    if device.ops and device.bandwidth:
        found.ridge = device.ops / device.bandwidth
    return found


class _Numbers:
    """Evaluates counts, and says how to give the sizes that are missing."""

    def __init__(self, at: Mapping[str, int]) -> None:
        self.at = at

    def __call__(self, count: Dim) -> int:
        missing = sorted(symbols(count) - set(self.at))
        if missing:
            raise UsageError(
                f"the time on a device depends on the free dimension{'s' * (len(missing) > 1)} {', '.join(missing)}; "
                f"give sizes with --shape {missing[0]}:<size>"
            )
        return evaluate(count, self.at)


def _roof(name: str, ops: int, moved: int, device: Device) -> Roof:
    compute = ops / device.ops if device.ops else None
    memory = moved / device.bandwidth if device.bandwidth else None
    seconds = max(compute or 0.0, memory or 0.0)
    bound: Bound = "" if not seconds else "compute" if (compute or 0.0) >= (memory or 0.0) else "memory"
    return Roof(name, compute, memory, seconds, bound, ops / moved if moved else None)


def _notes(device: Device) -> list[str]:
    notes = []
    if device.bandwidth is None:
        notes.append(f"no memory bandwidth of {device.name} is published: there is no memory roof, and no layer can be "
                     "told to be bound by memory")  # fmt: skip
    if device.ops is None:
        notes.append(f"no peak rate of {device.name} is published: there is no compute roof, only the time for bytes")
    if device.ops is not None:
        kind = device.element or "an element type that is not stated"
        notes.append(f"its peak of {device.ops / 1e12:g} TOPS is for {kind}")
    return [*notes, *ASSUMED]
