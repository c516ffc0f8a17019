"""Softmax written out, guarded, or on a flattened value."""

import numpy as np
import pytest

from edgec.passes.fuse_softmax import FuseSoftmax
from passcheck import check_pass, context, ops

CONSTANTS = "int64[1] last = {-1}, int64[1] middle = {1}, int64[3] back = {0, 0, 1}, int64[3] other = {0, 1, -1}, "
CONSTANTS += "int64[2] flat = {-1, 4}, int64[3] whole = {2, 3, 4}, float none = {-inf}"


def model(body: str, x: str = "2,3,4", y: str = "") -> str:
    return (
        f'<ir_version: 10, opset_import: ["" : 25]> m (float[{x}] x) => (float[{y or x}] y) <{CONSTANTS}> {{ {body} }}'
    )


KEPT = "m = ReduceMax(x, last) d = Sub(x, m) e = Exp(d) s = ReduceSum(e, last) y = Div(e, s)"
JAX = (
    "m0 = ReduceMax<keepdims = 0>(x, last) g = Max(none, m0) m = Reshape(g, back) d = Sub(x, m) e = Exp(d) "
    "s0 = ReduceSum<keepdims = 0>(e, last) s = Unsqueeze(s0, last) y = Div(e, s)"
)
FORMS = {
    "kept": (KEPT, -1),
    "middle axis": (KEPT.replace("last", "middle"), 1),
    "jax": (JAX, -1),
    "without a maximum": ("e = Exp(x) s = ReduceSum(e, last) y = Div(e, s)", -1),
    "flattened": ("f = Flatten<axis = 2>(x) w = Softmax<axis = 1>(f) y = Reshape(w, whole)", -1),
    "reshaped": ("f = Reshape(x, flat) w = Softmax(f) y = Reshape(w, whole)", -1),
}


@pytest.mark.parametrize(("body", "axis"), FORMS.values(), ids=FORMS)
def test_forms(body: str, axis: int) -> None:
    fused = check_pass(model(body), FuseSoftmax(), rewrites=1)
    assert ops(fused) == {"Softmax": 1}
    assert (next(iter(fused.graph)).attributes["axis"].as_int() - axis) % 3 == 0


@pytest.mark.parametrize("x", ["2,7,1,1", "1,7,1,1", "2,1,7,1"])
def test_flattened_axes_of_one_element(x: str) -> None:
    """How converters write an old Softmax behind a global pool: [N, C, 1, 1] as [N, C] and back."""
    shape = f"s = Constant<value = int64[4] {{{x}}}>()"
    body = f"f = Flatten<axis = 1>(x) w = Softmax<axis = 1>(f) {shape} y = Reshape(w, s)"
    fused = check_pass(model(body, x), FuseSoftmax(), rewrites=1)
    assert ops(fused)["Softmax"] == 1 and ops(fused)["Reshape"] == ops(fused)["Flatten"] == 0


def test_symbolic_shapes() -> None:
    body = FORMS["flattened"][0].replace("whole", "s").replace("f =", "s = Shape(x) f =", 1)
    fused = check_pass(model(body, "A,B,4"), FuseSoftmax(), rewrites=1, input_shapes={"x": (2, 3, 4)})
    assert ops(fused)["Reshape"] == 0


def test_log() -> None:
    fused = check_pass(model("a = Softmax<axis = 1>(x) y = Log(a)"), FuseSoftmax(), rewrites=1)
    assert ops(fused) == {"LogSoftmax": 1}


def test_large_scores_stay_finite() -> None:
    x = np.linspace(-80, 80, 24, dtype=np.float32).reshape(2, 3, 4)
    check_pass(model(KEPT), FuseSoftmax(), rewrites=1, inputs={"x": x})


LEFT = {
    "two axes": KEPT.replace("ReduceSum(e, last)", "ReduceSum(e, middle)"),
    "put elsewhere": JAX.replace("Unsqueeze(s0, last)", "Reshape(s0, other)"),
    "over more than the last axis": "f = Flatten<axis = 1>(x) w = Softmax<axis = 1>(f) y = Reshape(w, whole)",
}


@pytest.mark.parametrize("name", LEFT)
def test_what_is_left(name: str) -> None:
    check_pass(
        model(LEFT[name], "2,3,4" if name != "put elsewhere" else "3,3,3"), FuseSoftmax(), rewrites=0, ctx=context()
    )
