"""Recurrent networks step by step, for the forms that MIL's operators don't have. Formulas: the ONNX specification."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .build import Var
from .call import Call

if TYPE_CHECKING:
    from .ops_rnn import Net

MAX_STEPS = 512
"""Steps up to which a recurrent network is written out; each takes about a dozen operators."""


@dataclass(frozen=True)
class Direction:
    """The weights of one direction: rows in ONNX's order of gates."""

    way: str
    w: Var
    r: Var
    biases: tuple[Var, ...] | None
    peepholes: list[Var] | None
    activations: list[str]
    alphas: list[float]
    betas: list[float]


def unrolled(c: Call, net: Net, directions: list[Direction]) -> list[Var]:
    """The sequence [steps, batch, directions · hidden] and the final states [batch, directions · hidden]."""
    sequences, finals = [], []
    for d, direction in enumerate(directions):
        states = [
            c.reshape(c.op("slice_by_index", x=s, begin=[d, 0, 0], end=[d + 1, net.batch, net.hidden]),
                      (net.batch, net.hidden))
            for s in net.states
        ]  # fmt: skip
        sequence, last = _run(c, net, direction, states)
        sequences.append(sequence)
        finals.append(last)
    if len(directions) == 1:
        return [sequences[0], *finals[0]]
    joined = [c.op("concat", values=list(pair), axis=1) for pair in zip(*finals, strict=True)]
    return [c.op("concat", values=sequences, axis=2), *joined]


def _run(c: Call, net: Net, d: Direction, states: list[Var]) -> tuple[Var, list[Var]]:
    """One direction over all steps. Beyond a sequence's length the state stays and the output is 0."""
    width = int(d.w.shape[0])
    bias = None if d.biases is None else d.biases[0]
    if net.kind == "LSTM" and d.biases is not None:
        bias = c.op("add", x=d.biases[0], y=d.biases[1])
    projected = c.op("matmul", x=net.x, y=d.w, transpose_y=True)
    if bias is not None:
        projected = c.op("add", x=projected, y=bias)
    parts = c.op("split", x=projected, num_splits=net.steps, axis=0) if net.steps > 1 else [projected]
    order = list(range(net.steps))
    outputs: dict[int, Var] = {}
    for t in order if d.way == "forward" else reversed(order):
        new = _STEP[net.kind](c, net, d, c.reshape(parts[t], (net.batch, width)), states)
        out = new[0]
        if c.has(4):
            alive = c.reshape(c.op("greater", x=c.x(4), y=np.int32(t)), (net.batch, 1))
            number = c.cast(alive, c.dtype)
            stays = c.op("sub", x=1.0, y=number)
            new = [
                c.op("add", x=c.op("mul", x=n, y=number), y=c.op("mul", x=o, y=stays))
                for n, o in zip(new, states, strict=True)
            ]
            out = c.op("mul", x=out, y=number)
        states = new
        outputs[t] = c.reshape(out, (1, net.batch, net.hidden))
    values = [outputs[t] for t in order]
    return (c.op("concat", values=values, axis=0) if len(values) > 1 else values[0]), states


def _gates(c: Call, x: Var, count: int) -> list[Var]:
    return list(c.op("split", x=x, num_splits=count, axis=1))


def _act(c: Call, d: Direction, k: int, x: Var) -> Var:
    """The k-th activation, its input clipped when the node says so."""
    clip = c.attr("clip")
    if clip:
        x = c.op("clip", x=x, alpha=-float(clip), beta=float(clip))
    return activation(c, d.activations[k], x, _at(d.alphas, k), _at(d.betas, k))


def _at(values: list[float], k: int) -> float | None:
    return values[k] if k < len(values) else None


