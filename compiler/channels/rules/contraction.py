"""Products of two operands, or one, as Einsum writes them: MatMul of any rank, batches of weights, experts.

Each axis has a name. A name of both operands and of the result is a batch; one of both, and not of the result, is
contracted; one of a single operand, and not of the result, is summed before.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from ...graph import attr, is_const
from ..flow import Step, rule
from ..grids import Grid, Ids

Name = Hashable


@dataclass(frozen=True)
class Product:
    """Operands and result of a product, each with a name per axis. An axis of one element that is stretched has None.

    Attributes:
        at: name → its number, that stands for the axis while grids of both operands are put together.
    """

    s: Step
    operands: Sequence[Sequence[Name]]
    result: Sequence[Name]

    @property
    def at(self) -> dict[Name, int]:
        names = dict.fromkeys(n for names in (*self.operands, self.result) for n in names if n is not None)
        return {name: k for k, name in enumerate(names)}

    def run(self) -> None:
        """Emit the label of the result."""
        constants = [is_const(self.s.node.inputs[i]) for i in range(len(self.operands))]
        if all(constants):
            raise LookupError("nothing in it is computed")
        if any(constants):
            i = constants.index(False)
            weight = self.s.const(1 - i)
            assert weight is not None
            self._emit(self._with_weight(i, weight))
        else:
            self._emit(self._with_each_other())

    def _carry(self, i: int) -> list[Grid]:
        at = self.at
        return self.s.carry(i, {a: at[n] for a, n in enumerate(self.operands[i]) if n is not None})

    def _with_weight(self, i: int, weight: ir.Value) -> list[Grid]:
        """Input i is computed, the other is a constant, that loses what it reads and whose own axes get ids."""
        s, at = self.s, self.at
        axis_of = {at[n]: a for a, n in enumerate(self.operands[1 - i]) if n is not None}
        made = {at[n] for n in self.result if n is not None}
        own = {at[n] for n in self.operands[i] if n is not None}
        kept = []
        for g in self._carry(i):
            meets = [d for d, name in enumerate(g.axes) if name in axis_of]
            if meets:
                s.coupling.hold(weight, _over(s, g, meets), [axis_of[g.axes[d]] for d in meets])
            for name in g.axes:
                if name not in axis_of and name not in made and not g.zero:
                    s.coupling.veto(g, name)
            kept += _rest(s, g, made)
        new = sorted((n for n in axis_of if n in made and n not in own), key=lambda n: axis_of[n])
        if new:
            batch = sorted((n for n in axis_of if n in made and n in own), key=lambda n: axis_of[n])
            kept.append(Grid(self._new(weight, [axis_of[n] for n in [*batch, *new]]), (*batch, *new), True))
            covered = {n for g in kept[:-1] for n in g.axes}
            for k, n in enumerate(batch):
                if n not in covered:
                    s.atoms.freeze(s.atoms.slab(kept[-1].ids, [k]))
        return kept

    def _new(self, weight: ir.Value, axes: list[int]) -> Ids:
        """Ids over axes of a weight, those that there are already if there are."""
        if len(axes) == 1:
            return self.s.coupling.held(weight, axes[0])
        ids = self.s.atoms.fresh(*(int(weight.shape[a]) for a in axes))  # type: ignore[index, arg-type]
        self.s.coupling.hold(weight, ids, axes)
        return ids

    def _with_each_other(self) -> list[Grid]:
        """What is contracted may only go where it is zero in one operand; batches go from both."""
        s, at = self.s, self.at
        names = [{at[n] for n in o if n is not None} for o in self.operands]
        made = {at[n] for n in self.result if n is not None}
        parts = [self._carry(i) for i in range(len(self.operands))]
        labelled = [{n for g in part for n in g.axes} for part in parts]
        for i, part in enumerate(parts):
            for g in part:
                for n in g.axes:
                    if any(n in names[k] and n not in labelled[k] for k in range(len(parts)) if k != i):
                        s.coupling.veto(g, n)
        kept = []
        for g in s.coupling.merge([g for part in parts for g in part], any):
            for n in g.axes:
                if n not in made and not g.zero:
                    s.coupling.veto(g, n)
            kept += _rest(s, g, made)
        return kept

    def _emit(self, grids: list[Grid]) -> None:
        at = self.at
        axis_of = {at[n]: a for a, n in enumerate(self.result) if n is not None}
        self.s.emit([Grid(g.ids, tuple(axis_of[n] for n in g.axes), g.zero) for g in grids], meet=any)


def _over(s: Step, grid: Grid, kept: Sequence[int]) -> Ids:
    return grid.ids if len(kept) == grid.ids.ndim else s.atoms.slab(grid.ids, kept)


def _rest(s: Step, grid: Grid, made: set[int]) -> list[Grid]:
    """What of a grid lies over axes of the result."""
    rest = [d for d, n in enumerate(grid.axes) if n in made]
    return [Grid(_over(s, grid, rest), tuple(grid.axes[d] for d in rest), grid.zero)] if rest else []


@rule("MatMul")
def _matmul(s: Step) -> None:
    """Batch axes meet by broadcasting. A vector has no axis of rows, or of columns."""
    dims = [s.dims(0), s.dims(1)]
    if not dims[0] or not dims[1]:
        return
    rank = max(len(d) for d in dims)
    names: list[list[Name]] = [[None] * (len(d) - 2) for d in dims]
    for own, d in zip(names, dims, strict=True):
        for a in range(len(d) - 2):
            k = a + rank - len(d)
            others = [o[k - rank + len(o)] for o in dims if o is not d and 0 <= k - rank + len(o) < len(o) - 2]
            own[a] = k if d[a] != 1 or all(n == 1 for n in others) else None
    names[0] += ["rows", "inner"] if len(dims[0]) > 1 else ["inner"]
    names[1] += ["inner", "columns"] if len(dims[1]) > 1 else ["inner"]
    batch: list[Name] = list(range(rank - 2)) if rank > 2 else []
    result = [*batch, *(n for n in ("rows", "columns") if n in names[0] or n in names[1])]
    Product(s, names, result).run()


@rule("Einsum")
def _einsum(s: Step) -> None:
    """Any equation of one operand or two, an ellipsis included. A diagonal is left alone."""
    count = len(s.node.inputs)
    equation = str(attr(s.node, "equation")).replace(" ", "")
    left, arrow, right = equation.partition("->")
    terms = left.split(",")
    if count > 2 or len(terms) != count:
        raise LookupError("more than two operands")
    ranks = [len(s.dims(i)) for i in range(count)]
    dots = [r - len(t.replace("...", "")) if "..." in t else 0 for t, r in zip(terms, ranks, strict=True)]
    most = max(dots)
    names = [_letters(t, n, most) for t, n in zip(terms, dots, strict=True)]
    if not arrow:
        single = sorted(c for c in set(left) - set(",.") if left.count(c) == 1)
        right = ("..." if "..." in left else "") + "".join(single)
    result = _letters(right, most, most)
    if any(len(set(n)) < len(n) for n in names):
        raise LookupError("it takes a diagonal")
    extents: dict[Name, object] = {}
    for i, own in enumerate(names):
        for a, n in enumerate(own):
            extents[n] = s.dims(i)[a] if extents.get(n, 1) == 1 else extents[n]
    for i, own in enumerate(names):
        names[i] = [None if s.dims(i)[a] == 1 and extents[n] != 1 else n for a, n in enumerate(own)]
    Product(s, names, result).run()


def _letters(term: str, dots: int, most: int) -> list[Name]:
    """The names of a term's axes; those of an ellipsis are numbers, counted from the right."""
    before, _, after = term.partition("...")
    return [*before, *(range(most - dots, most) if "..." in term else ()), *after]
