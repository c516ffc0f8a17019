"""Takes channels, heads and hidden units out of the model that are zero wherever they are made and read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from ..compiler.blocks.nothing import leave_out
from ..compiler.channels.balance import removable, sizes
from ..compiler.channels.constant import Constants
from ..compiler.channels.linear_nodes import Linear
from ..compiler.channels.sharing import unshared
from ..compiler.channels.shrink import Shrinking
from ..compiler.channels.twins import Twins, doubtful_rows
from ..compiler.channels.unread import Unread
from ..compiler.channels.zeros import alive_in
from ..compiler.graph import can_replace, const_tensor, graphs, replace_node, users
from ..compiler.passbase import Context, Pass
from .value_ranges import at_least


@dataclass(frozen=True)
class RemoveChannels(Pass):
    """Remove every group of slices that is zero in all its weights, so that tensors and the work on them shrink.

    before:  y = Conv(Relu(Conv(x, w[64,3,3,3])), v[32,64,3,3]), of which 20 filters and their slices of v are zero
    after:   y = Conv(Relu(Conv(x, w[44,3,3,3])), v[32,44,3,3])

    Before that, what is provably dead is made zero: a channel that holds one number whatever the input is (zero
    filters, a zero batch-norm scale, and a bias through activations and pools) goes into the biases of its readers,
    unless they pad it with zeros; of channels that are always equal, one is read for all; and what no weight reads
    need not be computed.

    before:  y = Conv1x1(Relu(Conv(x, w, b)), v), w[3] = 0, b[3] = 2
    after:   y = Conv1x1(Relu(Conv(x, w, b)), v, 2 * v[:, 3]), without channel 3 in w, b and v

    Whole branches that are always zero go first, with the sums that they were added in.

    before:  y = Add(x, Conv(Relu(Conv(x, w)), v, b)), v = 0, b = 0
    after:   y = x

    Shapes, positions, counts of groups and heads that operators name follow. Where rows (heads, groups) must keep
    equally many, or an axis may not be empty, some that are zero stay.
    """

    name: ClassVar[str] = "remove-channels"
    prunes: ClassVar[bool] = True
    shrinks: ClassVar[bool] = True

    def run(self, model: ir.Model, ctx: Context) -> int:
        """Returns how many weights became smaller, or zero where they weren't, and how many sums lost a term."""
        count = leave_out(model, _without_repeats)
        if not _may_have_some(model):
            return count
        with unshared(model):
            whole = False
            while True:
                silenced = _silenced(model, ctx)
                if whole and not silenced:
                    break
                removed, whole = _removed(model, ctx)
                count += silenced + removed
                if not silenced + removed or not _may_have_some(model):
                    break
        return count


def _may_have_some(model: ir.Model) -> bool:
    """Whether a closer look may find a channel that is dead, or another one's twin."""
    if any(_has_zero_slice(v) for g in graphs(model) for v in g.initializers.values()):
        return True
    return any(doubtful_rows(n).size for n in map(Linear.of, model.graph) if n is not None)


def _without_repeats(value: ir.Value) -> None:
    """Where a block between two Relus went, the second has nothing left to do."""
    for node in users(value):
        if node.op_type == "Relu" and node.domain == "" and at_least(value, 0) and can_replace(node.outputs[0], value):
            replace_node(node, value)


def _has_zero_slice(value: ir.Value) -> bool:
    """Whether there may be a dead channel behind a constant: some matrix is zero along some axis, or stored packed.

    A few numbers per slice tell, where the rest of the pass takes a twentieth of the time of -O1.
    """
    tensor = const_tensor(value)
    if tensor is None or len(tensor.shape) < 2 or tensor.size < 4:
        return False
    if not tensor.dtype.is_floating_point():
        return tensor.dtype not in (ir.DataType.INT64, ir.DataType.INT32, ir.DataType.BOOL, ir.DataType.STRING)
    # Directions, heads or experts may each lose other slices.
    sizes = tensor.shape.numpy()
    axes = [(0, 1), (0, 2), (1, 2)] if len(sizes) == 3 else [(a,) for a, n in enumerate(sizes) if n > 1]
    return not all(alive_in(tensor, a).all() for a in axes)


def _silenced(model: ir.Model, ctx: Context) -> int:
    """Make what is provably dead zero."""
    return sum(walk(model, ctx.scratch).run() for walk in (Constants, Twins, Unread))


def _removed(model: ir.Model, ctx: Context) -> tuple[int, bool]:
    """One round, and whether it took all that was zero. If not, what stayed may be able to go after it."""
    coupling, found, dead, whole = removable(model)
    if not (dead & ~found.bare).any():
        return 0, whole
    for stream in coupling.streams:
        size, left = sizes(coupling, found, dead, stream)
        if stream.padded and left < size:
            what = f"{len(stream.norms)} normalisations like {stream.norms[0].node.name}"
            ctx.note(f"{what} go on counting {size} channels, {size - left} of them zeros: their mean is over all")
    return Shrinking(model, coupling, dead[found.of], ctx.scratch).run(), whole
