"""What writes a residual stream: from a normalisation upwards through sums and views to weights, biases and tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from ..graph import attr, is_const
from .coupling import Coupling
from .grids import Ids

SUMS = ("Add", "Sub", "Sum")
ALONE = ("Identity", "Cast", "Dropout", "Neg")
VIEWS = (
    "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Expand", "Slice", "Gather", "Split", "Concat",
    "Identity", "Cast", "ReduceMean", "ReduceSum", "GlobalAveragePool", "AveragePool",
)  # fmt: skip
"""Linear, and alike for all channels: a mean of channels stays one. (Only where channels stay as they are.)"""


@dataclass(eq=False)
class Leaf:
    """A constant that writes, with its axis of channels.

    Attributes:
        scales: constants per channel that what it writes is multiplied by on the way.
        nodes: the nodes that it writes by.
    """

    value: ir.Value
    axis: int
    scales: tuple[ir.Value, ...]
    nodes: set[ir.Node] = field(default_factory=set)


Scales = tuple[ir.Value, ...]
State = tuple[ir.Value, Scales]


class Writers:
    """Walks from normalisations upwards; every value is passed once for each product of scales behind it."""

    def __init__(self, coupling: Coupling, of: Ids) -> None:
        self.coupling, self.of = coupling, of
        self._seen: set[State] = set()
        self._why: dict[State, str] = {}

    def collect(self, x: ir.Value, classes: Ids, leaves: list[Leaf], through: set[ir.Value]) -> str:
        """Add the constants that write the channels of x, and the values between; why not, where others write too."""
        self.classes, self.leaves = classes, {(leaf.value, leaf.axis): leaf for leaf in leaves}
        todo: list[State] = [(x, ())]
        while todo:
            state = todo.pop()
            if state in self._seen:
                continue
            self._seen.add(state)
            through.add(state[0])
            axis = self._axis(state[0])
            node = state[0].producer()
            if node is None or axis is None or node.domain or not _whole(node, state[0]):
                return f"its channels come from '{state[0].name}', which no weight writes"
            found = self._through(node, state, axis)
            if isinstance(found, str):
                return found
            todo += found
        leaves[:] = self.leaves.values()
        return ""

    def _axis(self, value: ir.Value) -> int | None:
        """The axis of a value that these channels lie on, all of them in this order."""
        for g in self.coupling.labels.get(value, ()):
            if g.ids.shape == self.classes.shape and np.array_equal(self.of[g.ids], self.classes):
                return g.axes[0]
        return None

    def _through(self, node: ir.Node, state: State, axis: int) -> list[State] | str:
        """What there is above a node, after its own constants are noted."""
        op, inputs = node.op_type, node.inputs
        if op in SUMS:
            return self._each(node, state, axis, inputs)
        if op in ("Mul", "Div"):
            return self._product(node, state, axis)
        if op in ALONE or op in VIEWS:
            return self._each(node, state, axis, inputs if op == "Concat" else inputs[:1])
        places = _weights(node, axis, len(state[0].shape or ()))
        if places is None:
            return f"{node.name} ({op}) writes its channels, which is no product with a weight"
        for i, at in places:
            constant = inputs[i]
            assert constant is not None
            if why := self._leaf(node, state, constant, at):
                return why
        return []

    def _each(self, node: ir.Node, state: State, axis: int, inputs: Sequence[ir.Value | None]) -> list[State] | str:
        """Every operand goes on; what is the same for all channels needs nothing."""
        found: list[State] = []
        for v in inputs:
            if v is None:
                continue
            spread = node.op_type in SUMS and self._extent(v, axis, state[0]) == 1
            if is_const(v):
                at = None if spread else self._held(v)
                why = "" if spread else self._leaf(node, state, v, at) if at is not None else self._foreign(node, v)
                if why:
                    return why
            elif self._axis(v) is not None:
                found.append((v, state[1]))
            elif not spread:
                return self._foreign(node, v)
        return found

    def _product(self, node: ir.Node, state: State, axis: int) -> list[State] | str:
        """One factor carries the channels; others are the same for all, or a scale per channel."""
        carried = [v for v in node.inputs if v is not None and not is_const(v) and self._axis(v) is not None]
        others = [v for v in node.inputs if v is not None and v not in carried]
        if len(carried) != 1 or len(others) != 1 or (node.op_type == "Div" and node.inputs[0] is not carried[0]):
            return f"{node.name} ({node.op_type}) writes its channels, which is no product with a weight"
        other, scales = others[0], state[1]
        if self._extent(other, axis, state[0]) != 1:
            last = len(other.shape or ()) - 1
            alone = is_const(other) and node.op_type == "Mul" and len(other.uses()) == 1
            if not alone or any(n != 1 for n in list(other.shape or ())[:last]) or self._held(other) != last:
                return self._foreign(node, other)
            scales = (*scales, other)
        return [(carried[0], scales)]

    def _extent(self, value: ir.Value, axis: int, out: ir.Value) -> object:
        """How long an operand is where the result has its channels."""
        dims: list[object] = [*(self.coupling.dims.get(value) or value.shape or ())]
        at = axis - len(out.shape or ()) + len(dims)
        return dims[at] if at >= 0 else 1

    def _held(self, value: ir.Value, axis: int | None = None) -> int | None:
        """The axis of a constant that these channels lie on; that one, if it is given."""
        for h in self.coupling.holds.get(value, ()):
            plain = h.grid.ids.shape == self.classes.shape and h.view == tuple(value.shape or ())
            if plain and axis in (None, h.grid.axes[0]) and np.array_equal(self.of[h.grid.ids], self.classes):
                return h.grid.axes[0]
        return None

    def _leaf(self, node: ir.Node, state: State, value: ir.Value, axis: int | None) -> str:
        if axis is None or not _floats(value) or self._held(value, axis) is None:
            return self._foreign(node, value)
        leaf = self.leaves.setdefault((value, axis), Leaf(value, axis, state[1]))
        if leaf.scales != state[1]:
            return f"'{value.name}' writes its channels in two scales"
        leaf.nodes.add(node)
        return ""

    def _foreign(self, node: ir.Node, value: ir.Value) -> str:
        return f"'{value.name}' writes its channels in {node.name} ({node.op_type})"


def _floats(value: ir.Value) -> bool:
    return value.dtype is not None and value.dtype.is_floating_point()


def _whole(node: ir.Node, value: ir.Value) -> bool:
    """Whether a value is what a node computes, in floats, and no second output."""
    return (value is node.outputs[0] or node.op_type == "Split") and _floats(value)


def _weights(node: ir.Node, axis: int, rank: int) -> list[tuple[int, int]] | None:
    """The constant inputs of a linear node that make its channels, and on which axis; None where there are others."""
    op, inputs = node.op_type, node.inputs
    shapes = [len(v.shape or ()) if v is not None else 0 for v in inputs]
    if op == "MatMul":
        i = 1 if axis == rank - 1 else 0
        found = [(i, shapes[i] - 1 if i else shapes[i] - 2)] if shapes[i] >= 2 else None
    elif op == "Gemm":
        found = [(1, 0 if attr(node, "transB", 0) else 1)] if axis == 1 else None
    elif op == "Conv":
        found = [(1, 0)] if attr(node, "group", 1) == 1 and axis == 1 else None
    else:
        found = None
    if found is None or not is_const(inputs[found[0][0]]):
        return None
    bias = inputs[2] if len(inputs) > 2 else None
    if bias is not None and op in ("Gemm", "Conv"):
        if not is_const(bias):
            return None
        if bias.shape is not None and shapes[2] and bias.shape[-1] != 1:
            found.append((2, shapes[2] - 1))
    return found
