"""Which integers stand for which activations: a scale and a zero point for what a histogram counted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx_ir as ir

from ..compiler.calibration.histograms import Histogram

Rule = Literal["mse", "minmax", "percentile", "entropy"]

KINDS = {
    4: (ir.DataType.UINT4, ir.DataType.INT4),
    8: (ir.DataType.UINT8, ir.DataType.INT8),
    16: (ir.DataType.UINT16, ir.DataType.INT16),
}
"""Bits → the types of integers, without and with a sign."""

SHARES = 0.94 ** np.arange(48)
"""Of the whole range, what is tried: down to a twentieth."""


@dataclass(frozen=True)
class Levels:
    """Numbers (q - zero) · scale, for q an integer of a type. 0 is one of them: what is padded stays 0.

    Attributes:
        scale: a number that float16 holds.
        zero: the zero point.
        kind: the type of q.
    """

    scale: float
    zero: int
    kind: ir.DataType

    @property
    def ends(self) -> tuple[int, int]:
        """The least and the largest integer."""
        bits = self.kind.bitwidth
        return (-(1 << bits - 1), (1 << bits - 1) - 1) if self.kind.is_signed() else (0, (1 << bits) - 1)

    def indices(self, x: np.ndarray) -> np.ndarray:
        """The integer for each number, as a float."""
        return np.asarray(np.clip(np.rint(x / self.scale) + self.zero, *self.ends))

    def round(self, x: np.ndarray) -> np.ndarray:
        """Each number as it is read back."""
        return np.asarray((self.indices(x) - self.zero) * self.scale)


def made(low: float, high: float, bits: int, symmetric: bool) -> Levels:
    """Levels that reach from `low` (0 or less) to `high` (0 or more). Not both may be 0.

    Symmetric ones have the zero point 0: as many on either side, or, where nothing is negative, none below.
    """
    unsigned, signed = KINDS[bits]
    if symmetric and low < 0:
        return Levels(_half_above(max(-low, high) / ((1 << bits - 1) - 1)), 0, signed)
    top = (1 << bits) - 1
    scale = _half_above((high - low) / top)
    return Levels(scale, int(np.clip(np.rint(-low / scale), 0, top)), unsigned)


def _half_above(scale: float) -> float:
    """The least float16 that is not below `scale`: rounding down would cut the range short."""
    half = np.float16(scale)
    # As numbers of Python: numpy would round `scale` as well to compare them.
    return float(half) if float(half) >= scale else float(np.nextafter(half, np.float16(np.inf)))


def levels(found: Histogram, rule: Rule, bits: int, symmetric: bool, percentile: float = 99.99) -> Levels:
    """The levels for what was counted; not for nothing but zeros.

    minmax: all numbers. percentile: so many of a hundred, from either end. mse: the least square error. entropy: the
    least divergence (Kullback, Leibler) of what is read back from what was, as in TensorRT (Migacz, GTC 2017), which
    leaves zeros out.
    """
    low, high = found.low, found.high
    if rule == "percentile":
        ends = found.quantile(1 - percentile / 100), found.quantile(percentile / 100)
        low, high = ends if ends[0] < ends[1] else (low, high)
        return made(min(low, 0.0), max(high, 0.0), bits, symmetric)
    if rule == "minmax":
        return made(low, high, bits, symmetric)
    centres, counts = found.filled()
    cost = _COSTS[rule]
    return _searched(low, high, bits, symmetric, lambda trial: cost(trial, centres, counts))


def _searched(low: float, high: float, bits: int, symmetric: bool, cost: Callable[[Levels], float]) -> Levels:
    """The levels of least cost: first both ends of the range move, then each by itself."""
    best = made(low, high, bits, symmetric)
    least, share = cost(best), [1.0, 1.0]
    tied = symmetric or not low or not high
    for moved in ((0, 1),) if tied else ((0, 1), (0,), (1,)):
        start = list(share)
        for s in SHARES:
            tried = [float(s) if i in moved else start[i] for i in (0, 1)]
            trial = made(low * tried[0], high * tried[1], bits, symmetric)
            found = cost(trial)
            if found < least:
                best, least, share = trial, found, tried
    return best


def _square_error(trial: Levels, x: np.ndarray, counts: np.ndarray) -> float:
    return float(counts @ np.square(x - trial.round(x)))


def _divergence(trial: Levels, x: np.ndarray, counts: np.ndarray) -> float:
    """What is cut off counts at the ends before, and not after, where each level is spread over its bins."""
    x, counts = x[x != 0], counts[x != 0]
    low, high = ((end - trial.zero) * trial.scale for end in trial.ends)
    inside = (x >= low) & (x <= high)
    if not inside.any():
        return np.inf
    q = counts[inside]
    p = q.copy()
    p[0] += counts[x < low].sum()
    p[-1] += counts[x > high].sum()
    at = trial.indices(x[inside]).astype(np.int64) - trial.ends[0]
    spread = (np.bincount(at, q) / np.maximum(np.bincount(at), 1))[at]
    return float(p @ np.log((p / p.sum()) / (spread / spread.sum()))) / float(p.sum())


_COSTS: dict[str, Callable[[Levels, np.ndarray, np.ndarray], float]] = {"mse": _square_error, "entropy": _divergence}
