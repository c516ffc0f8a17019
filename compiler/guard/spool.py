"""Arrays of many runs put together along the first axis: in memory while they are few, then in a mapped file."""

from __future__ import annotations

import tempfile
from typing import IO

import numpy as np


class Spool:
    """The arrays of one output, run after run."""

    def __init__(self) -> None:
        self._runs: list[np.ndarray] = []
        self._shapes: list[tuple[int, ...]] = []
        self._file: IO[bytes] | None = None

    def add(self, array: np.ndarray) -> None:
        """Take in the array of one run."""
        self._runs.append(array)
        self._shapes.append(array.shape)

    def to_disk(self) -> None:
        """Move what is held in memory to a temporary file, where the arrays can be put together at all."""
        if not self._alike() or self._runs[0].dtype.hasobject or self._runs[0].ndim == 0:
            return
        if self._file is None:
            self._file = tempfile.TemporaryFile(prefix="edgec-")  # noqa: SIM115
        for array in self._runs:
            self._file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
        self._runs = [self._runs[0][:0]]

    def whole(self) -> np.ndarray:
        """All of them: one after the other along the first axis, scalars as a row of them.

        Runs whose sizes differ elsewhere come as an array of arrays, one for each run.
        """
        first = self._runs[0]
        if self._file is not None and self._alike():
            self.to_disk()
            self._file.flush()
            shape = (sum(s[0] for s in self._shapes), *self._shapes[0][1:])
            return np.memmap(self._file, first.dtype, "r", shape=shape) if np.prod(shape) else first
        runs = [*self._split(), *self._runs[self._file is not None :]]
        if self._alike():
            return np.stack(runs) if first.ndim == 0 else np.concatenate(runs) if len(runs) > 1 else first
        found = np.empty(len(runs), object)
        found[:] = runs
        return found

    def close(self) -> None:
        """Remove the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _alike(self) -> bool:
        """Whether the runs differ in their first axis alone."""
        return len({(len(s), s[1:]) for s in self._shapes}) == 1

    def _split(self) -> list[np.ndarray]:
        """The runs that are in the file."""
        if self._file is None:
            return []
        written = self._shapes[: len(self._shapes) - len(self._runs) + 1]
        self._file.flush()
        flat = np.memmap(self._file, self._runs[0].dtype, "r")
        ends = np.cumsum([int(np.prod(s)) for s in written])
        return [flat[e - int(np.prod(s)) : e].reshape(s) for e, s in zip(ends, written, strict=True)]
