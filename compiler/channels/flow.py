"""How ids travel through a graph: one rule per operator, and nothing that a rule did not claim can ever be removed.

A rule sees its node through a `Step`: it asks for the grids over an axis of an input, carries grids on to an output,
ties ids, and emits labels. Whatever labelled axis it does not touch is frozen afterwards (default deny), and so is
everything that goes into an operator without a rule.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from ..cost.sizes import Sizes
from ..dims import Dim
from ..graph import ints, is_const, subgraphs
from ..shape_rules import Elements
from .grids import Atoms, Grid, Ids, Label, squeezed

Zero = Callable[[Iterable[bool]], bool]
"""How zeros meet in an operator: `all` for a sum, `any` for a product."""


@dataclass(frozen=True, eq=False)
class Hold:
    """Ids over a constant: its elements, seen in the shape `view`, under a grid over axes of that view.

    `masked` says whether masking may set them to zero: not a divisor, not a variance.
    """

    view: tuple[int, ...]
    grid: Grid
    masked: bool = True


@dataclass
class Coupling:
    """What goes together in a model.

    Attributes:
        labels: value → its grids, for everything that is computed.
        holds: constant → the grids over its elements.
        notes: why something was frozen, a line each.
    """

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

    def ints(self, value: ir.Value | None) -> list[int] | None:
        """The integers that a value holds, a constant or worked out from sizes; None where they aren't known."""
        if value is None or is_const(value):
            return ints(value)
        known = self.elements.get(value)
        if known is None or not all(type(n) is int for n in known.reshape(-1)):
            return None
        return [int(n) for n in known.reshape(-1)]

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


class Step:
    """A node as its rule sees it."""

    def __init__(self, flow: Flow, node: ir.Node) -> None:
        self.flow, self.node, self.coupling, self.atoms = flow, node, flow.coupling, flow.coupling.atoms
        self.claimed: set[tuple[int, int]] = set()
        self.read: set[int] = set()

    def value(self, i: int) -> ir.Value | None:
        """Input i, None where it is left out."""
        return self.node.inputs[i] if i < len(self.node.inputs) else None

    def const(self, i: int) -> ir.Value | None:
        """Input i where it is a constant, which the rule then answers for."""
        value = self.value(i)
        if value is None or not is_const(value):
            return None
        self.read.add(i)
        return value

    def ints(self, i: int) -> list[int] | None:
        """The integers that input i holds, given or worked out from sizes; None where they aren't known."""
        return self.coupling.ints(self.value(i))

    def dims(self, i: int) -> list[Dim]:
        """The dimensions of input i. Raises LookupError where the rank is unknown: then everything is frozen."""
        return self.flow.dims(self.value(i))

    def out_dims(self, k: int = 0) -> list[Dim]:
        return self.flow.dims(self.node.outputs[k])

    def label(self, i: int) -> Label:
        value = self.value(i)
        return () if value is None else self.coupling.labels.get(value, ())

    def at(self, i: int, axis: int) -> Grid | None:
        """The grid over an axis of input i; the rule answers for that axis."""
        axis %= max(len(self.dims(i)), 1)
        self.claimed.add((i, axis))
        return next((g for g in self.label(i) if axis in g.axes), None)

    def ids_at(self, i: int, axis: int) -> Ids | None:
        """The ids over one axis of input i by itself, whatever other axes its grid lies over."""
        g = self.at(i, axis)
        return None if g is None else self.atoms.slab(g.ids, [g.at(axis % len(self.dims(i)))])

    def joint(self, i: int, axes: Sequence[int], size: Sequence[int]) -> tuple[Ids, bool]:
        """Ids over several axes of input i together, in this order, and whether what is masked on the last is zero.

        An axis under no grid is frozen. The rule answers for all of them.
        """
        found = [f for f in self.coupling.merge(self.carry(i, {a: k for k, a in enumerate(axes)}), all) if f.axes]
        if len(found) == 1 and len(found[0].axes) == len(axes):
            order = [found[0].at(k) for k in range(len(axes))]
            if order != sorted(order):
                self.atoms.align(found[0].ids)
            return found[0].ids.transpose(order), found[0].zero
        ids = self.atoms.fresh(*size)
        for k in range(len(axes)):
            if not any(k in f.axes for f in found):
                self.atoms.freeze(self.atoms.slab(ids, [k]))
        for f in found:
            self.atoms.tie(self.atoms.slab(ids, f.axes), f.ids)
        return ids, any(f.zero for f in found if len(axes) - 1 in f.axes)

    def carry(self, i: int, to: Mapping[int, int], zero: bool | None = None, but: Grid | None = None) -> list[Grid]:
        """Grids of input i over axes of an output: input axis → output axis. `zero` overrides the grids' own flag.

        The grid `but` is left to the rule, that then answers for all of it.
        """
        found = []
        for g in self.label(i):
            if g is but:
                self.claimed.update((i, a) for a in g.axes)
                continue
            kept = [d for d, a in enumerate(g.axes) if a in to]
            self.claimed.update((i, g.axes[d]) for d in kept)
            if kept:
                ids = g.ids if len(kept) == g.ids.ndim else self.atoms.slab(g.ids, kept)
                found.append(Grid(ids, tuple(to[g.axes[d]] for d in kept), g.zero if zero is None else zero))
        return found

    def keep(self, i: int = 0, but: Iterable[int] = (), zero: bool | None = None) -> list[Grid]:
        """Grids of input i over the same axes of an output, but for some axes, which stay unclaimed."""
        left_out = {a % len(self.dims(i)) for a in but}
        return self.carry(i, {a: a for a in range(len(self.dims(i))) if a not in left_out}, zero)

    def veto(self, i: int, axis: int) -> None:
        """Freeze an axis of input i."""
        g = self.at(i, axis)
        if g is not None:
            self.coupling.veto(g, axis % len(self.dims(i)))

    def emit(self, grids: Iterable[Grid], k: int = 0, meet: Zero = all) -> None:
        """Label output k."""
        merged = self.coupling.merge((s for g in grids if (s := squeezed(g)) is not None), meet)
        for g in merged:
            self.atoms.lay(g.ids)
        if merged:
            self.coupling.labels[self.node.outputs[k]] = merged
            self.out_dims(k)  # removal will ask for them


