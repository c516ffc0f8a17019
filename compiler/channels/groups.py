"""The prune groups of a model as figures: families of slices that go one by one, where they lie, and what one costs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from .coupling import Coupling, Hold
from .price import Price
from .solve import Solution, Units, solve, units
from .width import coupled


@dataclass(frozen=True)
class Place:
    """A weight that a family lies on, and the axes (of the weight, as split into `view` where that differs)."""

    weight: str
    axes: tuple[int, ...]
    shape: tuple[int, ...]
    view: tuple[int, ...]

    @property
    def text(self) -> str:
        """The weight's name and its axes, those of the view in brackets."""
        axes = ", ".join(map(str, self.axes))
        return f"{self.weight}[{axes}]" + (f" of {'x'.join(map(str, self.view))}" if self.view != self.shape else "")


@dataclass(frozen=True)
class Group:
    """A family: `units` of one kind that can each go by themselves.

    Attributes:
        kind: channel, row (a head, a group: an index of a leading axis of a grid) or dimension (a channel in a row).
        slices: how many slices of weights and values one unit takes with it, as classes.
        parameters, macs: what a model without one unit has less, on average over a family that is half gone.
    """

    name: str
    kind: str
    units: int
    slices: int
    parameters: float
    macs: float
    places: tuple[Place, ...]


def groups(model: ir.Model) -> tuple[list[Group], list[str]]:
    """The families of a model, those with the most MACs first, and why anything was frozen. Reads no weight."""
    coupling = coupled(model)
    found = solve(coupling)
    every = units(coupling, found)
    price = Price(model, coupling)
    lying = _lying(coupling, found)
    in_rows = np.zeros(found.count, bool)
    in_rows[every.classes(np.flatnonzero(every.rows))] = True
    made = []
    for family in np.unique(every.family):
        members = np.flatnonzero(every.family == family)
        made.append(_group(members, found, every, price, lying, in_rows))
    made.sort(key=lambda g: (-g.macs * g.units, -g.parameters * g.units, g.places[0].text if g.places else ""))
    named = [
        Group(f"g{k}", g.kind, g.units, g.slices, g.parameters, g.macs, g.places) for k, g in enumerate(made)
    ]  # fmt: skip
    return named, [f"{why} ({n} times)" if n > 1 else why for why, n in Counter(coupling.notes).items()]


Lying = dict[int, list[tuple[ir.Value, Hold]]]


def _lying(coupling: Coupling, found: Solution) -> Lying:
    """Class → the constants that it lies on."""
    lying: Lying = {}
    for value, holds in coupling.holds.items():
        for h in holds:
            for c in np.unique(found.of[h.grid.ids]).tolist():
                lying.setdefault(c, []).append((value, h))
    return lying


def _group(
    members: np.ndarray, found: Solution, every: Units, price: Price, lying: Lying, in_rows: np.ndarray
) -> Group:
    one = every.classes(members[:1])
    half = members[: max(1, len(members) // 2)]
    dead = np.zeros(found.count, bool)
    dead[every.classes(half)] = True
    left = price.left(found.close(dead)[found.of])
    kind = "row" if every.rows[members[0]] else "dimension" if in_rows[one[0]] else "channel"
    places = {_place(v, h).text: _place(v, h) for c in one.tolist() for v, h in lying.get(c, ())}
    return Group(
        "", kind, len(members), len(one),
        round((1 - left["parameters"]) * price.parameters / len(half), 3),
        round((1 - left["macs"]) * price.macs / len(half), 3),
        tuple(places[k] for k in sorted(places)),
    )  # fmt: skip


def _place(value: ir.Value, h: Hold) -> Place:
    shape = tuple(int(n) for n in value.shape.numpy()) if value.shape is not None else ()
    return Place(str(value.name), tuple(sorted(h.grid.axes)), shape, tuple(h.view))


def shared(found: Sequence[Group]) -> dict[str, list[str]]:
    """Weight → the groups that lie on it."""
    lie: dict[str, list[str]] = {}
    for g in found:
        for p in g.places:
            if g.name not in lie.setdefault(p.weight, []):
                lie[p.weight].append(g.name)
    return lie
