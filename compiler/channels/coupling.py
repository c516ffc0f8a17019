"""What goes together in a model: the labels of values, what lies over constants, and how labels meet."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from ..dims import Dim
from ..graph import ints, is_const
from ..shape_rules import Elements
from .grids import Atoms, Grid, Ids, Label

if TYPE_CHECKING:
    from ..cost.sizes import Sizes
    from .width import Stream

Zero = Callable[[Iterable[bool]], bool]
"""How zeros meet in an operator: `all` for a sum, `any` for a product."""


@dataclass(frozen=True, eq=False)
class Hold:
    """Ids over a constant: its elements, seen in the shape `view`, under a grid over axes of that view.

    `masked` says whether masking may set them to zero: not a divisor, not a variance. Instead of zero they become
    `fill`, numbers that broadcast to the view, where there is one: the bias of a logit that is not to count (see
    `gates`), or the zero point of integers.
    """

    view: tuple[int, ...]
    grid: Grid
    masked: bool = True
    fill: np.ndarray | None = None


@dataclass(frozen=True)
class Plan:
    """Which normalisations may lose channels of the axis that they look at, and what that takes (see `width`).

    Attributes:
        open: node → whether what goes must be zero there. Others keep all.
        carrying: values in which what goes is not zero, but the mean of what stays.
        filled: constants that write these → the axes of which masked slices are set to that mean.
        outputs: those of the model that may lose zeros, which removal then puts back (see `outputs`). Others keep all.
    """

    open: Mapping[ir.Node, bool] = field(default_factory=dict)
    carrying: frozenset[ir.Value] = frozenset()
    filled: Mapping[ir.Value, frozenset[int]] = field(default_factory=dict)
    outputs: frozenset[ir.Value] = frozenset()
    experts: bool = False
    """Whether logits of gates may go; if not, those still may that have been masked already."""


@dataclass
class Coupling:
    """What goes together in a model.

    Attributes:
        labels: value → its grids, for everything that is computed.
        holds: constant → the grids over its elements.
        notes: why something was frozen, a line each.
        streams: the normalisations that may lose channels, those with common channels together.
        closed: why others may not, a line each.
    """

    plan: Plan = field(default_factory=Plan)
    atoms: Atoms = field(default_factory=Atoms)
    labels: dict[ir.Value, Label] = field(default_factory=dict)
    holds: dict[ir.Value, list[Hold]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    pinned: set[ir.Value] = field(default_factory=set)
    """Constants that somebody reads without a rule."""
    elements: dict[ir.Value, Elements] = field(default_factory=dict)
    """What is known of small integer tensors that are worked out at run time."""
    dims: dict[ir.Value, list[Dim] | None] = field(default_factory=dict)
    """The dimensions of every value that a rule has asked about."""
    touched: dict[ir.Value, set[int]] = field(default_factory=dict)
    """Constants that the node at hand has put ids over → which axes."""
    opened: dict[ir.Node, Ids] = field(default_factory=dict)
    """Nodes that look at an axis as a whole and yet may lose some of it → the ids there."""
    filled: set[ir.Node] = field(default_factory=set)
    """Those of them at which what is masked need not be zero."""
    gates: dict[ir.Value, Ids] = field(default_factory=dict)
    """Softmaxes, and the k largest of logits, from which what is masked goes → the ids there."""
    positions: dict[ir.Value, Ids] = field(default_factory=dict)
    """Values that hold positions on an axis → the ids of that axis."""
    scarce: list[tuple[Ids, int]] = field(default_factory=list)
    """Ids over an axis of which so many must stay."""
    returned: list[ir.Value] = field(default_factory=list)
    """Outputs of the model that may lose zeros."""
    streams: list[Stream] = field(default_factory=list)
    closed: list[str] = field(default_factory=list)
    sizes: Sizes | None = None
    """Those of the model as it was coupled."""

    def ints(self, value: ir.Value | None) -> list[int] | None:
        """The integers that a value holds, a constant or worked out from sizes; None where they aren't known."""
        if value is None or is_const(value):
            return ints(value)
        known = self.elements.get(value)
        if known is None or not all(type(n) is int for n in known.reshape(-1)):
            return None
        return [int(n) for n in known.reshape(-1)]

    def zeroed(self, value: ir.Value) -> list[Hold]:
        """The grids over a constant whose masked slices are zero."""
        filled = self.plan.filled.get(value, frozenset())
        return [h for h in self.holds[value] if h.masked and not (h.grid.ids.ndim == 1 and h.grid.axes[0] in filled)]

    def veto(self, grid: Grid, axis: int) -> None:
        """Nothing goes along `axis` as a whole; along the grid's other axes it still may."""
        self.atoms.freeze(self.atoms.slab(grid.ids, [grid.at(axis)]))

    def merge(self, grids: Iterable[Grid], meet: Zero) -> Label:
        """Grids of several inputs over the axes of one output, as one label; what lies over the same axes is tied."""
        found: list[Grid] = []
        for g in grids:
            met = [f for f in found if set(f.axes) & set(g.axes)]
            if not met:
                found.append(g)
                continue
            found = [f for f in found if f not in met]
            found += self._joined(g, met, meet)
        return tuple(found)

    def _joined(self, g: Grid, met: list[Grid], meet: Zero) -> list[Grid]:
        axes = set(g.axes)
        if any(g.ids.shape[g.at(a)] != f.ids.shape[f.at(a)] for f in met for a in axes & set(f.axes)):
            for f in (g, *met):
                self.atoms.freeze(f.ids)
            return []
        if len(met) == 1 and axes == set(met[0].axes):
            order = [met[0].at(a) for a in g.axes]
            if order != sorted(order):
                self.atoms.align(g.ids)
                self.atoms.align(met[0].ids)
            self.atoms.tie(g.ids, met[0].ids.transpose(order))
            return [Grid(g.ids, g.axes, meet((g.zero, met[0].zero)))]
        if all(set(f.axes) < axes for f in met):
            for f in met:
                self.atoms.tie(self.atoms.slab(g.ids, [g.at(a) for a in f.axes]), f.ids)
            return [Grid(g.ids, g.axes, meet((g.zero, False)))]
        if len(met) == 1 and axes < set(met[0].axes):
            return self._joined(met[0], [g], meet)
        for f in (g, *met):
            self.atoms.freeze(f.ids)
        return []

    def hold(
        self, value: ir.Value, ids: Ids, axes: Sequence[int], view: Sequence[int] | None = None, masked: bool = True
    ) -> None:
        """Put ids over axes of a constant; where there are some already, they are tied."""
        shape = tuple(value.shape.numpy()) if value.shape is not None else ()
        seen, axes = tuple(view or shape), tuple(axes)
        holds = self.holds.setdefault(value, [])
        self.touched.setdefault(value, set()).update(axes)
        for h in holds:
            if h.view == seen and set(h.grid.axes) == set(axes):
                self.atoms.tie(ids.transpose([axes.index(a) for a in h.grid.axes]), h.grid.ids)
                return
            if h.view == seen and set(axes) < set(h.grid.axes):
                self.atoms.tie(ids, self.atoms.slab(h.grid.ids, [h.grid.at(a) for a in axes]))
                return
            shared = [a for a in axes if a in h.grid.axes]
            if h.view == seen and shared:
                own, other = [axes.index(a) for a in shared], [h.grid.at(a) for a in shared]
                self.atoms.tie(self.atoms.slab(ids, own), self.atoms.slab(h.grid.ids, other))
                continue
            if h.view != seen:
                # Two readers that see it in different shapes: nothing of it goes.
                self.atoms.freeze(ids)
                self.pinned.add(value)
                return
        holds.append(Hold(seen, Grid(ids, axes, masked), masked))
        self.atoms.lay(ids)

    def held(self, value: ir.Value, axis: int) -> Ids:
        """The ids over one axis of a constant as it is shaped; new ones where there are none yet."""
        for h in self.holds.get(value, ()):
            if h.grid.axes == (axis,) and h.view == tuple(value.shape.numpy()):  # type: ignore[union-attr]
                self.touched.setdefault(value, set()).add(axis)
                return h.grid.ids
        ids = self.atoms.fresh(int(value.shape[axis]))  # type: ignore[index, arg-type]
        self.hold(value, ids, [axis])
        return ids
