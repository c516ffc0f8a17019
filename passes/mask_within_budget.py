"""Mask as many channels as the budget allows: how many, runs of the masked model say."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import onnx_ir as ir

from ..compiler.passbase import Context, Pass
from ..compiler.weights import Scratch, release
from .mask_channels import MaskChannels
from .probe import Probe, allowed_by, judge, some_runs

RATIOS = (0.1, 0.2, 0.35, 0.5, 0.65, 0.8)
LITTLE = 0.03
"""What is tried where the first of these is too much."""


@dataclass(frozen=True)
class MaskWithinBudget(Pass):
    """Mask the channels that cost the outputs least, as many as the budget of the whole allows.

    Before:  `y = Conv(Relu(Conv(x, w)), v)`

    After:   the same operators; some filters of `w`, and the slices of `v` that read them, are zero

    Only numbers change. More and more is masked, and what is left fitted to what it computed before, as `mask-channels`
    does with the same options, until --max-error, --min-snr or --max-drop would be broken; the step before that is
    taken. Without given inputs nothing is masked.

    Options:
        share: of what the user allows, how much this may use up; the rest is for rounding.
        of: what the steps are shares of: macs, parameters, bytes or time.
        by: how importance is measured, see `mask-channels`.
        align: lengths that axes are kept multiples of.
    """

    name: ClassVar[str] = "mask-within-budget"
    lossy: ClassVar[bool] = True
    prunes: ClassVar[bool] = True
    tied: ClassVar[bool] = True
    share: float = 0.4
    of: str = "macs"
    by: str = "reconstruction"
    align: int = 8

    def __post_init__(self) -> None:
        """Raise ValueError for options that are none."""
        if not 0 < self.share <= 1:
            raise ValueError(f"share={self.share}: above 0, up to 1")
        self._mask(RATIOS[0])

    def _mask(self, ratio: float) -> MaskChannels:
        return MaskChannels(ratio=ratio, of=self.of, by=self.by, spread="global", align=self.align, compensate=True)

    def run(self, model: ir.Model, ctx: Context) -> int:
        """See the class. Masks the model three times as a rule, at worst seven."""
        if not ctx.given:
            ctx.note("nothing is masked without inputs to fit the rest to, and to measure on; give --inputs")
            return 0
        some, probe = replace(ctx, runs=some_runs(model, ctx), labels=None), judge(model, ctx)
        taken = 0.0
        for ratio in RATIOS:
            if not self._fits(probe, ratio, some):
                break
            taken = ratio
        if not taken and self._fits(probe, LITTLE, some):
            taken = LITTLE
        found = self._mask(taken).run(model, some) if taken else 0
        release(model)
        return found

    def _fits(self, probe: Probe, ratio: float, ctx: Context) -> bool:
        """Whether so much can be masked, and the budget kept."""
        ctx.progress(f"masking {ratio:.0%} of {self.of}", 0, 0)
        trial = probe.model.clone()
        with Scratch(ctx.scratch.dir) as spool:
            if not self._mask(ratio).run(trial, replace(ctx, scratch=spool, notes=[])):
                return False
            lost = probe.loss(trial)
        if allowed_by(ctx, self.share).excess(lost) <= 1:
            return True
        drop = f" and lose {lost.drop:.4g} of the metric" if lost.drop else ""
        ctx.note(f"with {ratio:.0%} of {self.of} masked the outputs would keep {lost.snr:.1f} dB{drop}: too little")
        return False
