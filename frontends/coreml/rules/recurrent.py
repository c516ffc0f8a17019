"""LSTM, GRU and plain recurrence (`ops/defs/iOS15/recurrent.py`, `iOS18/recurrent.py`).

Gate orders: MIL's LSTM is i, f, o, z and its GRU r, o, z; ONNX's are i, o, f, c and z, r, h. In the direction `reverse`
MIL returns the sequence in the order in which it was processed (coremltools' own tests flip the input only), ONNX in
that of the input; both directions of a bidirectional LSTM follow the input.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from ..call import Call, Result, Unsupported, rule
from ..graph import FLOAT, Builder

# Activation → ONNX name, alpha, beta (None: ONNX has no such parameter). Parameters: those of coremltools' tests.
_ACTIVATIONS: dict[str, tuple[str, float | None, float | None]] = {
    "sigmoid": ("Sigmoid", None, None),
    "tanh": ("Tanh", None, None),
    "relu": ("Relu", None, None),
    "linear": ("Affine", 1.0, 0.0),
    "hard_sigmoid": ("HardSigmoid", 0.2, 0.5),
    "sigmoid_hard": ("HardSigmoid", 0.2, 0.5),
    "scaled_tanh": ("ScaledTanh", 1.0, 1.0),
}


def _activations(names: Sequence[str], directions: int) -> dict[str, object]:
    """Attributes for activations; onnxruntime hands alphas and betas only to those that take some, in order."""
    unknown = [n for n in names if n not in _ACTIVATIONS]
    if unknown:
        raise Unsupported(f"activation '{unknown[0]}' is none of {', '.join(_ACTIVATIONS)}")
    rows = [_ACTIVATIONS[n] for n in names] * directions
    alphas, betas = ([r[n] for r in rows if r[n] is not None] for n in (1, 2))
    parameters = {"activation_alpha": alphas, "activation_beta": betas} if alphas else {}
    return {"activations": [r[0] for r in rows], **parameters}


def _gates(o: Call, names: Sequence[str], order: Sequence[int], gates: int) -> ir.Value:
    """Weights of each direction with their gates put in ONNX's order, stacked: [directions, gates · H, …]."""
    stacked = []
    for name in names:
        parts = o.b.nodes_of("Split", [o.value(name)], {"axis": 0, "num_outputs": gates}, gates) if gates > 1 else []
        ordered = o.b.op("Concat", *(parts[i] for i in order), axis=0) if parts else o.value(name)
        stacked.append(o.b.op("Unsqueeze", ordered, o.b.ints([0])))
    return o.b.concat(stacked, 0)


def _biases(
    o: Call, pairs: Sequence[tuple[str, str]], order: Sequence[int], gates: int, hidden: int
) -> ir.Value | None:
    """ONNX bias [directions, 2 · gates · H]: input biases, then recurrent ones, from a pair of names per direction."""
    if not any(o.has(name) for pair in pairs for name in pair):
        return None
    zero = o.b.constant(np.zeros((1, gates * hidden), np.float32))
    rows = []
    for pair in pairs:
        halves = [_gates(o, [name], order, gates) if o.has(name) else zero for name in pair]
        rows.append(o.b.op("Concat", *halves, axis=1))
    return o.b.concat(rows, 0)


def _state(o: Call, name: str, directions: int, hidden: int) -> ir.Value:
    """[batch, directions · H] → [directions, batch, H]."""
    split = o.b.reshape(o.value(name), [0, directions, hidden])
    return o.b.op("Transpose", split, perm=[1, 0, 2])


