"""Switch the experts off that matter least, whole; `remove-channels` takes them out."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from ..compiler.blocks.silence import silence
from ..compiler.channels.coupling import Coupling, Plan
from ..compiler.channels.experts import Router, dead_experts, frozen_logits, routers, usage
from ..compiler.channels.feasible import feasible
from ..compiler.channels.flow import couple
from ..compiler.channels.importance import element_scores
from ..compiler.channels.masking import mask
from ..compiler.channels.sharing import unshared
from ..compiler.channels.shrink import replace_tensor
from ..compiler.channels.solve import Solution, solve
from ..compiler.graph import const, producer, static_shape
from ..compiler.guard.parts import Parts, Unit
from ..compiler.passbase import Context, Pass
from ..compiler.weights import Scratch

BY = ("weights", "gates")


@dataclass(frozen=True)
class MaskExperts(Pass):
    """Mask whole experts of every router, the least important first.

    Before:  `g = Softmax(x W + b); y = sum of g[e] f_e(x)`
    After:   the same operators; of some e, the columns of W are 0, b[e] is -1e30, and the weights of f_e are 0

    Only numbers change. The gate of an expert that is masked is 0 in float32, and it is never among the k largest.
    That takes a bias: routers without one keep all experts, unless `add-router-biases` gives them one of zeros first.

    Options:
        count: how many of each router; 0: as many as `ratio` says.
        ratio: which share of each router's experts goes, 0 to 1.
        by: how importance is measured: weights, the norms of what an expert is made of; gates, how much the router
            uses it on the inputs.
    """

    name: ClassVar[str] = "mask-experts"
    lossy: ClassVar[bool] = True
    prunes: ClassVar[bool] = True
    tied: ClassVar[bool] = True
    count: int = 0
    ratio: float = 0.25
    by: str = "weights"

    def __post_init__(self) -> None:
        if not 0 <= self.ratio < 1:
            raise ValueError(f"ratio={self.ratio}: a share of what there is, 0 to less than 1")
        if self.count < 0:
            raise ValueError(f"count={self.count}: a number of experts, or 0 to go by the ratio")
        if self.by not in BY:
            raise ValueError(f"by={self.by}: choose one of {', '.join(BY)}")

    def run(self, model: ir.Model, ctx: Context) -> int:
        """Returns how many weights were changed."""
        with unshared(model):
            mixtures = _Mixtures(model)
            return mixtures.mask(self._all_chosen(mixtures, ctx), ctx.scratch)

    def parts(self, before: ir.Model, ctx: Context) -> Parts | None:
        """The experts that it switches off, one by one."""
        trial = before.clone()
        with unshared(trial):
            mixtures = _Mixtures(trial)
            chosen = self._all_chosen(mixtures, replace(ctx, notes=[]))
            units = {
                Unit((f"{mixtures.every[k].name}: expert {e}",), mixtures.size(k, e)): (k, e)
                for k, experts in chosen.items() for e in experts
            }  # fmt: skip
        places = {unit.names[0]: place for unit, place in units.items()}

        def make(names: Collection[str], scratch: Scratch) -> ir.Model:
            model = before.clone()
            with unshared(model):
                wanted: dict[int, list[int]] = {}
                for k, e in map(places.__getitem__, names):
                    wanted.setdefault(k, []).append(e)
                _Mixtures(model).mask(wanted, scratch)
            return model

        return Parts("experts", list(units), make)

    def _all_chosen(self, mixtures: _Mixtures, ctx: Context) -> dict[int, list[int]]:
        """Which experts of each router go."""
        _explain(mixtures.model, mixtures.coupling, mixtures.every, ctx)
        scores = self._scores(mixtures.model, mixtures.coupling, mixtures.found, mixtures.every, ctx)
        return {k: self._chosen(r, scores[k], ctx) for k, r in enumerate(mixtures.every)}

    def _chosen(self, r: Router, scores: np.ndarray, ctx: Context) -> list[int]:
        wanted = self.count or round(self.ratio * len(r.ids))
        most = min(wanted, len(r.ids) - r.least)
        if most < wanted:
            ctx.note(f"{r.name}: {r.least} of {len(r.ids)} experts are chosen at a time: no more than {most} can go")
        for e, why in r.closed.items():
            ctx.note(f"{r.name}: expert {e} stays: {why}")
        chosen = sorted(r.open, key=lambda e: (scores[e], e))[:most]
        ctx.note(f"{r.name}: {len(chosen)} of {len(r.ids)} experts are masked: {', '.join(map(str, sorted(chosen)))}")
        return chosen

    def _scores(
        self, model: ir.Model, coupling: Coupling, found: Solution, every: Sequence[Router], ctx: Context
    ) -> list[np.ndarray]:
        if self.by == "gates":
            return usage(model, every, ctx.measured(self.name, f"by={self.by}")) if every else []
        totals = element_scores(coupling, found, "l2")
        made = []
        for r in every:
            own = np.zeros(len(r.ids))
            for e in r.open:
                dead = dead_experts(found, {0: [e]}, [r])
                own[e] = totals[dead].sum()
                for use in r.branches.get(e, ()):
                    own[e] += float(np.linalg.norm(np.asarray(const(use.node.inputs[use.index]), np.float32)))
            made.append(own)
        return made


class _Mixtures:
    """The routers of a model, with what is coupled when all of their experts may go."""

    def __init__(self, model: ir.Model) -> None:
        self.model, self.coupling = model, couple(model, Plan(experts=True))
        self.found = solve(self.coupling)
        self.every = routers(model, self.coupling, self.found)

    def mask(self, chosen: Mapping[int, Sequence[int]], scratch: Scratch) -> int:
        """Switch experts off, given for each router; returns how many weights changed."""
        dead = feasible(self.found, dead_experts(self.found, chosen, self.every))
        changed = mask(self.model, self.coupling, self.found, dead, scratch)
        for k, experts in chosen.items():
            for value, axis, position, number in frozen_logits(self.coupling, self.found, self.every[k], experts):
                array = np.array(const(value))
                front = np.moveaxis(array, axis, 0)
                changed += bool((front[position] != number).any())
                front[position] = number
                replace_tensor(value, array, scratch)
            changed += silence([use for e in experts for use in self.every[k].branches.get(e, ())], scratch)
        return changed

    def size(self, k: int, expert: int) -> int:
        """Elements that become zero with an expert of router k."""
        dead = dead_experts(self.found, {k: [expert]}, self.every)
        slices = sum(
            int(dead[self.found.of[h.grid.ids]].sum()) * (math.prod(h.view) // max(1, h.grid.ids.size))
            for value in self.coupling.holds for h in self.coupling.zeroed(value)
        )  # fmt: skip
        branches = self.every[k].branches.get(expert, ())
        return slices + sum(math.prod(static_shape(use.node.inputs[use.index]) or ()) for use in branches)


def _explain(model: ir.Model, coupling: Coupling, every: Sequence[Router], ctx: Context) -> None:
    """Say which softmaxes over labelled logits have no bias to switch them off by."""
    for node in model.graph:
        if node.op_type == "Softmax" and node.domain == "" and node.outputs[0] not in coupling.gates:
            source = producer(node.inputs[0], "MatMul")
            if source is not None and source.outputs[0] in coupling.labels and const(source.inputs[1]) is not None:
                ctx.note(f"{node.name}: its logits have no bias that could switch experts off; add-router-biases first")
    if not every:
        ctx.note("no experts that could be masked were found")
