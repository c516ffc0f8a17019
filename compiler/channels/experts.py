"""Experts behind a router: which there are, what makes each, and what masking one takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from ..blocks.silence import Loud, Use, silencing_of
from ..graph import attr, const, ints, is_const
from ..session import Session
from .coupling import Coupling
from .grids import Ids
from .solve import Flags, Solution


@dataclass
class Router:
    """Gates over experts.

    Attributes:
        gates: the softmaxes and values of the k largest over these ids.
        ids: one per expert.
        least: how many must stay.
        terms: expert → the products of its gate with what it computes, where experts are branches of their own.
        branches: expert → the constants that make these zero; empty where experts are slices of one weight.
        closed: expert → why it has to stay.
    """

    gates: list[ir.Value]
    ids: Ids
    least: int = 1
    terms: dict[int, list[ir.Node]] = field(default_factory=dict)
    branches: dict[int, list[Use]] = field(default_factory=dict)
    closed: dict[int, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return str(self.gates[0].name)

    @property
    def open(self) -> list[int]:
        """The experts that may go."""
        return [e for e in range(len(self.ids)) if e not in self.closed]


def routers(model: ir.Model, coupling: Coupling, found: Solution) -> list[Router]:
    """The routers whose logits can be switched off; of each, which experts may go and how."""
    every: dict[int, Router] = {}
    for value, ids in coupling.gates.items():
        every.setdefault(int(ids[0]), Router([], ids)).gates.append(value)
    least = {int(ids[0]): n for ids, n in coupling.scarce}
    for first, r in every.items():
        r.least = max(1, least.get(first, 1))
        _Terms(model, coupling, r).find()
        for e in range(len(r.ids)):
            why = _closed(found, r, e)
            if why:
                r.closed[e] = why
    return list(every.values())


def _closed(found: Solution, r: Router, e: int) -> str:
    """Why an expert has to stay; "" where it may go."""
    for node in r.terms.get(e, ()):
        try:
            r.branches.setdefault(e, []).extend(silencing_of(node.outputs[0], {u for u, _ in node.outputs[0].uses()}))
        except Loud as why:
            return str(why)
    dead = np.zeros(found.count, bool)
    dead[found.of[r.ids[e]]] = True
    if not dead[0]:
        dead = found.close(dead)
    if (dead[0] or found.fault(dead) is not None) and not r.branches.get(e):
        return "something else reads its gate, or what it computes"
    return ""


class _Terms:
    """Follows gates to where each is multiplied with what its expert computes."""

    def __init__(self, model: ir.Model, coupling: Coupling, router: Router) -> None:
        self.model, self.coupling, self.router = model, coupling, router
        self.expert = {int(i): e for e, i in enumerate(router.ids)}
        self.of: dict[ir.Value, int | None] = {}
        """Values that depend on gates alone → the one expert whose gate they hold, if it is one."""

    def find(self) -> None:
        for gate in self.router.gates:
            node = gate.producer()
            assert node is not None
            self.of.update(dict.fromkeys(node.outputs))
        for node in self.model.graph:
            inputs = [v for v in node.inputs if v is not None and not is_const(v)]
            own = [v for v in inputs if v in self.of]
            if not own or any(out in self.of for out in node.outputs):
                continue
            if len(own) == len(inputs):
                for out in node.outputs:
                    self.of[out] = self._picked(node, out, {self.of[v] for v in own} - {None})
            elif node.op_type == "Mul" and node.domain == "" and (e := self.of[own[0]]) is not None:
                self.router.terms.setdefault(e, []).append(node)

    def _picked(self, node: ir.Node, out: ir.Value, before: set[int | None]) -> int | None:
        """The one expert that is left of the gates."""
        x = node.inputs[0]
        if node.op_type == "Equal":
            numbers = [n for v in node.inputs if (n := ints(v)) is not None]
            if numbers and len(numbers[0]) == 1 and any(v in self.coupling.positions for v in node.inputs):
                return numbers[0][0]
        if node.op_type == "Gather" and x is not None and (index := const(node.inputs[1])) is not None:
            grid = next(iter(self.coupling.labels.get(x, ())), None)
            axis = attr(node, "axis", 0) % len(x.shape or (0,))
            if index.size == 1 and grid is not None and grid.axes == (axis,):
                return self.expert.get(int(grid.ids[int(index.flat[0])]))
        for g in self.coupling.labels.get(out, ()):
            if g.ids.size == 1:
                return self.expert.get(int(g.ids.flat[0]))
        return before.pop() if len(before) == 1 else None


def dead_experts(found: Solution, chosen: Mapping[int, Sequence[int]], every: Sequence[Router]) -> Flags:
    """The classes that go with these experts of these routers; none of those that are branches of their own alone."""
    dead = np.zeros(found.count, bool)
    for k, experts in chosen.items():
        dead[found.of[every[k].ids[list(experts)]]] = True
    dead[0] = False
    return found.close(dead)


def frozen_logits(
    coupling: Coupling, found: Solution, router: Router, experts: Sequence[int]
) -> list[tuple[ir.Value, int, int, float]]:
    """Where gates are picked one by one nothing is coupled: (constant, axis, position, number) of their logits."""
    made = []
    wanted = {int(router.ids[e]) for e in experts if not found.of[router.ids[e]]}
    for value, holds in coupling.holds.items():
        for h in holds:
            if h.grid.ids.ndim == 1:
                at = [p for p, i in enumerate(h.grid.ids.tolist()) if i in wanted]
                fill = np.zeros(len(h.grid.ids)) if h.fill is None else h.fill.reshape(-1)
                made += [(value, h.grid.axes[0], p, float(fill[p])) for p in at]
    return made


def usage(model: ir.Model, every: Sequence[Router], runs: Sequence[Mapping[str, np.ndarray]]) -> list[np.ndarray]:
    """How much each expert of each router is used on these inputs: the mean of its gate, or how often it is chosen."""
    seen = model.clone()
    values = {v.name: v for n in seen.graph for v in n.outputs}
    wanted, softmax = [], []
    for r in every:
        full = next((g for g in r.gates if g.producer().op_type == "Softmax"), None)  # type: ignore[union-attr]
        softmax.append(full is not None)
        wanted.append(str((full or r.gates[0].producer().outputs[1]).name))  # type: ignore[union-attr]
    present = {v.name for v in seen.graph.outputs}
    for name in dict.fromkeys(wanted):
        if name not in present:
            seen.graph.outputs.append(values[name])
    session, totals = Session(seen), [np.zeros(len(r.ids)) for r in every]
    for feeds in runs:
        got = session.run(feeds, list(dict.fromkeys(wanted)))
        for k, r in enumerate(every):
            array, n = got[wanted[k]], len(r.ids)
            if softmax[k]:
                axis = next(a for a, size in reversed(list(enumerate(array.shape))) if size == n)
                totals[k] += np.moveaxis(array, axis, -1).reshape(-1, n).mean(0, dtype=np.float64)
            else:
                totals[k] += np.bincount(array.reshape(-1), minlength=n) / array.size
    return totals
