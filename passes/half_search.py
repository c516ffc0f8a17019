"""Finding the few operators whose rounding costs the outputs most, in a bounded number of runs.

Rounding errors of different operators are nearly independent, so their noise powers add up at the outputs. The
operators are cut into stretches; each is rounded alone and its noise measured; the noisiest are cut further.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

STRETCHES = 8
CUTS = 4
RUNS = 32
"""Runs of the model at most, beside the ones that check the result."""

TRIES = 3
"""How often another stretch is kept where the noise did not quite add up."""

SHARE = 0.25
"""When more than this share of the operators would have to stay, no few of them are to blame."""


@dataclass(frozen=True)
class Stretch:
    """Neighbouring operators, and noise power over signal power at the outputs when only they are rounded."""

    names: tuple[str, ...]
    noise: float


@dataclass(frozen=True)
class Search:
    """What was found: the stretches that must stay, the noise that is left, and whether that is little enough."""

    kept: tuple[Stretch, ...]
    noise: float
    found: bool


def search(names: Sequence[str], budget: float, noise: Callable[[Sequence[str]], float]) -> Search:
    """The stretches of `names` to keep in float32 so that the noise of the others stays within `budget`.

    `noise(kept)` runs the model with all but `kept` rounded.
    """
    runs = 0

    def alone(part: Sequence[str]) -> Stretch:
        nonlocal runs
        runs += 1
        inside = set(part)
        return Stretch(tuple(part), noise([n for n in names if n not in inside]))

    stretches = [alone(part) for part in _cut(names, STRETCHES)]
    while True:
        kept = _to_keep(stretches, budget)
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
        if sum(len(s.names) for s in chosen) > SHARE * len(names):
            return Search((), left, False)
        left = noise([n for s in chosen for n in s.names])
        if left <= budget:
            return Search(tuple(chosen), left, True)
    return Search((), left, False)


def _to_keep(stretches: Sequence[Stretch], budget: float) -> list[Stretch]:
    """The noisiest stretches, until the others together are within the budget."""
    rest = sorted(stretches, key=lambda s: -s.noise)
    kept = []
    while rest and sum(s.noise for s in rest) > budget:
        kept.append(rest.pop(0))
    return kept


def _cut(names: Sequence[str], parts: int) -> list[Sequence[str]]:
    """`names` in at most so many parts of about the same length, none empty."""
    edges = [len(names) * i // parts for i in range(parts + 1)]
    return [names[a:b] for a, b in pairwise(edges) if b > a]