def _results(o: Call, outputs: list[ir.Value], directions: int, hidden: int, reverse: bool) -> list[ir.Value]:
    """ONNX [s, directions, b, H] and [directions, b, H] → MIL [s or 1, b, directions · H] and [b, directions · H]."""
    b = o.b
    finals = [
        b.op("Reshape", b.op("Transpose", v, perm=[1, 0, 2]), b.ints([0, directions * hidden])) for v in outputs[1:]
    ]
    if not o.flag("output_sequence"):
        return [b.op("Unsqueeze", finals[0], b.ints([0])), *finals]
    sequence = b.reshape(b.op("Transpose", outputs[0], perm=[0, 2, 1, 3]), [0, 0, directions * hidden])
    if reverse:
        sequence = b.slice(sequence, [-1], [np.iinfo(np.int64).min], [0], [-1])
    return [sequence, *finals]


def _direction(o: Call) -> str:
    direction = o.text("direction", "forward")
    allowed = ("forward", "reverse", "bidirectional") if o.kind == "lstm" else ("forward", "reverse")
    if direction not in allowed:
        raise Unsupported(f"direction '{direction}' is none of {', '.join(allowed)}")
    return direction


@rule("lstm")
def lstm(o: Call) -> Result:
    direction = _direction(o)
    tails = ("", "_back") if direction == "bidirectional" else ("",)
    hidden, order = o.shape("weight_hh")[1], (0, 2, 1, 3)
    names = [o.text("recurrent_activation", "sigmoid"), o.text("cell_activation", "tanh"), o.text("activation", "tanh")]
    if o.has("clip"):
        return _clipped_lstm(o, direction, tails, names)
    peepholes = None
    if any(o.has("peephole" + t) for t in tails):
        zero = o.b.constant(np.zeros((1, 3 * hidden), np.float32))
        rows = [_gates(o, ["peephole" + t], (0, 2, 1), 3) if o.has("peephole" + t) else zero for t in tails]
        peepholes = o.b.concat(rows, 0)
    outputs = o.b.nodes_of(
        "LSTM",
        [
            o.value(),
            _gates(o, ["weight_ih" + t for t in tails], order, 4),
            _gates(o, ["weight_hh" + t for t in tails], order, 4),
            _biases(o, [("bias" + t, "") for t in tails], order, 4, hidden),
            None,
            _state(o, "initial_h", len(tails), hidden),
            _state(o, "initial_c", len(tails), hidden),
            peepholes,
        ],
        {"hidden_size": hidden, "direction": direction, **_activations(names, len(tails))},
        3,
    )
    return _results(o, outputs, len(tails), hidden, direction == "reverse")


# Activation → ONNX operator and attributes, for recurrences that are written out.
_OPERATORS: dict[str, tuple[str, dict[str, float]]] = {
    "sigmoid": ("Sigmoid", {}),
    "tanh": ("Tanh", {}),
    "relu": ("Relu", {}),
    "linear": ("Identity", {}),
    "hard_sigmoid": ("HardSigmoid", {"alpha": 0.2, "beta": 0.5}),
    "sigmoid_hard": ("HardSigmoid", {"alpha": 0.2, "beta": 0.5}),
    "scaled_tanh": ("Tanh", {}),
}


def _clipped_lstm(o: Call, direction: str, tails: Sequence[str], names: Sequence[str]) -> list[ir.Value]:
    """An LSTM whose cell state is clipped each step, which ONNX's operator can't do, as a Scan for each direction."""
    unknown = [n for n in names if n not in _OPERATORS]
    if unknown:
        raise Unsupported(f"activation '{unknown[0]}' is none of {', '.join(_OPERATORS)}")
    results = [_scan(o, k, tail, names, direction) for k, tail in enumerate(tails)]
    last, cell, sequence = (p[0] if len(p) == 1 else o.b.op("Concat", *p, axis=-1) for p in zip(*results, strict=True))
    return [sequence if o.flag("output_sequence") else o.b.op("Unsqueeze", last, o.b.ints([0])), last, cell]


