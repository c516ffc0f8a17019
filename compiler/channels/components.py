"""Which numbers are connected."""

from __future__ import annotations

import numpy as np


def components(a: np.ndarray, b: np.ndarray, count: int) -> np.ndarray:
    """The component of each of the numbers 0 to `count` - 1, of which a[i] and b[i] are connected, for all i.

    scipy is imported here: most models have nothing to remove, and then it isn't needed.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    links = coo_array((np.ones(a.size, np.int8), (a, b)), shape=(count, count))
    return np.asarray(connected_components(links, directed=False)[1])
