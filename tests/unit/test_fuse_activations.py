"""Written-out activations, and what only looks like one."""

import numpy as np
import pytest

from edgec.passes.fuse_activations import FuseActivations
from passcheck import check_pass, context, ops

CONSTANTS = {"zero": 0.0, "one": 1.0, "three": 3.0, "six": 6.0, "sixth": 1 / 6, "tenth": 0.1, "k": 1.702, "low": -2.0}


def model(body: str, out: str = "float[2,3,8] y", extra: str = "float[3,1] slope = {0.1, 0.2, -0.3}") -> str:
    constants = ", ".join(f"float {k} = {{{v!r}}}" for k, v in CONSTANTS.items())
    head = f'<ir_version: 10, opset_import: ["" : 25]> m (float[2,3,8] x) => ({out}) <{constants}, {extra}>'
    return head + f"{{ {body} }}"


FORMS = [
    ("y = Max(x, zero)", "Relu", {}),
    ("y = Clip(x, zero)", "Relu", {}),
    ("c = Greater(x, zero) y = Where(c, x, zero)", "Relu", {}),
    ("a = Max(x, low) y = Min(six, a)", "Clip", {}),
    ("a = Min(six, x) y = Max(low, a)", "Clip", {}),
    ("a = Relu(x) y = Min(a, six)", "Clip", {}),
    ("a = Max(x, zero) y = Min(a, six)", "Clip", {}),
    ("a = Add(x, three) b = Clip(a, zero, six) y = Div(b, six)", "HardSigmoid", {"alpha": 1 / 6, "beta": 0.5}),
    ("a = Mul(x, tenth) b = Add(a, sixth) y = Clip(b, zero, one)", "HardSigmoid", {"alpha": 0.1, "beta": 1 / 6}),
    ("a = Add(three, x) b = Relu(a) c = Min(b, six) y = Mul(c, sixth)", "HardSigmoid", {"alpha": 1 / 6, "beta": 0.5}),
    ("a = Add(x, three) b = Clip(a, zero, six) c = Mul(x, b) y = Div(c, six)", "HardSwish", {}),
    ("a = Add(x, three) b = Clip(a, zero, six) c = Div(b, six) y = Mul(c, x)", "HardSwish", {}),
    ("a = Add(x, three) b = Clip(a, zero, six) c = Div(x, six) y = Mul(c, b)", "HardSwish", {}),
    ("a = HardSigmoid<alpha = 0.16666667, beta = 0.5>(x) y = Mul(x, a)", "HardSwish", {}),
    ("a = Neg(x) b = Exp(a) c = Add(b, one) y = Div(one, c)", "Sigmoid", {}),
    ("a = Neg(x) b = Exp(a) c = Add(one, b) y = Reciprocal(c)", "Sigmoid", {}),
    ("a = Sigmoid(x) y = Mul(a, x)", "edgec::Swish", {}),
    ("a = Neg(x) b = Exp(a) c = Add(one, b) y = Div(x, c)", "edgec::Swish", {}),
    ("a = Exp(x) b = Add(a, one) y = Log(b)", "Softplus", {}),
    ("a = Exp(x) b = Add(a, one) c = Log(b) d = Tanh(c) y = Mul(x, d)", "Mish", {}),
    ("a = Softplus(x) d = Tanh(a) y = Mul(d, x)", "Mish", {}),
    ("a = Abs(x) b = Add(a, one) y = Div(x, b)", "Softsign", {}),
    ("a = Mul(x, tenth) y = Max(a, x)", "LeakyRelu", {"alpha": 0.1}),
    ("a = Mul(x, k) c = Greater(x, zero) y = Where(c, x, a)", "LeakyRelu", {"alpha": 1.702}),
    ("a = Relu(x) b = Neg(x) c = Relu(b) d = Mul(c, tenth) y = Add(a, d)", "LeakyRelu", {"alpha": -0.1}),
    ("a = Relu(x) b = Neg(x) c = Relu(b) d = Mul(slope, c) y = Add(a, d)", "PRelu", {}),
    (
        "half = Mul(one, sixth) a = Relu(x) b = Abs(x) c = Sub(x, b) d = Mul(slope, c) e = Mul(d, h) y = Add(a, e)",
        "PRelu",
        {},
    ),
    ("a = Exp(x) b = Sub(a, one) c = Greater(x, zero) y = Where(c, x, b)", "Elu", {"alpha": 1.0}),
]
EXTRA = "float[3,1] slope = {0.1, 0.2, -0.3}, float h = {0.5}"


