"""Integer activations: where pairs go, what they cost, what is left out, and that nothing else changes."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from channelnets import IMAGE, TOKENS
from channelnets import build as random_net
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from layercases import build

import passcheck
from edgec.compiler import graph, numerics
from edgec.compiler.passbase import Context
from edgec.compiler.rounding import pair_source, strip_rounding
from edgec.compiler.session import Session
from edgec.compiler.synthesis import synthesise
from edgec.passes.pack_weights import PackWeights
from edgec.passes.quantize_activations import QuantizeActivations
from edgec.passes.round_activations import RoundActivations
from edgec.passes.round_weights import RoundWeights
from passcheck import check_pass, load, ops

RNG = np.random.default_rng(11)
CONVS = "(float[N,3,12,12] x) => (float[N,a,b,c] y) { a = Conv(x, v) b = Relu(a) c = Conv(b, w) y = Sigmoid(c) }"
CONV_WEIGHTS = {"v": RNG.normal(size=(8, 3, 3, 3)), "w": RNG.normal(size=(4, 8, 3, 3)) / 9}
IMAGES = {"x": RNG.normal(size=(6, 3, 12, 12)).astype(np.float32)}


def given_inputs(target: str = "onnx", **inputs: np.ndarray) -> Context:
    ctx = passcheck.context(target, inputs or IMAGES)
    ctx.given = True
    return ctx


def run(p: QuantizeActivations, model: ir.Model, ctx: Context, rewrites: int | None = None) -> ir.Model:
    """The pass, checked, but for running it again, which wants the context's inputs to be given ones."""
    out = check_pass(model, p, rewrites=rewrites, ctx=ctx, inputs=ctx.inputs, rtol=10, idempotent=False)
    again = Context(ctx.target, ctx.scratch, ctx.inputs, True)
    assert p.run(out.clone(), again) == 0, "a second run must find nothing more"
    return out


def rounded(model: ir.Model) -> dict[str, tuple[float, int]]:
    """Scale and zero point by the name of what is rounded to integers."""
    found = {}
    for node in graph.nodes(model, "DequantizeLinear"):
        source = pair_source(node)
        if source is not None:
            found[source.name] = (graph.scalar(node.inputs[1]), int(graph.scalar(node.inputs[2])))
    return found


@pytest.mark.parametrize("calibrate", ["mse", "minmax", "percentile", "entropy"])
@pytest.mark.parametrize("target", ["onnx", "ios17", "ios18"])
def test_convolutions_read_and_give_integers(calibrate, target):
    """No pair between a convolution and the activation that merges with it, and none behind an output."""
    ctx = given_inputs(target)
    out = run(QuantizeActivations(calibrate=calibrate, percentile=99.9), load(build(CONVS, **CONV_WEIGHTS)), ctx)
    # Sigmoid merges with a convolution in Core ML alone, and what it gives is an output of the model here.
    assert list(rounded(out)) == (["x", "b", "c"] if target == "onnx" else ["x", "b"])
    assert all(zero == 0 for _, zero in rounded(out).values()) == (target != "onnx")
    kinds = {n.inputs[0].name: n.outputs[0].dtype for n in graph.nodes(out, "QuantizeLinear")}
    signed = ir.DataType.UINT8 if target == "onnx" else ir.DataType.INT8
    assert (kinds["x"], kinds["b"]) == (signed, ir.DataType.UINT8)
    wanted, got = (Session(m).run(IMAGES) for m in (build(CONVS, **CONV_WEIGHTS), out))
    assert numerics.compare(wanted, got)["y"].snr_db > 30
    assert ops(strip_rounding(out)) == {"Conv": 2, "Relu": 1, "Sigmoid": 1}


@pytest.mark.parametrize(("bits", "least", "most"), [(4, 5, 30), (8, 30, 60), (16, 60, 120)])
def test_bits(bits, least, most):
    out = run(QuantizeActivations(bits=bits, min_snr=0), load(build(CONVS, **CONV_WEIGHTS)), given_inputs())
    wanted, got = (Session(m).run(IMAGES) for m in (build(CONVS, **CONV_WEIGHTS), out))
    assert least < numerics.compare(wanted, got)["y"].snr_db < most


