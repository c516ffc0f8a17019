"""How far two sets of outputs are apart: one figure per question, each with its unit written down."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

CHUNK = 1 << 20
"""Elements that are compared at a time, so that a huge output costs no more memory than a small one."""

LOGIT_NAMES = ("logit", "prob", "score")
"""An output of rank 3 or more is read as one classification per position only if its name says so."""


@dataclass(frozen=True)
class Difference:
    """How far one output is from its reference.

    Attributes:
        max_abs: largest |got - ref|, in the output's own unit.
        max_rel: `max_abs` divided by the output's scale, the largest |ref| of the whole output. Not per element: an
            element near zero has no meaningful relative error. For integers, booleans and strings, which are compared
            exactly, it is the share of unequal elements. 0 for equal outputs; inf where a scale of zero, a shape,
            a type or a non-finite value disagrees.
        snr_db: 10 log10(Σ ref² / Σ (got - ref)²), in decibels; inf for equal outputs. 6 dB is one bit.
        cosine: of the angle between both outputs as vectors, 1 where they point the same way.
        equal: share of equal elements, 0 to 1 (NaN equals NaN).
        top1: share of rows whose largest element has the same index, where the output looks like logits: floats of
            shape [N, C ≥ 2], or of higher rank, the classes last, under a name with 'logit', 'prob' or 'score'.
            None elsewhere.
        mismatch: what makes the figures meaningless (shape, type, NaN or inf in other places), or None.
    """

    max_abs: float = 0.0
    max_rel: float = 0.0
    snr_db: float = math.inf
    cosine: float = 1.0
    equal: float = 1.0
    top1: float | None = None
    mismatch: str | None = None

    @classmethod
    def failed(cls, why: str) -> Difference:
        """Outputs that can't be compared: as far apart as can be."""
        return cls(math.inf, math.inf, -math.inf, 0.0, 0.0, None, why)


def compare(
    ref: Mapping[str, np.ndarray], got: Mapping[str, np.ndarray], *, types: bool = True
) -> dict[str, Difference]:
    """Compare the outputs `got` with `ref`, by name. With `types`, element types must agree as well."""
    return {n: difference(r, got[n], n, types=types) if n in got else _absent(n) for n, r in ref.items()}


def difference(ref: np.ndarray, got: np.ndarray, name: str = "", *, types: bool = True) -> Difference:
    """Compare one output with its reference. `name` helps to tell logits (see `Difference.top1`)."""
    meter = Meter(name, types=types)
    meter.add(ref, got)
    return meter.result()


def _absent(name: str) -> Difference:
    return Difference.failed(f"no output '{name}'")


