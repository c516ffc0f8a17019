"""Finding the few places where rounding costs the outputs most, in a bounded number of runs.

Errors of different operators or weights are nearly independent, so their noise powers add up at the outputs. All places
are cut into stretches of neighbours; each is rounded alone and its noise measured; the noisiest are cut further.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from ..compiler.numerics import compare

STRETCHES = 8
CUTS = 4
RUNS = 32
"""Runs of the model at most, beside the ones that check the result."""

TRIES = 3
"""How often another stretch is kept where the noise did not quite add up."""

SHARE = 0.25
"""When more than this share of all places would have to stay as they are, no few of them are to blame."""


@dataclass(frozen=True)
class Stretch:
    """Neighbouring places, and noise power over signal power at the outputs when only they are rounded."""

    names: tuple[str, ...]
    noise: float


@dataclass(frozen=True)
class Search:
    """What was found: the stretches that must stay, the noise that is left, and whether that is little enough."""

    kept: tuple[Stretch, ...]
    noise: float
    found: bool


def noise_power(reference: Mapping[str, np.ndarray], got: Mapping[str, np.ndarray]) -> float:
    """Noise power over signal power of the worst float output that is not all zero; inf where it can't be told."""
    floats = {n: a for n, a in reference.items() if a.dtype.kind == "f" and np.any(a)}
    return max((10 ** (-d.snr_db / 10) for d in compare(floats, got).values()), default=0.0)


def budget(decibels: float) -> float:
    """Noise power over signal power at this signal-to-noise ratio."""
    return 10 ** (-decibels / 10)


def decibels(noise: float) -> str:
    """A noise power over signal power as text."""
    return f"{-10 * math.log10(noise):.1f} dB" if 0 < noise < math.inf else "nothing but NaN or infinities"


def search(names: Sequence[str], limit: float, noise: Callable[[Sequence[str]], float], total: int = 0) -> Search:
    """The stretches of `names` to leave as they are, so that the noise of the others stays within `limit`.

    `noise(kept)` runs the model with all but `kept` rounded. `total` counts all places, those rounded before included.
    """
    runs = 0

    def alone(part: Sequence[str]) -> Stretch:
        nonlocal runs
        runs += 1
        inside = set(part)
        return Stretch(tuple(part), noise([n for n in names if n not in inside]))

    stretches = [alone(part) for part in _cut(names, STRETCHES)]
    while True:
        kept = _to_keep(stretches, limit)
        long = [s for s in kept if len(s.names) > 1]
        if not long or runs + CUTS > RUNS:
            break
        worst = max(long, key=lambda s: s.noise)
        stretches.remove(worst)
        stretches += [alone(part) for part in _cut(worst.names, CUTS)]
    left = math.inf
    order = sorted(stretches, key=lambda s: -s.noise)
    for extra in range(TRIES):
        chosen = order[: max(1, len(kept)) + extra]
        if sum(len(s.names) for s in chosen) > max(1, SHARE * max(total, len(names))):
            return Search((), left, False)
        left = noise([n for s in chosen for n in s.names])
        if left <= limit:
            return Search(tuple(chosen), left, True)
    return Search((), left, False)


def _to_keep(stretches: Sequence[Stretch], limit: float) -> list[Stretch]:
    """The noisiest stretches, until the others together are within the limit."""
    rest = sorted(stretches, key=lambda s: -s.noise)
    kept = []
    while rest and sum(s.noise for s in rest) > limit:
        kept.append(rest.pop(0))
    return kept


def _cut(names: Sequence[str], parts: int) -> list[Sequence[str]]:
    """`names` in at most so many parts of about the same length, none empty."""
    edges = [len(names) * i // parts for i in range(parts + 1)]
    return [names[a:b] for a, b in pairwise(edges) if b > a]
