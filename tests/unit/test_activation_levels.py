"""What streamed histograms know of activations, and the integers that are chosen by them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from layercases import build

from edgec.compiler.calibration import batching, histograms
from edgec.compiler.calibration.histograms import HALF, Histogram
from edgec.passes.activation_levels import KINDS, Levels, levels, made
from passcheck import load

RNG = np.random.default_rng(5)
RULES = ("minmax", "percentile", "mse", "entropy")


def counted(parts: Sequence[np.ndarray]) -> Histogram:
    found = Histogram()
    for part in parts:
        found.add(part.astype(np.float32))
    return found


def error(found: Levels, x: np.ndarray) -> float:
    return float(np.square(x - found.round(x)).mean())


PARTS = st.lists(
    st.tuples(st.integers(0, 99), st.integers(0, 50), st.floats(1e-20, 1e20), st.floats(-3, 3)), min_size=1, max_size=6
)


@given(PARTS, st.floats(0.001, 1))
def test_bins_grow_and_lose_nothing(parts, share):
    """Whatever comes first: all are counted, none is off by more than a bin."""
    drawn = [(np.random.default_rng(s).normal(m, 1, n) * np.float32(k)).astype(np.float32) for s, n, k, m in parts]
    whole = np.concatenate(drawn)
    found = counted(drawn)
    assert found.finite and found.counts.sum() == pytest.approx(whole.size)
    if not whole.any():
        assert found.reach == 0
        return
    assert (found.low, found.high) == (min(whole.min(), 0), max(whole.max(), 0))
    assert found.reach / 2 < np.abs(whole).max() <= found.reach
    wanted = np.quantile(whole.astype(np.float64), share, method="inverted_cdf")
    # Merging moves half of a bin's numbers to the next: those next to each other in value count as well.
    near = np.sort(np.abs(np.sort(whole.astype(np.float64)) - found.quantile(share)))[0]
    assert near <= 2 * found.reach / HALF
    below = np.mean(whole <= found.quantile(share) + 2 * found.reach / HALF)
    above = np.mean(whole < found.quantile(share) - 2 * found.reach / HALF)
    assert above <= share + 1e-9 and below >= share - 1e-9, wanted


def test_zeros_first_then_numbers():
    found = counted([np.zeros(10), np.array([0.5]), np.array([-3.0, 8.0])])
    centres, counts = found.filled()
    assert dict(zip(centres, counts, strict=True)) == {-3: 1, 0: 10, 0.5: 1, 8: 1}


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_said(bad):
    found = counted([np.ones(3), np.array([1, bad])])
    assert not found.finite and found.counts.sum() == 3


@given(st.floats(-1e4, 0), st.floats(0, 1e4), st.sampled_from(sorted(KINDS)), st.booleans())
def test_zero_is_a_level_and_nothing_is_cut_off(low, high, bits, symmetric):
    if high - low < 1e-3:
        return
    found = made(low, high, bits, symmetric)
    assert found.round(np.zeros(1)) == 0, "padding must stay 0"
    assert np.float16(found.scale) == found.scale > 0
    first, last = found.ends
    assert first <= found.zero <= last and last - first + 1 == 2**bits and found.kind.bitwidth == bits
    x = np.linspace(low, high, 101)
    assert np.abs(x - found.round(x)).max() <= found.scale * (1 + 1e-6)
    if symmetric:
        assert found.zero == 0 and found.kind.is_signed() == (low < 0)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("scale", [1e-3, 1, 1e3])
def test_least_square_error(symmetric, scale):
    """No range that clips alike is better, up to what the steps of the search and the bins leave."""
    x = (0.3 + RNG.standard_t(3, 20_000)) * scale
    found = counted([x[:100], x[100:]])
    best = error(levels(found, "mse", 8, symmetric), x)
    for share in np.linspace(0.1, 1, 40):
        assert best <= 1.03 * error(made(x.min() * share, x.max() * share, 8, symmetric), x)
    few = [error(levels(found, rule, 4, symmetric), x) for rule in ("mse", "minmax")]
    assert few[0] < 0.5 * few[1], "clipping pays where there are few levels and a heavy tail"


@pytest.mark.parametrize("rule", ["percentile", "entropy"])
def test_a_few_outliers_do_not_count(rule):
    x = np.append(RNG.normal(size=50_000), [60.0, -45.0])
    found = levels(counted([x]), rule, 8, symmetric=False)
    assert error(found, x[:-2]) < 0.02 * error(levels(counted([x]), "minmax", 8, symmetric=False), x[:-2])


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("symmetric", [False, True])
def test_nothing_negative_gets_all_levels(rule, symmetric):
    found = levels(counted([np.maximum(RNG.normal(size=9999), 0)]), rule, 8, symmetric)
    assert found.zero == 0 and not found.kind.is_signed() and found.ends[1] * found.scale > 2


@pytest.mark.parametrize("rule", RULES)
def test_hardly_anything_but_zero(rule):
    """The percentile of an activation that is 0 in all but a few places is 0: the whole range is kept then."""
    x = np.zeros(100_000)
    x[7] = 5
    assert levels(counted([x]), rule, 8, symmetric=False).round(np.array([5.0])) > 0


BODY = "(float[N,3,8,8] x) => (float[N,5,6,6] y) { a = Conv(x, w) b = Relu(a) y = Mul(b, s) }"
WEIGHTS = {"w": RNG.normal(size=(5, 3, 3, 3)), "s": np.array(-2.0)}


@pytest.mark.parametrize("limit", [1, 5000, 1 << 28])
def test_streamed_in_little_memory(limit, monkeypatch):
    """However few bytes may be held at once, the counts are those of all samples."""
    model = build(BODY, **WEIGHTS)
    values = [v for n in model.graph for v in n.outputs] + [model.graph.inputs[0]]
    monkeypatch.setattr(batching, "ACTIVATIONS", limit)
    monkeypatch.setattr(histograms, "ACTIVATIONS", limit)
    most = [0]
    run = histograms.Fetcher.run

    def watched(self, feeds):
        found = run(self, feeds)
        most[0] = max(most[0], sum(a.nbytes for a in found.values()))
        return found

    monkeypatch.setattr(histograms.Fetcher, "run", watched)
    runs = [{"x": RNG.normal(size=(n, 3, 8, 8)).astype(np.float32)} for n in (7, 1, 4)]
    found = histograms.histograms(model, values, runs)
    x = np.concatenate([r["x"] for r in runs])
    assert found[model.graph.inputs[0]].counts.sum() == pytest.approx(x.size)
    sizes = [v.counts.sum() for v in found.values()]
    assert sizes == pytest.approx([12 * 5 * 36] * 3 + [x.size])
    one = 4 * (3 * 5 * 36 + 3 * 64)
    assert most[0] <= max(limit, one), "one sample is fetched whole to know its size, no more"
    if limit == 1:
        assert most[0] == one


def test_a_fixed_batch_is_run_as_it_is():
    text = BODY.replace("N", "2")
    model = load(build(text, **WEIGHTS))
    runs = [{"x": RNG.normal(size=(2, 3, 8, 8)).astype(np.float32)} for _ in range(3)]
    value = model.graph.node(0).outputs[0]
    assert histograms.histograms(model, [value], runs)[value].counts.sum() == pytest.approx(6 * 5 * 36)
    assert histograms.histograms(model, [], runs) == {}
