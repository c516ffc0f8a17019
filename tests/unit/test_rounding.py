"""Rounding pairs: onnxruntime must keep them, strip_rounding must take exactly them away."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from edgec.compiler import rounding
from edgec.compiler.checks import Interface, check_structure
from edgec.compiler.graph import nodes
from edgec.compiler.session import Session
from edgec.compiler.shapes import infer
from passcheck import load, ops, run

HEAD = '<ir_version: 10, opset_import: ["" : 25]>\n'
PLAIN = "agraph (float[2,3] x, float[3,3] w) => (float[2,3] y) { h = MatMul(x, w) r = Relu(h) y = Softmax(r) }"
INPUTS = {
    "x": np.random.default_rng(0).normal(size=(2, 3)).astype(np.float32),
    "w": np.random.default_rng(1).normal(size=(3, 3)).astype(np.float32),
}


def rounded(*names: str) -> ir.Model:
    """The plain model with a pair behind each of these values."""
    m = load(HEAD + PLAIN)
    values = {v.name: v for v in [*m.graph.inputs, *(o for n in m.graph for o in n.outputs)]}
    for name in names:
        rounding.insert_pair(values[name])
    infer(m)
    return m


def half(a: np.ndarray) -> np.ndarray:
    return a.astype(np.float16).astype(np.float32)


@pytest.mark.parametrize("level", ["ORT_DISABLE_ALL", "ORT_ENABLE_BASIC", "ORT_ENABLE_EXTENDED", "ORT_ENABLE_ALL"])
def test_canary_onnxruntime_keeps_explicit_pairs(level: str) -> None:
    """If this fails, onnxruntime has begun to delete roundings, and every measured loss is a lie."""
    text = """agraph (float[4] x) => (float[4] y, float[4] z) <float k = {1000.0}, float c = {1e-9}> {
        xh = Cast<to=10>(x) xr = Cast<to=1>(xh) a = Mul(xr, k)
        ah = Cast<to=10>(a) ar = Cast<to=1>(ah) b = Mul(ar, k)
        bh = Cast<to=10>(b) br = Cast<to=1>(bh) y = Div(br, k)
        s = Add(xr, c) sh = Cast<to=10>(s) z = Cast<to=1>(sh) }"""
    m = load(HEAD + text)
    x = np.float32([0.1, 1.0001, 60.0, 0.0])
    options = ort.SessionOptions()
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, level)
    session = ort.InferenceSession(ir.to_proto(m).SerializeToString(), options, providers=["CPUExecutionProvider"])
    got = dict(zip(("y", "z"), session.run(["y", "z"], {"x": x}), strict=True))
    with np.errstate(over="ignore"):
        expected = half(half(half(x) * 1000) * 1000) / 1000
    assert np.isinf(expected[1]) and np.isinf(expected[2])
    np.testing.assert_array_equal(got["y"], expected)
    np.testing.assert_array_equal(got["z"], half(half(x) + np.float32(1e-9)))


def test_insert_rounds_and_strip_undoes_it() -> None:
    plain = load(HEAD + PLAIN)
    exact = run(plain, INPUTS)["y"]
    m = rounded("x", "h", "r", "y")
    check_structure(m, Interface.of(plain))
    h = half(half(INPUTS["x"]) @ INPUTS["w"])
    e = np.exp(np.maximum(h, 0) - np.maximum(h, 0).max(-1, keepdims=True))
    np.testing.assert_allclose(run(m, INPUTS)["y"], half(e / e.sum(-1, keepdims=True)), rtol=2**-10)
    assert rounding.has_rounding(m) and not np.array_equal(run(m, INPUTS)["y"], exact)

    before = ops(m)
    bare = rounding.strip_rounding(m)
    check_structure(bare, Interface.of(plain))
    assert ops(bare) == ops(plain) and not rounding.has_rounding(bare)
    np.testing.assert_array_equal(run(bare, INPUTS)["y"], exact)
    assert ops(m) == before, "the model itself must stay as it was"


@pytest.mark.parametrize(
    "text",
    [
        "agraph (float[3] x) => (float[3] y) { h = Cast<to=10>(x) r = Cast<to=1>(h) y = Relu(r) }",
        "agraph (float[3] x) => (float[3] y) { a = Relu(x) h = Cast<to=10>(a) y = Cast<to=1>(h) }",
        "agraph (float[3] x) => (float[3] y) { h = Cast<to=10>(x) y = Cast<to=1>(h) }",
        "agraph (float[3] x) => (float[3] y, float16[3] h) { a = Relu(x) h = Cast<to=10>(a) y = Cast<to=1>(h) }",
        "agraph (float[3] x) => (float[3] y, float[3] z) { h = Cast<to=10>(x) y = Cast<to=1>(h) z = Cast<to=1>(h) }",
        """agraph (float[3] x) => (float[3] y) {
            a = Cast<to=10>(x) b = Cast<to=1>(a) c = Cast<to=10>(b) d = Cast<to=1>(c) y = Relu(d) }""",
        """agraph (float[3] x) => (float[3] y) <float s = {0.1}, uint8 z = {3}> {
            q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) y = Relu(d) }""",
        """agraph (float[3] x, bool c) => (float[3] y) {
            h = Cast<to=10>(x) r = Cast<to=1>(h)
            y = If (c) <then_branch = a () => (float[3] t) { i = Neg(r) p = Cast<to=10>(i) t = Cast<to=1>(p) },
                        else_branch = b () => (float[3] e) { j = Cast<to=10>(r) k = Cast<to=1>(j) e = Abs(k) }> }""",
    ],
)
def test_a_session_leaves_out_what_stripping_takes_away(text: str) -> None:
    m = load(HEAD + text)
    feeds = {"x": np.float32([0.1, 1.0001, -60.03]), "c": np.array(True)}
    bare = rounding.strip_rounding(m)
    expected, got = Session(bare).run(feeds), Session(m, exact=True).run(feeds)
    assert list(got) == list(expected)
    for name, array in expected.items():
        np.testing.assert_array_equal(got[name], array)
    assert not np.array_equal(Session(m).run(feeds)["y"], got["y"])


def test_only_the_chosen_readers_read_the_rounded_value() -> None:
    m = load(HEAD + "agraph (float[3] x) => (float[3] y, float[3] z) { y = Relu(x) z = Neg(x) }")
    rounding.insert_pair(m.graph.inputs[0], readers=list(nodes(m, "Neg")))
    infer(m)
    x = np.float32([0.1, 0.2, 0.3])
    got = run(m, {"x": x})
    np.testing.assert_array_equal(got["y"], x)
    np.testing.assert_array_equal(got["z"], -half(x))


def test_a_pair_straight_from_input_to_output_leaves_an_identity() -> None:
    m = load(HEAD + "agraph (float[3] x) => (float[3] y) { h = Cast<to=10>(x) y = Cast<to=1>(h) }")
    bare = rounding.strip_rounding(m)
    check_structure(bare, Interface.of(m))
    x = np.float32([0.1, 0.2, 0.3])
    np.testing.assert_array_equal(run(bare, {"x": x})["y"], x)


NOT_ROUNDING = {
    "a stored float16 weight": "<float16[3] w = {15360, 16384, 16896}> { r = Cast<to=1>(w) y = Add(x, r) }",
    "a packed integer weight": "<int8[3] q = {1, 2, 3}, float s = {0.5}> { r = DequantizeLinear(q, s) y = Add(x, r) }",
    "a cast to bfloat16": "{ h = Cast<to=16>(x) y = Cast<to=1>(h) }",
    "a cast to double": "{ h = Cast<to=10>(x) d = Cast<to=11>(h) y = Cast<to=1>(d) }",
    "a cast of integers": "{ i = Cast<to=7>(x) h = Cast<to=10>(i) y = Cast<to=1>(h) }",
}


@pytest.mark.parametrize("what", NOT_ROUNDING)
def test_what_is_not_rounding_stays(what: str) -> None:
    m = load(HEAD + "agraph (float[3] x) => (float[3] y) " + NOT_ROUNDING[what])
    assert not rounding.has_rounding(m)
    assert ops(rounding.strip_rounding(m)) == ops(m)


def test_integer_activation_pairs_are_rounding() -> None:
    text = """agraph (float[3] x) => (float[3] y) <float s = {0.5}, int8 z = {1}, int8[3] q = {1, 2, 3}>
    { a = QuantizeLinear(x, s, z) b = DequantizeLinear(a, s, z) w = DequantizeLinear(q, s, z) y = Mul(b, w) }"""
    bare = rounding.strip_rounding(load(HEAD + text))
    assert ops(bare) == {"DequantizeLinear": 1, "Mul": 1}
    np.testing.assert_array_equal(run(bare, {"x": np.float32([0.1, 0.2, 0.3])})["y"], np.float32([0, 0.1, 0.3]))


def test_a_half_value_with_other_readers_is_kept() -> None:
    text = "agraph (float[3] x) => (float[3] y, float16[3] h) { h = Cast<to=10>(x) r = Cast<to=1>(h) y = Relu(r) }"
    bare = rounding.strip_rounding(load(HEAD + text))
    assert ops(bare) == {"Cast": 1, "Relu": 1}


def test_inserting_thousands_of_pairs_is_linear() -> None:
    """Quadratic work would cost a hundred times more for ten times the nodes; a loaded machine doubles a time."""
    import time

    def seconds(n: int) -> float:
        body = " ".join(f"v{i + 1} = Relu(v{i})" for i in range(n))
        m = load(f"{HEAD}agraph (float[3] v0) => (float[3] y) {{ {body} y = Neg(v{n}) }}")
        start = time.process_time()
        for node in list(nodes(m, "Relu")):
            rounding.insert_pair(node.outputs[0])
        return time.process_time() - start

    few, many = (min(seconds(n) for _ in range(3)) for n in (400, 4000))
    assert many < 50 * max(few, 0.005), "ten times the nodes should cost about ten times the time"


def test_big_arrays_are_converted_to_the_same_bits() -> None:
    """onnxruntime converts what is big, numpy what is small: ties, subnormals, overflow and NaN included."""
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 1 << 32, rounding.BIG, dtype=np.uint32).view(np.float32)
    edges = np.float32([65504, 65519, 65520, -65520, 2**-24, 2**-25, 2**-25 * 1.01, 1 + 2**-11, 1 + 3 * 2**-11, -0.0])
    values = np.concatenate([bits, edges, rng.normal(size=1000).astype(np.float32)]).reshape(1, -1)
    with np.errstate(all="ignore"):
        expected = values.astype(np.float16)
    found = rounding.to_half(values)
    assert values.size >= rounding.BIG and found.shape == values.shape
    numbers = ~np.isnan(values)
    assert np.array_equal(found.view(np.uint16)[numbers], expected.view(np.uint16)[numbers])
    assert np.isnan(found[~numbers]).all()
