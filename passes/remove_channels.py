"""Takes channels, heads and hidden units out of the model that are zero wherever they are made and read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from ..compiler.channels.feasible import feasible
from ..compiler.channels.flow import couple
from ..compiler.channels.sharing import unshared
from ..compiler.channels.shrink import Shrinking, zero_classes
from ..compiler.channels.solve import solve
from ..compiler.passbase import Context, Pass


@dataclass(frozen=True)
class RemoveChannels(Pass):
    """Remove every group of slices that is zero in all its weights, so that tensors and the work on them shrink.

    before:  y = Conv(Relu(Conv(x, w[64,3,3,3])), v[32,64,3,3]), of which 20 filters and their slices of v are zero
    after:   y = Conv(Relu(Conv(x, w[44,3,3,3])), v[32,44,3,3])

    Shapes, positions, counts of groups and heads that operators name follow. Where rows (heads, groups) must keep
    equally many, or an axis may not be empty, some that are zero stay.
    """

    name: ClassVar[str] = "remove-channels"

    def run(self, model: ir.Model, ctx: Context) -> int:
        """Returns how many weights became smaller."""
        count = 0
        with unshared(model):
            while more := _removed(model, ctx):
                count += more
        return count


def _removed(model: ir.Model, ctx: Context) -> int:
    """One round; what one removes may have been all that another wasn't zero at."""
    coupling = couple(model)
    found = solve(coupling)
    dead = feasible(found, zero_classes(coupling, found))
    if not (dead & ~found.bare).any():
        return 0
    return Shrinking(model, coupling, dead[found.of], ctx.scratch).run()
