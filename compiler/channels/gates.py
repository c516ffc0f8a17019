"""Gates of experts: a softmax, or the k largest, over logits of which one can be made too low to count.

A softmax looks at all of its axis, so nothing goes from it, unless what goes has the weight 0 there. Numbers can do
that where the logits have a bias: with the weights of a logit 0 and its bias -1e30, its weight is 0 in float32, in
half precision too, and it is never among the k largest.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from ..graph import attr, const, const_tensor, is_const, producer, scalar
from .grids import Grid, Ids
from .reshaping import grouped

if TYPE_CHECKING:
    from .flow import Step

OFF = -1e30
"""What the bias of a logit becomes that is not to count."""
LOW = -1e20
"""A bias at or below which a logit doesn't count, as long as any other is above."""
MOST = 1 << 16
"""Elements up to which a bias is looked at."""


def gate(s: Step, i: int, axis: int) -> Grid | None:
    """The grid over an axis of input i that a node looks at as a whole, where what goes from it doesn't count there.

    The bias that switches logits off is noted in the coupling: masks set it to `OFF`.
    """
    g, value = s.at(i, axis), s.value(i)
    if g is None or g.ids.ndim > 1 or value is None:
        return None
    axis %= len(s.dims(i))
    if value in s.coupling.gates:
        return Grid(g.ids, (axis,), True)
    found = bias_of(s, value, axis)
    if found is None:
        return None
    bias, start = found
    tensor, here = const_tensor(bias), slice(start, start + g.ids.size)
    assert tensor is not None
    if not s.coupling.plan.experts and (tensor.size > MOST or not (tensor.numpy().reshape(-1)[here] <= LOW).any()):
        return None
    hold = s.coupling.holds[bias][0]
    fill = np.zeros([n if a in hold.grid.axes else 1 for a, n in enumerate(hold.view)], np.float32)
    fill += 0 if hold.fill is None else hold.fill
    fill.reshape(-1)[here] = OFF
    s.coupling.holds[bias] = [replace(hold, fill=fill)]
    return Grid(g.ids, (axis,), True)


def bias_of(s: Step, value: ir.Value, axis: int) -> tuple[ir.Value, int] | None:
    """The constant that is added to each position of an axis of logits, last of all, for nobody else to read.

    And the place of the first logit in it: layers that read the same may have become one.
    """
    start = 0
    while _readers(value) == 1 and not value.is_graph_output():
        node = producer(value)
        if node is None:
            return None
        if node.op_type == "Add":
            found = [v for v in node.inputs if v is not None and is_const(v) and _single(s, v)]
            return (found[0], start) if len(found) == 1 else None
        if node.op_type in ("Gemm", "Conv"):
            bias = node.inputs[2] if len(node.inputs) > 2 else None
            kept = attr(node, "beta", 1.0) == 1.0
            if bias is None or not is_const(bias) or axis != 1 or not kept or not _single(s, bias):
                return None
            return bias, start
        source = node.inputs[0]
        if source is None:
            return None
        if node.op_type == "Split" and axis == attr(node, "axis", 0) % len(s.flow.dims(source)):
            sizes = [s.flow.dims(out)[axis] for out in node.outputs[: list(node.outputs).index(value)]]
            if start or not all(isinstance(n, int) for n in sizes):
                return None
            value, start = source, sum(n for n in sizes if isinstance(n, int))
            continue
        before = _through(s, node, source, value, axis)
        if before is None:
            return None
        value, axis = source, before
    return None


def _readers(value: ir.Value) -> int:
    """How many nodes look at what is in a value, not only at how large it is."""
    return sum(node.op_type not in ("Shape", "Size") for node, _ in value.uses())


def _single(s: Step, bias: ir.Value) -> bool:
    """Whether there is one number per logit, and ids over them."""
    holds = s.coupling.holds.get(bias, [])
    wide = [n for n in (bias.shape or ()) if n != 1]
    return len(bias.uses()) == 1 and len(holds) == 1 and holds[0].grid.ids.ndim == 1 and len(wide) == 1


def _through(s: Step, node: ir.Node, source: ir.Value, value: ir.Value, axis: int) -> int | None:
    """The axis of what a node reads that is this axis of what it makes, where numbers stay as low as they are."""
    op = node.op_type
    if op in ("Identity", "Cast"):
        return axis
    if op in ("Mul", "Div"):
        factor = scalar(node.inputs[1])
        # A temperature; the logits don't become so high by it that they would count.
        return axis if factor is not None and 1e-4 < factor < 1e4 else None
    if op == "Transpose":
        order = attr(node, "perm", None)
        return None if order is None else int(order[axis])
    if op in ("Reshape", "Flatten", "Squeeze", "Unsqueeze"):
        before, after = s.flow.dims(source), s.flow.dims(value)
        for here, there in grouped(before, after):
            wide = [a for a in here if before[a] != 1]
            if axis in there:
                return wide[0] if len(wide) == 1 and before[wide[0]] == after[axis] else None
    return None


def placed(s: Step, i: int) -> Ids | None:
    """The ids whose positions input i holds, as the k largest do; the rule then answers for them."""
    value = s.value(i)
    found = None if value is None else s.coupling.positions.get(value)
    if found is not None:
        s.placed.add(i)
    return found


CARRIES = frozenset({"Cast", "Expand", "Flatten", "Identity", "Reshape", "Slice", "Split", "Squeeze", "Tile",
                     "Transpose", "Unsqueeze"})  # fmt: skip
"""Operators whose outputs hold positions where their first input does."""


def deny_positions(s: Step) -> None:
    """What reads positions and doesn't know that they may change keeps everything that they count."""
    for i, value in enumerate(s.node.inputs):
        ids = None if value is None else s.coupling.positions.get(value)
        if ids is None or i in s.placed:
            continue
        if i == 0 and s.node.op_type in CARRIES and s.node.domain == "":
            s.coupling.positions.update(dict.fromkeys(s.node.outputs, ids))
        else:
            s.atoms.freeze(ids)
            s.coupling.notes.append(f"{s.node.name} ({s.node.op_type}): it reads positions, which would change")


def renumbered(gone: np.ndarray, ids: Ids, positions: np.ndarray) -> np.ndarray:
    """Positions on an axis as they are afterwards; -1 for those that are gone."""
    alive = ~gone[ids]
    new = np.where(alive, np.cumsum(alive) - 1, -1)
    inside = (positions >= 0) & (positions < len(ids))
    return np.where(inside, new[np.where(inside, positions, 0)], -1)


def compared(s: Step) -> bool:
    """Equal of positions and numbers that say which: answered for; False for any other node.

    Against all positions in their order, an axis of the result has the ids; it is false where they are gone.
    """
    found = [(i, ids) for i in range(2) if (ids := placed(s, i)) is not None]
    if len(found) != 1:
        s.placed.clear()
        return False
    i, ids = found[0]
    number = s.const(1 - i)
    array = None if number is None else const(number)
    if array is None or s.label(i):
        s.placed.clear()
        return False
    grids = []
    wide = [a for a, n in enumerate(array.shape) if n != 1]
    if wide:
        axis = wide[0] + len(s.out_dims()) - array.ndim
        along = array.reshape(-1)
        if len(wide) > 1 or sorted(along.tolist()) != list(range(len(ids))):
            s.placed.clear()
            return False
        grids = [Grid(ids[along], (axis,), True)]
    s.emit(grids)
    return True
