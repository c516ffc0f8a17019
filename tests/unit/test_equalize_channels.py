"""Factors of channels: none changes what a model computes; where they pass, where they don't, and what they gain."""

from __future__ import annotations

import numpy as np
import pytest
from channelnets import IMAGE, TOKENS
from channelnets import build as random_net
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from layercases import build

import passcheck
from edgec.compiler import graph, numerics
from edgec.compiler.quantization import grids
from edgec.compiler.session import Session
from edgec.compiler.synthesis import synthesise
from edgec.passes.channel_gains import of_ids
from edgec.passes.equalize_channels import EqualizeChannels
from edgec.passes.gain_rules import network
from edgec.passes.round_weights import RoundWeights
from passcheck import check_pass, load

STEPS = st.lists(st.sampled_from(sorted({*IMAGE, *TOKENS})), min_size=2, max_size=9)
NETS = st.builds(random_net, STEPS, st.integers(0, 10_000), st.booleans())
SLOW = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
RNG = np.random.default_rng(5)
IMAGES = "(float[N,3,8,8] x) => "
ROWS = "(float[N,6,8] x) => "
WEIGHTS = {
    "u": (8, 3, 3, 3), "v": (4, 8, 3, 3), "k": (8, 1, 3, 3), "b": (8,), "t": (8, 4, 2, 2), "f": (72, 5), "p": (8, 1, 1),
    "e": (4, 16, 1, 1), "m": (8, 12), "n": (12, 4), "c": (12,), "q": (8, 8), "i": (8, 8), "j": (8, 8), "o": (8, 8),
    "s": (8,), "h": (8,), "z": (8, 8, 1, 1), "d": (4, 5),
}  # fmt: skip


def model_of(text, **others):
    used = {n: RNG.normal(size=s) * np.exp2(RNG.integers(-4, 4, s[:1])).reshape(-1, *[1] * (len(s) - 1))
            for n, s in WEIGHTS.items() if f"{n})" in text.replace(",", ")").replace(" ", "")}  # fmt: skip
    return load(build(text, **{**used, **others}))


PASSED = {
    "Relu": "(float[N,4,4,4] y) { a = Conv(x, u, b) r = Relu(a) y = Conv(r, v) }",
    "LeakyRelu": "(float[N,4,4,4] y) { a = Conv(x, u) r = LeakyRelu(a) y = Conv(r, v) }",
    "PRelu": "(float[N,4,4,4] y) { a = Conv(x, u) r = PRelu(a, p) y = Conv(r, v) }",
    "Clip without an upper bound": (
        "(float[N,4,4,4] y) <float z0 = {0.0}> { a = Conv(x, u) r = Clip(a, z0) y = Conv(r, v) }"
    ),
    "pooling": """(float[N,4,A,B] y) { a = Conv(x, u) r = MaxPool<kernel_shape=[2,2]>(a)
        w = AveragePool<kernel_shape=[2,2]>(r) y = Conv<pads=[1,1,1,1]>(w, v) }""",
    "depthwise": "(float[N,4,2,2] y) { a = Conv(x, u) r = Relu(a) w = Conv<group=8>(r, k) y = Conv(w, v2) }",
    "ConvTranspose": "(float[N,4,7,7] y) { a = Conv(x, u) y = ConvTranspose(a, t) }",
    "sum": """(float[N,4,4,4] y) { a = Conv(x, u) r = Relu(a) w = Conv(r, z) g = Add(r, w) y = Conv(g, v) }""",
    "flattened": """(float[N,5] y) { a = Conv<strides=[2,2]>(x, u) r = Relu(a) w = Flatten(r) y = Gemm(w, f) }""",
    "Concat": "(float[N,4,6,6] y) { a = Conv(x, u) r = Relu(a) g = Concat<axis=1>(r, a) y = Conv(g, e) }",
    "MatMul": "(float[N,6,4] y) { a = MatMul(x, m) g = Add(a, c) r = Relu(g) y = MatMul(r, n) }",
    "LayerNormalization": "(float[N,6,12] y) { a = LayerNormalization(x, s, h) y = MatMul(a, m) }",
    "RMSNormalization": "(float[N,6,12] y) { a = RMSNormalization(x, s) y = MatMul(a, m) }",
    "Mul by a constant": "(float[N,6,12] y) { g = Sigmoid(x) a = Mul(g, s) y = MatMul(a, m) }",
    "gate": "(float[N,6,12] y) { a = MatMul(x, q) g = Sigmoid(x) r = Mul(a, g) y = MatMul(r, m) }",
    "mean": """(float[N,12] y) <int64[1] one = {1}> { a = MatMul(x, q) r = ReduceMean<keepdims=0>(a, one)
        y = MatMul(r, m) }""",
}  # fmt: skip