Rule = Callable[[Step], None]
RULES: dict[str, Rule] = {}
"""Standard operator → its rule."""


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register a rule for these operators."""

    def register(f: Rule) -> Rule:
        for name in names:
            assert name not in RULES, f"two rules for {name}"
            RULES[name] = f
        return f

    return register


class Flow:
    """One pass over the nodes of a model, in order."""

    def __init__(self, model: ir.Model) -> None:
        self.coupling = Coupling()
        self.sizes = Sizes(model)
        self._dims, self.coupling.elements = self.coupling.dims, self.sizes.found
        self._shared: dict[ir.Value, list[set[int]]] = {}
        for node in model.graph:
            self._visit(node)
        self._deny_shared()
        for output in model.graph.outputs:
            self._freeze(output, f"output '{output.name}' keeps its shape")
        for value in self.coupling.pinned:
            for h in self.coupling.holds.get(value, ()):
                self.coupling.atoms.freeze(h.grid.ids)

    def dims(self, value: ir.Value | None) -> list[Dim]:
        """The dimensions of a value. Raises LookupError where not even their number is known."""
        if value is None:
            raise LookupError("an input is left out")
        if value not in self._dims:
            self._dims[value] = self.sizes.dims(value)
        found = self._dims[value]
        if found is None:
            raise LookupError(f"the rank of '{value.name}' is unknown")
        return found

    def _visit(self, node: ir.Node) -> None:
        step = Step(self, node)
        self.coupling.touched = {}
        name = f"{node.domain}::{node.op_type}" if node.domain else node.op_type
        known = RULES.get(name) if not any(True for _ in subgraphs(node)) else None
        if known is not None:
            try:
                known(step)
            except LookupError as e:
                self.coupling.notes.append(f"{node.name} ({node.op_type}): {e}; nothing is removed there")
                step.claimed.clear()
                step.read.clear()
        self._deny(step, known is None)

    def _deny(self, step: Step, unknown: bool) -> None:
        """Freeze what the rule didn't claim. With no rule, that is all."""
        node, coupling = step.node, self.coupling
        for i, value in enumerate(node.inputs):
            if value is None:
                continue
            if is_const(value):
                if i not in step.read:
                    coupling.pinned.add(value)
                elif len(value.uses()) > 1:
                    self._shared.setdefault(value, []).append(coupling.touched.get(value, set()))
                continue
            for g in coupling.labels.get(value, ()):
                for a in g.axes:
                    if (i, a) not in step.claimed:
                        coupling.veto(g, a)
                        why = "there is no rule for it" if unknown else f"it looks at axis {a} of '{value.name}'"
                        coupling.notes.append(f"{node.name} ({node.op_type}): {why}")
        for inner in subgraphs(node):
            for read in (*(n.inputs for n in inner.all_nodes()), inner.outputs):
                for value in read:
                    if value is not None:
                        self._freeze(value, f"{node.name} ({node.op_type}): a graph inside reads '{value.name}'")

    def _deny_shared(self) -> None:
        """Where one reader of a constant looks at an axis of it as a whole, the others can't take slices out."""
        for value, axes in self._shared.items():
            for h in self.coupling.holds.get(value, ()):
                for a in h.grid.axes:
                    if not all(a in touched for touched in axes):
                        self.coupling.veto(h.grid, a)

    def _freeze(self, value: ir.Value, why: str) -> None:
        if is_const(value):
            self.coupling.pinned.add(value)
        for g in self.coupling.labels.get(value, ()):
            self.coupling.atoms.freeze(g.ids)
            self.coupling.notes.append(why)


