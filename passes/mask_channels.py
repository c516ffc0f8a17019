"""Set the least important channels, heads and hidden units to zero; `remove-channels` takes them out."""

from __future__ import annotations

import fnmatch
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from ..compiler.channels.activations import activation_scores
from ..compiler.channels.balance import masked
from ..compiler.channels.clock import Clock, device_of
from ..compiler.channels.compensate import compensate
from ..compiler.channels.coupling import Coupling
from ..compiler.channels.feasible import feasible
from ..compiler.channels.importance import element_scores
from ..compiler.channels.masking import mask
from ..compiler.channels.price import Price
from ..compiler.channels.select import families, masked_families, search, taken
from ..compiler.channels.sensitivity import gradient_scores
from ..compiler.channels.shares import shares
from ..compiler.channels.sharing import unshared
from ..compiler.channels.solve import Flags, Solution, Units, solve, units
from ..compiler.channels.width import WIDTHS, coupled
from ..compiler.errors import UnsupportedOp
from ..compiler.guard.parts import Parts
from ..compiler.passbase import Context, Pass
from ..compiler.weights import Scratch

OF = ("channels", "parameters", "bytes", "macs", "time")
WEIGHTS = ("l1", "l2", "bn", "geometric-median")
DATA = ("activation", "reconstruction")
LOSS = ("taylor", "fisher")
BY = WEIGHTS + DATA + LOSS
GRAINS = ("auto", "channels", "heads", "dims")


