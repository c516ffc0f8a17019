"""Recurrent networks: MIL's lstm and rnn where their form fits, else one step after the other, written out.

MIL's gru is not used: coremltools documents two orders of its gates, and neither of ONNX's two forms fits its biases.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from .build import Var
from .call import Call
from .constants import Affine
from .registry import lowers
from .rnn_steps import MAX_STEPS, Direction, unrolled

_GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
_DEFAULT = {"LSTM": ["Sigmoid", "Tanh", "Tanh"], "GRU": ["Sigmoid", "Tanh"], "RNN": ["Tanh"]}
_NATIVE = {"Sigmoid": "sigmoid", "Tanh": "tanh", "Relu": "relu"}
_IFOZ = (0, 2, 1, 3)
"""ONNX's order of the LSTM's gates is input, output, forget, cell; MIL's is input, forget, output, cell."""


@dataclass(frozen=True)
class Net:
    """The sizes and options of a recurrent node, and its inputs time first."""

    kind: str
    steps: int
    batch: int
    hidden: int
    directions: tuple[str, ...]
    activations: list[str]
    x: Var
    states: tuple[Var, ...]
    """Initial states, each [directions, batch, hidden]."""


def _net(c: Call) -> Net:
    kind, layout = c.node.op_type, c.attr("layout", 0)
    x = c.transpose(c.x(), (1, 0, 2)) if layout else c.x()
    steps, batch, _ = (int(d) for d in x.shape)
    directions = ("forward", "reverse") if c.attr("direction", "forward") == "bidirectional" else (
        c.attr("direction", "forward"),)  # fmt: skip
    hidden = c.shape(2)[2]
    zero = np.zeros((len(directions), batch, hidden), np.float32)
    states = []
    for i in (5, 6) if kind == "LSTM" else (5,):
        state = c.opt(i)
        if state is not None and layout:
            state = c.transpose(state, (1, 0, 2))
        states.append(c.tensor(zero) if state is None else state)
    activations = list(c.attr("activations") or _DEFAULT[kind] * len(directions))
    return Net(kind, steps, batch, hidden, directions, activations, x, tuple(states))


def _full_length(c: Call, net: Net) -> bool:
    return not c.has(4) or (c.is_const(4) and bool((c.array(4) == net.steps).all()))


@lowers("LSTM", "GRU", "RNN", half=17)
def _recurrent(c: Call) -> list[Any]:
    net = _net(c)
    plain = _full_length(c, net) and not c.has(7) and not c.attr("input_forget", 0) and not c.attr("clip")
    same = all(net.activations[i] in _NATIVE for i in range(len(net.activations)))
    per = len(_DEFAULT[net.kind])
    same = same and net.activations[:per] * len(net.directions) == net.activations
    if net.kind == "LSTM" and plain and same:
        return _outputs(c, net, *_lstm(c, net))
    if net.kind == "RNN" and plain and same:
        return _outputs(c, net, *_rnn(c, net))
    if net.steps > MAX_STEPS:
        c.missing(f"this form of {net.kind} over {net.steps} steps; at most {MAX_STEPS} are written out")
    return _outputs(c, net, *unrolled(c, net, [_direction(c, net, d) for d in range(len(net.directions))]))


def _outputs(c: Call, net: Net, sequence: Var, *states: Var) -> list[Any]:
    """ONNX's Y [steps, directions, batch, hidden] and states [directions, batch, hidden], batch first if asked for."""
    count = len(net.directions)
    y = c.reshape(sequence, (net.steps, net.batch, count, net.hidden)) if c.used(0) else None
    found = [c.reshape(s, (net.batch, count, net.hidden)) if c.used(i) else None for i, s in enumerate(states, 1)]
    if c.attr("layout", 0):
        return [y if y is None else c.transpose(y, (1, 0, 2, 3)), *found]
    turned = [s if s is None else c.transpose(s, (1, 0, 2)) for s in found]
    return [y if y is None else c.transpose(y, (0, 2, 1, 3)), *turned]


def _flat(c: Call, state: Var, net: Net) -> Var:
    """[directions, batch, hidden] as MIL's [batch, directions · hidden]."""
    if len(net.directions) == 1:
        return c.reshape(state, (net.batch, net.hidden))
    return c.reshape(c.transpose(state, (1, 0, 2)), (net.batch, len(net.directions) * net.hidden))


