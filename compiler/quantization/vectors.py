"""k-means of short vectors: neighbouring channels that share an index into a table."""

from __future__ import annotations

import numpy as np

from .points import lanes, nearest_vectors

SAMPLE = 1 << 15
"""Vectors that centres are looked for among; evenly taken from all."""

STEPS = 25


def cluster_vectors(
    array: np.ndarray, axis: int, k: int, importance: np.ndarray | None, scales: np.ndarray, vector: int
) -> np.ndarray:
    """`k` centres [k, vector] of the vectors along `axis` in units of the scales.

    Lloyd's steps from centres that k-means++ chose (Arthur and Vassilvitskii, SODA 2007), always the same. Of the
    importance of its elements a vector has the mean.
    """
    flat = lanes(array, axis, vector).reshape(-1, vector)
    every = max(1, len(flat) // SAMPLE)
    unit = lanes(
        np.broadcast_to(scales.reshape([-1 if a == axis else 1 for a in range(array.ndim)]), array.shape), axis, vector
    )
    some = (flat[::every] / unit.reshape(-1, vector)[::every]).astype(np.float64)
    mass = np.ones(len(some))
    if importance is not None:
        mass = lanes(importance, axis, vector).reshape(-1, vector)[::every].mean(1, dtype=np.float64)
    centres = _seeded(some, mass, k)
    for _ in range(STEPS):
        place = nearest_vectors(some, centres)
        weight = np.bincount(place, mass, k)
        sums = np.stack([np.bincount(place, mass * some[:, j], k) for j in range(vector)], 1)
        new = np.where(weight[:, None] > 0, sums / np.maximum(weight, 1e-300)[:, None], centres)
        if np.array_equal(new, centres):
            break
        centres = new
    return centres


def _seeded(some: np.ndarray, mass: np.ndarray, k: int) -> np.ndarray:
    """`k` of the vectors, far from each other; repeated where there are fewer."""
    rng = np.random.default_rng(0)
    found = np.empty((k, some.shape[1]))
    found[0] = some[int(np.argmax(mass))]
    far = np.full(len(some), np.inf)
    for i in range(1, k):
        np.minimum(far, ((some - found[i - 1]) ** 2).sum(1), out=far)
        odds = np.cumsum(far * mass)
        found[i] = some[int(np.searchsorted(odds, rng.random() * odds[-1], side="right")) if odds[-1] > 0 else 0]
    return found