@dataclass(frozen=True)
class MaskChannels(Pass):
    """Mask whole groups of slices that can be removed together, the least important first.

    Before:  `y = Conv(Relu(Conv(x, w)), v)`
    After:   the same operators; some filters of `w`, and the slices of `v` that read them, are zero

    Only numbers change. Which slices belong together is worked out for the whole graph (docs/pruning.md).

    Options:
        ratio: how much shall go, 0 to 1, of what `of` says.
        of: macs, parameters, bytes, time (the roofline's, see docs/devices.md), or channels (so many of every group).
        device: whose time; where none is named, one that is like the target.
        by: how importance is measured, over all slices of a group, each relative to its layer's mean. From weights:
            l1, l2, bn (scales of batch normalisations), geometric-median; from inputs: activation (the energy that a
            channel contributes), reconstruction (what the others can't make up for); from inputs and gradients of the
            loss on their `labels`, or of the model's own outputs: taylor (first order), fisher (second order).
        spread: `local` takes the same share everywhere; `global` what is least important anywhere.
        grain: what may go: `channels`, `heads` (whole heads, groups), `dims` (dimensions within heads), or `auto`:
            heads where there are some, channels elsewhere.
        align: lengths that axes are kept multiples of; odd lengths are slower than those left whole.
        most: the share of any axis that may go at most.
        width: whether the residual streams that normalisations look at as a whole lose channels: `none`; `exact`,
            where what is left is normalised as in a narrower network; `padded`, also where the normalisation then
            goes on counting what is gone as zeros (post-norm, ConvNeXt, Swin), which costs two copies each.
        keep: names of weights, separated by `;`, with * and ?: their channels stay.
        compensate: fit what is left of linear layers to what they computed before, by least squares on the inputs.
    """

    name: ClassVar[str] = "mask-channels"
    lossy: ClassVar[bool] = True
    prunes: ClassVar[bool] = True
    tied: ClassVar[bool] = True
    ratio: float = 0.5
    of: str = "macs"
    device: str = ""
    by: str = "l2"
    spread: str = "local"
    grain: str = "auto"
    align: int = 8
    most: float = 0.9
    width: str = "exact"
    keep: str = ""
    compensate: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.ratio < 1:
            raise ValueError(f"ratio={self.ratio}: a share of what there is, 0 to less than 1")
        if self.align < 1:
            raise ValueError(f"align={self.align}: a length, 1 or more")
        if not 0 < self.most <= 1:
            raise ValueError(f"most={self.most}: a share of an axis, above 0 to 1")
        for option, choices in (
            ("of", OF), ("by", BY), ("spread", ("local", "global")), ("grain", GRAINS), ("width", WIDTHS),
        ):  # fmt: skip
            if getattr(self, option) not in choices:
                raise ValueError(f"{option}={getattr(self, option)}: choose one of {', '.join(choices)}")

    def run(self, model: ir.Model, ctx: Context) -> int:
        """Returns how many weights were changed."""
        with unshared(model):
            return self._masked(model, ctx)

    def _masked(self, model: ir.Model, ctx: Context) -> int:
        coupling = coupled(model, self.width)
        found = solve(coupling)
        dead = self._chosen(model, coupling, found, ctx)
        return 0 if dead is None else self._apply(model, coupling, found, dead, ctx)

    def parts(self, before: ir.Model, ctx: Context) -> Parts | None:
        """The families of channels that it masks; None where others were fitted to what is left."""
        if self.compensate:
            return None
        trial = before.clone()
        with unshared(trial):
            coupling = coupled(trial, self.width)
            found = solve(coupling)
            dead = self._chosen(trial, coupling, found, replace(ctx, notes=[]))
            masked = [] if dead is None else masked_families(coupling, found, dead)
        of_name = {unit.names[0]: flags for unit, flags in masked}

        def make(names: Collection[str], scratch: Scratch) -> ir.Model:
            model = before.clone()
            with unshared(model):
                again = coupled(model, self.width)
                solution = solve(again)
                gone = np.zeros(solution.count, bool)
                for name in names:
                    gone |= of_name[name]
                mask(model, again, solution, feasible(solution, gone), scratch)
            return model

        return Parts("families of channels", [unit for unit, _ in masked], make)

    def _chosen(self, model: ir.Model, coupling: Coupling, found: Solution, ctx: Context) -> Flags | None:
        """The classes to mask; None where there are none that could be."""
        scores = self._scores(model, coupling, found, ctx)
        if any(s.leaves for s in coupling.streams):
            scores[masked(coupling, found)] = 0  # not all of it is zero
        every = units(coupling, found, scores)
        usable = _allowed(self, coupling, found, every, ctx)
        if not usable.any():
            ctx.note("no channels that could be removed were found")
            return None
        groups = families(coupling, found, every, scores, usable, self.align, self.most, self.spread == "global")
        clock = Clock(model, device_of(self.device, ctx.target), ctx.inputs) if self.of == "time" else None
        price = Price(model, coupling, clock)
        if self.of == "channels":
            dead = taken(found, groups, shares(coupling, found, groups, self.ratio), scores)
        else:
            dead = search(found, groups, scores, self.ratio, lambda d: 1 - price.left(d[found.of])[self.of])
        left = price.left(dead[found.of])
        parts = ", ".join(f"{1 - left[k]:.1%} of {k}" for k in ("macs", "parameters", "time") if k in left)
        ctx.note(f"{int(dead.sum())} of {found.count - 1} groups of slices are masked: {parts}")
        if self.of != "channels" and 1 - left[self.of] < self.ratio - 0.03:
            ctx.note(f"asked for {self.ratio:.0%} of {self.of}; what can go, `most` and `align` allow no more")
        for why in coupling.closed:
            ctx.note(f"{why}: its width stays" + ("; width=padded masks it as well" if self.width == "exact" else ""))
        return dead

    def _scores(self, model: ir.Model, coupling: Coupling, found: Solution, ctx: Context) -> np.ndarray:
        if self.by in WEIGHTS:
            return element_scores(coupling, found, self.by)
        by, runs = self.by, ctx.measured(self.name, f"by={self.by}")
        if by in LOSS:
            try:
                return gradient_scores(model, coupling, found, by, runs, ctx.labels, ctx.seed, ctx.note)
            except UnsupportedOp as e:
                by = "activation"
                ctx.note(f"by={self.by}: by={by} is used, for {e}")
        plain = element_scores(coupling, found, "l2")
        return activation_scores(model, coupling, found, by, runs, plain, ctx.seed)

    def _apply(self, model: ir.Model, coupling: Coupling, found: Solution, dead: Flags, ctx: Context) -> int:
        original = model.clone() if self.compensate else None
        changed = mask(model, coupling, found, dead, ctx.scratch)
        if original is not None and changed:
            fitted = compensate(model, original, ctx.measured(self.name, "compensate"), ctx.seed, ctx.scratch)
            ctx.note(f"layers that were fitted to what they computed before: {len(fitted)}")
        return changed


def _allowed(p: MaskChannels, coupling: Coupling, found: Solution, every: Units, ctx: Context) -> Flags:
    """Per unit, whether the options let it go."""
    in_rows = np.zeros(found.count, bool)
    in_rows[every.classes(np.flatnonzero(every.rows))] = True
    first = every.members[every.starts[:-1]]
    dims = ~every.rows & in_rows[first]
    allowed = {
        "auto": ~dims, "channels": ~every.rows & ~dims, "heads": every.rows, "dims": dims,
    }[p.grain]  # fmt: skip
    kept = np.zeros(found.count, bool)
    for pattern in filter(None, p.keep.split(";")):
        names = [v for v in coupling.holds if fnmatch.fnmatchcase(v.name or "", pattern)]
        if not names:
            ctx.note(f"keep={pattern}: no weight with channels has such a name")
        for value in names:
            for h in coupling.holds[value]:
                kept[found.of[h.grid.ids]] = True
    if kept.any() and len(every):
        hit = np.add.reduceat(kept[every.members].astype(np.int64), every.starts[:-1]) > 0
        allowed = allowed & ~hit
    return np.asarray(allowed)