def _rows(c: Call, i: int, d: int, order: tuple[int, ...]) -> Var:
    """The matrix of one direction with its gates in that order, dense or packed."""
    _, rows, cols = c.shape(i)
    size = rows // len(order)
    index = np.concatenate([np.arange(g * size, (g + 1) * size) for g in order])
    name = f"rnn{d}{order}"
    slot = c.slot(i)
    if slot.affine is not None:
        packed = slot.affine.rows(name, d, index)
        if packed is not None:
            return c.packed(packed)
        if isinstance(slot.affine, Affine):
            c.missing("this packing of recurrent weights; scales must be per row or per tensor")
        where = f"{c.node.op_type} '{c.node.name}'"
        c.builder.warnings.append(f"{where}: its packed weight is written out: a gate has no groups of its own")
        return c.weight(slot.affine.dense().map(name, lambda a: a[d][index], (rows, cols)))
    return c.weight(c.const(i).map(name, lambda a: a[d][index], (rows, cols)))


def _bias(c: Call, d: int, order: tuple[int, ...]) -> Var | None:
    """Input and recurrent bias added up: MIL has one."""
    if not c.has(3):
        return None
    rows = c.shape(3)[1] // 2
    size = rows // len(order)
    index = np.concatenate([np.arange(g * size, (g + 1) * size) for g in order])
    name = f"rnn{d}{order}"
    return c.weight(c.const(3).map(name, lambda a: (a[d, :rows] + a[d, rows:])[index], (rows,)))


def _lstm(c: Call, net: Net) -> list[Var]:
    recurrent, cell, out = (_NATIVE[a] for a in net.activations[:3])
    kwargs: dict[str, Any] = {"direction": "forward"}
    if len(net.directions) == 2:
        kwargs = {
            "direction": "bidirectional", "weight_ih_back": _rows(c, 1, 1, _IFOZ),
            "weight_hh_back": _rows(c, 2, 1, _IFOZ), "bias_back": _bias(c, 1, _IFOZ),
        }  # fmt: skip
    backwards = net.directions == ("reverse",)
    found = c.op(
        "lstm", x=_turned(c, net.x, backwards),
        initial_h=_flat(c, net.states[0], net), initial_c=_flat(c, net.states[1], net),
        weight_ih=_rows(c, 1, 0, _IFOZ), weight_hh=_rows(c, 2, 0, _IFOZ), bias=_bias(c, 0, _IFOZ),
        output_sequence=True, recurrent_activation=recurrent, cell_activation=cell, activation=out, **kwargs,
    )  # fmt: skip
    return [_turned(c, found[0], backwards), *found[1:]]


def _turned(c: Call, x: Var, backwards: bool) -> Var:
    """The sequence read from its end. Written out: Apple doesn't document the order of a reversed net's outputs."""
    return c.op("reverse", x=x, axes=[0]) if backwards else x


def _rnn(c: Call, net: Net) -> list[Var]:
    """MIL's rnn goes one way; two of them make a bidirectional one."""
    sequences, states = [], []
    for d, direction in enumerate(net.directions):
        start = c.op("slice_by_index", x=net.states[0], begin=[d, 0, 0], end=[d + 1, net.batch, net.hidden],
                     squeeze_mask=[True, False, False])  # fmt: skip
        y, h = c.op(
            "rnn", x=_turned(c, net.x, direction == "reverse"), initial_h=start,
            weight_ih=_rows(c, 1, d, (0,)), weight_hh=_rows(c, 2, d, (0,)),
            bias=_bias(c, d, (0,)), direction="forward", output_sequence=True, activation=_NATIVE[net.activations[d]])
        sequences.append(_turned(c, y, direction == "reverse"))
        states.append(h)
    if len(sequences) == 1:
        return [sequences[0], states[0]]
    return [c.op("concat", values=sequences, axis=2), c.op("concat", values=states, axis=1)]


def _direction(c: Call, net: Net, d: int) -> Direction:
    """The weights of one direction in ONNX's order of gates, for the written-out steps."""
    gates = _GATES[net.kind]
    order = tuple(range(gates))
    per = len(_DEFAULT[net.kind])
    half = gates * net.hidden
    biases = (_part(c, 3, d, 0, half), _part(c, 3, d, 1, half)) if c.has(3) else None
    peepholes = [_part(c, 7, d, k, net.hidden) for k in range(3)] if c.has(7) else None
    alphas = list(c.attr("activation_alpha") or ())
    betas = list(c.attr("activation_beta") or ())
    return Direction(
        net.directions[d], _rows(c, 1, d, order), _rows(c, 2, d, order), biases, peepholes,
        net.activations[d * per : (d + 1) * per], alphas, betas)  # fmt: skip


def _part(c: Call, i: int, d: int, k: int, size: int) -> Var:
    """The k-th vector of that size in direction `d` of input `i`."""
    return c.weight(c.const(i).map(f"part{d}{k}", lambda a: a[d, k * size : (k + 1) * size], (size,)))
