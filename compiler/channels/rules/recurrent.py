"""LSTM, GRU and RNN: hidden units, which a direction loses with all of their gates."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ...graph import attr, const_tensor, is_const, producer
from ..flow import Step, rule
from ..grids import FROZEN, Grid, Ids

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
VIEWS = ("Expand", "Slice", "Identity", "Cast", "Squeeze", "Unsqueeze", "Transpose", "Reshape", "Tile", "Gather")
MOST = 1 << 16
"""Elements up to which a constant is looked at."""
STEADY = frozenset({"tanh", "relu", "softsign", "elu", "leakyrelu", "scaledtanh"})
"""Activations with f(0) = 0."""


@rule("LSTM", "GRU", "RNN")
def _recurrent(s: Step) -> None:
    """Each direction loses other units, equally many. A unit without weights stays at zero if it started there."""
    op, w, r = s.node.op_type, s.const(1), s.const(2)
    if w is None or r is None or attr(s.node, "layout", 0):
        raise LookupError("its weights are computed, or batches come first")
    directions, gates, size = s.dims(1)[0], GATES[op], s.dims(2)[2]
    assert isinstance(directions, int) and isinstance(size, int)
    ids = s.atoms.fresh(directions, size)
    if directions > 1:
        s.atoms.freeze(s.atoms.slab(ids, [0]))
    view = [directions, gates, size, int(s.dims(1)[2])]  # type: ignore[arg-type]
    s.coupling.hold(w, ids, [0, 2], view)
    into = s.ids_at(0, 2)
    if into is not None:
        s.coupling.hold(w, into, [3], view)
    s.coupling.hold(r, ids, [0, 2], [directions, gates, size, size])
    s.coupling.hold(r, ids, [0, 3], [directions, gates, size, size])
    _vector(s, 3, ids, 2 * gates)
    _vector(s, 7, ids, 3)
    s.const(4)
    zero = _starts_at_zero(s, ids) and _steady(s)
    for k, axes in enumerate([(1, 3), (0, 2), (0, 2)][: len(s.node.outputs)]):
        if s.node.outputs[k].name:
            s.emit([Grid(ids, axes, zero)], k)


def _vector(s: Step, i: int, ids: Ids, gates: int) -> None:
    """Biases and peepholes: gates x units, one after the other."""
    if s.value(i) is None:
        return
    value = s.const(i)
    if value is None:
        s.atoms.freeze(ids)
    else:
        s.coupling.hold(value, ids, [0, 2], [ids.shape[0], gates, ids.shape[1]])


def _starts_at_zero(s: Step, ids: Ids) -> bool:
    """Tie initial states to the units; whether those of masked units are zero."""
    zero = True
    for i in (5, 6) if s.node.op_type == "LSTM" else (5,):
        value = s.value(i)
        if value is None:
            continue
        if is_zero(value):
            # Left out when units go: the same zeros may be the state of other layers, too.
            s.const(i)
            s.keep(i)
        elif is_const(value):
            s.const(i)
            s.coupling.hold(value, ids, [0, 2])
        else:
            shape = (ids.shape[0], ids.shape[1])
            own, own_zero = s.joint(i, (0, 2), shape) if s.label(i) else (np.full(shape, FROZEN), False)
            s.atoms.tie(ids, own)
            zero &= own_zero
    return zero


def is_zero(value: ir.Value | None) -> bool:
    """Whether a value is zeros, however many: filled with zeros, or a view of such."""
    while value is not None:
        tensor = const_tensor(value)
        if tensor is not None:
            return tensor.size <= MOST and not tensor.numpy().any()
        node = producer(value, "ConstantOfShape", *VIEWS)
        if node is not None and node.op_type == "ConstantOfShape":
            fill = attr(node, "value", None)
            return fill is None or not fill.numpy().any()
        value = node.inputs[0] if node is not None else None
    return False


def _steady(s: Step) -> bool:
    """Whether the activations of candidate and output leave zero at zero."""
    names = [str(a).lower() for a in attr(s.node, "activations", ())]
    per = {"LSTM": 3, "GRU": 2, "RNN": 1}[s.node.op_type]
    checked = [a for k, a in enumerate(names) if k % per or per == 1]
    return all(a in STEADY for a in checked)