def _scan(o: Call, index: int, tail: str, names: Sequence[str], direction: str) -> list[ir.Value]:
    """One direction: last state, last cell, all states (in order of processing, for the second direction of input)."""
    b, hidden = o.b, o.shape("weight_hh")[1]
    recurrent = b.op("Transpose", o.value("weight_hh" + tail), perm=[1, 0])
    gates = b.op("MatMul", o.value(), b.op("Transpose", o.value("weight_ih" + tail), perm=[1, 0]))
    if o.has("bias" + tail):
        gates = b.op("Add", gates, o.value("bias" + tail))
    peepholes: list[ir.Value] | None = None
    if o.has("peephole" + tail):
        peepholes = b.nodes_of("Split", [o.value("peephole" + tail)], {"axis": 0, "num_outputs": 3}, 3)
    part = [index * hidden], [(index + 1) * hidden], [1]
    state, cell = (b.slice(o.value(name), *part) for name in ("initial_h", "initial_c"))
    inner = Builder(b)
    step = [ir.Value(name=b.names.fresh(f"{o.name}.step"), type=ir.TensorType(FLOAT)) for _ in range(3)]
    total = inner.op("Add", step[2], inner.op("MatMul", step[0], recurrent))
    i, forget, out, new = inner.nodes_of("Split", [total], {"axis": -1, "num_outputs": 4}, 4)

    def activated(which: int, value: ir.Value, peephole: int | None = None, seen: ir.Value | None = None) -> ir.Value:
        if peepholes is not None and peephole is not None:
            value = inner.op("Add", value, inner.op("Mul", peepholes[peephole], seen))
        op, attributes = _OPERATORS[names[which]]
        return inner.op(op, value, **attributes)

    kept = inner.op("Mul", activated(0, forget, 1, step[1]), step[1])
    added = inner.op("Mul", activated(0, i, 0, step[1]), activated(1, new))
    limit = o.number("clip")
    after = inner.op("Clip", inner.op("Add", kept, added), b.number(-limit), b.number(limit))
    result = inner.op("Mul", activated(0, out, 2, after), activated(2, after))
    outputs = [result, after, inner.op("Identity", result)]
    body = ir.Graph(step, outputs, nodes=inner.nodes, name=b.names.fresh(f"{o.name}.scan"))
    backwards = int(direction == "reverse" or index == 1)
    attributes = {
        "body": body,
        "num_scan_inputs": 1,
        "scan_input_directions": [backwards],
        "scan_output_directions": [index],
    }
    return b.nodes_of("Scan", [state, cell, gates], attributes, 3)


@rule("gru")
def gru(o: Call) -> Result:
    """With `reset_after` the reset gate acts on the product with the recurrent weights, else on the state before it."""
    direction, hidden, order = _direction(o), o.shape("weight_hh")[1], (2, 0, 1)
    after = o.flag("reset_after")
    names = [o.text("recurrent_activation", "sigmoid"), o.text("activation", "tanh")]
    biases = [("input_bias", "bias")] if o.has("input_bias") or after else [("bias", "")]
    outputs = o.b.nodes_of(
        "GRU",
        [
            o.value(),
            _gates(o, ["weight_ih"], order, 3),
            _gates(o, ["weight_hh"], order, 3),
            _biases(o, biases, order, 3, hidden),
            None,
            _state(o, "initial_h", 1, hidden),
        ],
        {"hidden_size": hidden, "direction": direction, "linear_before_reset": int(after), **_activations(names, 1)},
        2,
    )
    return _results(o, outputs, 1, hidden, direction == "reverse")


@rule("rnn")
def rnn(o: Call) -> Result:
    direction, hidden = _direction(o), o.shape("weight_hh")[1]
    outputs = o.b.nodes_of(
        "RNN",
        [
            o.value(),
            _gates(o, ["weight_ih"], (0,), 1),
            _gates(o, ["weight_hh"], (0,), 1),
            _biases(o, [("bias", "")], (0,), 1, hidden),
            None,
            _state(o, "initial_h", 1, hidden),
        ],
        {"hidden_size": hidden, "direction": direction, **_activations([o.text("activation", "tanh")], 1)},
        2,
    )
    return _results(o, outputs, 1, hidden, direction == "reverse")
