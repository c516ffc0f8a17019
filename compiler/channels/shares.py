"""The same share of every axis, where families are too small to give it by themselves."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .components import components
from .coupling import Coupling
from .select import Family
from .solve import Solution


def shares(coupling: Coupling, found: Solution, groups: Sequence[Family], ratio: float) -> list[int]:
    """How many units of each family go, so that what families of one axis lose together is that share of it.

    Of one unit, or of seven, there is no half. So what a family takes too little or too much, the next one on the same
    axes makes up for, those with the largest units first: channels that a shuffle ties to 244, 116, 64 others …
    Families that keep multiples, or whose importance is compared with that of others, count for themselves.
    """
    counts = [f.count(ratio) for f in groups]
    plain = [k for k, f in enumerate(groups) if f.step == 1 and f.at is None]
    where = _together(coupling, found, groups)
    for part in np.unique(where[plain]) if plain else ():
        here = [k for k in plain if where[k] == part]
        owed = 0.0
        for k in sorted(here, key=lambda k: -int(groups[k].ends[1])):
            f = groups[k]
            size, n = int(f.ends[1]), f.order.size
            most = n if n == 1 and len(here) > 1 else n - f.floor
            wanted = ratio * n * size + owed
            counts[k] = min(max(0, round(wanted / size)), most)
            owed = wanted - counts[k] * size
    return counts


def _together(coupling: Coupling, found: Solution, groups: Sequence[Family]) -> np.ndarray:
    """Per family, a number: equal for those that lie on one axis of some weight, directly or through others."""
    of = np.full(found.count, -1)
    for k, f in enumerate(groups):
        of[f.members] = k
    links = [np.zeros((2, 0), np.int64)]
    for holds in coupling.holds.values():
        for h in holds:
            present = np.unique(of[found.of[h.grid.ids]])
            present = present[present >= 0]
            if present.size > 1:
                links.append(np.stack([np.full(present.size - 1, present[0]), present[1:]]))
    left, right = np.concatenate(links, 1)
    return components(left, right, len(groups))
