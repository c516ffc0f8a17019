"""What bytes of weights are worth: what a search for the bits of each weight found, as plain data for the report."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Point:
    """A way to round all weights.

    Attributes:
        nbytes: of all weights that may be rounded, as stored.
        expected: noise power over signal power at the outputs, the sum of what each weight alone makes.
        measured: the same, measured; None where it wasn't.
        bits: of every weight, where it is the same.
    """

    nbytes: int
    expected: float
    measured: float | None = None
    bits: int | None = None


@dataclass(frozen=True)
class Choice:
    """What became of a weight: its bits and bytes, the bytes it has as it is, and the noise expected of it alone."""

    name: str
    bits: int
    nbytes: int
    plain: int
    noise: float


@dataclass(frozen=True)
class Tradeoff:
    """What was found.

    Attributes:
        rest: bytes of all other constants.
        chosen: what was done.
        uniform: the same bits everywhere.
        frontier: the best for every size, the smallest first, by expectation.
        weights: each weight.
        scores: the outputs that are compared as probabilities of classes.
    """

    rest: int
    chosen: Point
    uniform: tuple[Point, ...]
    frontier: tuple[Point, ...]
    weights: tuple[Choice, ...]
    scores: tuple[str, ...] = ()
