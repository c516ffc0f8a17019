"""The nearest point, exactly: of numbers that float32 has nothing between, of denormals, and where two are as near."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgec.compiler.quantization.grids import Table
from edgec.compiler.quantization.points import FEW, midpoints, nearest_points

F32 = np.float32
TINY = np.finfo(np.float16).smallest_subnormal


def neighbours(number: float, count: int, kind: type) -> np.ndarray:
    """Ascending numbers with nothing of their type in between."""
    found = [kind(number)]
    for _ in range(count - 1):
        found.append(np.nextafter(found[-1], kind(np.inf)))
    return np.array(found, kind).astype(F32)


CLUSTERS = {
    "float32": neighbours(0.1, 6, np.float32),
    "float32 below 0": neighbours(-1.0000002, 5, np.float32),
    "float16": neighbours(0.1, 6, np.float16),
    "float16, smallest": neighbours(-2 * TINY, 5, np.float16),
    "float32, smallest": neighbours(-3e-45, 5, np.float32),
    "far apart and adjacent": np.concatenate([[F32(-6e4)], neighbours(3.0, 3, np.float32), [F32(1e-41), F32(6e4)]]),
}  # fmt: skip


@pytest.mark.parametrize("name", CLUSTERS)
def test_every_point_is_its_own_nearest(name: str) -> None:
    """Midpoints lie above the lower of two points, so rounding twice is rounding once."""
    points = np.sort(CLUSTERS[name])
    between = midpoints(points)
    assert (between > points[:-1]).all() and (between <= points[1:]).all()
    for size in (1, FEW):
        many = np.repeat(points, size)
        assert np.array_equal(points[nearest_points(many, points)], many)
    table = Table(3, np.append(points, points[-1:].repeat(8 - len(points))).reshape(1, -1, 1))
    assert table.indices(points) is not None


@settings(deadline=None)
@given(
    st.lists(st.integers(-(2**24), 2**24), min_size=2, max_size=6, unique=True),
    st.integers(-149, 100),
    st.integers(-3, 3),
)
def test_the_nearest_as_fractions_say(wholes: list[int], power: int, off: int) -> None:
    """At each midpoint and a few numbers to either side; half-way, the upper one."""
    points = np.sort(np.ldexp(np.array(wholes, np.float64), power).astype(F32))
    at = ((points[1:].astype(np.float64) + points[:-1]) / 2).astype(F32)
    for _ in range(abs(off)):
        at = np.nextafter(at, F32(np.sign(off) * np.inf))
    found = points[nearest_points(at, points)]
    for x, got in zip(at.tolist(), found.tolist(), strict=True):
        assert got == min(points.tolist(), key=lambda p: (abs(Fraction(p) - Fraction(x)), -p))