def couple(model: ir.Model) -> Coupling:
    """Which slices of which weights and values go together. Reads no weight, only shapes and small integers."""
    from . import rules  # noqa: F401  fills RULES

    return Flow(model).coupling


def grouped(axes: Sequence[Dim], others: Sequence[Dim]) -> list[tuple[list[int], list[int]]]:
    """The axes of two shapes of equal size, in groups whose products are equal: (axes here, axes there)."""
    from ..dims import exact_div, mul

    groups, i, j = [], 0, 0
    while i < len(axes) or j < len(others):
        a, b = [i] if i < len(axes) else [], [j] if j < len(others) else []
        pa, pb = (axes[i] if a else 1), (others[j] if b else 1)
        i, j = i + len(a), j + len(b)
        while pa != pb:
            here = exact_div(pa, pb) is not None if not (isinstance(pa, int) and isinstance(pb, int)) else pa > pb
            if (here or i >= len(axes)) and j < len(others):
                pb, j = mul(pb, others[j]), j + 1
                b.append(j - 1)
            elif i < len(axes):
                pa, i = mul(pa, axes[i]), i + 1
                a.append(i - 1)
            else:
                break
        groups.append((a, b))
    return groups


def refold(
    coupling: Coupling, grid: Grid, block: Sequence[int], dims: Sequence[int], to: Sequence[int], sizes: Sequence[int]
) -> Grid:
    """A grid after the axes `block` (of extents `dims`) were reshaped into axes `to` (of extents `sizes`).

    Axes of the block that the grid doesn't lie over are added, all alike. Where the block's order isn't the order in
    which they were split, survivors must be rows times columns.
    """
    inside = [grid.at(a) for a in block if a in grid.axes]
    outside = [d for d in range(grid.ids.ndim) if d not in inside]
    before = [d for d in outside if d < min(inside)]
    after = [d for d in outside if d > min(inside)]
    order = [*before, *inside, *after]
    if order != sorted(order):
        coupling.atoms.align(grid.ids)
    ids = grid.ids.transpose(order)
    shape, at = list(ids.shape), len(before)
    full = (
        shape[:at] + [n if a in grid.axes else 1 for a, n in zip(block, dims, strict=True)] + shape[at + len(inside) :]
    )
    wide = shape[:at] + list(dims) + shape[at + len(inside) :]
    ids = np.broadcast_to(ids.reshape(full), wide).reshape([*shape[:at], *sizes, *shape[at + len(inside) :]])
    assert math.prod(dims) == math.prod(sizes)
    axes = [grid.axes[d] for d in before], [grid.axes[d] for d in after]
    return Grid(ids, (*axes[0], *to, *axes[1]), grid.zero)
