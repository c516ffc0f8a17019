"""Rounding with error feedback: not worse than plain rounding where it is measured, and plain where nothing is fed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from layercases import LAYERS, build

from edgec.compiler.calibration.linear_layers import Layer, linear_layers
from edgec.compiler.calibration.statistics import Moments, moments
from edgec.compiler.calibration.sums import Sums
from edgec.compiler.quantization.columns import columns
from edgec.compiler.quantization.feedback import centred, choose, feedback
from edgec.compiler.quantization.gridfit import GridSpec, fit
from edgec.compiler.quantization.grids import Grid, Sparse

SPECS = {
    "int8": GridSpec("affine", 8),
    "int4": GridSpec("affine", 4),
    "int4, zero points": GridSpec("affine", 4, symmetric=False),
    "int4 in blocks": GridSpec("affine", 4, per="block", block=16),
    "int3 per tensor": GridSpec("affine", 3, per="tensor"),
    "ternary": GridSpec("ternary"),
    "table": GridSpec("table", 3),
    "table per tensor": GridSpec("table", 4, per="tensor"),
    "tables": GridSpec("table", 3, group=4),
    "tables per tensor": GridSpec("table", 2, per="tensor", group=4),
    "vectors": GridSpec("table", 4, vector=2),
    "float8": GridSpec("float8e4m3"),
    "float4": GridSpec("float4", per="block"),
    "nf4": GridSpec("nf4", per="block"),
}


def layer(outputs: int, inputs: int) -> tuple[Layer, np.ndarray]:
    """A MatMul of random weights, and these."""
    weight = np.random.default_rng(outputs * inputs).normal(size=(inputs, outputs)).astype(np.float32)
    model = build(f"(float[N,{inputs}] x) => (float[N,{outputs}] y) {{ y = MatMul(x, w) }}", w=weight)
    return linear_layers(model)[0], weight


def correlated(rng: np.random.Generator, samples: int, inputs: int, rank: int = 4) -> np.ndarray:
    """Inputs of a few common causes, and a little of their own."""
    return rng.normal(size=(samples, rank)) @ rng.normal(size=(rank, inputs)) + 0.1 * rng.normal(size=(samples, inputs))


def sums(x: np.ndarray) -> Sums:
    gram = (x.T @ x / len(x))[None]
    return Sums(len(x), np.einsum("gii->gi", gram), x.mean(0)[None], gram)


def plain(grid: Grid, array: np.ndarray) -> np.ndarray:
    return grid.decode(grid.nearest(array))


@pytest.mark.parametrize("kind", SPECS)
@settings(max_examples=6, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_feedback_beats_plain_rounding_on_correlated_inputs(kind: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    of, weight = layer(24, 48)
    grid = fit(weight, 1, SPECS[kind], inputs=(0,))
    known = sums(correlated(rng, 400, 48))
    how = columns(grid, of, weight)
    assert how is not None
    found = of.shaped(feedback(of.matrix(weight), how, known.gram, 0.01))  # type: ignore[arg-type]
    assert np.array_equal(plain(grid, found), found), "each number is on the grid"
    assert known.loss(of.matrix(weight - found)) < 0.7 * known.loss(of.matrix(weight - plain(grid, weight)))


@pytest.mark.parametrize("kind", SPECS)
def test_uncorrelated_inputs_are_rounded_plainly(kind: str) -> None:
    of, weight = layer(24, 48)
    grid = fit(weight, 1, SPECS[kind], inputs=(0,))
    how = columns(grid, of, weight)
    assert how is not None
    gram = np.diag(np.random.default_rng(0).uniform(0.1, 3, 48))[None]
    assert np.array_equal(of.shaped(feedback(of.matrix(weight), how, gram, 0.1)), plain(grid, weight))


@pytest.mark.parametrize("kind", SPECS)
def test_what_is_on_the_grid_stays_and_the_same_comes_out_each_time(kind: str) -> None:
    of, weight = layer(24, 48)
    grid = fit(weight, 1, SPECS[kind], inputs=(0,))
    rng = np.random.default_rng(1)
    known = Moments(of, sums(correlated(rng, 200, 48)), sums(correlated(rng, 60, 48)))
    first, second = choose(weight, grid, known), choose(weight, grid, known)
    assert np.array_equal(first.array, second.array)
    assert np.array_equal(choose(first.array, grid, known).array, first.array)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 60), st.sampled_from([2, 3, 4, 8]), st.booleans())
def test_the_choice_is_not_worse_on_held_out_samples(seed: int, samples: int, bits: int, bias: bool) -> None:
    rng = np.random.default_rng(seed)
    of, weight = layer(20, 32)
    grid = fit(weight, 1, GridSpec("affine", bits), inputs=(0,))
    x = correlated(rng, samples, 32) + 2 * rng.normal(size=32)
    known = Moments(of, sums(x[: samples // 2]), sums(x[samples // 2 :]))
    found = choose(weight, grid, known, bias=bias)
    assert found.loss <= found.plain * (1 + 1e-6)
    assert (found.shift is not None) <= bias
    if found.damping is None and found.shift is None:
        assert np.array_equal(found.array, plain(grid, weight))


def test_what_few_samples_teach_is_not_believed() -> None:
    """Of 3 samples nothing can be learnt about 64 independent inputs; of 2,000 correlated ones, much."""
    rng = np.random.default_rng(0)
    of, weight = layer(32, 64)
    grid = fit(weight, 1, GridSpec("affine", 3), inputs=(0,))
    few = Moments(of, sums(rng.normal(size=(3, 64))), sums(rng.normal(size=(300, 64))))
    many = Moments(of, sums(correlated(rng, 1600, 64)), sums(correlated(rng, 400, 64)))
    assert choose(weight, grid, few).damping in (None, 3.0)
    same = correlated(np.random.default_rng(3), 2000, 64)
    much = choose(weight, grid, Moments(of, sums(same[:1600]), sums(same[1600:])))
    assert much.damping is not None
    assert much.loss < 0.5 * much.plain
    assert choose(weight, grid, many).loss <= choose(weight, grid, many).plain


@pytest.mark.parametrize("case", LAYERS)
def test_every_kind_of_layer_loses_less(case: str) -> None:
    """Layers of a few numbers each: not in every single draw, but in the sum of several."""
    text, shape, sizes = LAYERS[case]
    axis = 1 if "Transpose(" in text or text.count("MatMul(x") else 0
    lost = np.zeros(2)
    for seed in range(40):
        rng = np.random.default_rng(seed)
        weight = rng.normal(size=shape).astype(np.float32)
        model = build(text, w=weight)
        of = linear_layers(model)[0]
        samples = sizes[0] * (8 if "[N" in text else 1)
        x = np.cumsum(rng.normal(size=(samples, *sizes[1:])), -1 if "transA" in text or len(sizes) > 2 else 0)
        (known,) = moments(model, [of], [{"x": x.astype(np.float32)}], held_out=0)
        grid = fit(weight, axis, SPECS["int4"])
        how = columns(grid, of, weight)
        assert how is not None
        fed = of.shaped(feedback(of.matrix(weight), how, np.asarray(known.fit.gram), 1e-4))
        lost += [
            known.fit.loss(of.matrix(weight - each)) / known.fit.loss(of.matrix(weight))
            for each in (fed, plain(grid, weight))
        ]
    assert lost[0] < lost[1]


def test_a_bias_makes_up_for_the_mean() -> None:
    rng = np.random.default_rng(0)
    of, weight = layer(16, 32)
    grid = fit(weight, 1, GridSpec("affine", 3), inputs=(0,))
    x = rng.normal(size=(600, 32)) * 0.3 + 3
    known = Moments(of, sums(x[:400]), sums(x[400:]))
    found = choose(weight, grid, known, bias=True)
    assert found.shift is not None
    error = x @ weight - (x @ found.array + found.shift[0])
    assert abs(error.mean(0)).max() < 1e-5
    assert np.square(error).sum(1).mean() < 0.1 * found.plain
    assert found.loss == pytest.approx(np.square(error).sum(1).mean(), rel=0.2)


def test_moments_about_another_mean() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(50, 5)) + 1, rng.normal(size=(70, 5)) - 2
    moved = centred(sums(x), sums(y))
    assert np.allclose(moved.gram, (y - x.mean(0)).T @ (y - x.mean(0)) / 70)  # type: ignore[arg-type]
    assert np.allclose(moved.mean, (y - x.mean(0)).mean(0))


def test_dead_inputs_and_single_samples() -> None:
    rng = np.random.default_rng(0)
    of, weight = layer(8, 16)
    grid = fit(weight, 1, GridSpec("affine", 4), inputs=(0,))
    x = correlated(rng, 100, 16)
    x[:, 3:9] = 0
    known = Moments(of, sums(x), sums(x[:40]))
    found = choose(weight, grid, known)
    assert np.array_equal(found.array[3:9], plain(grid, weight)[3:9]), "inputs that are always 0 are rounded plainly"
    nothing = choose(weight, grid, Moments(of, sums(x * 0), sums(x * 0)))
    assert np.array_equal(nothing.array, plain(grid, weight))
    alone = choose(weight, grid, Moments(of, sums(x[:1])))
    assert alone.damping is None
    assert np.array_equal(alone.array, plain(grid, weight)), "nothing tells whether feedback pays"


def test_zeros_of_a_sparse_weight_stay() -> None:
    rng = np.random.default_rng(0)
    of, weight = layer(16, 32)
    weight = weight * (rng.random(weight.shape) < 0.5)
    grid = Sparse(fit(weight, 1, GridSpec("affine", 4), inputs=(0,)))
    known = Moments(of, sums(correlated(rng, 200, 32)), sums(correlated(rng, 60, 32)))
    how = columns(grid, of, weight)
    assert how is not None
    found = of.shaped(feedback(of.matrix(weight), how, np.asarray(known.fit.gram), 0.01))
    assert not found[weight == 0].any()
    assert not choose(weight, grid, known).array[weight == 0].any()
    assert known.fit.loss(of.matrix(weight - found)) < known.fit.loss(of.matrix(weight - plain(grid.inner, weight)))  # type: ignore[arg-type]


def test_vectors_that_span_inputs_are_rounded_plainly() -> None:
    text = "(float[N,5] x) => (float[N,4] y) { y = MatMul(x, w) }"
    weight = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    of = linear_layers(build(text, w=weight))[0]
    assert columns(fit(weight, 1, GridSpec("table", 2, vector=2)), of, weight) is not None
    wide = np.random.default_rng(0).normal(size=(4, 5)).astype(np.float32)
    turned = linear_layers(build("(float[N,4] x) => (float[N,5] y) { y = MatMul(x, w) }", w=wide))[0]
    assert columns(fit(wide, 0, GridSpec("table", 2, vector=2)), turned, wide) is None


def test_tables_that_gather_reads_are_rounded_plainly() -> None:
    table = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
    model = build("(int64[N] ids) => (float[N,4] y) { y = Gather(t, ids) }", t=table)
    (known,) = moments(model, linear_layers(model), [{"ids": np.arange(6) % 3}], held_out=0.3)
    grid = fit(table, 0, GridSpec("affine", 4))
    found = choose(table, grid, known)
    assert np.array_equal(found.array, plain(grid, table))
