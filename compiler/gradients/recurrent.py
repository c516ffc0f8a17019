"""LSTM, GRU and RNN of a fixed length written out, step by step, as operators that have gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

import numpy as np
import onnx_ir as ir

from ..graph import attr, initializer, insert_before, remove, replace_value, shape

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
ACTIVATIONS = ("Sigmoid", "Tanh", "Relu")
DEFAULTS = {"LSTM": ("Sigmoid", "Tanh", "Tanh"), "GRU": ("Sigmoid", "Tanh"), "RNN": ("Tanh",)}
MOST = 1024
"""Steps that are written out at most: each takes a dozen nodes, and as many again to go back."""

State = tuple[ir.Value | None, ...]
"""The hidden state, and the cell of an LSTM; None while it is zero."""


def refused(node: ir.Node) -> str:
    """Why a recurrent layer can't be written out; empty where it can."""
    dims = shape(node.inputs[0])
    length = dims[0] if dims else None
    kinds = _activations(node)
    given = [v is not None for v in node.inputs] + [False] * 8
    reasons = (
        (not isinstance(length, int), "the length of its sequence is free: give it a size, with --shape"),
        (isinstance(length, int) and length > MOST, f"its sequence has more than {MOST} steps"),
        (attr(node, "layout", 0) != 0, "it has another layout"),
        (bool(attr(node, "clip", None)) or attr(node, "input_forget", 0) != 0, "its gates are clipped or coupled"),
        (given[4], "its sequences have lengths of their own"),
        (given[7], "it has peepholes"),
        (any(k not in ACTIVATIONS for k in kinds), f"it has other activations than {', '.join(ACTIVATIONS)}"),
        (attr(node, "activation_alpha", None) is not None, "its activations have parameters"),
        (shape(node.inputs[1]) is None, "the shape of its weights is not known"),
    )
    return next((why for there, why in reasons if there), "")


def unroll(nodes: Iterable[ir.Node]) -> int:
    """Write out those of the nodes that are recurrent layers, in place, where that is possible; returns how many."""
    count = 0
    for node in list(nodes):
        if node.domain == "" and node.op_type in GATES and not refused(node):
            _Layer(node).write()
            count += 1
    return count


def _activations(node: ir.Node) -> list[str]:
    given = [str(k) for k in attr(node, "activations", None) or ()]
    return given or [*DEFAULTS[node.op_type]] * (2 if attr(node, "direction", "forward") == "bidirectional" else 1)


class _Layer:
    """One layer, written out before its node, which goes."""

    def __init__(self, node: ir.Node) -> None:
        self.node, self.op = node, node.op_type
        direction = attr(node, "direction", "forward")
        self.ways = {"forward": (False,), "reverse": (True,)}.get(direction, (False, True))
        self.length = cast(int, (shape(node.inputs[0]) or (0,))[0])
        self.hidden = cast(int, (shape(node.inputs[1]) or (0, 0))[1]) // GATES[self.op]
        kinds = _activations(node)
        each = len(DEFAULTS[self.op])
        self.kinds = [kinds[i : i + each] for i in range(0, len(kinds), each)]

    def __call__(self, op: str, *inputs: ir.Value | None, outputs: int = 1, **attributes: Any) -> ir.Value:
        made = insert_before(self.node, op, inputs, attributes, hint=f"{self.node.name}_{op}", num_outputs=outputs)
        return made.outputs[0]

    def ints(self, *numbers: int) -> ir.Value:
        assert isinstance(self.node.graph, ir.Graph)
        return initializer(self.node.graph, np.array(numbers, np.int64), f"{self.node.name}_ints")

    def parts(self, x: ir.Value, count: int, axis: int) -> Sequence[ir.Value]:
        """Equal parts along an axis."""
        if count == 1:
            return [x]
        node = self("Split", x, outputs=count, axis=axis, num_outputs=count).producer()
        assert node is not None
        return node.outputs

    def own(self, i: int, way: int) -> ir.Value | None:
        """What input i holds for one direction, without the axis of directions."""
        value = self.node.inputs[i] if i < len(self.node.inputs) else None
        if value is None:
            return None
        return self("Squeeze", self.parts(value, len(self.ways), 0)[way], self.ints(0))

    def write(self) -> None:
        """Replace the outputs of the node."""
        done = [self._direction(way, backwards) for way, backwards in enumerate(self.ways)]
        every = [self("Unsqueeze", self("Concat", *hs, axis=0), self.ints(1)) for hs, _ in done]
        results = [every[0] if len(every) == 1 else self("Concat", *every, axis=1)]
        for k in range(len(done[0][1])):
            last = [self("Unsqueeze", states[k], self.ints(0)) for _, states in done]
            results.append(last[0] if len(last) == 1 else self("Concat", *last, axis=0))
        for old, new in zip(self.node.outputs, results, strict=False):
            replace_value(old, new)
        remove([self.node])

    def _direction(self, way: int, backwards: bool) -> tuple[list[ir.Value], State]:
        """The hidden states in the order of time, with an axis of time, and the last states."""
        w, r, b = self.own(1, way), self.own(2, way), self.own(3, way)
        assert w is not None and r is not None
        wb, rb = self.parts(b, 2, 0) if b is not None else (None, None)
        x = self("MatMul", self.node.inputs[0], self("Transpose", w, perm=[1, 0]))
        x = x if wb is None else self("Add", x, wb)
        steps = [self("Squeeze", part, self.ints(0)) for part in self.parts(x, self.length, 0)]
        step = _STEPS[self.op](self, self.kinds[way], self("Transpose", r, perm=[1, 0]), rb)
        state: State = (self.own(5, way), self.own(6, way)) if self.op == "LSTM" else (self.own(5, way),)
        found: list[ir.Value] = []
        for at in reversed(steps) if backwards else steps:
            state = step(at, state)
            assert state[0] is not None
            found.append(self("Unsqueeze", state[0], self.ints(0)))
        return (found[::-1] if backwards else found), state


