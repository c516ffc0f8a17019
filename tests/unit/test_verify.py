"""Structure checks, weight checks and comparisons: what is wrong must be found and named."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from edgec.compiler.checks import Interface, check_structure, check_weights
from edgec.compiler.errors import ModelError
from edgec.compiler.graph import initializer
from edgec.compiler.verify import EXACT_TOLERANCE, compare_outputs, outputs_of
from passcheck import load

HEAD = '<ir_version: 10, opset_import: ["" : 25]>\n'
MODEL = f"""{HEAD} agraph (float[N,4] x) => (float[N,300] y)
{{ h = MatMul(x, x) t = Cast<to=10>(h) r = Cast<to=1>(t) y = Relu(r) }}"""


def model(weight: np.ndarray | None = None) -> ir.Model:
    """y = relu(round(x @ w)), with `w` big enough to be left out of the protobuf that is checked."""
    w = np.random.default_rng(0).normal(size=(4, 300)).astype(np.float32) if weight is None else weight
    m = ir.from_onnx_text(MODEL)
    m.graph[0].replace_input_with(1, initializer(m.graph, w, "w"))
    return load(m)


def test_a_sound_model_passes_and_is_not_touched() -> None:
    m = model()
    before = ir.to_proto(m).SerializeToString(deterministic=True)
    check_structure(m, Interface.of(m))
    check_weights(m)
    assert ir.to_proto(m).SerializeToString(deterministic=True) == before


def test_an_output_of_unknown_rank_is_no_fault() -> None:
    m = model()
    m.graph.outputs[0].shape = None
    check_structure(m, Interface.of(m))
    m.graph[0].attributes["nonsense"] = ir.AttrInt64("nonsense", 1)
    with pytest.raises(ModelError, match="nonsense"):
        check_structure(m)


def test_structure_faults_are_found() -> None:
    m = model()
    m.graph[0].attributes["nonsense"] = ir.AttrInt64("nonsense", 1)
    with pytest.raises(ModelError, match="nonsense"):
        check_structure(m)
    m = model()
    m.graph[0].outputs[0].shape = ir.Shape(["N", 7])
    with pytest.raises(ModelError, match="7"):
        check_structure(m)
    m = model()
    m.graph.sort()
    nodes = list(m.graph)
    m.graph.remove(nodes[0])
    m.graph.append(nodes[0])
    with pytest.raises(ModelError, match="sorted"):
        check_structure(m)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: setattr(m.graph.inputs[0], "name", "q"), "input 'q FLOAT N×4' instead of 'x FLOAT N×4'"),
        (lambda m: setattr(m.graph.outputs[0], "shape", ir.Shape(["N", 300, 1])), "output"),
        (lambda m: setattr(m.graph.outputs[0], "dtype", ir.DataType.DOUBLE), "output"),
        (lambda m: setattr(m.graph.outputs[0], "shape", ir.Shape(["N", 299])), "N×299"),
        (lambda m: m.graph.outputs.append(m.graph[0].outputs[0]), "2 outputs instead of 1"),
    ],
)
def test_interface_changes_are_named(change: object, message: str) -> None:
    m = model()
    known = Interface.of(m)
    change(m)  # type: ignore[operator]
    assert message in "; ".join(known.changes(Interface.of(m)))


def test_a_more_precise_shape_is_the_same_interface() -> None:
    m = model()
    known = Interface.of(m)
    m.graph.outputs[0].shape = ir.Shape(["M", 300])
    assert known.changes(Interface.of(m)) == []
    m.graph.outputs[0].shape = ir.Shape([1, 300])
    assert known.changes(Interface.of(m)) == []


@pytest.mark.parametrize(("bad", "message"), [(np.nan, "1 NaN and 0 inf"), (np.inf, "0 NaN and 1 inf")])
def test_weights_that_are_not_finite_are_named(bad: float, message: str) -> None:
    w = np.ones((4, 300), np.float32)
    w[2, 5] = bad
    with pytest.raises(ModelError, match=f"weight 'w' of MatMul .*{message}"):
        check_weights(model(w))


def test_large_weights_and_masks_of_infinity_are_fine() -> None:
    check_weights(model(np.full((4, 300), 3e38, np.float32)))  # their sum overflows
    m = model()
    mask = initializer(m.graph, np.full(300, -np.inf, np.float32), "mask")
    m.graph.append(ir.node("Add", [m.graph.outputs[0], mask]))
    check_weights(m)


def test_rounding_shows_in_the_loss_and_not_in_the_exact_comparison() -> None:
    m = model()
    x = {"x": np.random.default_rng(1).normal(size=(2, 4)).astype(np.float32)}
    exact, emulated = outputs_of(m, x, exact=True), outputs_of(m, x)
    loss = compare_outputs(exact, emulated)
    assert EXACT_TOLERANCE < loss.max_rel < 2**-10
    expected = np.maximum(x["x"] @ m.graph.initializers["w"].const_value.numpy(), 0)  # type: ignore[union-attr]
    assert compare_outputs({"y": expected}, exact).within(1e-6)


def test_shares_are_not_compared_with_less_than_a_share() -> None:
    """onnxruntime's Sigmoid of -20 is 0 or 3e-8, whichever the last bit says: noise, unless something else makes it."""
    noise, zero = np.array([[0, 2.0**-25]], np.float32), np.zeros((1, 2), np.float32)
    for body, same in (
        ("s = Sigmoid(x) y = Transpose(s)", True), ("s = Sigmoid(x) y = Mul(s, s)", False), ("y = Transpose(x)", False),
    ):  # fmt: skip
        m = load(f"{HEAD} agraph (float[2,1] x) => (float[1,2] y) {{ {body} }}")
        for ref, got in ((zero, noise), (noise, zero)):
            assert not compare_outputs({"y": ref}, {"y": got}).within(EXACT_TOLERANCE)
            assert compare_outputs({"y": ref}, {"y": got}, m).within(EXACT_TOLERANCE) is same
        assert compare_outputs({"y (for x 1×2)": zero}, {"y (for x 1×2)": noise}, m).within(EXACT_TOLERANCE) is same
        assert not compare_outputs({"y": zero}, {"y": noise * 100}, m).within(EXACT_TOLERANCE)
