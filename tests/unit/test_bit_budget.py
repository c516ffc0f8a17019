"""Spreading bytes over weights: limits are kept, and no plan is far from the best."""

from __future__ import annotations

import math
from itertools import pairwise, product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgec.passes.bit_budget import PARTS, Path, Width, hull, noise, size, size_of_bits, uniform

BITS = (2, 3, 4, 6, 8)
NOISES = st.one_of(st.floats(1e-6, 10), st.just(math.inf))


@st.composite
def curves(draw: st.DrawFn, most: int = 4) -> list[list[Width]]:
    """Widths of some weights; noise may rise with the bits, as it does where samples are few."""
    found = []
    for _ in range(draw(st.integers(1, most))):
        count = draw(st.integers(8, 4000))
        bits = draw(st.lists(st.sampled_from(BITS), min_size=1, unique=True))
        some = [Width(b, count * b // 8 + 20, draw(NOISES)) for b in sorted(bits)]
        found.append([*some, Width(16, count * 2 + 20, 0.0)])
    return found


@given(curves())
def test_the_path_leads_from_the_cheapest_to_the_most_accurate_plan(found: list[list[Width]]) -> None:
    path = Path(found)
    plans = [path.plan(k) for k in range(len(path.steps) + 1)]
    assert all(size(a) < size(b) and noise(a) > noise(b) for a, b in pairwise(plans))
    assert noise(plans[-1]) == 0
    assert path.noises == pytest.approx([noise(p) for p in plans], abs=1e-9)
    gains = [(noise(a) - noise(b)) / (size(b) - size(a)) for a, b in pairwise(plans)]
    assert all(a >= b * (1 - 1e-6) - 1e-12 for a, b in pairwise(gains))


@given(curves(), st.floats(0, 1.2))
def test_no_plan_of_that_size_is_better_by_more_than_a_step(found: list[list[Width]], share: float) -> None:
    path = Path(found)
    limit = share * sum(c[-1].nbytes for c in found)
    plan = path.of_size(limit)
    every = [p for p in product(*found) if size(p) <= limit and math.isfinite(noise(p))]
    if plan is None:
        assert size(path.start) > limit
        return
    assert size(plan) <= limit
    best = min(noise(p) for p in every)
    k = max(k for k in range(len(path.steps) + 1) if size(path.plan(k)) <= limit)
    step = path.noises[k] - path.noises[min(k + 1, len(path.steps))]
    assert noise(plan) <= best + step + 1e-9


@given(curves(), st.floats(0.05, 1.2))
def test_only_plans_that_fill_the_size_to_the_last_parts_may_be_better(found: list[list[Width]], share: float) -> None:
    limit = share * sum(c[-1].nbytes for c in found)
    plan = Path(found).of_size(limit)
    left = limit * (1 - len(found) / PARTS)
    fitting = [noise(p) for p in product(*found) if size(p) <= left and math.isfinite(noise(p))]
    if fitting:
        assert plan is not None
        assert noise(plan) <= min(fitting) * (1 + 1e-9) + 1e-12
    same = uniform(found, limit)
    if same is not None and plan is not None:
        assert noise(plan) <= noise(same)


@given(curves(), st.floats(0.01, 100), st.floats(0.01, 100))
def test_the_cheapest_plan_within_an_error_is_found(found: list[list[Width]], factor: float, guess: float) -> None:
    """The measured error is another multiple of the expected noise than was guessed."""
    path = Path(found)
    plan = path.of_error(lambda p: factor * noise(p), guess)
    enough = [k for k in range(len(path.steps) + 1) if factor * noise(path.plan(k)) <= 1]
    assert factor * noise(plan) <= 1
    assert size(plan) <= size(path.plan(enough[0]))


def test_what_breaks_the_outputs_is_never_chosen() -> None:
    curve = [Width(2, 10, math.inf), Width(4, 20, 0.5), Width(8, 40, 0.6), Width(16, 80, 0.0)]
    assert [w.bits for w in hull(curve)] == [4, 16]
    assert Path([curve]).of_size(15) is None


def test_the_same_bits_everywhere_and_their_size() -> None:
    a = [Width(2, 20, 3.0), Width(4, 40, 1.0), Width(16, 160, 0.0)]
    b = [Width(2, 2, 3.0), Width(4, 4, 1.0), Width(8, 8, 0.1), Width(16, 16, 0.0)]
    assert [w.bits for w in uniform([a, b], 50) or ()] == [4, 4]
    assert [w.bits for w in uniform([a, b], 40) or ()] == [2, 2]
    assert uniform([a, b], 21) is None
    assert (size_of_bits([a, b], 4), size_of_bits([a, b], 3), size_of_bits([a, b], 1)) == (44, 33, 0)
    assert size_of_bits([a, b], 8) == 168  # There is no 8 for one of them.
