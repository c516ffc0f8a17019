"""What a chain of Reshape and Transpose does to the order of elements, and the shortest chain that does the same.

Each dimension of the source is cut into atoms as fine as the chain needs; the chain then only regroups and permutes
atoms. So [B,197,2304] → [B,197,3,12,64] → … becomes atoms B, 197, 3, 12, 64 in some order, grouped somehow.

This is about one chain, to shorten it. To compare several values (are these the q, k and v of one attention?), and
through operators that pick or repeat, `layouts` gives the pieces of axes an identity; its `arrange` plans with this.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import onnx_ir as ir

from ..compiler import dims as d
from ..compiler import graph, ops
from ..compiler.dims import Dim

VIEWS = ops.RESHAPE | {"Transpose"}

Atom = int
"""Atoms are numbered; their sizes and their order in the source are kept in the Rearrangement."""
Move = tuple[str, list[Dim] | list[int]]
"""("Reshape", dims) or ("Transpose", perm)."""


@dataclass
class Rearrangement:
    """A rearrangement of a source's elements. Begins as the identity; `transpose` and `reshape` add to it.

    Attributes:
        source: the dimensions of the source.
        order: the atoms in the source's order, per dimension of the source.
        now: the atoms per dimension of the result.
        sizes: the size of each atom; none is 1.
    """

    source: list[Dim]
    order: list[list[Atom]] = field(default_factory=list)
    now: list[list[Atom]] = field(default_factory=list)
    sizes: list[Dim] = field(default_factory=list)

    def __post_init__(self) -> None:
        for dim in self.source:
            self.order.append([] if dim == 1 else [self._atom(dim)])
        self.now = [list(atoms) for atoms in self.order]

    @classmethod
    def between(cls, have: list[list[Atom]], want: list[list[Atom]], sizes: list[Dim]) -> Rearrangement:
        """The one that takes dimensions of these atoms, each the outer of those behind it, to others of the same."""
        made = cls([d.product([sizes[a] for a in atoms]) for atoms in have])
        made.order, made.now, made.sizes = have, want, sizes
        return made

    def _atom(self, size: Dim) -> Atom:
        self.sizes.append(size)
        return len(self.sizes) - 1

    def transpose(self, perm: Sequence[int]) -> None:
        """Permute the dimensions of the result."""
        self.now = [self.now[p] for p in perm]

    def reshape(self, dims: Sequence[Dim]) -> bool:
        """Regroup the result. False (and it is unusable then) where its dimensions can't be cut that way."""
        queue = [a for atoms in self.now for a in atoms][::-1]
        groups: list[list[Atom]] = []
        for dim in dims:
            group: list[Atom] = []
            missing: Dim = dim
            while missing != 1:
                if not queue:
                    return False
                a = queue.pop()
                rest = d.exact_div(missing, self.sizes[a])
                if rest is None:
                    inner = d.exact_div(self.sizes[a], missing)
                    if inner is None or inner == 1:
                        return False
                    queue.append(self._split(a, missing, inner))
                    rest = 1
                group.append(a)
                missing = rest
            groups.append(group)
        self.now = groups
        return not queue

    def _split(self, a: Atom, outer: Dim, inner: Dim) -> Atom:
        """Cut an atom in two; it keeps the outer part, the inner one is returned. `now` is about to be rebuilt."""
        self.sizes[a] = outer
        new = self._atom(inner)
        for atoms in self.order:
            if a in atoms:
                atoms.insert(atoms.index(a) + 1, new)
        return new

    def shape(self) -> list[Dim]:
        """The dimensions of the result."""
        return [d.product([self.sizes[a] for a in atoms]) for atoms in self.now]

    def steps(self) -> list[Move]:
        """The shortest chain of ("Reshape", dims) and ("Transpose", perm) that does the same."""
        flat = [a for atoms in self.order for a in atoms]
        wanted = [a for atoms in self.now for a in atoms]
        if flat == wanted:
            return [] if self.shape() == self.source else [("Reshape", self.shape())]
        place = {a: i for i, a in enumerate(flat)}
        target = {a: i for i, a in enumerate(wanted)}
        result_whole = all(_consecutive([place[a] for a in atoms]) for atoms in self.now)
        source_whole = all(_consecutive([target[a] for a in atoms]) for atoms in self.order)
        if result_whole:
            perm, before = self._transpose_last(place)
            reshape: list[Move] = [] if before == self.source else [("Reshape", before)]
            if not reshape or not source_whole:
                return [*reshape, ("Transpose", perm)]
            first = self._transpose_first(target)
            return first if len(first) < 2 or _prefer(first, self.source, before) else [*reshape, ("Transpose", perm)]
        if source_whole:
            return self._transpose_first(target)
        return self._general(flat, wanted)

    def _transpose_last(self, place: dict[Atom, int]) -> tuple[list[int], list[Dim]]:
        """The order in which the result's dimensions lie in the source, ones where the source has ones, if possible."""
        dims = self.shape()
        filled = sorted((i for i, atoms in enumerate(self.now) if atoms), key=lambda i: place[self.now[i][0]])
        ones = [i for i, atoms in enumerate(self.now) if not atoms]
        order: list[int] = []
        for dim in self.source:
            if dim == 1 and ones:
                order.append(ones.pop(0))
            elif dim != 1 and filled:
                order.append(filled.pop(0))
        order += filled + ones
        return [order.index(i) for i in range(len(order))], [dims[i] for i in order]

    def _transpose_first(self, target: dict[Atom, int]) -> list[Move]:
        filled = sorted((i for i, atoms in enumerate(self.order) if atoms), key=lambda i: target[self.order[i][0]])
        ones = [i for i, atoms in enumerate(self.order) if not atoms]
        perm: list[int] = []
        for atoms in self.now:
            if not atoms and ones:
                perm.append(ones.pop(0))
            elif atoms and filled:
                perm.append(filled.pop(0))
        perm += filled + ones
        middle = [self.source[p] for p in perm]
        tail: list[Move] = [] if middle == self.shape() else [("Reshape", self.shape())]
        return [("Transpose", perm), *tail]

    def _general(self, flat: list[Atom], wanted: list[Atom]) -> list[Move]:
        """Reshape to runs of atoms that stay together, Transpose the runs, Reshape to the result."""
        place = {a: i for i, a in enumerate(flat)}
        runs: list[list[Atom]] = []
        for a in wanted:
            if runs and place[a] == place[runs[-1][-1]] + 1:
                runs[-1].append(a)
            else:
                runs.append([a])
        before = sorted(range(len(runs)), key=lambda i: place[runs[i][0]])
        dims = [d.product([self.sizes[a] for a in run]) for run in runs]
        return [
            ("Reshape", [dims[i] for i in before]),
            ("Transpose", [before.index(i) for i in range(len(runs))]),
            ("Reshape", self.shape()),
        ]


