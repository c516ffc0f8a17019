"""What removal changes in operators that name sizes, positions, counts or scales."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from ..graph import attr, const, fresh_name, initializer, insert_before, is_const, replace_value
from .gates import renumbered
from .rules.recurrent import is_zero
from .shrink import Shrinking, adapts


@adapts("Reshape", "Expand")
def _target(s: Shrinking, node: ir.Node) -> None:
    _resize(s, node, 1, {a: a for a in range(len(s.dims(node.outputs[0])))})


@adapts("ConstantOfShape")
def _filled(s: Shrinking, node: ir.Node) -> None:
    _resize(s, node, 0, {a: a for a in range(len(s.dims(node.outputs[0])))})


@adapts("Resize")
def _resized(s: Shrinking, node: ir.Node) -> None:
    rank = len(s.dims(node.outputs[0]))
    axes = attr(node, "axes", None) or range(rank)
    if len(node.inputs) > 3 and node.inputs[3] is not None:
        _resize(s, node, 3, {a % rank: k for k, a in enumerate(axes)})


def _resize(s: Shrinking, node: ir.Node, index: int, at: Mapping[int, int]) -> None:
    """Let input `index` name the sizes of the output that are left, whatever it is computed from.

    `at` maps an axis to the place of its size. -1, to be inferred, stays.
    """
    out, target = node.outputs[0], node.inputs[index]
    changes = {a: c for a in at if (c := s.change(out, a)) is not None}
    if not changes or target is None:
        return
    fixed = {at[a]: new for a, (new, _) in changes.items() if isinstance(s.dims(out)[a], int)}
    given = const(target) if is_const(target) else None
    if given is not None:
        sizes = given.copy()
        for k, n in fixed.items():
            if sizes[k] != -1:
                sizes[k] = n
        s.constant(node, index, sizes)
        return
    free = {at[a]: c for a, c in changes.items() if not isinstance(s.dims(out)[a], int)}
    node.replace_input_with(index, _adjusted(node, target, len(at), fixed, free))


def _adjusted(
    anchor: ir.Node, sizes: ir.Value, count: int, fixed: Mapping[int, int], free: Mapping[int, tuple[int, int]]
) -> ir.Value:
    """`sizes`, worked out at run time, with some of them fixed and some times new over old. -1 and 0 stay."""
    graph = anchor.graph
    assert isinstance(graph, ir.Graph)

    def made(op: str, *inputs: ir.Value) -> ir.Value:
        hint = fresh_name(graph, f"{sizes.name}_left")
        return insert_before(anchor, op, inputs, like=sizes, hint=hint).outputs[0]

    def numbers(values: Mapping[int, int], default: int) -> ir.Value:
        array = np.full(count, default, np.int64)
        array[list(values)] = list(values.values())
        return initializer(graph, array, f"{anchor.name}_sizes")

    if free:
        scaled = made("Mul", sizes, numbers({k: new for k, (new, _) in free.items()}, 1))
        scaled = made("Div", scaled, numbers({k: old for k, (_, old) in free.items()}, 1))
        # -1 was made 0 by the division, where sizes shrink.
        sizes = made("Min", scaled, sizes) if all(n < old for n, old in free.values()) else scaled
    if fixed:
        at = np.zeros(count, bool)
        at[list(fixed)] = True
        sizes = made("Where", initializer(graph, at, f"{anchor.name}_at"), numbers(fixed, 0), sizes)
    return sizes


@adapts("Shape")
def _shape(s: Shrinking, node: ir.Node) -> None:
    """What is computed from sizes goes on with those from before; where they name shapes, these are put right."""
    x, out = node.inputs[0], node.outputs[0]
    assert x is not None
    dims = s.dims(x)
    seen = list(range(len(dims)))[slice(attr(node, "start", 0), attr(node, "end", len(dims)))]
    changes = {k: c for k, a in enumerate(seen) if (c := s.change(x, a)) is not None}
    if not changes or not (out.uses() or out.is_graph_output()):
        return
    graph = node.graph
    assert isinstance(graph, ir.Graph)
    fixed = {k: n for k in changes if isinstance(n := dims[seen[k]], int)}
    free = {k: (old, new) for k, (new, old) in changes.items() if k not in fixed}
    marker = insert_before(node, "Identity", [x], like=out, hint=fresh_name(graph, f"{out.name}_before"))
    graph.remove(marker)
    graph.insert_after(node, marker)
    is_output = out.is_graph_output()
    replace_value(out, marker.outputs[0])
    if not is_output:
        # The name stays with what it had; of an output, it does already.
        out.name, marker.outputs[0].name = marker.outputs[0].name, out.name
    marker.replace_input_with(0, _adjusted(marker, out, len(seen), fixed, free))


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
        given = [n if n is not None else int(s.dims(out)[axis]) for n, out in zip(sizes, node.outputs, strict=True)]
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
    starts, ends, given, steps = (_numbers(s, node, i) for i in range(1, 5))
    if starts is None or ends is None:
        return
    axes = [int(a) % len(dims) for a in given] if given is not None else list(range(len(starts)))
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


def _numbers(s: Shrinking, node: ir.Node, i: int) -> np.ndarray | None:
    """The integers of an input, as far as they were known."""
    found = s.coupling.ints(node.inputs[i]) if i < len(node.inputs) else None
    return None if found is None else np.array(found, np.int64)


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


@adapts("Attention")
def _attention(s: Shrinking, node: ir.Node) -> None:
    """The heads that are left; the scale of scores stays what it was, though heads are smaller."""
    q, k = node.inputs[0], node.inputs[1]
    assert q is not None and k is not None and q.shape is not None and k.shape is not None
    flat = len(q.shape) == 3
    axis = 2 if flat else 3
    heads = attr(node, "q_num_heads") if flat else 1
    wide = q.shape[axis]
    if s.size(q, axis) in (None, wide) and s.size(k, axis) in (None, k.shape[axis]) and not _any(s, node):
        return
    if "scale" not in node.attributes and isinstance(wide, int):
        node.attributes["scale"] = ir.AttrFloat32("scale", 1 / math.sqrt(wide // heads))
    if flat:
        _count(s, node, "q_num_heads", q)
        _count(s, node, "kv_num_heads", k)


def _any(s: Shrinking, node: ir.Node) -> bool:
    return any(s.size(v, a) is not None for v in node.outputs if v.name for a in range(len(v.shape or ())))


def _count(s: Shrinking, node: ir.Node, name: str, value: ir.Value) -> None:
    """How many heads of a flat operand are left: those of its axis where anything is."""
    heads = s.heads(value, 2, attr(node, name))
    node.attributes[name] = ir.AttrInt64(name, heads)


@adapts("RotaryEmbedding")
def _rotary(s: Shrinking, node: ir.Node) -> None:
    x = node.inputs[0]
    assert x is not None and x.shape is not None
    if len(x.shape) == 3 and s.size(x, 2) is not None:
        _count(s, node, "num_heads", x)


@adapts("LSTM", "GRU", "RNN")
def _hidden(s: Shrinking, node: ir.Node) -> None:
    for k, value in enumerate(node.outputs):
        left = s.size(value, 3 if k == 0 else 2) if value.name else None
        if left is not None:
            node.attributes["hidden_size"] = ir.AttrInt64("hidden_size", left)
            for i in (5, 6):
                if i < len(node.inputs) and is_zero(node.inputs[i]):
                    node.replace_input_with(i, None)


@adapts("Equal")
def _which(s: Shrinking, node: ir.Node) -> None:
    """What positions are compared with counts as they do afterwards; what is gone is equal to none."""
    for i, value in enumerate(node.inputs):
        ids = s.coupling.positions.get(value) if value is not None else None
        numbers = const(node.inputs[1 - i]) if ids is not None else None
        if ids is not None and numbers is not None and s.gone[ids].any():
            new = renumbered(s.gone, ids, numbers)
            wide = [a for a, n in enumerate(numbers.shape) if n != 1]
            if wide and s.change(node.outputs[0], wide[0] - numbers.ndim + len(s.dims(node.outputs[0]))):
                new = new.compress(new.reshape(-1) >= 0, wide[0])
            s.constant(node, 1 - i, new)


@adapts("OneHot")
def _depth(s: Shrinking, node: ir.Node) -> None:
    ids = s.coupling.positions.get(node.inputs[0]) if node.inputs[0] is not None else None
    if ids is not None and s.gone[ids].any():
        depth = const(node.inputs[1])
        assert depth is not None
        s.constant(node, 1, np.full_like(depth, (~s.gone[ids]).sum()))
