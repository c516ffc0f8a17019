"""Second moments of a layer's inputs, and sums that grow to be them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .batching import PRECISE

WAITING = 1 << 23
"""Numbers in rows that wait at most."""


@dataclass
class Sums:
    """Moments of the inputs of a layer over some samples.

    Attributes:
        count: places that were looked at.
        gram: E[x x'], groups (or 1: the same for all) x inputs x inputs; None for wide layers and tables.
        diagonal: E[x²], groups x inputs. For a table: how often each row was read, over all that were.
        mean: E[x], groups x inputs.
        cross: E[x x_reference'], where a reference model was given; rows are the model's own inputs.
        reference_mean: E[x_reference], likewise.
        memo: what others made of the moments and want to find again, for as long as the moments are known.
    """

    count: int
    diagonal: np.ndarray
    mean: np.ndarray
    gram: np.ndarray | None = None
    cross: np.ndarray | None = None
    reference_mean: np.ndarray | None = None
    memo: dict[object, Any] = field(default_factory=dict, repr=False, compare=False)

    def loss(self, change: np.ndarray) -> float:
        """The mean square that this change of a matrix (groups x outputs x inputs) makes in the outputs, summed."""
        if self.gram is None:
            return float(np.einsum("goi,gi->", np.square(change), np.broadcast_to(self.diagonal, _like(change))))
        gram = self.gram.astype(change.dtype, copy=False)
        return float(np.einsum("goi,goi->", change @ gram, change, dtype=np.float64))

    def __add__(self, other: Sums | None) -> Sums:
        """The moments over both."""
        if other is None:
            return self
        n = self.count + other.count
        a, b = (self.count / n, other.count / n) if n else (0.5, 0.5)

        def mixed(x: np.ndarray | None, y: np.ndarray | None) -> np.ndarray | None:
            return None if x is None or y is None else np.asarray(x * x.dtype.type(a) + y * y.dtype.type(b))

        pairs = {k: mixed(getattr(self, k), getattr(other, k)) for k in _FIELDS}
        return Sums(n, **pairs)  # type: ignore[arg-type]


_FIELDS = ("diagonal", "mean", "gram", "cross", "reference_mean")


def _like(change: np.ndarray) -> tuple[int, int]:
    return change.shape[0], change.shape[2]


@dataclass
class Running:
    """Sums that grow. Rows wait until there are enough of them to be multiplied at once: sums of wide layers are large.

    Attributes:
        wide: sum squares only.
        finite: whether all rows were, and their products.
    """

    wide: bool
    count: int = 0
    finite: bool = True
    _sums: dict[str, np.ndarray] = field(default_factory=dict)
    _waiting: list[tuple[np.ndarray, np.ndarray | None]] = field(default_factory=list)

    def rows(self, x: np.ndarray, reference: np.ndarray | None) -> None:
        """Add rows of inputs: groups x places x inputs."""
        self.count += x.shape[1]
        with np.errstate(over="ignore", invalid="ignore"):
            squares = np.einsum("gpi,gpi->gi", x, x)
            self.finite = self.finite and bool(np.isfinite(squares).all())
            self._add("mean", x.sum(1, dtype=np.float64))
            if self.wide:
                self._add("diagonal", np.square(x).sum(1, dtype=np.float64))
        if reference is not None:
            self._add("reference_mean", reference.sum(1, dtype=np.float64))
        if not self.wide or reference is not None:
            self._waiting.append((x, reference))
            waits = sum(rows.shape[1] for rows, _ in self._waiting)
            if waits >= x.shape[2] or waits * x.shape[0] * x.shape[2] >= WAITING:
                self._multiply()

    def read(self, indices: np.ndarray, size: int) -> None:
        """Add rows of a table that were read."""
        self.count += len(indices)
        self._add("diagonal", np.bincount(indices, minlength=size).astype(np.float64)[None])

    def result(self) -> Sums:
        """The means over all rows. Ends the sums."""
        self._multiply()
        n = max(1, self.count)
        found = {k: np.divide(v, n, out=v) for k, v in self._sums.items()}
        if "gram" in found:
            found["diagonal"] = np.einsum("gii->gi", found["gram"]).copy()
        found.setdefault("mean", found["diagonal"])
        return Sums(self.count, **found)

    def _multiply(self) -> None:
        if not self._waiting:
            return
        x = np.concatenate([rows for rows, _ in self._waiting], 1)
        others = [reference for _, reference in self._waiting if reference is not None]
        self._waiting.clear()
        with np.errstate(over="ignore", invalid="ignore"):
            if not self.wide:
                self._add("gram", _products(x, x))
            if others:
                self._add("cross", _products(x, np.concatenate(others, 1)))

    def _add(self, name: str, amount: np.ndarray) -> None:
        if name in self._sums:
            self._sums[name] += amount
        else:
            own = np.float32 if amount.shape[-1] > PRECISE and amount.ndim == 3 else np.float64
            self._sums[name] = amount.astype(own, copy=False)


def _products(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    if len(x) == 1:
        return np.asarray(x[0].T @ y[0])[None]
    return np.asarray(x.transpose(0, 2, 1) @ y)
