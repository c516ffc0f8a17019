"""Coordinate descent on rounded weights: it stays on the grid, never loses, and ends where one step gains nothing."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from layercases import build

import passcheck
from edgec.compiler.calibration.linear_layers import linear_layers
from edgec.compiler.calibration.statistics import Moments, Sums
from edgec.compiler.quantization.columns import columns
from edgec.compiler.quantization.descent import descend
from edgec.compiler.quantization.feedback import feedback
from edgec.compiler.quantization.gridfit import GridSpec, fit
from edgec.compiler.session import Session
from edgec.passes.calibrated import calibrated
from edgec.passes.descended import descended
from edgec.passes.round_weights import RoundWeights

KINDS = {
    "int8": GridSpec("affine", 8),
    "int4 in blocks": GridSpec("affine", 4, per="block", block=16),
    "int3 with zero points": GridSpec("affine", 3, symmetric=False),
    "table": GridSpec("table", 3),
    "tables": GridSpec("table", 2, per="tensor", group=4),
    "vectors": GridSpec("table", 4, vector=2),
    "nf4": GridSpec("nf4", per="block"),
}


def layer(outputs, inputs):
    """A product with random weights, and these."""
    weight = np.random.default_rng(outputs * inputs).normal(size=(inputs, outputs)).astype(np.float32)
    return linear_layers(build("(float[N,I] x) => (float[N,O] y) { y = MatMul(x, w) }", w=weight))[0], weight


def moments_of(seed, inputs):
    """Second moments of inputs with few common causes, 1 x inputs x inputs."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(300, 4)) @ rng.normal(size=(4, inputs)) + 0.1 * rng.normal(size=(300, inputs))
    return (x.T @ x / len(x))[None]


def plain(grid, array):
    return grid.decode(grid.nearest(array))


def loss(error, gram):
    return float(np.einsum("goi,gij,goj->", error, np.broadcast_to(gram, (len(error), *gram.shape[1:])), error))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fed", [False, True])
def test_it_loses_less_than_its_start_on_the_same_grid(kind, fed):
    of, weight = layer(24, 200)
    grid = fit(weight, 1, KINDS[kind], inputs=(0,))
    how, gram = columns(grid, of, weight), moments_of(1, 200)
    matrix = of.matrix(weight)
    start = feedback(matrix, how, gram, 0.01) if fed else of.matrix(plain(grid, weight))
    found = descend(matrix, start, how, gram, 0.01)
    array = of.shaped(found)
    np.testing.assert_array_equal(plain(grid, array), array, err_msg="each number is on the grid")
    damped = gram + 0.01 * np.trace(gram[0]) / 200 * np.eye(200)
    assert loss(matrix - found, damped) < (0.999 if fed else 0.1) * loss(matrix - start, damped)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 4), st.integers(1, 3))
def test_no_sweep_makes_it_worse_and_the_last_is_a_minimum(seed, bits, groups):
    """Of all numbers of the grid none is better at any one place, once a sweep changes nothing."""
    rng = np.random.default_rng(seed)
    of, weight = layer(6, 20)
    weight = rng.normal(size=weight.shape).astype(np.float32)
    grid = fit(weight, 1, GridSpec("affine", bits), inputs=(0,))
    how, gram = columns(grid, of, weight), moments_of(seed, 20)
    gram = gram + 0.01 * np.trace(gram[0]) / 20 * np.eye(20)
    matrix = of.matrix(weight)
    found, before = of.matrix(plain(grid, weight)), np.inf
    for _ in range(groups):
        found = descend(matrix, found, how, gram, 0.0, 1)
        now = loss(matrix - found, gram)
        assert now <= before * (1 + 1e-5)
        before = now
    found = descend(matrix, found, how, gram, 0.0, 200)
    least = loss(matrix - found, gram)
    steps = grid.decode(np.broadcast_to(np.arange(grid.low, grid.high + 1)[:, None], (grid.high - grid.low + 1, 6)))
    for o, i in np.ndindex(6, 20):
        for number in steps[:, o]:
            other = found.copy()
            other[0, o, i] = number
            assert loss(matrix - other, gram) >= least * (1 - 1e-4)


