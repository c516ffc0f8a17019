"""Families that are too small for a share make up for each other; those on other axes count for themselves."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from edgec.compiler.channels.coupling import Coupling, Hold
from edgec.compiler.channels.grids import Grid
from edgec.compiler.channels.select import Family
from edgec.compiler.channels.shares import shares
from edgec.compiler.channels.solve import Solution


def case(*axes: list[tuple[int, int]]) -> tuple[Coupling, Solution, list[Family]]:
    """Per axis, the families on it: how many units, of how many slices each."""
    coupling, groups, count = Coupling(), [], 1
    for k, families in enumerate(axes):
        first = count
        for units, slices in families:
            members = np.arange(count, count + units * slices)
            count += units * slices
            ends = np.arange(0, members.size + 1, slices)
            groups.append(Family(np.arange(units), members, ends, np.ones(units), 1, max(1, units // 10)))
        weight = ir.Value(name=f"w{k}", shape=ir.Shape([count - first]))
        coupling.holds[weight] = [Hold((count - first,), Grid(np.arange(first, count), (0,)))]
    none = np.zeros(0, np.int64)
    return coupling, Solution(np.arange(count), count, none, np.zeros(1, np.int64), none), groups


def lost(groups: list[Family], counts: list[int]) -> int:
    return sum(int(f.ends[n]) for f, n in zip(groups, counts, strict=True))


@pytest.mark.parametrize("ratio", [0.25, 0.5, 0.7])
def test_what_a_shuffle_ties(ratio: float) -> None:
    """The channels of ShuffleNet's third stage."""
    sizes = [(1, 244), (1, 116), (1, 64), (1, 52), (3, 32), (1, 20), (6, 16), (1, 12), (14, 8), (29, 4), (58, 2)]
    coupling, found, groups = case(sizes)
    whole = sum(n * s for n, s in sizes)
    assert abs(lost(groups, shares(coupling, found, groups, ratio)) - ratio * whole) <= 2
    alone = [f.count(ratio) for f in groups]
    assert abs(lost(groups, alone) - ratio * whole) > 50


def test_other_axes_are_no_help() -> None:
    coupling, found, groups = case([(7, 4), (1, 3)], [(40, 1)], [(1, 5)])
    assert shares(coupling, found, groups, 0.5)[2:] == [20, 0]


def test_something_is_left_of_every_axis() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        sizes = [(int(rng.integers(1, 9)), int(rng.integers(1, 30))) for _ in range(rng.integers(1, 6))]
        coupling, found, groups = case(sizes)
        counts = shares(coupling, found, groups, float(rng.uniform(0, 0.95)))
        assert all(0 <= n <= f.order.size for n, f in zip(counts, groups, strict=True))
        if len(sizes) == 1:
            assert counts[0] < sizes[0][0]