@pytest.mark.parametrize(("body", "op_type", "attributes"), FORMS, ids=[f"{o}: {b}" for b, o, _ in FORMS])
def test_forms(body: str, op_type: str, attributes: dict[str, float]) -> None:
    fused = check_pass(model(body.replace("half = Mul(one, sixth) ", ""), extra=EXTRA), FuseActivations())
    assert ops(fused) == {op_type: 1}
    node = next(iter(fused.graph))
    assert {k: v.value for k, v in node.attributes.items()} == pytest.approx(attributes)


@pytest.mark.parametrize(
    "op_type", ["edgec::Swish", "HardSwish", "Softplus", "Mish", "Clip", "PRelu", "Elu", "Softsign"]
)
def test_on_large_inputs(op_type: str) -> None:
    x = np.linspace(-60, 60, 48, dtype=np.float32).reshape(2, 3, 8)
    for body, found, _ in FORMS:
        if found == op_type:
            body = body.replace("half = Mul(one, sixth) ", "")
            check_pass(model(body, extra=EXTRA), FuseActivations(), inputs={"x": x})


LEFT = [
    ("y = Max(x, one)", ""),
    ("a = Sigmoid(k) y = Mul(x, a)", ""),
    ("a = Max(x, six) y = Min(a, low)", "its lower bound 6 is above"),
    ("a = Add(x, three) b = Clip(a, zero, six) y = Mul(b, tenth)", "its greatest value is 0.6, not 1"),
    ("a = HardSigmoid(x) y = Mul(x, a)", "its HardSigmoid has alpha 0.2"),
    ("a = Mul(x, k) y = Max(a, x)", "the slope 1.702 is not between 0 and 1"),
    ("a = Exp(x) b = Add(a, six) y = Log(b)", "a constant is 6, not 1"),
    ("a = Add(x, three) b = Clip(a, zero, six) c = Mul(x, b) y = Mul(c, tenth)", "a constant is 0.1, not 0.166"),
]


@pytest.mark.parametrize(("body", "reason"), LEFT)
def test_near_misses_are_left(body: str, reason: str) -> None:
    ctx = context()
    check_pass(model(body), FuseActivations(), rewrites=0, ctx=ctx)
    assert any(reason in n for n in ctx.notes) if reason else not ctx.notes


def test_a_slope_that_widens_the_result_is_left() -> None:
    body = "a = Relu(x) b = Neg(x) c = Relu(b) d = Mul(wide, c) y = Add(a, d)"
    wide = "float[4,1,1,1] wide = {0.1, 0.2, 0.3, 0.4}"
    check_pass(model(body, "float[4,2,3,8] y", wide), FuseActivations(), rewrites=0)


def test_inner_values_that_others_read_stay() -> None:
    check_pass(model("a = Sigmoid(x) y = Mul(x, a)", "float[2,3,8] y, float[2,3,8] a"), FuseActivations(), rewrites=0)
    check_pass(model("a = Sigmoid(x) b = Mul(x, a) y = Add(a, b)"), FuseActivations(), rewrites=0)


def test_integers_are_left() -> None:
    text = '<ir_version: 10, opset_import: ["" : 25]> m (int32[2] x) => (int32[2] y) <int32 z = {0}> { y = Max(x, z) }'
    check_pass(text, FuseActivations(), rewrites=0)