def test_what_places_numbers_keeps_their_levels():
    text = """(float[N,3,12,12] x) => (float[N,a] y) { a = Conv(x, v) b = Relu(a) m = MaxPool<kernel_shape=[2,2]>(b)
        c = Conv(m, w) d = Relu(c) f = Flatten(d) y = MatMul(f, u) }"""
    out = run(QuantizeActivations(), load(build(text, **CONV_WEIGHTS, u=RNG.normal(size=(196, 5)))), given_inputs(), 5)
    found = rounded(out)
    assert found["b"] == found["m"] != found["d"] == found["f"]
    with_both = Session(out).run(IMAGES)["y"]
    pair = next(n for n in graph.nodes(out, "DequantizeLinear") if pair_source(n).name == "m")
    graph.replace_value(pair.outputs[0], pair_source(pair))
    assert Session(out).run(IMAGES)["y"].tobytes() == with_both.tobytes(), "what is rounded already stays as it is"


RESIDUAL = """(float[N,4,9] x) => (float[N,4,9] y) { a = Relu(x) b = Conv<pads=[1,1]>(a, v) s = Add(a, b)
    c = Conv<pads=[1,1]>(s, w) y = Add(s, c) }"""
RESIDUAL_WEIGHTS = {n: RNG.normal(size=(4, 4, 3)) / 5 for n in "vw"}


def readers(model: ir.Model) -> dict[str, list[str]]:
    """What reads each rounded value as it was."""
    names = {pair_source(n) for n in graph.nodes(model, "DequantizeLinear")} - {None}
    return {v.name: sorted(u.op_type for u in graph.users(v)) for v in names}


def test_residuals_are_rounded_for_all_or_for_linear_operators_alone():
    model = load(build(RESIDUAL, **RESIDUAL_WEIGHTS))
    ctx = given_inputs(x=RNG.normal(size=(5, 4, 9)).astype(np.float32))
    every = run(QuantizeActivations(), model, ctx)
    assert readers(every) == {n: ["QuantizeLinear"] for n in "absc"}
    alone = run(QuantizeActivations(outputs=False), model, ctx)
    assert readers(alone) == {"a": ["Add", "QuantizeLinear"], "s": ["Add", "QuantizeLinear"]}
    wanted = Session(model).run(ctx.inputs)
    snr = [numerics.compare(wanted, Session(m).run(ctx.inputs))["y"].snr_db for m in (every, alone)]
    assert snr[0] < snr[1]


@pytest.mark.parametrize("keep", ["Conv_c", "b", "?", "Conv"])
def test_what_is_kept(keep):
    model = load(build(CONVS, **CONV_WEIGHTS))
    for node in model.graph:
        node.name = f"{node.op_type}_{node.outputs[0].name}"
    p, ctx = QuantizeActivations(keep=(keep,)), given_inputs()
    if keep in ("?", "Conv"):
        assert p.run(model, ctx) == 0 and not ctx.notes
        return
    out = run(p, model, ctx)
    # What only the kept convolution reads isn't rounded for anybody.
    assert list(rounded(out)) == {"Conv_c": ["x"], "b": ["x", "c"]}[keep]


def test_weights_are_not_activations():
    """Constants, packed, transposed, in half precision, on either side of a product."""
    text = """(float[N,16] x) => (float[N,16] y) { t = Transpose(w) a = MatMul(x, t) b = Relu(a) c = MatMul(b, v)
        d = Transpose(c) e = MatMul(u, d) y = Transpose(e) }"""
    weights = {n: RNG.normal(size=(16, 16)) for n in "wvu"}
    model, inputs = build(text, **weights), RNG.normal(size=(16, 16)).astype(np.float32)
    ctx = given_inputs(x=inputs)
    assert RoundWeights(min_size=1, min_snr=0).run(model, ctx) and PackWeights(min_size=1).run(model, ctx)
    assert ops(model)["DequantizeLinear"] == 3
    out = run(QuantizeActivations(), model, ctx, 3)
    assert sorted(rounded(out)) == ["b", "d", "x"]
    half = build(text, **weights)
    assert RoundActivations().run(half, given_inputs("ios18", x=inputs))
    out = run(QuantizeActivations(), half, given_inputs("ios18", x=inputs), 3)
    assert len(rounded(out)) == 3


def test_products_of_activations():
    text = "(float[N,4,6] x) => (float[N,4,4] y) { t = Transpose<perm=[0,2,1]>(x) s = MatMul(x, t) y = Softmax(s) }"
    out = run(QuantizeActivations(), load(build(text)), given_inputs(x=RNG.normal(size=(3, 4, 6)).astype(np.float32)))
    assert rounded(out)["x"] == rounded(out)["t"]


def test_without_given_inputs_nothing_is_rounded():
    ctx = passcheck.context("onnx", IMAGES)
    check_pass(build(CONVS, **CONV_WEIGHTS), QuantizeActivations(), rewrites=0, ctx=ctx, inputs=IMAGES)
    assert len(ctx.notes) == 1 and "--inputs" in ctx.notes[0]