def _prefer(first: list[Move], source: list[Dim], before: list[Dim]) -> bool:
    """Of two chains of equal length, Transpose first only where Reshape first has no constant target."""
    if expressible(source, before) is not None:
        return False
    middle = [source[i] for i in first[0][1] if isinstance(i, int)]
    return expressible(middle, first[1][1]) is not None


def _consecutive(places: list[int]) -> bool:
    return all(b == a + 1 for a, b in pairwise(places))


def expressible(have: Sequence[Dim | str | None], want: Sequence[Dim | str | None]) -> list[int] | None:
    """The constant with which Reshape makes `want` of `have`: numbers, 0 for a copied place, one -1. None if none."""
    if any(w == 0 for w in want):
        return None
    stays = [w is not None and i < len(have) and w == have[i] for i, w in enumerate(want)]
    target = [w if isinstance(w, int) else 0 if same else -1 for w, same in zip(want, stays, strict=True)]
    return target if target.count(-1) <= 1 else None


def apply(made: Rearrangement, node: ir.Node, out: Sequence[Dim], *, source: Sequence[Dim]) -> bool:
    """Add to `made` what `node`, a view of `source` with result `out`, does. False where it can't be followed."""
    if node.op_type == "Transpose":
        perm = graph.attr(node, "perm")
        made.transpose(perm if perm is not None else list(reversed(range(len(source)))))
        return True
    return made.reshape(out)
