"""round-weights with calibration samples: less error on samples that it has not seen, in every kind of grid."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from layercases import build

from edgec.compiler.graph import const
from edgec.compiler.passbase import Context
from edgec.compiler.quantization import grids
from edgec.compiler.session import Session
from edgec.passes.round_weights import RoundWeights
from passcheck import context

WIDTH = 64
RNG = np.random.default_rng(3)
MIX = RNG.normal(size=(8, WIDTH))


def network() -> ir.Model:
    """Three layers: a MatMul with an Add, a Gemm with a bias, a Gemm without."""
    text = f"""(float[N,{WIDTH}] x) => (float[N,{WIDTH}] y) {{
        p = MatMul(x, w0) q = Add(p, b0) r = Relu(q) s = Gemm<transB=1>(r, w1, b1) t = Relu(s) y = Gemm(t, w2)
    }}"""
    weights = {f"w{k}": RNG.normal(size=(WIDTH, WIDTH)) / 8 for k in range(3)}
    return build(text, **weights, b0=RNG.normal(size=WIDTH), b1=RNG.normal(size=WIDTH))


def samples(count: int) -> np.ndarray:
    """Inputs with few common causes, whose mean is not 0."""
    return ((RNG.normal(size=(count, 8)) + 1) @ MIX + 0.2 * RNG.normal(size=(count, WIDTH))).astype(np.float32)


def given(*runs: np.ndarray) -> Context:
    ctx = context("onnx")
    ctx.inputs, ctx.runs, ctx.given = {"x": runs[0]}, [{"x": r} for r in runs], True
    return ctx


def decibels(model: ir.Model, original: ir.Model, x: np.ndarray) -> float:
    want, got = (Session(m).run({"x": x})["y"].astype(np.float64) for m in (original, model))
    return float(10 * np.log10(np.square(want).sum() / np.square(want - got).sum()))


@pytest.mark.parametrize(
    "options", [{"bits": 8}, {"bits": 4}, {"bits": 3, "scheme": "table"}, {"bits": 4, "block": 16}, {"scheme": "nf4"}]
)
def test_given_samples_make_it_better_on_others(options: dict[str, object]) -> None:
    original, test = network(), samples(400)
    found = {}
    for by in ("mse", None):
        model = original.clone()
        assert RoundWeights(by=by, min_snr=0, **options).run(model, given(samples(200), samples(200))) == 3  # type: ignore[arg-type]
        found[by] = decibels(model, original, test)
        for name in ("w0", "w1", "w2"):
            value = model.graph.initializers[name]
            grid = grids.read(value)
            assert grid is not None
            assert grid.indices(np.asarray(const(value))) is not None, "what it says lies on a grid does"
    assert found[None] > found["mse"] + 3


def test_biases_move_only_where_samples_are_given() -> None:
    original = network()
    for ctx, moves in ((given(samples(300)), True), (context("onnx"), False)):
        model = original.clone()
        RoundWeights(bits=3, min_snr=0).run(model, ctx)
        moved = [
            not np.array_equal(*(np.asarray(const(m.graph.initializers[b])) for m in (model, original)))
            for b in ("b0", "b1")
        ]
        assert moved == [moves, moves]


def test_one_sample_teaches_nothing() -> None:
    original, one = network(), samples(1)
    a, b = original.clone(), original.clone()
    RoundWeights(bits=4, min_snr=0, by="mse").run(a, given(one))
    RoundWeights(bits=4, min_snr=0).run(b, given(one))
    for name in ("b0", "b1"):
        assert np.array_equal(
            np.asarray(const(a.graph.initializers[name])), np.asarray(const(b.graph.initializers[name]))
        )


def test_the_same_comes_out_each_time_and_a_second_time_nothing() -> None:
    original, ctx = network(), given(samples(100))
    a, b = original.clone(), original.clone()
    for model in (a, b):
        assert RoundWeights(bits=4, min_snr=0).run(model, ctx) == 3
    for name, value in a.graph.initializers.items():
        assert np.array_equal(np.asarray(const(value)), np.asarray(const(b.graph.initializers[name])))
    assert RoundWeights(bits=4, min_snr=0).run(a, ctx) == 0


def test_samples_that_overflow_are_not_used() -> None:
    original, ctx = network(), given(samples(20) * np.float32(1e36))
    model, plain = original.clone(), original.clone()
    assert RoundWeights(bits=4, min_snr=0).run(model, ctx) == 3
    RoundWeights(bits=4, min_snr=0, by="mse").run(plain, ctx)
    assert any("without the given inputs" in note and "not finite" in note for note in ctx.notes)
    for name, value in model.graph.initializers.items():
        assert np.isfinite(np.asarray(const(value))).all(), name


def test_feedback_without_samples_says_so() -> None:
    model, ctx = network(), context("onnx")
    assert RoundWeights(bits=4, min_snr=0, by="feedback").run(model, ctx) == 3
    assert any("no inputs are given" in note for note in ctx.notes)
