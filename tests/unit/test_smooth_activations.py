"""Smoothing activations: outputs stay, integers fit better, and a Mul comes only where it is asked for."""

from __future__ import annotations

import numpy as np
import pytest
from channelnets import IMAGE, TOKENS
from channelnets import build as random_net
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from layercases import build

import passcheck
from edgec.compiler import numerics
from edgec.compiler.errors import UsageError
from edgec.compiler.passbase import Context
from edgec.compiler.plugins import find_pass
from edgec.compiler.session import Session
from edgec.compiler.synthesis import synthesise
from edgec.passes.quantize_activations import QuantizeActivations
from edgec.passes.round_weights import RoundWeights
from edgec.passes.smooth_activations import SmoothActivations
from passcheck import check_pass, load, ops

RNG = np.random.default_rng(3)
UNEVEN = np.exp2(np.where(np.arange(16) % 5, 0.0, 6.0))
"""What few channels are larger by, behind the normalisations of transformers."""
BODY = """a = LayerNormalization(x, s, h) b = MatMul(a, m) c = Gelu(b) d = MatMul(c, n) """
PRE = "(float[N,16] x) => (float[N,16] y) { " + BODY + "y = Add(x, d) }"
POST = "(float[N,16] x) => (float[N,16] y) { " + BODY + "e = Add(a, d) y = LayerNormalization(e, s2, h) }"
WEIGHTS = {
    "s": UNEVEN, "s2": np.ones(16), "h": RNG.normal(size=16), "m": RNG.normal(size=(16, 24)) / UNEVEN[:, None],
    "n": RNG.normal(size=(24, 16)),
}  # fmt: skip
FEEDS = {"x": RNG.normal(size=(64, 16)).astype(np.float32)}


def given_inputs(inputs=FEEDS, target="onnx"):
    ctx = passcheck.context(target, inputs)
    ctx.given = True
    return ctx


def model_of(text):
    return load(build(text, **{k: v for k, v in WEIGHTS.items() if f"{k})" in text.replace(",", ")")}))


def checked(model, p, ctx, rewrites=None):
    """The pass, checked; again with the same inputs it finds nothing."""
    out = check_pass(model, p, rewrites=rewrites, ctx=ctx, inputs=ctx.inputs, idempotent=False)
    assert p.run(out.clone(), Context(ctx.target, ctx.scratch, ctx.inputs, True)) == 0
    return out


def in_integers(model):
    """How near the outputs stay with 8-bit weights and activations, dB."""
    changed, ctx = model.clone(), given_inputs()
    for p in (QuantizeActivations(min_snr=0, outputs=False, calibrate="minmax"), RoundWeights(min_size=1, min_snr=0)):
        assert p.run(changed, ctx)
    return numerics.compare(Session(model).run(FEEDS), Session(changed).run(FEEDS))["y"].snr_db


def test_what_a_normalisation_gives_becomes_even():
    model = model_of(PRE)
    out = checked(model, SmoothActivations(alpha=1), given_inputs(), 3)
    a = Session(with_output(out, "a")).run(FEEDS)["a"]
    peaks = np.abs(a).max(0)
    np.testing.assert_allclose(peaks, peaks.max(), rtol=0.05)
    assert in_integers(out) > in_integers(model) + 6


def with_output(model, name):
    changed = model.clone()
    changed.graph.outputs.append(next(o for n in changed.graph for o in n.outputs if o.name == name))
    return changed


@pytest.mark.parametrize("alpha", [0, 0.5, 0.75, 1])
def test_alpha_shares_out_between_activations_and_weights(alpha):
    """Behind the pass, range(y)^alpha = range(w)^(1 - alpha), times a number for all channels."""
    out = checked(model_of(PRE), SmoothActivations(alpha=alpha), given_inputs())
    peaks = np.abs(Session(with_output(out, "a")).run(FEEDS)["a"]).max(0)
    weight = next(v.const_value.numpy() for v in out.graph.initializers.values() if v.shape == [16, 24])
    left = alpha * np.log2(peaks) - (1 - alpha) * np.log2(np.abs(weight).max(1))
    assert np.ptp(left) < 0.15


def test_without_inputs_nothing_changes_and_the_note_says_so():
    ctx = passcheck.context("onnx", FEEDS)
    check_pass(model_of(PRE), SmoothActivations(), rewrites=0, ctx=ctx, inputs=FEEDS)
    assert len(ctx.notes) == 1 and "--inputs" in ctx.notes[0]


def test_a_mul_comes_only_with_insert():
    """A residual sum reads what the normalisation gives: nothing can be divided there."""
    model = model_of(POST)
    assert ops(checked(model, SmoothActivations(), given_inputs(), 0))["Mul"] == 0
    out = checked(model, SmoothActivations(insert=True), given_inputs())
    assert ops(out)["Mul"] == 2
    assert in_integers(out) > in_integers(model) + 3


def test_a_mul_that_would_do_nothing_goes_again():
    """What comes from one channel only, or is as even as the weights, needs no factors."""
    text = "(float[N,16] x) => (float[N,4] y) { a = Sigmoid(x) y = MatMul(a, w) }"
    feeds = {"x": np.zeros((4, 16), np.float32)}
    model = load(build(text, w=np.ones((16, 4))))
    assert ops(checked(model, SmoothActivations(insert=True), given_inputs(feeds), 0)) == {"Sigmoid": 1, "MatMul": 1}


def test_activations_that_are_not_finite_stay():
    text = "(float[N,16] x) => (float[N,4] y) { a = Div(x, x) b = Mul(a, s) y = MatMul(b, w) }"
    model = load(build(text, w=RNG.normal(size=(16, 4)), s=UNEVEN))
    ctx = given_inputs({"x": np.zeros((4, 16), np.float32)})
    assert SmoothActivations().run(model, ctx) == 0
    assert any("not finite" in n for n in ctx.notes)


def test_an_alpha_beyond_one_is_refused():
    with pytest.raises(UsageError, match="alpha"):
        find_pass("smooth-activations{alpha=1.5}")


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(
    st.builds(
        random_net, st.lists(st.sampled_from(sorted({*IMAGE, *TOKENS})), min_size=1, max_size=7), st.integers(0, 9999),
        st.booleans(),
    ),
    st.floats(0, 1), st.booleans(),
)  # fmt: skip
def test_any_net_any_alpha(net, alpha, insert):
    model = load(net)
    ctx = given_inputs(synthesise(model))
    check_pass(model, SmoothActivations(alpha, insert), ctx=ctx, inputs=ctx.inputs, idempotent=False)
