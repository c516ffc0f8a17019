"""k-means of short vectors: neighbouring channels that share an index into a table. Many tables at a time."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ..parallel import on_cores
from .points import nearest_of

SAMPLE, ENOUGH = 1 << 13, 128
"""Vectors that the centres of a table are looked for among, evenly taken from all: in all, or if more for each."""

SEEDS = 32
"""Vectors for each centre that the first centres are chosen of."""

STEPS, LAST = 15, 8
"""At most: among the vectors that the first centres were chosen of, then among all."""

GAIN = 5e-4
"""Of the square error: what a step must gain for another one."""

BATCH = 1 << 17
"""Vectors that are worked on at a time: they fit a cache."""


def cluster_vectors(
    array: np.ndarray,
    axis: int,
    k: int,
    importance: np.ndarray | None,
    scales: np.ndarray,
    share: np.ndarray,
    vector: int,
    group: int = 0,
) -> np.ndarray:
    """`k` centres for each `group` of channels (0: all), [groups, k, vector], in units of the channels' scales.

    Lloyd's steps from centres that k-means++ chose (Arthur and Vassilvitskii, SODA 2007), always the same. An error of
    a channel counts its `share`, times its importance; of the elements of a vector, the mean.
    """
    channels = array.shape[axis]
    rows = np.moveaxis(array, axis, 0)
    weights = None if importance is None else np.moveaxis(importance, axis, 0)
    step = group or channels
    most = max(SAMPLE, ENOUGH * k)
    each = step // vector * max(1, rows[0].size)
    many = max(1, BATCH // min(most, each))

    def work(some: slice) -> np.ndarray:
        size = min(step, some.stop - some.start)
        every = max(1, size // vector * rows[0].size // most)
        own = _lanes(rows[some], scales[some], size, vector)[..., ::every]
        mass = _lanes(np.broadcast_to(np.float32(1), rows[some].shape) if weights is None else weights[some],
                      1 / np.maximum(share[some], np.float32(1e-30)), size, vector)[..., ::every].mean(0)  # fmt: skip
        return _clustered(np.ascontiguousarray(own), mass, k)

    return np.concatenate(on_cores(work, _batches(channels, step, many)))


def _batches(channels: int, step: int, many: int) -> Iterator[slice]:
    """Channels of `many` groups each; a last, smaller group is by itself."""
    whole = channels // step * step
    for i in range(0, whole, many * step):
        yield slice(i, min(i + many * step, whole))
    if whole < channels:
        yield slice(whole, channels)


def _lanes(rows: np.ndarray, scales: np.ndarray, size: int, vector: int) -> np.ndarray:
    """Rows over their scales as vector x groups of `size` rows x vectors."""
    scaled = rows.reshape(len(rows), -1) / scales[:, None]
    lanes = scaled.reshape(len(rows) // size, size // vector, vector, -1)
    return np.asarray(lanes.transpose(2, 0, 1, 3).reshape(vector, len(rows) // size, -1))


def _clustered(lanes: np.ndarray, mass: np.ndarray, k: int) -> np.ndarray:
    """Centres [groups, k, vector] of vectors, vector x groups x n, that count their mass, groups x n."""
    some = slice(None, None, max(1, lanes.shape[2] // (SEEDS * k)))
    part = np.ascontiguousarray(lanes[..., some])
    centres = _seeded(part, mass[:, some], k)
    if part.shape[2] < lanes.shape[2]:
        centres = _moved(part, mass[:, some], centres, STEPS)
        return _moved(lanes, mass, centres, LAST)
    return _moved(lanes, mass, centres, STEPS)


def _moved(lanes: np.ndarray, mass: np.ndarray, centres: np.ndarray, steps: int) -> np.ndarray:
    """Lloyd's steps: each centre becomes the mean of the vectors that it is the nearest to."""
    groups, k, _ = centres.shape
    weight = mass.astype(np.float64)
    weighted = [weight * own for own in lanes]
    whole = sum(float((own * part).sum()) for own, part in zip(lanes, weighted, strict=True))
    first = (np.arange(groups) * k)[:, None]
    last = np.inf
    for _ in range(steps):
        at = (nearest_of(lanes, centres, exact=False) + first).ravel()
        total = np.bincount(at, weight.ravel(), groups * k).reshape(groups, k)
        sums = np.stack([np.bincount(at, own.ravel(), groups * k).reshape(groups, k) for own in weighted], -1)
        # The square error of these clusters about the old centres.
        lost = whole - 2 * float((sums * centres).sum()) + float((total[..., None] * np.square(centres)).sum())
        if lost <= 0 or (last - lost <= GAIN * last and lost < last < np.inf):
            break
        last = lost
        new = sums / np.maximum(total, 1e-300)[..., None]
        centres = np.where(total[..., None] > 0, new, centres).astype(np.float32)
    return centres


def _seeded(lanes: np.ndarray, mass: np.ndarray, k: int) -> np.ndarray:
    """`k` of the vectors of each group, far from each other; repeated where there are fewer."""
    vector, groups, _ = lanes.shape
    rng = np.random.default_rng(0)
    found = np.empty((groups, k, vector), np.float32)
    every = np.arange(groups)
    place = mass.argmax(1)
    far = np.full(mass.shape, np.inf, np.float32)
    for i in range(k):
        found[:, i] = lanes[:, every, place].T
        distance = np.square(lanes[0] - found[:, i, 0, None])
        for j in range(1, vector):
            distance += np.square(lanes[j] - found[:, i, j, None])
        np.minimum(far, distance, out=far)
        odds = np.cumsum(far * mass, axis=1, dtype=np.float64)
        place = np.minimum((odds <= rng.random() * odds[:, -1:]).sum(1), odds.shape[1] - 1)
        place[odds[:, -1] <= 0] = 0
    return found
