"""k-means on a line is as good as exact dynamic programming; with weights, in bins, for vectors."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgec.compiler.quantization import gridtables
from edgec.compiler.quantization.kmeans import Atoms, Histogram, atoms, cluster, distortion
from edgec.compiler.quantization.points import nearest_of, nearest_points
from edgec.compiler.quantization.vectors import cluster_vectors


def mixture(n: int, seed: int = 0) -> np.ndarray:
    """Numbers as weights have them: channels of different sizes, a few large ones."""
    rng = np.random.default_rng(seed)
    sizes = np.exp(rng.normal(size=64) * 0.6)
    w = rng.normal(size=n) * sizes[rng.integers(0, 64, n)] * 0.02
    w[rng.integers(0, n, n // 1000 + 1)] *= 8
    return w.astype(np.float32)


def exact(numbers: Atoms, k: int) -> float:
    """The least distortion, by dynamic programming over all places."""
    x, m = numbers
    mass, first, second = (np.append(0, np.cumsum(a)) for a in (m, m * x, m * x * x))
    i, j = np.triu_indices(len(x) + 1, 1)
    cost = np.full((len(x) + 1, len(x) + 1), np.inf)
    cost[i, j] = (second[j] - second[i]) - (first[j] - first[i]) ** 2 / (mass[j] - mass[i])
    best = cost[0]
    for _ in range(k - 1):
        best = (best[:, None] + cost).min(0)
    return float(best[-1])


@pytest.mark.parametrize("k", [2, 3, 4, 8, 16])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_within_a_ten_thousandth_of_dynamic_programming(k: int, seed: int) -> None:
    numbers = atoms(mixture(500, seed))
    centres = cluster(numbers, k)
    assert len(centres) == k and (np.diff(centres) > 0).all()
    assert distortion(numbers, centres) <= exact(numbers, k) * 1.0001


@pytest.mark.parametrize("far", [(50.0,), (50.0, -70.0)])
def test_a_single_number_far_out_gets_a_centre(far: tuple[float, ...]) -> None:
    numbers = atoms(np.append(mixture(500), np.float32(far)))
    assert distortion(numbers, cluster(numbers, 4)) <= exact(numbers, 4) * 1.0001


def test_with_weights_as_well() -> None:
    rng = np.random.default_rng(0)
    w, weights = mixture(400), rng.uniform(0, 1, 400) ** 4
    numbers = atoms(w, weights)
    assert distortion(numbers, cluster(numbers, 8)) <= exact(numbers, 8) * 1.0001
    # Numbers that count nothing have no say; one counted twice is two.
    assert np.array_equal(cluster(atoms(np.append(w, w * 9), np.append(weights, weights * 0)), 8), cluster(numbers, 8))
    twice = cluster(atoms(np.append(w, w[:200])), 8)
    np.testing.assert_allclose(twice, cluster(atoms(w, np.where(np.arange(400) < 200, 2, 1)), 8), rtol=1e-9)


@pytest.mark.parametrize("k, worse", [(16, 1.0001), (64, 1.0001), (256, 1.0003)])
def test_bins_cost_next_to_nothing(k: int, worse: float) -> None:
    w = np.random.default_rng(1).standard_t(6, 150_000).astype(np.float32)
    x, count = np.unique(w.astype(np.float64), return_counts=True)
    every = Atoms(x, count.astype(np.float64))
    binned = atoms(w, k=k)
    assert len(binned.x) < len(x) / 2, "there must be bins for this to say anything"
    assert distortion(every, cluster(binned, k)) <= distortion(every, cluster(every, k)) * worse


def test_lloyd_steps_do_not_improve_what_windows_find() -> None:
    numbers = atoms(mixture(200_000, 3))
    centres = cluster(numbers, 256)
    start = distortion(numbers, centres)
    for _ in range(30):
        place = np.searchsorted((centres[1:] + centres[:-1]) / 2, numbers.x)
        mass = np.bincount(place, numbers.mass, 256)
        centres = np.bincount(place, numbers.mass * numbers.x, 256) / mass
    assert start <= distortion(numbers, centres) * 1.0001


@given(
    st.lists(st.sampled_from([0.0, -0.0, 1.0, -3.5, 1e-40, 65504.0, 1e30, -1e30]), min_size=1, max_size=20),
    st.integers(1, 16),
)
def test_few_numbers_are_centres_themselves(numbers: list[float], k: int) -> None:
    found = cluster(atoms(np.array(numbers, np.float32)), k)
    distinct = np.unique(np.array(numbers, np.float32).astype(np.float64))
    assert len(found) <= k and np.isfinite(found).all()
    if len(distinct) <= k:
        assert np.array_equal(found, distinct)


@pytest.mark.parametrize("k, precision", [(16, 11), (256, 13)])
def test_pieces_of_a_histogram_add_up(k: int, precision: int) -> None:
    w = mixture(10_000)
    whole, parts = Histogram(0.05, k), Histogram(0.05, k)
    whole.add(whole.count(w))
    for part in np.split(w, [10, 11, 3000]):
        parts.add(parts.count(np.ascontiguousarray(part)))
    for a, b in zip(whole.atoms(), parts.atoms(), strict=True):
        assert np.array_equal(a, b)
    assert whole.atoms().mass.sum() == w.size
    near = np.abs(w[:, None] - whole.atoms().x[None, :]).min(1)
    assert (near <= (np.abs(w) + 0.05 / 4) * 2.0**-precision).all(), "no number is further from its bin"


@pytest.mark.parametrize("axis", [0, 1])
def test_a_large_weight_is_sampled_evenly(axis: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every n-th number would, of a weight with a pattern of that length, see nothing but one of its numbers."""
    rng = np.random.default_rng(0)
    w = rng.normal(size=(1000, 1200)).astype(np.float32)
    w[:, ::5] *= 5  # There are 4.6 times as many as are enough for four centres.
    w.reshape(-1)[1] = 2000  # Who misses it pays more than for all the others.
    lost = []
    for enough in (gridtables.ENOUGH, w.size):
        monkeypatch.setattr(gridtables, "ENOUGH", enough)
        found = gridtables.fit_table(w, axis, 2, None, False, 0, 1)
        lost.append(float(np.square(found.round(w) - w).sum()))
    assert lost[0] != lost[1], "some of the numbers must do for this to say anything"
    assert lost[0] <= lost[1] * 1.0002


