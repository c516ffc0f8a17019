"""Set the residual branches that matter least to zero, whole; `remove-channels` takes them out."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from ..compiler.blocks.find import Block, residual_blocks
from ..compiler.blocks.price import OF, Savings
from ..compiler.blocks.scores import Skipping, by_similarity, by_weights, greedy, least
from ..compiler.blocks.silence import Loud, Use, silence, silencing
from ..compiler.channels.clock import Clock, device_of
from ..compiler.cost.sizes import Sizes
from ..compiler.passbase import Context, Pass

BY = ("weights", "similarity", "output")
NEAR = 0.01
"""How far above a ratio a block may lead."""


@dataclass(frozen=True)
class MaskBlocks(Pass):
    """Mask whole residual branches, the least important first: the depth of a network.

    Before:  `y = x + W2 gelu(W1 norm(x))`
    After:   the same operators; `W2` is zero, and so is what is added to x

    Only numbers change: of the last layer of each branch. A branch is what is added to a stream that it is computed
    from, by the graph's structure, whatever the network: attention and MLP of a transformer are two.

    Options:
        count: how many go; 0: as many as `ratio` takes.
        ratio: how much shall go, 0 to 1, of what `of` says.
        of: macs, parameters, bytes or time (the roofline's, see docs/devices.md).
        device: whose time; where none is named, one that is like the target.
        by: how importance is measured. weights: the power of what a branch adds relative to the stream's, from weights
            alone; similarity: how far it turns the stream (1 - cosine); output: what the outputs lose without it, the
            model run once per block and step.
        keep: names of sums, separated by `;`, with * and ?: their blocks stay.
    """

    name: ClassVar[str] = "mask-blocks"
    lossy: ClassVar[bool] = True
    prunes: ClassVar[bool] = True
    count: int = 0
    ratio: float = 0.25
    of: str = "macs"
    device: str = ""
    by: str = "weights"
    keep: str = ""

    def __post_init__(self) -> None:
        if not 0 <= self.ratio < 1:
            raise ValueError(f"ratio={self.ratio}: a share of what there is, 0 to less than 1")
        if self.count < 0:
            raise ValueError(f"count={self.count}: a number of blocks, or 0 to go by the ratio")
        for option, choices in (("of", OF), ("by", BY)):
            if getattr(self, option) not in choices:
                raise ValueError(f"{option}={getattr(self, option)}: choose one of {', '.join(choices)}")

    def run(self, model: ir.Model, ctx: Context) -> int:
        """Returns how many weights were changed."""
        sizes = Sizes(model)
        blocks, uses = self._candidates(residual_blocks(model, sizes), ctx)
        if not blocks:
            ctx.note("no residual blocks that could be masked were found")
            return 0
        clock = Clock(model, device_of(self.device, ctx.target), ctx.inputs) if self.of == "time" else None
        savings = Savings(model, self.of, sizes, clock)
        chosen = self._chosen(model, blocks, savings, ctx)
        gone = savings.of([blocks[k] for k in chosen])
        names = ", ".join(blocks[k].name for k in sorted(chosen))
        ctx.note(f"{len(chosen)} of {len(blocks)} blocks are masked, {gone:.1%} of {self.of}: {names}")
        if not self.count and abs(gone - self.ratio) > 0.03:
            ctx.note(f"asked for {self.ratio:.0%} of {self.of}; whole blocks come no closer in the order of importance")
        return silence([use for k in chosen for use in uses[k]], ctx.scratch)

    def _candidates(self, found: Sequence[Block], ctx: Context) -> tuple[list[Block], list[list[Use]]]:
        """The blocks that numbers can make zero and that may go, and which numbers."""
        blocks, uses = [], []
        kept = dict.fromkeys(filter(None, self.keep.split(";")), False)
        for b in found:
            hits = [p for p in kept if fnmatch.fnmatchcase(b.name, p)]
            kept.update(dict.fromkeys(hits, True))
            if hits:
                continue
            try:
                numbers = silencing(b)
            except Loud as e:
                ctx.note(f"{b.name}: the block stays: {e}")
                continue
            blocks.append(b)
            uses.append(numbers)
        for pattern in (p for p, hit in kept.items() if not hit):
            ctx.note(f"keep={pattern}: no block has such a name")
        return blocks, uses

    def _chosen(self, model: ir.Model, blocks: list[Block], savings: Savings, ctx: Context) -> list[int]:
        """The blocks that go (indices), the least important first."""

        def share(chosen: Sequence[int]) -> float:
            return savings.of([blocks[k] for k in chosen])

        def enough(chosen: list[int]) -> bool:
            return len(chosen) >= self.count if self.count else share(chosen) >= self.ratio - NEAR

        def fits(chosen: list[int]) -> bool:
            # A step over the ratio is better than none where it comes closer.
            return bool(self.count) or share(chosen) - self.ratio <= max(NEAR, self.ratio - share(chosen[:-1]))

        if self.by == "output":
            return greedy(Skipping(model, blocks, ctx.measured(self.name, f"by={self.by}")), len(blocks), enough, fits)
        scores = (
            by_weights(model, blocks)
            if self.by == "weights"
            else by_similarity(model, blocks, ctx.measured(self.name, f"by={self.by}"))
        )
        return least(scores, enough, fits)
