"""Masking and removing: what a set of dead classes means for weights, and for the constants that say shapes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from ..dims import Dim
from ..graph import attr, const, fresh_name, initializer, insert_before, is_const
from ..weights import Scratch
from .flow import Coupling, Hold, grouped
from .grids import Grid, Ids
from .solve import Flags, Solution


def zero_classes(coupling: Coupling, found: Solution) -> Flags:
    """The classes of which everything that a mask may set to zero is zero, in every weight. Reads the weights."""
    masked, alive = np.zeros(found.count, bool), np.zeros(found.count, bool)
    for value, holds in coupling.holds.items():
        array = const(value)
        assert array is not None
        nonzero: np.ndarray | None = None
        for h in (h for h in holds if h.masked):
            nonzero = array != 0 if nonzero is None else nonzero
            here = found.of[h.grid.ids]
            others = tuple(a for a in range(len(h.view)) if a not in h.grid.axes)
            live = nonzero.reshape(h.view).any(others).transpose(*np.argsort(np.argsort(h.grid.axes)))
            np.logical_or.at(alive, here[live], True)
            masked[here] = True
    dead = masked & ~alive
    dead[0] = False
    return dead


def mask(model: ir.Model, coupling: Coupling, found: Solution, dead: Flags, scratch: Scratch | None = None) -> int:
    """Set every slice of these classes to zero, where masking may; returns how many weights changed."""
    changed = 0
    gone = dead[found.of]
    for value, holds in coupling.holds.items():
        touched = [h for h in holds if h.masked and gone[h.grid.ids].any()]
        if not touched:
            continue
        array = np.array(const(value))
        for h in touched:
            seen = array.reshape(h.view)
            spread = gone[h.grid.ids].transpose(np.argsort(h.grid.axes))
            seen[
                np.broadcast_to(spread.reshape([n if a in h.grid.axes else 1 for a, n in enumerate(h.view)]), h.view)
            ] = 0
        replace_tensor(value, array, scratch)
        changed += 1
    return changed


def replace_tensor(value: ir.Value, array: np.ndarray, scratch: Scratch | None) -> None:
    """Give an initializer another tensor, and with it another shape. The old tensor is left as it is."""
    name = value.name or ""
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
        from . import adapt  # noqa: F401  fills ADAPT

        for node in list(self.model.graph):
            adapt = ADAPT.get(node.op_type) if node.domain == "" else None
            if adapt is not None:
                adapt(self, node)
        changed = 0
        for value, holds in self.coupling.holds.items():
            if any(self.gone[h.grid.ids].any() for h in holds):
                array = const(value)
                assert array is not None
                replace_tensor(value, self._cut(array, holds), self.scratch)
                changed += 1
        for node in self.model.graph:
            if node.op_type in ("Conv", "ConvTranspose") and node.domain == "":
                self._regroup(node)
        for value, label in self.coupling.labels.items():
            if value.shape is not None and any(self.gone[g.ids].any() for g in label):
                value.shape = ir.Shape([self.size(value, a) or d for a, d in enumerate(value.shape)])
        return changed

    def dims(self, value: ir.Value) -> list[Dim]:
        """The dimensions of a value before anything is removed; none where they are not known."""
        return self.coupling.dims.get(value) or list(value.shape or ())

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

    def size(self, value: ir.Value, axis: int) -> int | None:
        """How long a labelled axis of a value is afterwards; None where it has no label."""
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
        for axis, positions in whole.items():
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
        if attr(node, "group", 1) == 1 or weight is None or many is None or not is_const(weight):
            return
        channels = self.size(many, 1)
        if channels is not None and weight.shape is not None:
            node.attributes["group"] = ir.AttrInt64("group", channels // int(weight.shape[1]))  # type: ignore[arg-type]

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


@adapts("Reshape", "Expand")
def _target(s: Shrinking, node: ir.Node) -> None:
    """The sizes of the output's labelled axes, absolutely: whatever the target was computed from."""
    out, target = node.outputs[0], node.inputs[1]
    dims = s.dims(out)
    sizes = {a: n for a, old in enumerate(dims) if (n := s.size(out, a)) is not None and n != old}
    if not sizes or target is None:
        return
    given = const(target) if is_const(target) else None
    if given is not None:
        new = given.copy()
        for a, n in sizes.items():
            if new[a] != -1:
                new[a] = n
        s.constant(node, 1, new)
        return
    rank = len(dims)
    at = np.zeros(rank, bool)
    at[list(sizes)] = True
    values = np.zeros(rank, np.int64)
    for a, n in sizes.items():
        values[a] = n
    assert isinstance(node.graph, ir.Graph)
    inputs = [initializer(node.graph, array, f"{node.name}_{what}") for what, array in (("at", at), ("size", values))]
    where = insert_before(
        node, "Where", [*inputs, target], like=target, hint=fresh_name(node.graph, f"{target.name}_left")
    )
    node.replace_input_with(1, where.outputs[0])


