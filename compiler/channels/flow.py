"""How ids travel through a graph: one rule per operator, and nothing that a rule did not claim can ever be removed.

A rule sees its node through a `Step`: it asks for the grids over an axis of an input, carries grids on to an output,
ties ids, and emits labels. Whatever labelled axis it does not touch is frozen afterwards (default deny), and so is
everything that goes into an operator without a rule.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import onnx_ir as ir

from ..cost.sizes import Sizes
from ..dims import Dim
from ..graph import is_const, subgraphs
from .coupling import Coupling, Plan, Zero
from .gates import deny_positions
from .grids import Grid, Ids, Label, squeezed
from .outputs import may_lose


class Step:
    """A node as its rule sees it."""

    def __init__(self, flow: Flow, node: ir.Node) -> None:
        self.flow, self.node, self.coupling, self.atoms = flow, node, flow.coupling, flow.coupling.atoms
        self._inputs = node.inputs
        self.claimed: set[tuple[int, int]] = set()
        self.placed: set[int] = set()
        self.read: set[int] = set()

    def value(self, i: int) -> ir.Value | None:
        """Input i, None where it is left out."""
        return self._inputs[i] if i < len(self._inputs) else None

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

    def opened(self, i: int, axis: int) -> Grid | None:
        """The grid over an axis that the node looks at as a whole, where it is planned that it may lose some of it."""
        g = self.at(i, axis)
        needs_zero = self.coupling.plan.open.get(self.node)
        if g is None or needs_zero is None or g.ids.ndim > 1 or (needs_zero and not g.zero):
            return None
        self.coupling.opened[self.node] = g.ids
        if not g.zero:
            self.coupling.filled.add(self.node)
        return g

    def emit(self, grids: Iterable[Grid], k: int = 0, meet: Zero = all) -> None:
        """Label output k."""
        if self.node.outputs[k] in self.coupling.plan.carrying:
            grids = [Grid(g.ids, g.axes, False) for g in grids]
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

    def __init__(self, model: ir.Model, plan: Plan, sizes: Sizes) -> None:
        self.coupling = Coupling(plan, sizes=sizes)
        self.sizes = sizes
        self._dims, self.coupling.elements = self.coupling.dims, self.sizes.found
        self._shared: dict[ir.Value, list[set[int]]] = {}
        self._walk(model.graph)
        self._deny_shared()
        for output in model.graph.outputs:
            if output in plan.outputs and may_lose(self.coupling, output):
                self.coupling.returned.append(output)
            else:
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

    def _walk(self, graph: ir.Graph) -> None:
        """Graphs inside a node come before it; what they return keeps its shape, and so does what they are given."""
        for node in graph:
            inside = subgraphs(node)
            for inner in inside:
                self._walk(inner)
                for output in inner.outputs:
                    self._freeze(output, f"{node.name} ({node.op_type}): '{output.name}' leaves the graph inside")
            self._visit(node, plain=not inside)

    def _visit(self, node: ir.Node, plain: bool) -> None:
        step = Step(self, node)
        self.coupling.touched = {}
        name = f"{node.domain}::{node.op_type}" if node.domain else node.op_type
        known = RULES.get(name) if plain else None
        if known is not None:
            try:
                known(step)
            except LookupError as e:
                self.coupling.notes.append(f"{node.name} ({node.op_type}): {e}; nothing is removed there")
                step.claimed.clear()
                step.read.clear()
                step.placed.clear()
        deny_positions(step)
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
        for ids in (*(g.ids for g in self.coupling.labels.get(value, ())), *self._placed(value)):
            self.coupling.atoms.freeze(ids)
            self.coupling.notes.append(why)

    def _placed(self, value: ir.Value) -> list[Ids]:
        """What positions in this value count."""
        ids = self.coupling.positions.get(value)
        return [] if ids is None else [ids]


def couple(model: ir.Model, plan: Plan | None = None, sizes: Sizes | None = None) -> Coupling:
    """Which slices of which weights and values go together. Reads no weight, only shapes and small integers.

    Normalisations over the channels keep them all, but for what is planned; `width.coupled` makes the plan. `sizes` are
    the model's, where somebody has worked them out.
    """
    from . import rules  # noqa: F401  fills RULES

    return Flow(model, plan or Plan(), sizes or Sizes(model)).coupling