def test_groups_are_apart():
    """Layers of several groups are as their groups alone."""
    of, weight = layer(8, 30)
    grid = fit(weight, 1, GridSpec("affine", 3), inputs=(0,))
    how = columns(grid, of, weight)
    matrix = np.repeat(of.matrix(weight), 2, 0)
    start = np.repeat(of.matrix(plain(grid, weight)), 2, 0)
    sign = np.where(np.arange(30) % 3, 1, -1)  # another matrix with the same diagonal, and so the same order
    grams = moments_of(0, 30) * np.stack([np.ones((30, 30)), np.outer(sign, sign)])
    both = descend(matrix, start, how, grams, 0.01)
    for k in (0, 1):
        one = descend(matrix[k : k + 1], start[k : k + 1], how, grams[k : k + 1], 0.01)
        assert np.count_nonzero(both[k : k + 1] != one) <= 2, "but for ties"


def sums(x):
    gram = (x.T @ x / len(x))[None]
    return Sums(len(x), np.einsum("gii->gi", gram), x.mean(0)[None], gram)


@pytest.mark.parametrize("samples", [12, 600])
@pytest.mark.parametrize("bits", [2, 4])
def test_it_is_kept_only_where_held_out_samples_gain(samples, bits):
    """Of few samples not much is believed; of many the error of other samples falls, in the sum of some draws."""
    lost = np.zeros(2)
    for seed in range(6):
        rng = np.random.default_rng(seed)
        of, weight = layer(24, 120)
        x = (rng.normal(size=(2000 + samples, 40)) @ rng.normal(size=(40, 120))) + 0.3 * rng.normal(
            size=(2000 + samples, 120)
        )
        cut = samples * 4 // 5
        known, other = Moments(of, sums(x[:cut]), sums(x[cut:samples])), sums(x[samples:])
        grid = fit(weight, 1, GridSpec("affine", bits), inputs=(0,))
        first = calibrated(weight, grid, known)
        found = descended(weight, first, grid, known)
        assert np.array_equal(found.array, plain(grid, found.array))
        lost += [other.loss(of.matrix(weight - each.array)) for each in (first, found)]
    assert lost[1] <= lost[0] * (0.995 if samples == 600 else 1.02)


def test_a_bias_makes_up_for_the_mean_that_is_left():
    rng = np.random.default_rng(0)
    weights = {"w": rng.normal(size=(60, 40)), "b": rng.normal(size=40)}
    model = build("(float[N,60] x) => (float[N,40] y) { a = MatMul(x, w) y = Add(a, b) }", **weights)
    x = (rng.normal(size=(900, 8)) @ rng.normal(size=(8, 60)) + rng.normal(size=60)).astype(np.float32)
    wanted, square = Session(model).run({"x": x})["y"], {}
    for by in ("feedback", "descent"):
        changed = model.clone()
        ctx = passcheck.context("onnx", {"x": x[:600]})
        ctx.given = True
        assert RoundWeights(bits=3, by=by, min_size=1, min_snr=0).run(changed, ctx) == 1
        error = Session(changed).run({"x": x})["y"] - wanted
        square[by] = float(np.square(error[600:]).mean())
        assert np.abs(error[:600].mean(0)).max() < 0.01 * np.sqrt(square[by])
    assert square["descent"] < square["feedback"]


def test_without_inputs_it_says_so():
    model = build(
        "(float[N,60] x) => (float[N,40] y) { y = MatMul(x, w) }", w=np.random.default_rng(0).normal(size=(60, 40))
    )
    ctx = passcheck.context("onnx")
    assert RoundWeights(bits=4, by="descent", min_size=1, min_snr=0).run(model, ctx) == 1
    assert any("--inputs" in n for n in ctx.notes)
