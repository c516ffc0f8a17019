"""Error metrics against values worked out by hand, and their properties."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgec.compiler import numerics
from edgec.compiler.numerics import Meter, compare, difference
from edgec.compiler.verify import Comparison

floats = hnp.arrays(np.float32, hnp.array_shapes(max_dims=3), elements=st.floats(-1e6, 1e6, width=32))


def test_figures_by_hand() -> None:
    d = difference(np.float32([3, -4, 0]), np.float32([3, -4, 1]))
    assert d.max_abs == 1
    assert d.max_rel == 1 / 4  # the scale is 4
    assert d.snr_db == pytest.approx(10 * math.log10(25 / 1))
    assert d.cosine == pytest.approx(25 / (5 * math.sqrt(26)))
    assert d.equal == pytest.approx(2 / 3)
    assert d.top1 is None and d.mismatch is None


def test_equal_outputs_have_no_error() -> None:
    d = difference(np.float32([[1, 2]]), np.float32([[1, 2]]))
    assert (d.max_abs, d.max_rel, d.snr_db, d.cosine, d.equal, d.top1) == (0, 0, math.inf, 1, 1, 1)


@given(floats)
def test_an_error_of_one_percent_is_forty_decibels(ref: np.ndarray) -> None:
    ref = ref.astype(np.float64)
    d = difference(ref, ref * 1.01)
    if ref.any():
        assert d.snr_db == pytest.approx(40, abs=1e-3)
        assert d.max_rel == pytest.approx(0.01)
        assert d.cosine == pytest.approx(1)
    else:
        assert d == difference(ref, ref)


@given(floats, st.integers(0, 2**32 - 1))
def test_chunks_and_runs_add_up_to_the_whole(ref: np.ndarray, seed: int) -> None:
    got = ref + np.random.default_rng(seed).normal(size=ref.shape).astype(np.float32)
    whole = difference(ref.reshape(-1), got.reshape(-1))
    meter = Meter()
    for a, b in zip(ref.reshape(-1), got.reshape(-1), strict=True):
        meter.add(np.atleast_1d(a), np.atleast_1d(b))
    parts = meter.result()
    assert parts.max_abs == whole.max_abs and parts.max_rel == whole.max_rel and parts.equal == whole.equal
    assert parts.snr_db == pytest.approx(whole.snr_db, rel=1e-9) or parts.snr_db == whole.snr_db


def test_chunking_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    ref, got = rng.normal(size=(2, 1000)).astype(np.float32)
    whole = difference(ref, got)
    monkeypatch.setattr(numerics, "CHUNK", 7)
    parts = difference(ref, got)
    assert parts.snr_db == pytest.approx(whole.snr_db) and parts.max_rel == whole.max_rel


def test_top1_counts_rows() -> None:
    ref = np.float32([[1, 2, 3], [3, 2, 1], [1, 3, 2], [0, 0, 1]])
    got = ref.copy()
    got[0] = [9, 2, 3]
    assert difference(ref, got).top1 == 3 / 4
    assert difference(ref[None], got[None]).top1 is None
    assert difference(ref[None], got[None], "logits").top1 == 3 / 4


def test_integers_are_compared_exactly() -> None:
    d = difference(np.int64([1, 2, 3, 4]), np.int64([1, 2, 3, 7]))
    assert d.max_rel == 1 / 4 and d.equal == 3 / 4 and d.max_abs == 3 and d.top1 is None
    assert difference(np.array([True, False]), np.array([True, True])).max_rel == 1 / 2
    assert difference(np.array(["a", "b"], object), np.array(["a", "b"], object)).max_rel == 0
    big = np.int64([2**60, 2**60])
    assert difference(big, big + np.int64([0, 1])).max_rel == 1 / 2  # float64 can't tell them apart


@pytest.mark.parametrize(
    ("ref", "got"),
    [
        ([1, np.nan], [1, 1]),
        ([1, 1], [1, np.nan]),
        ([1, np.inf], [1, 3e38]),
        ([1, np.inf], [1, -np.inf]),
        ([1, np.inf], [1, np.nan]),
    ],
)
def test_non_finite_values_must_agree(ref: list[float], got: list[float]) -> None:
    d = difference(np.float32(ref), np.float32(got))
    assert d.mismatch and d.max_rel == math.inf
    assert not Comparison({"y": d}).within(1e9)


def test_agreeing_non_finite_values_are_left_out() -> None:
    d = difference(np.float32([np.nan, np.inf, -np.inf, 2]), np.float32([np.nan, np.inf, -np.inf, 1]))
    assert d.mismatch is None and d.max_rel == 0.5


def test_shape_type_and_absence() -> None:
    one = np.ones((1, 2), np.float32)
    assert "shape [2] instead of [1, 2]" in (difference(one, one[0]).mismatch or "")
    assert "float64" in (difference(one, one.astype(np.float64)).mismatch or "")
    assert difference(one, one.astype(np.float64), types=False).max_rel == 0
    assert "no output 'y'" in (compare({"y": one}, {})["y"].mismatch or "")


def test_all_zero_and_empty_references() -> None:
    zero = np.zeros(3, np.float32)
    assert difference(zero, zero).max_rel == 0
    assert difference(zero, zero + 1e-9).max_rel == math.inf
    empty = np.zeros((0, 4), np.float32)
    assert difference(empty, empty).snr_db == math.inf


def test_comparison_shows_the_worst_output() -> None:
    one = np.float32([1, 1])
    c = Comparison(compare({"a": one, "b": one}, {"a": one, "b": one * np.float32(1.5)}))
    assert c.worst == "b" and c.max_rel == 0.5 and c.within(0.5) and not c.within(0.49)
    assert "'b'" in c.worst_line() and len(list(c.rows())) == 2
    assert c.snr_db == pytest.approx(20 * math.log10(2))