@pytest.mark.parametrize("case", PASSED)
def test_ranges_are_evened_out(case):
    """Of what passes: both sides have the same ranges in each channel, in shares of the largest."""
    head = ROWS if "MatMul" in PASSED[case] else IMAGES
    others = {"v2": RNG.normal(size=(4, 8, 3, 3))} if "v2" in PASSED[case] else {}
    model = model_of(head + PASSED[case], **others)
    feeds = {"x": RNG.normal(size=(2, 6, 8) if head is ROWS else (2, 3, 8, 8)).astype(np.float32)}
    out = check_pass(model, EqualizeChannels(), inputs=feeds)
    net = network(out, passcheck.context())
    assert net.count > 4
    uneven = []
    for each in (network(model, passcheck.context()), net):
        sides = [[np.zeros(each.count)], [np.zeros(each.count)]]
        for use in each.uses:
            if use.role != "shift":
                array = np.abs(graph.const(use.constant)).reshape(use.view)
                by = array.max(tuple(a for a, n in enumerate(use.ids.shape) if n == 1), keepdims=True) / array.max()
                found = np.zeros(each.count)
                np.maximum.at(found, np.abs(use.ids), by)
                sides[int(use.ids.min() < 0)].append(found)
        plus, minus = (np.max(s, 0)[1:] for s in sides)
        uneven.append(np.abs(np.diff(np.log2(plus / minus))).max())
    assert uneven[1] < 0.15 < 1 < uneven[0]


STOPPED = {
    "Sigmoid": IMAGES + "(float[N,4,4,4] y) { a = Conv(x, u) r = Sigmoid(a) y = Conv(r, v) }",
    "an output": IMAGES + "(float[N,4,4,4] y, float[N,8,6,6] a) { a = Conv(x, u) y = Conv(a, v) }",
    "a normalisation reads it": ROWS
    + "(float[N,6,12] y) { a = MatMul(x, q) g = LayerNormalization(a, s, h) y = Mul(g, g) }",
    "padding with ones": IMAGES
    + """(float[N,4,6,6] y) <float w1 = {1.0}, int64[8] by = {0,0,1,1,0,0,1,1}> { a = Conv(x, u) r = Pad(a, by, w1)
        y = Conv(r, v) }""",
    "a square": IMAGES + "(float[N,4,4,4] y) { a = Conv(x, u) r = Mul(a, a) y = Conv(r, v) }",
    "a sum with an input": ROWS + "(float[N,6,12] y) { a = MatMul(x, q) g = Add(a, x) y = MatMul(g, m) }",
    "all channels are added": ROWS
    + "(float[N,6,1] y) <int64[1] two = {2}> { a = MatMul(x, q) g = ReduceSum(a, two) y = Relu(g) }",
    "one number for all channels is added": ROWS
    + "(float[N,6,12] y) <float w1 = {1.0}> { a = MatMul(x, q) g = Add(a, w1) y = MatMul(g, m) }",
    "a computed weight": ROWS + "(float[N,6,6] y) { a = MatMul(x, q) g = Transpose<perm=[0,2,1]>(x) y = MatMul(a, g) }",
}  # fmt: skip


@pytest.mark.parametrize("case", STOPPED)
def test_what_does_not_pass_stays(case):
    check_pass(model_of(STOPPED[case]), EqualizeChannels(), rewrites=0)


def test_a_bound_for_all_channels_is_named():
    text = (
        IMAGES
        + """(float[N,4,4,4] y) <float z0 = {0.0}, float w6 = {6.0}> { a = Conv(x, u) r = Clip(a, z0, w6)
        y = Conv(r, v) }"""
    )
    ctx = passcheck.context()
    check_pass(model_of(text), EqualizeChannels(), rewrites=0, ctx=ctx)
    assert len(ctx.notes) == 1 and "one bound for all channels" in ctx.notes[0]


ATTENTION = (
    ROWS
    + """(float[N,6,4] y) { a = MatMul(x, q) k1 = MatMul(x, i) v1 = MatMul(x, j)
    g = Attention<q_num_heads=2, kv_num_heads=2>(a, k1, v1) y = MatMul(g, n2) }"""
)


def test_attention():
    """Queries and keys have inverse factors; values pass to what reads the result."""
    model = model_of(ATTENTION, n2=RNG.normal(size=(8, 4)))
    assert network(model, passcheck.context()).count == 1 + 8 + 8
    out = check_pass(model, EqualizeChannels(), rewrites=4)
    peaks = [np.abs(graph.const(n.inputs[1])).max(0) for n in list(out.graph)[:2]]
    shares = [p / p.max() for p in peaks]
    np.testing.assert_allclose(np.diff(np.log2(shares[0] / shares[1])), 0, atol=0.15)