@adapts("GroupNormalization")
def _group_count(s: Shrinking, node: ir.Node) -> None:
    x = node.inputs[0]
    groups = attr(node, "num_groups")
    assert x is not None
    new, old = s.size(x, 1), (*s.dims(x), None, None)[1]
    if new is not None and isinstance(old, int):
        node.attributes["num_groups"] = ir.AttrInt64("num_groups", new * groups // old)


@adapts("Split")
def _parts(s: Shrinking, node: ir.Node) -> None:
    axis = attr(node, "axis", 0) % max(len(s.dims(node.outputs[0])), 1)
    sizes = [s.size(out, axis) for out in node.outputs]
    if any(n is not None for n in sizes):
        given = [n if n is not None else int(s.dims(out)[axis]) for n, out in zip(sizes, node.outputs, strict=True)]  # type: ignore[arg-type]
        assert isinstance(node.graph, ir.Graph)
        split = initializer(node.graph, np.array(given, np.int64), f"{node.name}_split")
        node.attributes.pop("num_outputs", None)
        if len(node.inputs) > 1:
            node.replace_input_with(1, split)
        else:
            node.resize_inputs(2)
            node.replace_input_with(1, split)


@adapts("Slice")
def _cuts(s: Shrinking, node: ir.Node) -> None:
    """Where a cut axis was is counted in what is left before it."""
    x = node.inputs[0]
    assert x is not None
    dims = s.dims(x)
    starts, ends = (const(v) for v in node.inputs[1:3])
    if starts is None or ends is None:
        return
    given = const(node.inputs[3]) if len(node.inputs) > 3 and node.inputs[3] is not None else None
    axes = [int(a) % len(dims) for a in given] if given is not None else list(range(len(starts)))
    steps = const(node.inputs[4]) if len(node.inputs) > 4 and node.inputs[4] is not None else None
    new_starts, new_ends = starts.copy(), ends.copy()
    new_steps = steps.copy() if steps is not None else np.zeros(0, np.int64)
    for i, axis in enumerate(axes):
        kept, size = s.kept(x, axis), dims[axis]
        if kept is None or not isinstance(size, int):
            continue
        step = int(steps[i]) if steps is not None else 1
        start, end, step = slice(int(starts[i]), int(ends[i]), step).indices(size)
        if step == 1:
            new_starts[i], new_ends[i] = (kept < start).sum(), (kept < end).sum()
        elif len(kept) < size:
            # What is left of every other channel is no stride: the positions are gathered.
            new = np.full(size, -1)
            new[kept] = np.arange(len(kept))
            positions = new[np.arange(start, end, step)]
            _gathered(s, node, axis, positions[positions >= 0])
            new_starts[i], new_ends[i] = 0, size
            new_steps[i] = 1
    if (new_starts != starts).any() or (new_ends != ends).any():
        s.constant(node, 1, new_starts)
        s.constant(node, 2, new_ends)
    if steps is not None and (new_steps != steps).any():
        s.constant(node, 4, new_steps)


def _gathered(s: Shrinking, node: ir.Node, axis: int, positions: np.ndarray) -> None:
    """Put a Gather of these positions before a node."""
    x = node.inputs[0]
    assert isinstance(node.graph, ir.Graph) and x is not None
    index = initializer(node.graph, positions, f"{node.name}_left")
    taken = insert_before(
        node, "Gather", [x, index], {"axis": axis}, like=node.outputs[0], hint=fresh_name(node.graph, f"{x.name}_left")
    )
    taken.outputs[0].shape = None
    node.replace_input_with(0, taken.outputs[0])


@adapts("Gather")
def _positions(s: Shrinking, node: ir.Node) -> None:
    """Constant positions are counted anew, without those that are gone."""
    x, index, out = node.inputs[0], node.inputs[1], node.outputs[0]
    positions = const(index)
    if x is None or positions is None or not s.dims(x):
        return
    axis = attr(node, "axis", 0) % len(s.dims(x))
    kept, size = s.kept(x, axis), s.dims(x)[axis]
    if kept is None or not isinstance(size, int):
        return
    new = np.full(size, -1)
    new[kept] = np.arange(len(kept))
    positions = positions % size
    for d in range(positions.ndim):
        rest = s.kept(out, axis + d)
        if rest is not None:
            positions = positions.take(rest, d)
    s.constant(node, 1, new[positions])


@adapts("Resize")
def _resized(s: Shrinking, node: ir.Node) -> None:
    """The sizes that a Resize names."""
    sizes = const(node.inputs[3]) if len(node.inputs) > 3 and node.inputs[3] is not None else None
    out = node.outputs[0]
    if sizes is None or attr(node, "axes", None) is not None:
        return
    left: list[Dim] = [s.size(out, a) or int(n) for a, n in enumerate(sizes)]
    if left != [int(n) for n in sizes]:
        s.constant(node, 3, np.array(left))