@given(
    st.lists(st.floats(-4, 4, width=16), min_size=1, max_size=64),
    st.integers(0, 2**32 - 1),
)
def test_the_nearest_points_are_the_nearest(points: list[float], seed: int) -> None:
    table = np.array(points, np.float32)
    rng = np.random.default_rng(seed)
    w = np.concatenate(
        [rng.normal(size=2000).astype(np.float32) * 2, table, np.float32([1e30, -1e30, 0, 1e-40, np.inf])]
    )
    found = nearest_points(w, table)
    assert found.dtype == np.uint8 and np.array_equal(table[found[2000 : 2000 + len(table)]], table)
    chosen = np.abs(w[:-1].astype(np.float64) - table[found[:-1]])
    assert (chosen <= np.abs(w[:-1, None].astype(np.float64) - table).min(1) * (1 + 1e-6) + 1e-6).all()
    few = np.concatenate([nearest_points(part, table) for part in np.array_split(w, 10)])
    assert np.array_equal(few, found), "looked up and searched must agree"


def test_vectors_beat_numbers_of_as_many_bits_where_neighbours_go_together() -> None:
    rng = np.random.default_rng(0)
    w = rng.normal(size=(64, 128)).astype(np.float32)
    w[1::2] = w[::2] + 0.1 * rng.normal(size=(32, 128)).astype(np.float32)
    ones = np.ones(64, np.float32)
    table = cluster_vectors(w, 0, 16, None, ones, ones, 2)[0]
    assert table.shape == (16, 2)
    pairs = np.stack([w[::2], w[1::2]], -1).reshape(-1, 2)
    error = ((pairs[:, None] - table) ** 2).sum(2).min(1).mean() / 2
    numbers = atoms(w)
    assert error < 0.6 * distortion(numbers, cluster(numbers, 4)) / w.size, "4 bits for two, 2 bits for one"
    assert np.array_equal(table, cluster_vectors(w, 0, 16, None, ones, ones, 2)[0])
    w[:, :4] += 5
    heavy = np.where(np.arange(128) < 4, np.float32(1000), np.float32(0.001))
    seen = cluster_vectors(w, 0, 16, np.broadcast_to(heavy, w.shape), ones, ones, 2)[0]
    few = np.stack([w[::2, :4], w[1::2, :4]], -1).reshape(-1, 2)
    plain = cluster_vectors(w, 0, 16, None, ones, ones, 2)[0]
    lost = [((few[:, None] - t) ** 2).sum(2).min(1).mean() for t in (plain, seen)]
    assert lost[1] < 0.7 * lost[0], "what counts more gets more of the table"


def test_tables_of_groups_are_fitted_together_as_each_alone() -> None:
    """Groups are clustered many at a time, the last one being smaller: each as if it were alone."""
    rng = np.random.default_rng(0)
    w = rng.normal(size=(22, 6, 3)).astype(np.float32)
    scales, share = rng.uniform(0.5, 2, (2, 22)).astype(np.float32)
    whole = cluster_vectors(w, 0, 4, None, scales, share, 2, 8)
    assert whole.shape == (3, 4, 2)
    for g in range(3):
        own = slice(8 * g, 8 * g + 8)
        alone = cluster_vectors(w[own], 0, 4, None, scales[own], share[own], 2)[0]
        np.testing.assert_allclose(whole[g], alone, rtol=1e-5)


@given(st.integers(1, 80), st.integers(1, 4), st.integers(1, 3), st.integers(0, 2**32 - 1))
def test_the_nearest_vectors_are_the_nearest(k: int, d: int, groups: int, seed: int) -> None:
    """By comparing with each and by a product; a vector that is a point gets it, neighbours in float16 too."""
    rng = np.random.default_rng(seed)
    points = rng.normal(size=(groups, k, d)).astype(np.float16)
    points[:, k // 2 :] = np.nextafter(points[:, : k - k // 2], np.float16(9))
    table = points.astype(np.float32)
    lanes = np.concatenate([table, rng.normal(size=(groups, 50, d)).astype(np.float32)], 1).transpose(2, 0, 1)
    found = nearest_of(lanes, points)
    chosen = np.take_along_axis(table, found[..., None].astype(int), 1).transpose(2, 0, 1)
    assert np.array_equal(chosen[..., :k], lanes[..., :k]), "on the table"
    least = np.square(lanes[..., None].astype(np.float64) - table.transpose(2, 0, 1)[:, :, None]).sum(0).min(-1)
    np.testing.assert_allclose(np.square(lanes - chosen).sum(0), least, rtol=1e-4, atol=1e-9)
    nearly = np.take_along_axis(table, nearest_of(lanes, points, exact=False)[..., None].astype(int), 1)
    np.testing.assert_allclose(np.square(lanes - nearly.transpose(2, 0, 1)).sum(0), least, rtol=1e-4, atol=1e-5)