Step = Callable[[ir.Value, State], State]


def _sum(layer: _Layer, *terms: ir.Value | None) -> ir.Value:
    """Of those that there are."""
    total, *others = [t for t in terms if t is not None]
    for other in others:
        total = layer("Add", total, other)
    return total


def _lstm(layer: _Layer, kinds: Sequence[str], r: ir.Value, bias: ir.Value | None) -> Step:
    def step(x: ir.Value, state: State) -> State:
        h, c = state
        i, o, f, g = layer.parts(_sum(layer, x, None if h is None else layer("MatMul", h, r), bias), 4, -1)
        new = layer("Mul", layer(kinds[0], i), layer(kinds[1], g))
        cell = new if c is None else layer("Add", new, layer("Mul", layer(kinds[0], f), c))
        return layer("Mul", layer(kinds[0], o), layer(kinds[2], cell)), cell

    return step


def _gru(layer: _Layer, kinds: Sequence[str], r: ir.Value, bias: ir.Value | None) -> Step:
    zr, rh = _cut(layer, r, 1)
    bzr, bh = _cut(layer, bias, 0) if bias is not None else (None, None)
    late = attr(layer.node, "linear_before_reset", 0)
    one = layer("CastLike", initializer(layer.node.graph, np.float32(1), "one"), r)  # type: ignore[arg-type]

    def step(x: ir.Value, state: State) -> State:
        (h,) = state
        xzr, xh = _cut(layer, x, -1)
        z, reset = (
            layer(kinds[0], v)
            for v in layer.parts(_sum(layer, xzr, None if h is None else layer("MatMul", h, zr), bzr), 2, -1)
        )
        if late:
            inner = None if h is None else layer("MatMul", h, rh)
            seen = None if inner is None and bh is None else layer("Mul", reset, _sum(layer, inner, bh))
            new = layer(kinds[1], _sum(layer, xh, seen))
        else:
            inner = None if h is None else layer("MatMul", layer("Mul", reset, h), rh)
            new = layer(kinds[1], _sum(layer, xh, inner, bh))
        stays = layer("Mul", layer("Sub", one, z), new)
        return (stays if h is None else layer("Add", stays, layer("Mul", z, h)),)

    return step


def _cut(layer: _Layer, x: ir.Value, axis: int) -> Sequence[ir.Value]:
    """The gates of update and reset, and the rest."""
    node = insert_before(
        layer.node, "Split", [x, layer.ints(2 * layer.hidden, layer.hidden)], {"axis": axis}, num_outputs=2
    )
    return node.outputs


def _rnn(layer: _Layer, kinds: Sequence[str], r: ir.Value, bias: ir.Value | None) -> Step:
    def step(x: ir.Value, state: State) -> State:
        (h,) = state
        return (layer(kinds[0], _sum(layer, x, None if h is None else layer("MatMul", h, r), bias)),)

    return step


_STEPS: dict[str, Callable[[_Layer, Sequence[str], ir.Value, ir.Value | None], Step]] = {
    "LSTM": _lstm, "GRU": _gru, "RNN": _rnn,
}  # fmt: skip
