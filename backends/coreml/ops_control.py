"""Control flow."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from .build import BOOL, F32, I32, Slot, Var
from .call import Call
from .checks import FLOATS
from .ops_shape import known
from .registry import lowers

MAX_TURNS = 1024
"""Turns up to which a loop is written out."""


@lowers("If", floats=())
def _if(c: Call) -> Any:
    """MIL's cond: each branch becomes a block; floats leave it as float32."""
    then, other = c.attr("then_branch"), c.attr("else_branch")
    if c.is_const(0):
        return c.inline(then if bool(c.array(0).reshape(())) else other)

    def block(graph: ir.Graph) -> Any:
        with c.inner_block():
            c.inline(graph)
            found = [_outgoing(c, value) for value in graph.outputs]
        return tuple(found) if len(found) > 1 else found[0]

    pred = c.reshape(c.x(0), ())
    result = c.op("cond", pred=pred, _true_fn=lambda: block(then), _false_fn=lambda: block(other))
    return list(result) if isinstance(result, (list, tuple)) else [result]


def _outgoing(c: Call, value: ir.Value) -> Var:
    """A variable that a block may hand out: its own, and of the type that the other branch has."""
    kind = F32 if value.dtype in FLOATS else BOOL if value.dtype == ir.DataType.BOOL else I32
    return c.op("identity", x=c.cast(c.var(value, F32), kind))


def _turn(c: Call, body: ir.Graph, slots: list[Slot]) -> list[Slot]:
    """Lower the body once more with these inputs."""
    c.bind(dict(zip(body.inputs, slots, strict=True)))
    return c.inline(body)


def _scan_outputs(c: Call, body: ir.Graph, kept: list[list[Slot]], first: int, axes: list[int]) -> list[Var]:
    """What each turn handed out, stacked along a new axis."""
    found = []
    for k, slots in enumerate(kept):
        value = body.outputs[first + k]
        rank = len(c.static(value)) + 1
        axis = axes[k] % rank
        parts = []
        for slot in slots:
            c.bind({value: slot})
            parts.append(c.op("expand_dims", x=c.var(value, F32), axes=[axis]))
        found.append(c.op("concat", values=parts, axis=axis) if len(parts) > 1 else parts[0])
    return found


@lowers("Loop", floats=())
def _loop(c: Call) -> list[Any]:
    """A loop with a known number of turns and no other condition, written out."""
    body = c.attr("body")
    turns = int(c.number(0)) if c.has(0) else 1 << 60
    if turns > MAX_TURNS:
        c.missing(f"a loop of unknown length or over {MAX_TURNS} turns")
    if c.has(1) and not (c.is_const(1) and bool(c.array(1).reshape(()))):
        c.missing("a condition that is not constant")
    carried = [c.slot(i) for i in range(2, len(c.node.inputs))]
    count = len(carried)
    kept: list[list[Slot]] = [[] for _ in body.outputs[1 + count :]]
    for turn in range(turns):
        slots = _turn(c, body, [known(np.array(turn, np.int64)), known(np.array(True)), *carried])
        if slots[0].constant is None or not bool(slots[0].constant.numpy().reshape(())):
            c.missing("a condition that depends on the data")
        carried = slots[1 : 1 + count]
        for store, slot in zip(kept, slots[1 + count :], strict=True):
            store.append(slot)
    if not turns and kept:
        c.missing("a loop without turns")
    return [*carried, *_scan_outputs(c, body, kept, 1 + count, [0] * len(kept))]


@lowers("Scan", floats=())
def _scan(c: Call) -> list[Any]:
    """Turn by turn over the scanned inputs, written out."""
    body, scanned = c.attr("body"), int(c.attr("num_scan_inputs"))
    states = len(c.node.inputs) - scanned
    turns_axes = list(c.attr("scan_input_axes") or [0] * scanned)
    backwards = list(c.attr("scan_input_directions") or [0] * scanned)
    axes = [a % c.rank(states + k) for k, a in enumerate(turns_axes)]
    turns = c.shape(states)[axes[0]]
    if turns > MAX_TURNS:
        c.missing(f"a scan over {turns} elements")
    parts = []
    for k, axis in enumerate(axes):
        x = c.as_var(states + k)
        cut = list(c.op("split", x=x, num_splits=turns, axis=axis)) if turns > 1 else [x]
        parts.append([c.slot_of(c.op("squeeze", x=p, axes=[axis])) for p in (reversed(cut) if backwards[k] else cut)])
    carried = [c.slot(i) for i in range(states)]
    kept: list[list[Slot]] = [[] for _ in body.outputs[states:]]
    for turn in range(turns):
        slots = _turn(c, body, [*carried, *(p[turn] for p in parts)])
        carried = slots[:states]
        for store, slot in zip(kept, slots[states:], strict=True):
            store.append(slot)
    directions = list(c.attr("scan_output_directions") or [0] * len(kept))
    kept = [list(reversed(s)) if d else s for s, d in zip(kept, directions, strict=True)]
    return [*carried, *_scan_outputs(c, body, kept, states, list(c.attr("scan_output_axes") or [0] * len(kept)))]
