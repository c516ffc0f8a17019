"""GELU in the spellings of exporters, and what only looks like it."""

import numpy as np
import pytest

from edgec.passes.fuse_gelu import FuseGelu
from passcheck import check_pass, context, ops

CONSTANTS = {
    "half": 0.5, "one": 1.0, "two": 2.0, "three": 3.0, "root": 1.4142135, "inv": 0.70710678, "s": 0.7978846,
    "s2": 1.5957691, "c": 0.044715, "sc": 0.035677408, "ic": 22.363861,
}  # fmt: skip


def model(body: str, out: str = "float[2,3,8] y", dtype: str = "float", **numbers: float) -> str:
    constants = ", ".join(f"{dtype} {k} = {{{v!r}}}" for k, v in {**CONSTANTS, **numbers}.items())
    out, signature = out.replace("float", dtype), f"{dtype}[2,3,8] x"
    return f'<ir_version: 10, opset_import: ["" : 25]> m ({signature}) => ({out}) <{constants}> {{ {body} }}'


ERF = {
    "torch": "a = Div(x, root) b = Erf(a) c1 = Add(b, one) d = Mul(x, c1) y = Mul(d, half)",
    "torch dynamo": "h = Mul(x, half) a = Mul(x, inv) b = Erf(a) c1 = Add(b, one) y = Mul(h, c1)",
    "keras": "a = Mul(inv, x) b = Erf(a) c1 = Add(one, b) h = Mul(half, x) y = Mul(c1, h)",
    "paddle": "a = Div(x, root) b = Erf(a) c1 = Add(one, b) d = Mul(c1, x) y = Mul(d, half)",
    "inner half": "a = Div(x, root) b = Erf(a) c1 = Add(b, one) d = Mul(c1, half) y = Mul(x, d)",
    "halved": "a = Div(x, root) b = Erf(a) c1 = Add(b, one) d = Mul(x, c1) y = Div(d, two)",
    "half inside the sum": "a = Div(x, root) b = Erf(a) e = Mul(b, half) c1 = Add(e, half) y = Mul(x, c1)",
}
TANH = {
    "torch": "p = Pow(x, three) q = Mul(p, c) r = Add(x, q) t = Mul(r, s) u = Tanh(t) v = Add(u, one) "
    "w = Mul(half, x) y = Mul(w, v)",
    "dynamo": "a = Mul(x, x) b = Mul(a, x) q = Mul(c, b) r = Add(q, x) t = Mul(s, r) u = Tanh(t) v = Add(one, u) "
    "w = Mul(v, half) y = Mul(w, x)",
    "factored": "a = Mul(x, x) b = Mul(a, c) e = Add(b, one) f = Mul(x, s) t = Mul(f, e) u = Tanh(t) v = Add(u, one) "
    "w = Mul(x, v) y = Mul(w, half)",
    "expanded": "p = Pow(x, three) q = Mul(p, sc) r = Mul(x, s) t = Add(r, q) u = Tanh(t) v = Add(u, one) "
    "w = Mul(x, v) y = Mul(w, half)",
    "sigmoid": "p = Pow(x, three) q = Mul(p, c) r = Add(x, q) t = Mul(r, s2) u = Sigmoid(t) y = Mul(x, u)",
}


@pytest.mark.parametrize("body", ERF.values(), ids=ERF)
def test_erf(body: str) -> None:
    fused = check_pass(model(body), FuseGelu(), rewrites=1)
    assert ops(fused) == {"Gelu": 1}
    assert next(iter(fused.graph)).attributes.get("approximate") is None


@pytest.mark.parametrize("body", TANH.values(), ids=TANH)
def test_tanh(body: str) -> None:
    fused = check_pass(model(body), FuseGelu(), rewrites=1)
    assert ops(fused) == {"Gelu": 1}
    assert next(iter(fused.graph)).attributes["approximate"].as_string() == "tanh"


def test_on_large_inputs() -> None:
    x = np.linspace(-60, 60, 48, dtype=np.float32).reshape(2, 3, 8)
    check_pass(model(ERF["torch"]), FuseGelu(), rewrites=1, inputs={"x": x})
    check_pass(model(TANH["torch"]), FuseGelu(), rewrites=1, inputs={"x": x})


def test_scaled_afterwards() -> None:
    body = ERF["torch"].replace("y = Mul(d, half)", "z = Mul(d, half) y = Mul(z, s)")
    assert ops(check_pass(model(body), FuseGelu(), rewrites=1)) == {"Gelu": 1, "Mul": 1}


@pytest.mark.parametrize(
    ("body", "out", "reason"),
    [
        (ERF["torch"].replace("root", "wrong"), "float[2,3,8] y", "a constant is 0.714"),
        (ERF["torch"], "float[2,3,8] y, float[2,3,8] b", "'b' inside it is an output of the model"),
        (ERF["torch"].replace("y =", "z =") + "y = Add(z, c1)", "float[2,3,8] y", "'c1' inside it is also read by Add"),
        (TANH["torch"].replace("Mul(p, c)", "Mul(p, wrong)"), "float[2,3,8] y", "a constant is 1.4"),
    ],
)
def test_near_misses_are_left_and_noted(body: str, out: str, reason: str) -> None:
    ctx = context()
    check_pass(model(body, out, wrong=1.4), FuseGelu(), rewrites=0, ctx=ctx)
    assert len(ctx.notes) == 1 and "looks like GELU" in ctx.notes[0] and reason in ctx.notes[0]


def test_a_sigmoid_of_1_702_x_is_not_a_gelu() -> None:
    ctx = context()
    check_pass(model("a = Mul(x, k) b = Sigmoid(a) y = Mul(x, b)", k=1.702), FuseGelu(), rewrites=0, ctx=ctx)


def test_a_constant_of_higher_rank_keeps_it_apart() -> None:
    body = "a = Div(x, root) b = Erf(a) c1 = Add(b, one) d = Mul(x, c1) y = Mul(d, high)"
    text = model(body, "float[1,2,3,8] y").replace("float half", "float[1,1,1,1] high = {0.5}, float half")
    check_pass(text, FuseGelu(), rewrites=0)