@pytest.mark.parametrize("shared", [False, True])
def test_a_weight_that_others_read_stays(shared):
    text = ROWS + "(float[N,6,8] y) { a = MatMul(x, w0) r = Relu(a) y = MatMul(r, " + ("w0" if shared else "w1") + ") }"
    weights = {n: RNG.normal(size=(8, 8)) * np.exp2(np.arange(8)) for n in ("w0", "w1")}
    check_pass(model_of(text, **weights), EqualizeChannels(), rewrites=2 if not shared else None)
    wide = {"w0": RNG.normal(size=(40, 40)) * np.exp2(np.arange(40) / 4)}
    text = text.replace("6,8]", "6,40]").replace("w1", "w0")
    check_pass(model_of(text, **wide), EqualizeChannels(), rewrites=0)


def test_a_value_that_a_branch_reads_stays():
    text = """(float[N,6,8] x, bool c0) => (float[N,6,8] y) { a = MatMul(x, q)
        y = If (c0) <then_branch = g1 () => (float[N,6,8] e1) { e1 = Relu(a) },
                     else_branch = g2 () => (float[N,6,8] e2) { e2 = MatMul(a, i) }> }"""
    check_pass(model_of(text), EqualizeChannels(), rewrites=0)


def test_rounded_weights_keep_their_grid():
    model = model_of(IMAGES + PASSED["Relu"])
    ctx = passcheck.context()
    RoundWeights(min_size=1, min_snr=0).run(model, ctx)
    assert any(grids.read(v) is not None for v in model.graph.initializers.values())
    check_pass(model, EqualizeChannels(), rewrites=0, ctx=ctx)
    assert any("keeps it" in n for n in ctx.notes)


@SLOW
@given(NETS, st.integers(0, 2**32 - 1))
def test_any_factors_leave_what_any_net_computes(net, seed):
    model = load(net)
    feeds = synthesise(model)
    before = Session(model, threads=1).run(feeds)
    found = network(model, passcheck.context())
    factors = np.exp2(np.random.default_rng(seed).uniform(-3, 3, found.count))
    factors[0] = 1
    found.write(factors, passcheck.context())
    for name, d in numerics.compare(before, Session(model, threads=1).run(feeds)).items():
        assert d.mismatch is None and d.max_rel <= 1e-5, f"{name}: {d}"


@SLOW
@given(NETS)
def test_any_net(net):
    check_pass(net, EqualizeChannels(), seeds=1, idempotent=False)


def test_every_rule_is_used_by_some_random_net():
    """The property tests above mean little for rules that no net reaches."""
    passed = set()
    for seed in range(150):
        rng = np.random.default_rng(seed)
        steps = [str(s) for s in rng.choice(sorted({*IMAGE, *TOKENS}), size=6)]
        model = load(random_net(steps, seed, bool(seed % 2)))
        found = network(model, passcheck.context())
        passed |= {n.op_type for n in model.graph if any(v in found.labels for v in n.outputs)}
    assert passed >= {"Conv", "MatMul", "Add", "Relu", "Reshape", "Transpose", "Concat", "Split", "Gather", "Attention",
                      "LayerNormalization", "ConvTranspose", "Resize", "Mul", "MaxPool"}  # fmt: skip


def test_integers_of_one_scale_fit_better():
    rng = np.random.default_rng(0)
    sizes = np.exp2(rng.uniform(-5, 0, 32))
    weights = {"w0": rng.normal(size=(16, 32)) * sizes, "w1": rng.normal(size=(32, 16)) / sizes[:, None]}
    model = load(
        build("(float[N,16] x) => (float[N,16] y) { a = MatMul(x, w0) r = Relu(a) y = MatMul(r, w1) }", **weights)
    )
    feeds = {"x": rng.normal(size=(200, 16)).astype(np.float32)}
    wanted, snr = Session(model).run(feeds), []
    for passes in ((), (EqualizeChannels(),)):
        changed = model.clone()
        for p in (*passes, RoundWeights(per="tensor", min_size=1, min_snr=0)):
            p.run(changed, passcheck.context())
        snr.append(numerics.compare(wanted, Session(changed).run(feeds))["y"].snr_db)
    assert snr[1] > snr[0] + 6


def test_inverse_ids():
    assert of_ids(np.array([[1, -2], [0, -1]]), np.array([1.0, 2.0, 4.0])).tolist() == [[2.0, 0.25], [1.0, 0.5]]