@pytest.mark.parametrize(
    ("target", "bits", "first"), [("ios16", 8, "ios17"), ("ios15", 8, "ios17"), ("ios18", 4, "onnx")]
)
def test_targets_without_such_integers_are_told(target, bits, first):
    ctx = given_inputs(target)
    check_pass(build(CONVS, **CONV_WEIGHTS), QuantizeActivations(bits=bits), rewrites=0, ctx=ctx, inputs=IMAGES)
    assert len(ctx.notes) == 1 and first in ctx.notes[0] and target in ctx.notes[0]


def test_zeros_and_infinities_are_left_and_said():
    text = """(float[N,4] x) => (float[N,4] y) { a = Mul(x, n) z = MatMul(a, w) b = Div(x, n) i = MatMul(b, w)
        c = Clip(i, lo, hi) m = MatMul(c, w) y = Add(z, m) }"""
    weights = {"n": np.zeros(4), "w": np.abs(RNG.normal(size=(4, 4))), "lo": np.array(-1), "hi": np.array(1)}
    ctx = given_inputs(x=np.abs(RNG.normal(size=(9, 4))).astype(np.float32))
    model = build(text, **weights)
    QuantizeActivations(min_snr=0).run(model, ctx)
    assert {n.split("'")[1] for n in ctx.notes} == {"a", "b"}
    assert "a" not in rounded(model) and "b" not in rounded(model)


def test_the_costly_activation_stays():
    """One activation whose small numbers matter, beside one a thousand times larger: the guard finds and names it."""
    lines = " ".join(f"h{k + 1} = MatMul(h{k}, w{k})" for k in range(9))
    text = f"(float[N,8] h0) => (float[N,8] y) {{ {lines} y = Mul(h9, one) }}"
    weights = {f"w{k}": np.linalg.qr(RNG.normal(size=(8, 8)))[0] for k in range(9)} | {"one": np.ones(8)}
    weights["w3"] = weights["w3"] @ np.diag([3e3, *[1] * 7])
    weights["w4"] = np.diag([0, *[1] * 7]) @ weights["w4"]
    ctx = given_inputs(h0=RNG.normal(size=(64, 8)).astype(np.float32))
    model = load(build(text, **weights))
    out = run(QuantizeActivations(calibrate="minmax", min_snr=25), model, ctx, 8)
    assert "h4" not in rounded(out) and any("'h4'" in n for n in ctx.notes)
    wanted, got = (Session(m).run(ctx.inputs) for m in (model, out))
    assert numerics.compare(wanted, got)["y"].snr_db >= 25
    hopeless = given_inputs(h0=ctx.inputs["h0"])
    assert QuantizeActivations(min_snr=90).run(model.clone(), hopeless) == 0
    assert "min_snr" in hopeless.notes[-1]


def test_levels_come_from_all_runs():
    ctx = given_inputs()
    ctx.runs = (IMAGES, {"x": 40 * IMAGES["x"]})
    model = build(CONVS, **CONV_WEIGHTS)
    QuantizeActivations(calibrate="minmax", min_snr=0).run(model, ctx)
    scale, zero = rounded(model)["x"]
    x = 40 * IMAGES["x"]
    assert (-zero * scale, (255 - zero) * scale) == pytest.approx((x.min(), x.max()), rel=0.01)


def test_options_are_checked():
    for options in ({"bits": 5}, {"percentile": 20.0}):
        with pytest.raises(ValueError, match=next(iter(options))):
            QuantizeActivations(**options)


MERGING = """(float[N,8,10,10] x) => (float[N,a,b,c] y) { a = Conv(x, v, p) b = Relu(a) c = Conv<group=4>(b, w, q)
    d = Clip(c, lo, hi) e = Conv(d, u) s = Conv(d, t, r) y = Add(s, e) }"""
MERGING_WEIGHTS = {
    "v": RNG.normal(size=(16, 8, 3, 3)) / 9, "w": RNG.normal(size=(16, 4, 3, 3)) / 6,
    "u": RNG.normal(size=(4, 16, 1, 1)), "t": RNG.normal(size=(4, 16, 1, 1)), "p": RNG.normal(size=16),
    "q": RNG.normal(size=16), "r": RNG.normal(size=4), "lo": np.array(0), "hi": np.array(6),
}  # fmt: skip