def activation(c: Call, name: str, x: Var, alpha: float | None, beta: float | None) -> Var:
    """An activation by ONNX's name; alpha and beta default as the specification says."""
    a = {"LeakyRelu": 0.01, "ThresholdedRelu": 1.0, "HardSigmoid": 0.2, "Elu": 1.0, "Affine": 1.0}.get(name, 1.0)
    a = a if alpha is None else alpha
    b = (0.5 if name == "HardSigmoid" else 0.0 if name == "Affine" else 1.0) if beta is None else beta
    plain = {"Sigmoid": "sigmoid", "Tanh": "tanh", "Relu": "relu", "Softsign": "softsign", "Softplus": "softplus"}
    if name in plain:
        return c.op(plain[name], x=x)
    if name == "HardSigmoid":
        return c.op("sigmoid_hard", x=x, alpha=float(a), beta=float(b))
    if name in ("LeakyRelu", "Elu"):
        return c.op("leaky_relu" if name == "LeakyRelu" else "elu", x=x, alpha=float(a))
    if name == "Affine":
        return c.op("add", x=c.op("mul", x=x, y=float(a)), y=float(b))
    if name == "ScaledTanh":
        return c.op("mul", x=c.op("tanh", x=c.op("mul", x=x, y=float(b))), y=float(a))
    if name != "ThresholdedRelu":
        c.missing(f"activation '{name}'")
    return c.op("select", cond=c.op("greater", x=x, y=float(a)), a=x, b=0.0)


def _lstm_step(c: Call, net: Net, d: Direction, x: Var, states: list[Var]) -> list[Var]:
    h, cell = states
    i, o, f, z = _gates(c, c.op("add", x=x, y=c.op("matmul", x=h, y=d.r, transpose_y=True)), 4)
    if d.peepholes is not None:
        i = c.op("add", x=i, y=c.op("mul", x=cell, y=d.peepholes[0]))
        f = c.op("add", x=f, y=c.op("mul", x=cell, y=d.peepholes[2]))
    i = _act(c, d, 0, i)
    f = c.op("sub", x=1.0, y=i) if c.attr("input_forget", 0) else _act(c, d, 0, f)
    cell = c.op("add", x=c.op("mul", x=f, y=cell), y=c.op("mul", x=i, y=_act(c, d, 1, z)))
    if d.peepholes is not None:
        o = c.op("add", x=o, y=c.op("mul", x=cell, y=d.peepholes[1]))
    return [c.op("mul", x=_act(c, d, 0, o), y=activation(c, d.activations[2], cell, _at(d.alphas, 2), _at(d.betas, 2))),
            cell]  # fmt: skip


def _gru_step(c: Call, net: Net, d: Direction, x: Var, states: list[Var]) -> list[Var]:
    """z, r, h: the reset gate comes before the product, or with `linear_before_reset` after it."""
    (h,) = states
    xz, xr, xh = _gates(c, x, 3)
    rz, rr, rh = c.op("split", x=d.r, num_splits=3, axis=0)
    bz, br, bh = (None,) * 3 if d.biases is None else c.op("split", x=d.biases[1], num_splits=3, axis=0)

    def linear(left: Var, right: Var, bias: Any) -> Var:
        y = c.op("matmul", x=left, y=right, transpose_y=True)
        return y if bias is None else c.op("add", x=y, y=bias)

    z = _act(c, d, 0, c.op("add", x=xz, y=linear(h, rz, bz)))
    r = _act(c, d, 0, c.op("add", x=xr, y=linear(h, rr, br)))
    if c.attr("linear_before_reset", 0):
        inner = c.op("mul", x=r, y=linear(h, rh, bh))
    else:
        inner = linear(c.op("mul", x=r, y=h), rh, bh)
    new = _act(c, d, 1, c.op("add", x=xh, y=inner))
    return [c.op("add", x=c.op("mul", x=c.op("sub", x=1.0, y=z), y=new), y=c.op("mul", x=z, y=h))]


def _rnn_step(c: Call, net: Net, d: Direction, x: Var, states: list[Var]) -> list[Var]:
    y = c.op("add", x=x, y=c.op("matmul", x=states[0], y=d.r, transpose_y=True))
    return [_act(c, d, 0, y if d.biases is None else c.op("add", x=y, y=d.biases[1]))]


_STEP = {"LSTM": _lstm_step, "GRU": _gru_step, "RNN": _rnn_step}
