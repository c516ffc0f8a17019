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

# Activation → ONNX name, alpha, beta (None: ONNX has no such parameter). Parameters: those of coremltools' tests.
_ACTIVATIONS: dict[str, tuple[str, float | None, float | None]] = {
    "sigmoid": ("Sigmoid", None, None), "tanh": ("Tanh", None, None), "relu": ("Relu", None, None),
    "linear": ("Affine", 1.0, 0.0), "hard_sigmoid": ("HardSigmoid", 0.2, 0.5),
    "sigmoid_hard": ("HardSigmoid", 0.2, 0.5), "scaled_tanh": ("ScaledTanh", 1.0, 1.0),
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
    if o.has("clip"):
        raise Unsupported("it clips the cell state, which ONNX's LSTM can't express")
    names = [o.text("recurrent_activation", "sigmoid"), o.text("cell_activation", "tanh"), o.text("activation", "tanh")]
    peepholes = None
    if any(o.has("peephole" + t) for t in tails):
        zero = o.b.constant(np.zeros((1, 3 * hidden), np.float32))
        rows = [
            _gates(o, ["peephole" + t], (0, 2, 1), 3) if o.has("peephole" + t) else zero for t in tails
        ]
        peepholes = o.b.concat(rows, 0)
    outputs = o.b.nodes_of(
        "LSTM",
        [
            o.value(), _gates(o, ["weight_ih" + t for t in tails], order, 4),
            _gates(o, ["weight_hh" + t for t in tails], order, 4),
            _biases(o, [("bias" + t, "") for t in tails], order, 4, hidden), None,
            _state(o, "initial_h", len(tails), hidden), _state(o, "initial_c", len(tails), hidden), peepholes,
        ],
        {"hidden_size": hidden, "direction": direction, **_activations(names, len(tails))}, 3,
    )
    return _results(o, outputs, len(tails), hidden, direction == "reverse")


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
            o.value(), _gates(o, ["weight_ih"], order, 3), _gates(o, ["weight_hh"], order, 3),
            _biases(o, biases, order, 3, hidden), None, _state(o, "initial_h", 1, hidden),
        ],
        {"hidden_size": hidden, "direction": direction, "linear_before_reset": int(after), **_activations(names, 1)}, 2,
    )
    return _results(o, outputs, 1, hidden, direction == "reverse")


@rule("rnn")
def rnn(o: Call) -> Result:
    direction, hidden = _direction(o), o.shape("weight_hh")[1]
    outputs = o.b.nodes_of(
        "RNN",
        [
            o.value(), _gates(o, ["weight_ih"], (0,), 1), _gates(o, ["weight_hh"], (0,), 1),
            _biases(o, [("bias", "")], (0,), 1, hidden), None, _state(o, "initial_h", 1, hidden),
        ],
        {"hidden_size": hidden, "direction": direction, **_activations([o.text("activation", "tanh")], 1)}, 2,
    )
    return _results(o, outputs, 1, hidden, direction == "reverse")
