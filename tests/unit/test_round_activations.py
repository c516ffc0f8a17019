"""Half precision: everything is rounded that float16 can hold, and what it can't is left alone and named."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgec.compiler import rounding
from edgec.compiler.graph import attr, nodes
from edgec.compiler.numerics import difference
from edgec.compiler.passbase import Context
from edgec.compiler.targets import find_target
from edgec.compiler.weights import Scratch
from edgec.passes.noise_search import search
from edgec.passes.round_activations import RoundActivations
from passcheck import check_pass, context, load, ops, run

HEAD = '<ir_version: 10, opset_import: ["" : 25]>\n'
HALF = 2.0**-11  # half the spacing of float16 at 1: the relative error of one rounding


def named(text: str) -> ir.Model:
    """The model, each node called like its output."""
    m = load(HEAD + text)
    for node in nodes(m):
        node.name = node.outputs[0].name
    return m


def rounds(text: str, inputs: dict[str, np.ndarray], rtol: float, **options: object) -> tuple[ir.Model, Context]:
    """Run the pass on a model with these inputs; the outputs may move by `rtol`."""
    ctx = context(inputs=inputs)
    p = RoundActivations(**options)  # type: ignore[arg-type]
    return check_pass(named(text), p, inputs=inputs, ctx=ctx, rtol=rtol), ctx


def normal(*shape: int, seed: int = 0, scale: float = 1.0) -> np.ndarray:
    return (np.random.default_rng(seed).normal(size=shape) * scale).astype(np.float32)


def half(a: np.ndarray) -> np.ndarray:
    return a.astype(np.float16).astype(np.float32)


def test_inputs_constants_and_results_are_rounded_once() -> None:
    text = """agraph (float[2,3] x) => (float[2,3] y) <float[3] c = {0.1, 0.2, 0.3}>
    { a = Mul(x, c) r = Relu(a) t = Transpose<perm=[1,0]>(r) u = Transpose<perm=[1,0]>(t) y = Sigmoid(u) }"""
    x = normal(2, 3)
    m, ctx = rounds(text, {"x": x}, 2 * HALF)
    assert ctx.notes == []
    # x, a and y; Relu and Transpose only move what is rounded already; c is stored in float16.
    assert sum(rounding.is_pair(n) for n in nodes(m)) == 3
    assert [n.op_type for n in nodes(m) if rounding.is_stored_half(n)] == ["Cast"]
    a = half(half(x) * half(np.float32([0.1, 0.2, 0.3])))
    np.testing.assert_allclose(run(m, {"x": x})["y"], half(1 / (1 + np.exp(-np.maximum(a, 0)))), rtol=HALF)
    assert ops(rounding.strip_rounding(m)) == {"Cast": 1, "Mul": 1, "Relu": 1, "Transpose": 2, "Sigmoid": 1}


def test_what_overflows_stays_and_is_named() -> None:
    text = """agraph (float[4] x) => (float[4] y) <float k = {300.0}>
    { big = Mul(x, k) huge = Mul(big, k) small = Div(huge, k) y = Div(small, k) }"""
    x = np.float32([0.5, 1, 2, 3])
    m, ctx = rounds(text, {"x": x}, 3 * HALF)
    assert np.isfinite(run(m, {"x": x})["y"]).all()
    assert any("Mul 'huge'" in n and "2.7e+05" in n and "65504" in n for n in ctx.notes)
    assert any("Div 'small'" in n and "reads" in n for n in ctx.notes)
    kept = {n.outputs[0].name: n for n in nodes(m, "Mul", "Div")}
    assert not any(rounding.is_pair(u) for u in nodes(m) if rounding.pair_source(u) is kept["huge"].outputs[0])


def test_weights_that_float16_has_not_stay() -> None:
    text = "agraph (float[2] x) => (float[2] y) <float[2] w = {1e6, 2.0}> { a = Mul(x, w) y = Tanh(a) }"
    m, ctx = rounds(text, {"x": np.float32([1e-4, 0.3])}, 2 * HALF)
    assert any("Mul 'a'" in n and "1e+06" in n for n in ctx.notes)
    assert m.graph.initializers["w"].dtype == ir.DataType.FLOAT


def test_large_numbers_are_seen_through_reshapes_and_tables() -> None:
    text = """agraph (float[2,2] x, int64[1] i) => (float[4] y, float[1,2] z)
    <float k = {1e6}, int64[1] s = {-1}, float[3,2] t = {1e6, 2e6, 3e6, 4e6, 5e6, 6e6}>
    { huge = Mul(x, k) r = Reshape(huge, s) y = Div(r, k) g = Gather(t, i) z = Div(g, k) }"""
    x = normal(2, 2)
    m, ctx = rounds(text, {"x": x, "i": np.array([2])}, 2 * HALF)
    got = run(m, {"x": x, "i": np.array([2])})
    np.testing.assert_allclose(got["y"], x.reshape(-1), rtol=1e-3)
    np.testing.assert_allclose(got["z"], [[5, 6]], rtol=1e-3)
    assert sum("Div" in n for n in ctx.notes) >= 1


def test_a_vanishing_epsilon_keeps_the_division_it_guards() -> None:
    text = """agraph (float[2,8] x) => (float[2,8] y) <float e = {1e-12}, int64[1] ax = {1}>
    { s = Mul(x, x) v = ReduceMean(s, ax) ve = Add(v, e) d = Sqrt(ve) y = Div(x, d) }"""
    x = normal(2, 8)
    m, ctx = rounds(text, {"x": x}, 4 * HALF)
    note = next(n for n in ctx.notes if "1e-12" in n)
    assert all(what in note for what in ("Add 've'", "Sqrt 'd'", "Div 'y'")) and "zero in float16" in note
    x[0] = 0  # a row of silence must stay zero, not become NaN
    assert np.array_equal(run(m, {"x": x})["y"][0], np.zeros(8, np.float32))


@pytest.mark.parametrize(("scale", "stays"), [(1.0, False), (1e-3, True)])
def test_a_normalisation_stays_where_its_epsilon_matters(scale: float, stays: bool) -> None:
    text = """agraph (float[4,8] x) => (float[4,8] y) <float[8] g = {1,1,1,1,1,1,1,1}>
    { y = LayerNormalization<axis=-1, epsilon=1e-12>(x, g) }"""
    m, ctx = rounds(text, {"x": normal(4, 8, scale=scale)}, 8 * HALF)
    assert any("epsilon 1e-12" in n for n in ctx.notes) == stays
    node = next(nodes(m, "LayerNormalization"))
    assert node.attributes["epsilon"].as_float() == pytest.approx(1e-12 if stays else 2**-24)


def test_small_divisors_are_not_rounded() -> None:
    text = """agraph (float[4] x, float[4] z) => (float[4] y) <float k = {1e-6}>
    { t = Mul(x, x) d = Mul(t, z) y = Div(t, d) }"""
    z = np.float32([1e-6, 2e-6, 1, 3])
    m, ctx = rounds(text, {"x": np.float32([1, 2, 3, 4]), "z": z}, 2 * HALF)
    assert any("Div 'y'" in n and "1e-06" in n for n in ctx.notes)
    np.testing.assert_allclose(run(m, {"x": np.ones(4, np.float32), "z": z})["y"], 1 / z, rtol=1e-3)


def test_squares_that_overflow_inside_a_normalisation() -> None:
    text = "agraph (float[2,8] x) => (float[2,8] y) <float[8] g = {1,1,1,1,1,1,1,1}> { y = RMSNormalization(x, g) }"
    _, ctx = rounds(text, {"x": normal(2, 8, scale=1000)}, 1e-6)
    assert any("RMSNormalization" in n and "squares" in n for n in ctx.notes)


def test_numbers_that_become_indices_stay_whole() -> None:
    text = """agraph (float[5000] x, int64[3] i) => (float[3] y) <float k = {1.0}>
    { f = Cast<to=1>(i) g = Add(f, k) h = Cast<to=7>(g) p = Gather(x, h) y = Tanh(p) }"""
    x, i = normal(5000), np.array([4097, 2049, 4001])
    m, ctx = rounds(text, {"x": x, "i": i}, 2 * HALF)
    np.testing.assert_allclose(run(m, {"x": x, "i": i})["y"], half(np.tanh(half(x[i + 1]))), rtol=HALF)
    assert any("Add 'g'" in n and "index" in n for n in ctx.notes)


MASK = """agraph (float[2,4,4] q, int64[2,4] mask) => (float[2,4,4] y)
<float one = {{1.0}}, float low = {{{low}}}, int64[1] ax = {{1}}>
{{ k = Transpose<perm=[0,2,1]>(q) s = MatMul(q, k) u = Unsqueeze(mask, ax) {make} p = Softmax(z) y = MatMul(p, q) }}"""


@pytest.mark.parametrize(
    "make",
    [
        "f = Cast<to=1>(u) i = Sub(one, f) b = Mul(i, low) z = Add(s, b)",
        "c = Cast<to=9>(u) z = Where(c, s, low)",
    ],
)
@pytest.mark.parametrize("low", ["-3.4028234e38", "-1e9"])
def test_minus_infinity_of_a_mask_becomes_one_that_float16_has(make: str, low: str) -> None:
    inputs = {"q": normal(2, 4, 4), "mask": np.array([[1, 1, 1, 0], [1, 0, 0, 0]])}
    m, ctx = rounds(MASK.format(low=low, make=make), inputs, 8 * HALF)
    assert ctx.notes == []
    assert all(rounding.is_rounded(i) for n in nodes(m, "Softmax") for i in n.inputs if i is not None) or any(
        n.op_type == "Where" for n in nodes(m)
    )
    values = [c.const_value.numpy() for c in m.graph.initializers.values() if c.dtype == ir.DataType.FLOAT]  # type: ignore[union-attr]
    assert all(np.abs(v).max(initial=0) <= 16384 for v in values)


@pytest.mark.parametrize(("target", "rounded"), [("ios16", False), ("ios17", True)])
def test_recurrent_operators_follow_the_target(target: str, rounded: bool) -> None:
    rng = np.random.default_rng(0)
    m = load(f"""{HEAD} agraph (float[3,1,4] x, float[1,20,4] w, float[1,20,5] r) => (float[3,1,1,5] y)
    {{ y = LSTM<hidden_size=5>(x, w, r) }}""")
    for name, shape in (("w", (1, 20, 4)), ("r", (1, 20, 5))):
        value = next(v for v in m.graph.inputs if v.name == name)
        m.graph.inputs.remove(value)
        value.const_value = ir.Tensor(rng.normal(size=shape).astype(np.float32), name=name)
        m.graph.register_initializer(value)
    inputs = {"x": normal(3, 1, 4)}
    ctx = context(target, inputs=inputs)
    out = check_pass(m, RoundActivations(), inputs=inputs, ctx=ctx, rtol=8 * HALF)
    assert rounding.has_rounding(out) == rounded
    assert any("recurrent" in n for n in ctx.notes) != rounded


def test_the_option_keep_names_nodes_or_operators() -> None:
    text = "agraph (float[4] x) => (float[4] y) { a = Exp(x) b = Tanh(a) y = Sin(b) }"
    m, ctx = rounds(text, {"x": normal(4)}, 8 * HALF, keep=("Tan*", "y"))
    assert sum(rounding.is_pair(n) for n in nodes(m)) == 2  # x and a
    assert any("Tanh 'b'" in n and "Sin 'y'" in n for n in ctx.notes)


CANCEL = """agraph (float[64] x) => (float[64] y) <float big = {4096.3}>
{ a = Tanh(x) b = Add(a, big) c = Sub(b, big) d = Tanh(c) e = Sigmoid(d) f = Tanh(e) g = Tanh(f) h = Tanh(g) i = Tanh(h)
  j = Tanh(i) k = Tanh(j) l = Tanh(k) y = Tanh(l) }"""


def test_the_operators_that_lose_most_are_found_and_kept() -> None:
    x = normal(64)
    exact = run(load(HEAD + CANCEL), {"x": x})["y"]
    m, ctx = rounds(CANCEL, {"x": x}, 0.01, min_snr=50.0)
    assert difference(exact, run(m, {"x": x})["y"]).snr_db >= 50
    assert any("Add 'b'" in n and "rounding here alone" in n for n in ctx.notes)
    assert sum(rounding.is_pair(n) for n in nodes(m)) > 8, "only the culprits stay"
    assert len(ctx.notes) <= 2


def test_a_loss_that_nobody_is_to_blame_for_is_said() -> None:
    text = "agraph (float[64] x) => (float[64] y) { a = Tanh(x) b = Sin(a) c = Tanh(b) y = Sin(c) }"
    _, ctx = rounds(text, {"x": normal(64)}, 0.01, min_snr=90.0)
    assert len(ctx.notes) == 1 and "no few operators are to blame" in ctx.notes[0] and "90 dB" in ctx.notes[0]


def test_a_constant_that_is_also_read_in_float32_is_kept_for_that_reader() -> None:
    text = """agraph (float[3] x) => (float[3] y, float[3] z) <float[3] c = {0.1, 0.2, 0.3}>
    { y = Mul(x, c) z = Add(x, c) }"""
    x = normal(3)
    m, _ = rounds(text, {"x": x}, 2 * HALF, keep=("z",))
    np.testing.assert_array_equal(run(m, {"x": x})["z"], x + np.float32([0.1, 0.2, 0.3]))
    assert {v.dtype for v in m.graph.initializers.values()} == {ir.DataType.FLOAT, ir.DataType.FLOAT16}


def test_subgraphs_are_left_and_counted() -> None:
    text = """agraph (float[3] x, bool c) => (float[3] y)
    { t = Tanh(x)  y = If(c) <then_branch = g () => (float[3] a) { a = Exp(t) },
                               else_branch = h () => (float[3] b) { b = Sin(t) }> }"""
    _, ctx = rounds(text, {"x": normal(3), "c": np.array(True)}, 4 * HALF)
    assert any("2 operators inside If" in n for n in ctx.notes)


def test_nothing_to_round_is_no_rewrite() -> None:
    check_pass(HEAD + "agraph (int64[3] x) => (int64[3] y) { y = Add(x, x) }", RoundActivations(), rewrites=0)


STEPS = {
    "Tanh": "Tanh({})", "Relu": "Relu({})", "Sigmoid": "Sigmoid({})", "double": "Add({0}, {0})", "scale": "Mul({}, k)",
    "grow": "Mul({}, big)", "shrink": "Mul({}, tiny)", "turn": "Transpose({})", "Softmax": "Softmax({})",
    "Exp": "Exp({})",
}  # fmt: skip


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from(sorted(STEPS)), min_size=1, max_size=8), st.integers(0, 1000))
def test_rounding_never_breaks_a_model(steps: list[str], seed: int) -> None:
    """Whatever the numbers do on the way, outputs stay finite where they were, and close unless the notes say so."""
    body = " ".join(f"v{i + 1} = {STEPS[s].format(f'v{i}')}" for i, s in enumerate(steps))
    text = f"""agraph (float[4,4] v0) => (float[4,4] y)
    <float k = {{0.3}}, float big = {{700.0}}, float tiny = {{1e-5}}> {{ {body} y = Identity(v{len(steps)}) }}"""
    x = {"v0": normal(4, 4, seed=seed)}
    exact = run(load(HEAD + text), x)["y"]
    ctx = context(inputs=x)
    got = run(check_pass(HEAD + text, RoundActivations(), inputs=x, ctx=ctx, rtol=np.inf), x)["y"]
    assert np.array_equal(np.isfinite(got), np.isfinite(exact))
    if np.isfinite(exact).all() and exact.any():
        assert difference(exact, got).snr_db >= 40 or any("to blame" in n for n in ctx.notes)


@given(st.lists(st.floats(1e-9, 1e-6), min_size=20, max_size=60), st.sets(st.integers(0, 19), max_size=3))
def test_the_search_finds_what_is_noisy(quiet: list[float], loud: set[int]) -> None:
    power = dict(enumerate(quiet)) | dict.fromkeys(loud, 0.1)
    names = {str(k): v for k, v in power.items()}
    calls = []

    def noise(kept: object) -> float:
        calls.append(kept)
        return sum(v for k, v in names.items() if k not in set(kept))  # type: ignore[call-overload]

    result = search(list(names), 1e-3, noise)
    assert len(calls) <= 40
    assert result.found and result.noise <= 1e-3
    kept = {n for s in result.kept for n in s.names}
    assert {str(k) for k in loud} <= kept and len(kept) <= len(names) / 4


@pytest.mark.parametrize(("target", "size"), [("ios17", 15), ("ios18", 15), ("ios17", 64), ("ios18", 64)])
def test_attention_gets_a_scale_that_float16_applies_without_error(target: str, size: int) -> None:
    """1 / sqrt(15) is no float16: a package would be off by the same part everywhere, and so must the model be."""
    kind = f"float[1,2,5,{size}]"
    text = f"agraph ({kind} q, {kind} k, {kind} v) => ({kind} y) {{ y = Attention(q, k, v) }}"
    model = load(HEAD + text)
    with Scratch() as scratch:
        RoundActivations().run(model, Context(find_target(target), scratch))
    (node,) = [n for n in model.graph if n.op_type == "Attention"]
    scale = attr(node, "scale") or size**-0.5
    assert abs(scale * size**0.5 - 1) < 2e-3
    applied = 1.0 if target == "ios18" else scale**0.5
    assert np.float16(applied) == pytest.approx(applied, rel=1e-6)
