"""Gradients of LSTM, GRU and RNN, written out step by step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from gradientcheck import check
from rulenet import Net

from edgec.compiler.errors import UnsupportedOp
from edgec.compiler.gradients.recurrent import GATES
from edgec.compiler.gradients.reverse import gradient
from edgec.passes.mask_channels import MaskChannels
from passcheck import context

RNG = np.random.default_rng(3)
STEPS, BATCH, WIDE, HIDDEN = 3, 2, 2, 2


def inputs(op: str, ways: int, bias: bool, states: bool) -> dict[str, np.ndarray]:
    rows = GATES[op] * HIDDEN
    found = {
        "x": RNG.normal(size=(STEPS, BATCH, WIDE)),
        "w": RNG.normal(size=(ways, rows, WIDE)),
        "r": RNG.normal(size=(ways, rows, HIDDEN)),
        "b" if bias else "_b": RNG.normal(size=(ways, 2 * rows)),
        "_lengths": np.zeros(1),
    }
    for name in ("h", "c") if op == "LSTM" else ("h",):
        found[name if states else f"_{name}"] = RNG.normal(size=(ways, BATCH, HIDDEN))
    return found


@pytest.mark.parametrize("op", GATES)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("states", [False, True])
def test_one_direction(op: str, bias: bool, states: bool) -> None:
    check(op, inputs(op, 1, bias, states), attributes={"hidden_size": HIDDEN}, free=[False])


CASES: tuple[tuple[str, str, Mapping[str, Any]], ...] = (
    ("LSTM", "bidirectional", {}),
    ("GRU", "bidirectional", {"linear_before_reset": 1}),
    ("GRU", "reverse", {"linear_before_reset": 1, "activations": ["Sigmoid", "Relu"]}),
    ("RNN", "reverse", {"activations": ["Sigmoid"]}),
    ("RNN", "bidirectional", {}),
)


@pytest.mark.parametrize(("op", "direction", "attributes"), CASES)
def test_directions_and_forms(op: str, direction: str, attributes: Mapping[str, Any]) -> None:
    """onnx's reference knows one direction only: against onnxruntime's own layer."""
    made = inputs(op, 2 if direction == "bidirectional" else 1, bias=True, states=True)
    given = {"hidden_size": HIDDEN, "direction": direction, **attributes}
    check(op, made, wrt=["x", "w", "b"], attributes=given, free=[False], by="onnxruntime")


def net(length: int | str) -> tuple[ir.Model, ir.Value]:
    """Two layers, and the weights of the second one's inputs."""
    made = Net(x=(length, 1, 4))
    first = made("LSTM", "x", made.weight(1, 64, 4), made.weight(1, 64, 16), hidden_size=16)
    weight = made.weight(1, 64, 16)
    second = made("LSTM", made("Squeeze", first, made.ints(1)), weight, made.weight(1, 64, 16), hidden_size=16)
    model = made.model(made("MatMul", made("Squeeze", second, made.ints(1)), made.weight(16, 3)))
    return model, model.graph.initializers[str(weight.name)]


@pytest.mark.parametrize("by", ["taylor", "fisher"])
@pytest.mark.parametrize("length", [5, "T"])
def test_hidden_units_are_scored_by_the_loss(by: str, length: int | str) -> None:
    """Units that the loss can't see through are the first to go. A free length is that of the inputs."""
    model, weight = net(length)
    weak = [1, 4, 5, 8, 9, 11, 14, 15]
    array = weight.const_value.numpy().copy()  # type: ignore[union-attr]
    array[:, :, weak] *= 1e-3
    weight.const_value = ir.tensor(array, name=weight.name)
    feeds = {"x": RNG.normal(size=(5, 1, 4)).astype(np.float32)}
    p = MaskChannels(ratio=0.5, of="channels", by=by, align=1)
    assert p.run(model, context("onnx", feeds)) > 0
    left = weight.const_value.numpy()
    assert not left[:, :, weak].any()


def test_what_has_no_gradient_is_scored_by_activations() -> None:
    """An operator without a rule behind the layers: a note names it, and says what is done instead."""
    model, _ = net(5)
    last = model.graph.outputs[0].producer()
    assert last is not None
    odd = ir.node("DynamicQuantizeLinear", [last.outputs[0]], num_outputs=3)
    back = ir.node("DequantizeLinear", odd.outputs)
    for v, kind in zip((*odd.outputs, *back.outputs), ("UINT8", "FLOAT", "UINT8", "FLOAT"), strict=True):
        v.type = ir.TensorType(ir.DataType[kind])
    model.graph.extend([odd, back])
    back.outputs[0].name, back.outputs[0].shape = "result", model.graph.outputs[0].shape
    model.graph.outputs[0] = back.outputs[0]
    ctx = context("onnx", {"x": RNG.normal(size=(5, 1, 4)).astype(np.float32)})
    plain = model.clone()
    assert MaskChannels(of="channels", by="taylor").run(model, ctx) > 0
    assert any("by=taylor: by=activation is used" in n and "DynamicQuantizeLinear" in n for n in ctx.notes)
    MaskChannels(of="channels", by="activation").run(plain, ctx)
    for name, value in plain.graph.initializers.items():
        assert np.array_equal(value.const_value.numpy(), model.graph.initializers[name].const_value.numpy())  # type: ignore[union-attr]


def test_a_free_length_is_named() -> None:
    with pytest.raises(UnsupportedOp, match="the length of its sequence is free"):
        model, _ = net("T")
        gradient(model, [str(model.graph.outputs[0].name)], ["x"])