@dataclass
class Meter:
    """Sums up the comparison of one output over several runs; `result` reads it."""

    name: str = ""
    types: bool = True
    _count: int = 0
    _unequal: int = 0
    _scale: float = 0.0
    _max_abs: float = 0.0
    _ref2: float = 0.0
    _got2: float = 0.0
    _dot: float = 0.0
    _err2: float = 0.0
    _rows: int = 0
    _hits: int = 0
    _exact: bool = False
    _mismatch: str | None = field(default=None)

    def add(self, ref: np.ndarray, got: np.ndarray) -> None:
        """Take in one run's output."""
        why = self._incomparable(ref, got)
        if why:
            self._mismatch = self._mismatch or why
            return
        self._count += ref.size
        if _is_float(ref):
            for a, b in _chunks(ref, got):
                self._add_floats(a, b)
            self._add_rows(ref, got)
        else:
            self._exact = True
            self._add_exact(ref, got)

    def result(self) -> Difference:
        """The figures over everything that was added."""
        if self._mismatch:
            return Difference.failed(self._mismatch)
        unequal = self._unequal / self._count if self._count else 0.0
        if self._exact:
            return Difference(self._max_abs, unequal, _decibels(self._ref2, self._err2), self._cosine(), 1 - unequal)
        return Difference(
            max_abs=self._max_abs,
            max_rel=_ratio(self._max_abs, self._scale),
            snr_db=_decibels(self._ref2, self._err2),
            cosine=self._cosine(),
            equal=1 - unequal,
            top1=self._hits / self._rows if self._rows else None,
        )

    def _incomparable(self, ref: np.ndarray, got: np.ndarray) -> str | None:
        if ref.shape != got.shape:
            return f"shape {list(got.shape)} instead of {list(ref.shape)}"
        if self.types and ref.dtype != got.dtype:
            return f"type {got.dtype} instead of {ref.dtype}"
        if _is_text(ref) != _is_text(got):
            return f"type {got.dtype} instead of {ref.dtype}"
        return None

    def _add_exact(self, ref: np.ndarray, got: np.ndarray) -> None:
        self._unequal += int(np.count_nonzero(ref != got))
        if not _is_text(ref):
            for a, b in _chunks(ref, got):
                self._sum(a, b, np.abs(b - a))

    def _add_floats(self, ref: np.ndarray, got: np.ndarray) -> None:
        """Add a chunk, both sides float64. Values that are not finite must agree in place and sign."""
        finite = np.isfinite(ref)
        if not finite.all() or not np.isfinite(got).all():
            if not np.array_equal(ref[~finite], got[~finite], equal_nan=True) or not np.isfinite(got[finite]).all():
                bad = np.count_nonzero(np.isfinite(got) != finite)
                what = f"{bad} of {ref.size} elements are NaN or inf on one side only" if bad else "NaN or inf differ"
                self._mismatch = self._mismatch or what
                return
            ref, got = ref[finite], got[finite]
        error = np.abs(got - ref)
        self._unequal += int(np.count_nonzero(error))
        self._sum(ref, got, error)

    def _sum(self, ref: np.ndarray, got: np.ndarray, error: np.ndarray) -> None:
        if ref.size:
            self._scale = max(self._scale, float(np.abs(ref).max()))
            self._max_abs = max(self._max_abs, float(error.max()))
            self._ref2 += float(ref @ ref)
            self._got2 += float(got @ got)
            self._dot += float(ref @ got)
            self._err2 += float(error @ error)

    def _add_rows(self, ref: np.ndarray, got: np.ndarray) -> None:
        if looks_like_logits(ref, self.name):
            self._hits += int(np.count_nonzero(ref.argmax(-1) == got.argmax(-1)))
            self._rows += ref.size // ref.shape[-1]

    def _cosine(self) -> float:
        norm = math.sqrt(self._ref2) * math.sqrt(self._got2)
        if norm == 0 or self._err2 == 0:
            return 1.0 if self._ref2 == self._got2 else 0.0
        return max(-1.0, min(1.0, self._dot / norm))


def looks_like_logits(array: np.ndarray, name: str) -> bool:
    """Whether an output is read as scores of classes, the classes last (see `Difference.top1`)."""
    named = any(n in name.lower() for n in LOGIT_NAMES)
    return array.ndim >= 2 and array.shape[-1] >= 2 and array.size > 0 and (array.ndim == 2 or named)


def _chunks(ref: np.ndarray, got: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Both arrays, flat, in float64, a chunk at a time."""
    a, b = ref.reshape(-1), got.reshape(-1)
    for i in range(0, a.size, CHUNK):
        yield a[i : i + CHUNK].astype(np.float64), b[i : i + CHUNK].astype(np.float64)


def _is_float(array: np.ndarray) -> bool:
    # numpy has no name for bfloat16 and its kin: ml_dtypes registers them as kind 'V' or 'f'.
    return array.dtype.kind == "f" or array.dtype.name.startswith(("bfloat", "float"))


def _is_text(array: np.ndarray) -> bool:
    return array.dtype.kind in "OSU"


def _ratio(error: float, scale: float) -> float:
    return error / scale if scale else (0.0 if error == 0 else math.inf)


def _decibels(signal: float, noise: float) -> float:
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal else -math.inf
