"""`legalize` writes operators without a lowering in the standard's own terms, and changes no number."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

import edgec
from edgec.compiler import core_ops
from edgec.compiler.targets import find_target
from edgec.passes.legalize import Legalize
from passcheck import check_pass, ops

HEADER = '<ir_version: 10, opset_import: ["" : 25]>\n'
MODELS = {
    "HardSwish": "agraph (float[2,3] x) => (float[2,3] y) { y = HardSwish(x) }",
    "NegativeLogLikelihoodLoss": "agraph (float[3,5] x, int64[3] t) => (float y) "
    "{ y = NegativeLogLikelihoodLoss(x, t) }",
    "SoftmaxCrossEntropyLoss": "agraph (float[3,5] x, int64[3] t) => (float y) "
    '{ y = SoftmaxCrossEntropyLoss<reduction="sum">(x, t) }',
}


@pytest.mark.parametrize("op", MODELS)
def test_an_operator_becomes_its_body(op: str) -> None:
    """Afterwards all operators are in the core set; check_pass compares the numbers."""
    rng = np.random.default_rng(0)
    inputs = {"x": rng.normal(size=(3, 5) if "[3,5]" in MODELS[op] else (2, 3)).astype(np.float32)}
    if "int64[3] t" in MODELS[op]:
        inputs["t"] = np.array([4, 0, 2])
    model = check_pass(HEADER + MODELS[op], Legalize(), inputs=inputs)
    core = core_ops.core(find_target("ios18"))
    assert core is not None and op not in core
    assert set(ops(model)) <= core
    assert not model.functions


def test_core_operators_and_other_targets_are_left_alone() -> None:
    text = HEADER + "agraph (float[2,3] x) => (float[2,3] y) { a = Gelu(x) y = Celu(a) }"
    assert ops(check_pass(text, Legalize(), rewrites=0)) == {"Gelu": 1, "Celu": 1}


@pytest.mark.parametrize(("op", "gates"), [("LSTM", 4), ("RNN", 1)])
def test_biases_of_recurrent_operators_are_summed_before_they_are_half(op: str, gates: int, tmp_path: Path) -> None:
    """Core ML has one bias: the sum of two halves would be rounded once more than in the model."""
    rng = np.random.default_rng(5)
    shapes = {"w": (1, gates * 16, 8), "r": (1, gates * 16, 16), "b": (1, 2 * gates * 16)}
    weights = [
        onnx.numpy_helper.from_array(rng.normal(scale=3 if k == "b" else 0.3, size=shape).astype(np.float32), k)
        for k, shape in shapes.items()
    ]
    text = HEADER + f"agraph (float[6,1,8] x) => (float[6,1,1,16] y) {{ y = {op}<hidden_size=16>(x, w, r, b) }}"
    model = onnx.parser.parse_model(text)
    model.graph.initializer.extend(weights)
    onnx.save(model, tmp_path / "net.onnx")
    with edgec.compile(tmp_path / "net.onnx", level="O1", target="ios18", precision="fp16") as done:
        done.save(tmp_path / "net.mlpackage")
        assert done.proof is not None and done.proof.ok and done.proof.exact is not None
        assert done.proof.exact.max_rel < 1e-6