def test_onnxruntime_convolves_in_integers(tmp_path):
    """All four convolutions, with what merges, biases or none."""
    ctx = given_inputs(x=RNG.normal(size=(4, 8, 10, 10)).astype(np.float32))
    model = load(build(MERGING, **MERGING_WEIGHTS))
    wanted = Session(model).run(ctx.inputs)
    for p in (RoundWeights(min_size=1), QuantizeActivations(), PackWeights(min_size=1)):
        assert p.run(model, ctx)
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    proto = ir.to_proto(model).SerializeToString()
    session = ort.InferenceSession(proto, options, providers=["CPUExecutionProvider"])
    kinds = [n.op_type for n in onnx.load(tmp_path / "optimized.onnx").graph.node]
    assert kinds.count("QLinearConv") == 4 and not {"Conv", "FusedConv", "Relu", "Clip"} & set(kinds)
    got = {"y": session.run(["y"], ctx.inputs)[0]}
    assert numerics.compare(wanted, got)["y"].snr_db > 25


STEPS = st.lists(st.sampled_from(sorted({*IMAGE, *TOKENS})), min_size=1, max_size=4)
NETS = st.builds(random_net, STEPS, st.integers(0, 10_000), st.booleans())
OPTIONS = st.fixed_dictionaries({
    "calibrate": st.sampled_from(["mse", "minmax", "percentile", "entropy"]), "outputs": st.booleans(),
    "symmetric": st.sampled_from([None, True, False]), "bits": st.just(8),
})  # fmt: skip


@settings(max_examples=4, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(NETS, OPTIONS, st.sampled_from(["onnx", "ios17"]))
def test_any_network(net, options, target):
    """Only pairs are added; without them the model is what it was, bit for bit; a second run adds none."""
    model = load(net)
    feeds = synthesise(model)
    wanted = Session(model).run(feeds)
    out = run(QuantizeActivations(min_snr=0, **options), model, given_inputs(target, **feeds))
    assert ops(strip_rounding(out)) == ops(model)
    got = Session(out, exact=True).run(feeds)
    assert all(np.array_equal(wanted[n], got[n], equal_nan=True) for n in wanted)
    convs = [n for n in graph.nodes(out, "Conv", "ConvTranspose") if n.graph is out.graph and _varies(out, n, feeds)]
    assert all(n.inputs[0].producer().op_type == "DequantizeLinear" for n in convs)


def _varies(model: ir.Model, node: ir.Node, feeds: dict[str, np.ndarray]) -> bool:
    """Whether what a convolution reads is anything but zeros, which need no scale."""
    value = node.inputs[0]
    if value.is_graph_input():
        return bool(np.any(feeds[value.name]))
    seen = model.clone()
    twin = next(o for n in seen.graph for o in n.outputs if o.name == value.name)
    seen.graph.outputs.append(twin)
    return bool(np.any(Session(seen).run(feeds)[value.name]))


def test_ranges_that_each_run_finds():
    """Without given inputs; what MatMul and Gemm multiply with weights, and nothing else."""
    text = """(float[N,64] x) => (float[N,N] y, float[N,32] z) {
        a = MatMul(x, v) b = Relu(a) c = Gemm<transB=1>(b, w) z = Sigmoid(c) t = Transpose(z) y = MatMul(z, t) }"""
    weights = {"v": RNG.normal(size=(64, 96)), "w": RNG.normal(size=(32, 96)) / 9}
    ctx = passcheck.context("onnxruntime", {"x": RNG.normal(size=(5, 64)).astype(np.float32)})
    model = load(build(text, **weights))
    out = run(QuantizeActivations(calibrate="dynamic", min_snr=0), model, ctx, 2)
    pairs = [n for n in graph.nodes(out, "DequantizeLinear") if pair_source(n) is not None]
    assert [pair_source(n).name for n in pairs] == ["x", "b"]
    assert ops(strip_rounding(out)) == ops(model)
    wanted, got = (Session(m).run(ctx.inputs) for m in (model, out))
    assert 30 < numerics.compare(wanted, got)["z"].snr_db < 60
    np.testing.assert_array_equal(Session(out, exact=True).run(ctx.inputs)["z"], wanted["z"])


def test_ranges_that_each_run_finds_are_for_onnx():
    ctx = given_inputs("ios17")
    assert QuantizeActivations(calibrate="dynamic").run(load(build(CONVS, **CONV_WEIGHTS)), ctx) == 0
    assert "ios17 finds no ranges as the model runs; --target onnx and onnxruntime do" in ctx.notes
    with pytest.raises(ValueError, match="8 bits only"):
        QuantizeActivations(calibrate="dynamic", bits=4)
