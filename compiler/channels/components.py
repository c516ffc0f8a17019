"""Which numbers are connected."""

from __future__ import annotations

import numpy as np


def components(a: np.ndarray, b: np.ndarray, count: int) -> np.ndarray:
    """The component of each of the numbers 0 to `count` - 1, of which a[i] and b[i] are connected, for all i.

    Components are numbered in the order of their lowest members. Every link hooks the higher of its two roots to the
    lower one, and paths are halved until they end, a few times over: as fast as a search in compiled code, of which
    the import alone would take longer than most models.
    """
    root = np.arange(count)
    while True:
        x, y = root[a], root[b]
        apart = np.flatnonzero(x != y)
        if not apart.size:
            break
        a, b, x, y = a[apart], b[apart], x[apart], y[apart]
        np.minimum.at(root, np.maximum(x, y), np.minimum(x, y))
        while not np.array_equal(root, up := root[root]):
            root = up
    return np.asarray((np.cumsum(root == np.arange(count)) - 1)[root])
