"""Moves a Transpose behind the operator that reads it, where that lets it meet another Transpose or merge with one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ..compiler import graph, ops
from .view_steps import LONGEST

Perm = tuple[int, ...]

SMALL = 1 << 16
"""Bytes up to which a constant is transposed, too."""

_AXIS = frozenset({"ArgMax", "ArgMin", "Concat", "Hardmax", "LogSoftmax", "Softmax"})
_AXES = {"Pad": 3, "Slice": 3, **dict.fromkeys(ops.REDUCE, 1)}
SINKABLE = ops.UNARY | ops.BROADCAST | _AXIS | frozenset(_AXES)


@dataclass
class _Plan:
    """How to do the operator on what was not transposed: its axes, its constants, and the perm that is left over."""

    perm: Perm
    left: Perm
    axis: int | None = None
    axes: list[int] | None = None
    pads: list[int] | None = None


def sink(main: ir.Graph, node: ir.Node) -> int:
    """Let `node` read what its Transposes read, and transpose its result, if that saves nodes. Returns 0 or 1."""
    plan = _plan(node)
    if plan is None:
        return 0
    movers = {m for v in node.inputs if (m := graph.producer(v, "Transpose")) is not None}
    saved = sum(_only_for(m.outputs[0], node) for m in movers) - (list(plan.left) != sorted(plan.left))
    if saved < 1 and not (saved == 0 and list(plan.left) != sorted(plan.left) and _meets(node)):
        return 0
    constants = _constants(main, node, plan.perm)
    if constants is None:
        return 0
    _apply(main, node, plan, constants)
    for mover in movers:
        graph.remove_upwards(mover)
    return 1


def _only_for(value: ir.Value, node: ir.Node) -> bool:
    return not value.is_graph_output() and all(user is node for user, _ in value.uses())


def _plan(node: ir.Node) -> _Plan | None:
    """What becomes of `node` when the Transposes before it are gone; None unless all have one perm."""
    if node.domain or node.op_type not in SINKABLE or len(node.outputs) != 1:
        return None
    perm: Perm | None = None
    data = node.inputs if node.op_type in ops.BROADCAST or node.op_type == "Concat" else node.inputs[:1]
    for value in data:
        if value is None or graph.is_const(value):
            continue
        mover = graph.producer(value, "Transpose")
        found = graph.attr(mover, "perm") if mover is not None else None
        if found is None or (perm is not None and tuple(found) != perm) or (mover and mover.graph is not node.graph):
            return None
        perm = tuple(found)
    return None if perm is None else _mapped(node, perm)


def _mapped(node: ir.Node, perm: Perm) -> _Plan | None:
    rank = len(perm)
    plan = _Plan(perm, perm)
    if node.op_type in _AXIS:
        plan.axis = perm[graph.attr(node, "axis", 0 if node.op_type.startswith("Arg") else -1) % rank]
        if node.op_type.startswith("Arg") and not graph.attr(node, "keepdims", 1):
            plan.left = _without(perm, [plan.axis])
        return plan
    if node.op_type not in _AXES:
        return plan
    index = _AXES[node.op_type]
    given = node.inputs[index] if index < len(node.inputs) else None
    axes = graph.ints(given) if given is not None else None
    if given is not None and axes is None:
        return None
    if node.op_type == "Pad" and axes is None:
        pads = graph.ints(node.inputs[1])
        if pads is None:
            return None
        order = [perm.index(i) for i in range(rank)]
        plan.pads = [pads[i] for i in order] + [pads[rank + i] for i in order]
        return plan
    if not axes:
        return None
    plan.axes = [perm[a % rank] for a in axes]
    if node.op_type in ops.REDUCE and not graph.attr(node, "keepdims", 1):
        plan.left = _without(perm, plan.axes)
    return plan


def _without(perm: Perm, gone: Sequence[int]) -> Perm:
    """The perm of the axes that are left when these axes of the source are reduced away."""
    kept = [p for p in perm if p not in gone]
    order = sorted(kept)
    return tuple(order.index(p) for p in kept)


def _meets(node: ir.Node) -> bool:
    """Whether a Transpose follows, with nothing in between but operators that it can be moved through."""
    for _ in range(LONGEST):
        user = graph.sole_user(node.outputs[0])
        if user is None or user.domain or user.graph is not node.graph:
            return False
        if user.op_type == "Transpose":
            return True
        others = [v for v in user.inputs if v is not None and v is not node.outputs[0] and not graph.is_const(v)]
        if user.op_type not in SINKABLE or others or len(user.outputs) != 1 or _reduces(user):
            return False
        node = user
    return False


def _reduces(node: ir.Node) -> bool:
    return (node.op_type in ops.REDUCE or node.op_type.startswith("Arg")) and not graph.attr(node, "keepdims", 1)


def _constants(main: ir.Graph, node: ir.Node, perm: Perm) -> dict[int, ir.Value] | None:
    """Constants of element-wise operators and Concat, transposed back. None when one is too big to have twice."""
    if node.op_type not in ops.BROADCAST and node.op_type != "Concat":
        return {}
    back = [perm.index(i) for i in range(len(perm))]
    made: dict[int, np.ndarray] = {}
    for i, value in enumerate(node.inputs):
        tensor = None if value is None else graph.const_tensor(value)
        if tensor is None or (tensor.size == 1 and node.op_type != "Concat" and len(tensor.shape) <= len(perm)):
            continue
        array = tensor.numpy()
        if array.ndim > len(perm) or array.nbytes > SMALL:
            return None
        made[i] = array.reshape((1,) * (len(perm) - array.ndim) + array.shape).transpose(back)
    return {i: graph.initializer(main, np.ascontiguousarray(a), "transposed") for i, a in made.items()}


def _apply(main: ir.Graph, node: ir.Node, plan: _Plan, constants: dict[int, ir.Value]) -> None:
    for i, value in enumerate(node.inputs):
        mover = graph.producer(value, "Transpose")
        if i in constants:
            node.replace_input_with(i, constants[i])
        elif mover is not None and (i == 0 or node.op_type in ops.BROADCAST or node.op_type == "Concat"):
            node.replace_input_with(i, mover.inputs[0])
    if plan.axis is not None:
        node.attributes["axis"] = ir.AttrInt64("axis", plan.axis)
    if plan.axes is not None:
        index = _AXES[node.op_type]
        node.replace_input_with(index, graph.initializer(main, np.array(plan.axes, np.int64), "axes"))
    if plan.pads is not None:
        node.replace_input_with(1, graph.initializer(main, np.array(plan.pads, np.int64), "pads"))
    _transpose_result(node, plan)


def _transpose_result(node: ir.Node, plan: _Plan) -> None:
    out = node.outputs[0]
    if list(plan.left) == sorted(plan.left):
        return
    assert isinstance(node.graph, ir.Graph)
    dims = graph.shape(out)
    mover = ir.node("Transpose", [out], {"perm": list(plan.left)})
    result = mover.outputs[0]
    result.name, result.type, result.shape = graph.fresh_name(node.graph, f"{out.name}_moved"), out.type, out.shape
    mover.name = result.name
    node.graph.insert_after(node, mover)
    graph.replace_value(out, result)
    mover.replace_input_with(0, out)
    out.shape = None if dims is None else ir.Shape([dims[plan.left.index(i)] for i in range(len(dims))])


