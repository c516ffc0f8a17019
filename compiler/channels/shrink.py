"""Removing: what a set of dead classes means for weights, and for the constants that say shapes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from ..dims import Dim
from ..graph import attr, const_tensor, initializer, nodes
from ..weights import Scratch, release_tensor, release_value
from .coupling import Coupling, Hold
from .gates import LOW
from .grids import FROZEN, Grid, Ids
from .masked import Masked
from .reshaping import grouped
from .solve import Flags, Solution
from .zeros import alive, alive_in


def zero_classes(coupling: Coupling, found: Solution) -> Flags:
    """The classes of which everything that a mask may set to zero is zero, in every weight. Reads as few as it can."""
    dead = ~found.bare
    for value in coupling.holds:
        for h in coupling.zeroed(value):
            if dead[here := found.of[h.grid.ids]].any():
                tensor = const_tensor(value)
                assert tensor is not None
                dead[here[_alive(tensor, h)]] = False
    dead[FROZEN] = False
    return dead


def _alive(tensor: ir.TensorProtocol, h: Hold) -> np.ndarray:
    """Per id, whether anything is there: of a bias of logits, one that counts; of integers, other than zero points."""
    if h.fill is None:
        return alive_in(tensor, h.grid.axes, h.view)
    seen = tensor.numpy().reshape(h.view)
    low = h.fill <= LOW if h.fill.dtype.kind == "f" else np.zeros((), bool)
    return alive(np.where(low, seen > LOW, seen != h.fill), h.grid.axes)


def replace_tensor(value: ir.Value, array: np.ndarray, scratch: Scratch | None) -> None:
    """Give an initializer another tensor, and another shape with it. The old one stays as it is, but leaves memory."""
    name = value.name or ""
    release_value(value)
    value.const_value = scratch.tensor(array, name) if scratch else ir.Tensor(array, name=name)
    value.shape = ir.Shape(array.shape)


@dataclass
class Shrinking:
    """A removal: what is left of every axis, asked for by the operators that name shapes and positions.

    Attributes:
        gone: per id, whether it is removed.
    """

    model: ir.Model
    coupling: Coupling
    gone: Flags
    scratch: Scratch | None = None
    _left: dict[int, tuple[list[np.ndarray], np.ndarray]] = field(default_factory=dict)

    def run(self) -> int:
        """Remove everything that is gone; returns how many weights became smaller."""
        from . import adapt as _  # noqa: F401  fills ADAPT
        from .balance import narrow, padded
        from .outputs import put_back

        narrow(self)
        every = list(nodes(self.model))
        for node in every:
            adapt = ADAPT.get(node.op_type) if node.domain == "" else None
            if adapt is not None:
                adapt(self, node)
        changed = 0
        for value, holds in self.coupling.holds.items():
            if any(self.gone[h.grid.ids].any() for h in holds):
                tensor = const_tensor(value)
                assert tensor is not None
                masked = Masked.of(tensor)
                if masked is not None and masked.survives(holds, self.gone):
                    tensor = masked.source
                made = self._cut(tensor.numpy(), holds)
                release_tensor(tensor)
                replace_tensor(value, made, self.scratch)
                changed += 1
        for node in every:
            if node.op_type in ("Conv", "ConvTranspose") and node.domain == "":
                self._regroup(node)
        for value, label in self.coupling.labels.items():
            if value.shape is not None and any(self.gone[g.ids].any() for g in label):
                value.shape = ir.Shape([self._left_of(value, a, d) for a, d in enumerate(value.shape)])
        padded(self)
        put_back(self)
        return changed

    def dims(self, value: ir.Value) -> list[Dim]:
        """The dimensions of a value before anything is removed; none where they are not known."""
        return self.coupling.dims.get(value) or [n if isinstance(n, int) else None for n in value.shape or ()]  # type: ignore[misc]

    def _left_of(self, value: ir.Value, axis: int, dim: object) -> Any:
        left = self.size(value, axis)
        return left if left is not None else None if self.change(value, axis) else dim

    def left(self, ids: Ids) -> tuple[list[np.ndarray], np.ndarray]:
        """What is left of a grid: positions per leading dimension, and per row the positions on the last one."""
        key = id(ids)
        if key not in self._left:
            alive = ~self.gone[ids]
            keeps = []
            for d in range(ids.ndim - 1):
                keeps.append(np.flatnonzero(alive.any(tuple(i for i in range(ids.ndim) if i != d))))
                alive = alive.take(keeps[-1], d)
            count = int(alive.reshape(-1, alive.shape[-1]).sum(-1)[0])
            last = np.nonzero(alive)[-1].reshape(*alive.shape[:-1], count)
            self._left[key] = keeps, last
        return self._left[key]

    def change(self, value: ir.Value, axis: int) -> tuple[int, int] | None:
        """What is left of how many ids over an axis; None where nothing is gone. See `Grid` for free sizes."""
        for g in self.coupling.labels.get(value, ()):
            if axis in g.axes:
                old, new = g.ids.shape[g.at(axis)], self._extent(g, axis)
                return (new, old) if new != old else None
        return None

    def _extent(self, g: Grid, axis: int) -> int:
        keeps, last = self.left(g.ids)
        d = g.at(axis)
        return len(keeps[d]) if d < g.ids.ndim - 1 else last.shape[-1]

    def size(self, value: ir.Value, axis: int) -> int | None:
        """How long a labelled axis of a value is afterwards; None where it has no label, or a free size."""
        if value in self.coupling.labels and not isinstance(self.dims(value)[axis], int):
            return None
        for g in self.coupling.labels.get(value, ()):
            if axis in g.axes:
                keeps, last = self.left(g.ids)
                d = g.at(axis)
                return len(keeps[d]) if d < g.ids.ndim - 1 else last.shape[-1]
        return None

    def kept(self, value: ir.Value, axis: int) -> np.ndarray | None:
        """The positions on a labelled axis that are left; of a ragged one, in its first row."""
        for g in self.coupling.labels.get(value, ()):
            if axis in g.axes:
                keeps, last = self.left(g.ids)
                d = g.at(axis)
                return keeps[d] if d < g.ids.ndim - 1 else last.reshape(-1, last.shape[-1])[0]
        return None

    def heads(self, value: ir.Value, axis: int, count: int) -> int:
        """Of `count` heads side by side on an axis, how many have something left."""
        for g in self.coupling.labels.get(value, ()):
            if axis in g.axes:
                others = tuple(d for d in range(g.ids.ndim) if d != g.at(axis))
                alive = (~self.gone[g.ids]).any(others)
                return int(alive.reshape(count, -1).any(1).sum())
        return count

    def _cut(self, array: np.ndarray, holds: Sequence[Hold]) -> np.ndarray:
        """What is left of a constant."""
        view, shape = holds[0].view, array.shape
        array = array.reshape(view)
        whole: dict[int, np.ndarray] = {}
        for h in holds:
            keeps, last = self.left(h.grid.ids)
            for axis, positions in zip(h.grid.axes, keeps, strict=False):
                whole.setdefault(axis, positions)
            if h.grid.ids.ndim == 1:
                whole[h.grid.axes[0]] = last
        for axis, positions in sorted(whole.items()):  # whole rows first
            if len(positions) != view[axis]:
                array = array.take(positions, axis)
        for h in holds:
            if h.grid.ids.ndim > 1:
                array = _taken(array, h.grid, self.left(h.grid.ids)[1])
        new = []
        for here, there in grouped(shape, view):
            if len(here) == 1:
                new.append(int(np.prod([array.shape[a] for a in there])))
            else:
                new += [array.shape[there[0]] if len(there) == 1 and shape[a] != 1 else 1 for a in here]
        return np.ascontiguousarray(array.reshape(new))

    def _regroup(self, node: ir.Node) -> None:
        """As many groups as the weight, cut already, leaves: its axis 1 is what one group reads, or makes."""
        weight, many = node.inputs[1], node.inputs[0] if node.op_type == "Conv" else node.outputs[0]
        if attr(node, "group", 1) == 1 or weight is None or many is None:
            return
        channels = self.size(many, 1)
        if channels is not None and weight.shape is not None:
            width = self.size(weight, 1) or weight.shape[1]
            node.attributes["group"] = ir.AttrInt64("group", channels // int(width))  # type: ignore[arg-type]

    def constant(self, node: ir.Node, index: int, array: np.ndarray) -> None:
        """Make input `index` of a node another constant."""
        old = node.inputs[index]
        assert isinstance(node.graph, ir.Graph) and old is not None
        if old.dtype is not None:
            array = array.astype(old.dtype.numpy())
        node.replace_input_with(index, initializer(node.graph, array, f"{old.name}_left", self.scratch))


def _taken(array: np.ndarray, grid: Grid, last: np.ndarray) -> np.ndarray:
    """Along the last dimension of a grid, each row's own positions. Leading dimensions are cut already."""
    front = np.moveaxis(array, grid.axes, range(len(grid.axes)))
    if last.shape[-1] == front.shape[len(grid.axes) - 1]:
        return array
    index = last.reshape(*last.shape, *([1] * (front.ndim - last.ndim)))
    return np.moveaxis(np.take_along_axis(front, index, len(grid.axes) - 1), range(len(grid.axes)), grid.axes)


Adapt = Callable[[Shrinking, ir.Node], None]
ADAPT: dict[str, Adapt] = {}
"""Operators that name shapes, positions or counts → what to do about that."""


def adapts(*names: str) -> Callable[[Adapt], Adapt]:
    """Register for these operators."""

    def register(f: Adapt) -> Adapt:
        ADAPT.update(dict.fromkeys(names, f))
        return f

    return register
