"""What products cost: convolutions, matrices, attention, recurrent cells; see docs/cost.md."""

from __future__ import annotations

from collections.abc import Callable

from .. import dims as d
from ..dims import Dim
from .node import Op, Unknown, plus, times
from .products import attention_sizes
from .work import Row, Work, less, typed


def _product(bias: int | None = None) -> Callable[[Op, Dim], Work]:
    """Two per MAC, and one per output element where a bias is given at that input."""

    def rule(op: Op, macs: Dim) -> Work:
        return typed(op, plus(d.mul(macs, 2), op.n_out() if bias is not None and op.has(bias) else 0))

    return rule


def _gemm(op: Op, macs: Dim) -> Work:
    scaled = op.n_out() if op.attr("alpha", 1.0) != 1.0 else 0
    added: Dim = 0
    if op.has(2):
        added = plus(op.n_out(), op.n_in(2) if op.attr("beta", 1.0) != 1.0 else 0)
    return typed(op, plus(d.mul(macs, 2), scaled, added))


def _deform_conv(op: Op, macs: Dim) -> Work:
    """Every factor is interpolated between four neighbours, for each output position and channel of the input."""
    kernel, positions = op.x(1)[2:], op.y()[2:]
    read = times(op.x()[0], op.x()[1], *kernel, *positions)
    bias = op.n_out() if op.has(3) else 0
    return typed(op, plus(d.mul(macs, 2), bias, d.mul(read, 8 if op.has(4) else 7)))


def _einsum(op: Op, macs: Dim) -> Work:
    return typed(op, d.mul(macs, 2) if len(op.inputs) > 1 else less(op.n_in(), op.n_out()))


def _integer(*zeros: int, bias: int | None = None, requantised: bool = False) -> Callable[[Op, Dim], Work]:
    """Products and sums of integers, less the zero points; where requantised, a factor and a rounding per element."""

    def rule(op: Op, macs: Dim) -> Work:
        shifted = plus(*(op.n_in(_ZERO_OF[op.node.op_type][z]) for z in zeros if op.has(z)))
        added = op.n_out() if bias is not None and op.has(bias) else 0
        y = op.n_out()
        return Work(d.mul(y, 2) if requantised else 0, 0, plus(d.mul(macs, 2), shifted, added, y if requantised else 0))

    return rule


_ZERO_OF = {
    "ConvInteger": {2: 0, 3: 1},
    "MatMulInteger": {2: 0, 3: 1},
    "QLinearConv": {2: 0, 5: 3},
    "QLinearMatMul": {2: 0, 5: 3},
}
"""Operator → the input of each zero point → the input that it is taken from."""


def _attention(op: Op, macs: Dim) -> Work:
    batch, heads, lines, keys, head, _ = attention_sizes(op)
    slices = times(batch, heads, lines)
    scores = times(slices, keys)
    scaled = times(batch, heads, head, plus(lines, keys))
    softcap = op.attr("softcap", 0.0) != 0.0
    masked = op.has(3) or op.attr("is_causal", 0) != 0 or op.has(6)
    flops = plus(d.mul(macs, 2), scaled, d.mul(scores, 4 + masked + 2 * softcap), d.mul(slices, -2))
    return Work(flops, d.mul(scores, 1 + softcap))


def _affine_grid(op: Op, macs: Dim) -> Work:
    """A step and an offset for each line of the grid; then the product."""
    return Work(plus(d.mul(macs, 2), d.mul(plus(*op.y()[1:-1]), 2)))


_ACTIVATIONS = {
    "Affine": (2, 0), "Elu": (3, 1), "HardSigmoid": (4, 0), "LeakyRelu": (2, 0), "Relu": (1, 0), "ScaledTanh": (2, 1),
    "Sigmoid": (3, 1), "Softplus": (1, 2), "Softsign": (3, 0), "Tanh": (0, 1), "ThresholdedRelu": (1, 0),
}  # fmt: skip
"""Activation of a recurrent cell → operations, transcendental functions."""


def _recurrent(gates: int, own: int, uses: tuple[int, ...], default: tuple[str, ...]) -> Callable[[Op, Dim], Work]:
    """Per step, sample and hidden unit: biases of each gate, activations (`uses` says how often each), `own` others."""

    def rule(op: Op, macs: Dim) -> Work:
        steps, batch = op.x()[:2]
        directions, _, hidden = op.x(2)
        if not isinstance(directions, int):
            raise Unknown("how many directions there are is a free dimension")
        names = op.attr("activations") or default * directions
        flops = special = 0
        for name, often in zip(names, uses * directions, strict=True):
            if name not in _ACTIVATIONS:
                raise Unknown(f"activation {name} is not one of the standard's")
            flops += often * _ACTIVATIONS[name][0]
            special += often * _ACTIVATIONS[name][1]
        each = own + 2 * gates * op.has(3) + 6 * (op.node.op_type == "LSTM" and op.has(7))
        each += 2 * sum(uses) * (op.attr("clip") is not None)
        units = times(steps, batch, hidden)
        return Work(plus(d.mul(macs, 2), d.mul(units, flops + directions * each)), d.mul(units, special))

    return rule


ROWS: dict[str, Row] = {
    "AffineGrid": Row("2 per MAC, and 2 for each line of the grid", _affine_grid),
    "Attention": Row(
        "2 per MAC; each query and key scaled; per score 4 + 1 special for softmax (less 2 per row), 1 for a mask, "
        "2 + 1 special for a softcap",
        _attention,
    ),
    "Conv": Row("2 per MAC; y for a bias", _product(2)),
    "ConvInteger": Row("integer: 2 per MAC, 1 for each element that a zero point is taken from", _integer(2, 3)),
    "ConvTranspose": Row("2 per MAC; y for a bias", _product(2)),
    "DeformConv": Row("2 per MAC; y for a bias; 7 for each element that is interpolated, 8 with a mask", _deform_conv),
    "Einsum": Row("2 per MAC; with one operand x - y", _einsum),
    "GRU": Row(
        "2 per MAC; per step and unit 5, 2 for each of 3 biases, the activations",
        _recurrent(3, 5, (2, 1), ("Sigmoid", "Tanh")),
    ),
    "Gemm": Row("2 per MAC; y for C; y for an alpha, and C's elements for a beta, that is not 1", _gemm),
    "LSTM": Row(
        "2 per MAC; per step and unit 4, 2 for each of 4 biases, 6 for peepholes, the activations",
        _recurrent(4, 4, (3, 1, 1), ("Sigmoid", "Tanh", "Tanh")),
    ),
    "MatMul": Row("2 per MAC", _product()),
    "MatMulInteger": Row("integer: 2 per MAC, 1 for each element that a zero point is taken from", _integer(2, 3)),
    "QLinearConv": Row(
        "integer: 2 per MAC, y for a bias, y for the result's zero point, 1 for each element that one is taken from; "
        "2 y to scale and round",
        _integer(2, 5, bias=8, requantised=True),
    ),
    "QLinearMatMul": Row(
        "integer: 2 per MAC, y for the result's zero point, 1 for each element that one is taken from; "
        "2 y to scale and round",
        _integer(2, 5, requantised=True),
    ),
    "RNN": Row("2 per MAC; per step and unit 2 for a bias, the activation", _recurrent(1, 0, (1,), ("Tanh",))),
}
