"""Masked weights, which are written when somebody reads them: most are cut from what they were before anybody does."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import onnx_ir as ir

from ..weights import SPOOL, Deferred, Scratch, release_tensor
from .coupling import Hold
from .means import Mean
from .reshaping import grouped
from .solve import Flags

FEW = 8
"""Slices up to which each is looked at by itself."""
SAMPLES = 3
"""Places at which all slices are looked at."""


@dataclass(frozen=True, eq=False)
class Masked:
    """A weight and what a mask does to it.

    Attributes:
        source: what it was before.
        cuts: grids over it, all in one view, and which of their positions become zero, or what they are filled with.
        means: what becomes the mean of the rest before that.
    """

    source: ir.TensorProtocol
    cuts: Sequence[tuple[Hold, Flags]]
    means: Sequence[Mean] = ()
    _read: dict[tuple[int, ...], list[np.ndarray]] = field(default_factory=dict)

    @classmethod
    def of(cls, tensor: ir.TensorProtocol) -> Masked | None:
        """What is behind a tensor that was made by `later`; None for others."""
        made = tensor.make if isinstance(tensor, Deferred) else None
        return made if isinstance(made, cls) else None

    def __call__(self) -> np.ndarray:
        """The weight after the mask."""
        array = np.array(self.source.numpy(), order="C")
        release_tensor(self.source)
        for mean in self.means:
            mean.write(array)
        for h, gone in self.cuts:
            blank(array, h, gone)
        return array

    def later(self, scratch: Scratch, name: str) -> Deferred | None:
        """A tensor that is written when it is read. None where it is small, or nothing would be saved by that."""
        plain = isinstance(self.source, ir.ExternalTensor) and self.source.dtype.bitwidth >= 8
        if not plain or self.source.nbytes < SPOOL or any(h.fill is not None for h, _ in self.cuts):
            return None
        if self.means and self._view != tuple(self.source.shape.numpy()):
            return None
        return Deferred(scratch, self, self.source, name)

    @property
    def _view(self) -> tuple[int, ...]:
        return self.cuts[0][0].view if self.cuts else tuple(self.source.shape.numpy())

    def survives(self, holds: Sequence[Hold], gone: Flags) -> bool:
        """Whether everything that the mask changes is taken out with the ids that are gone."""
        out = {h.grid.axes: gone[h.grid.ids] for h in holds if h.view == self._view}
        wanted = [*((h.grid.axes, g) for h, g in self.cuts), *(((m.axis,), m.gone) for m in self.means)]
        return all(axes in out and not (g & ~out[axes]).any() for axes, g in wanted)

    def fills(self, mean: Mean) -> bool:
        """Whether the mask has written just that mean, and nothing over it."""
        return all(mean.axis not in h.grid.axes for h, _ in self.cuts) and any(m.equals(mean) for m in self.means)

    def filled(self, axis: int) -> Flags | None:
        """The slices along an axis that are all the same mean; None where there are none, or some became zero."""
        found = [m.gone for m in self.means if m.axis == axis and m.scale is None]
        return found[0] if found and all(axis not in h.grid.axes for h, _ in self.cuts) else None

    def empty(self) -> bool:
        """Whether all of it is zero."""
        last = len(self._view) - 1
        if last and any(p.any() for p in self._samples([last])):
            return False
        return not self().any()

    def alive(self, axes: Sequence[int], view: Sequence[int]) -> np.ndarray | None:
        """`zeros.alive` of it, from a few numbers of each slice; None where that takes more."""
        fine = _within(view, self._view, axes)
        kept = sorted(fine or ())
        rest = [a for a in range(len(self._view)) if a not in kept]
        if not kept or not rest or math.prod(self._view) == 0:
            return None
        dead, found = self._dead(kept, {}), np.logical_or.reduce([p != 0 for p in self._samples(kept)])
        left = np.argwhere(~(found | dead))
        if len(left) > FEW:
            return None
        for position in left:
            found[tuple(position)] = self._piece(rest, dict(zip(kept, position.tolist(), strict=True))).any()
        assert fine is not None
        return np.asarray(found.transpose([kept.index(a) for a in fine]).reshape([view[a] for a in axes]))

    def numbers(self, axis: int, k: int) -> np.ndarray | None:
        """One number of each slice along an axis of the weight, from place k of `SAMPLES`; None where that is hard."""
        fine = _within(tuple(self.source.shape.numpy()), self._view, [axis])
        if not fine or len(fine) == len(self._view):
            return None
        return np.asarray(self._samples(sorted(fine))[k].reshape(-1))

    def _samples(self, kept: Sequence[int]) -> list[np.ndarray]:
        """The numbers along some axes at `SAMPLES` places on the others; read once, for that may mean all pages."""
        if tuple(kept) not in self._read:
            rest = [a for a in range(len(self._view)) if a not in kept]
            self._read[tuple(kept)] = [self._piece(kept, at) for at in self._places(rest)]
            release_tensor(self.source)
        return self._read[tuple(kept)]

    def _piece(self, axes: Sequence[int], at: Mapping[int, int]) -> np.ndarray:
        """The numbers along some axes, at a position on each of the others."""
        wide = {m.axis for m in self.means if m.axis not in axes and m.gone[at[m.axis]]}
        kept = sorted({*axes, *wide})
        index = tuple(slice(None) if a in kept else at[a] for a in range(len(self._view)))
        array = np.array(self.source.numpy().reshape(self._view)[index])
        for m in self.means:
            if m.axis in kept:
                replace(m, axis=kept.index(m.axis)).write(array)
        array[self._dead(kept, at)] = 0
        return array[tuple(slice(None) if a in axes else at[a] for a in kept)]

    def _dead(self, kept: Sequence[int], at: Mapping[int, int]) -> Flags:
        """Over the kept axes what is zero: at these positions on the others; with none given, whatever they are."""
        dead = np.zeros([self._view[a] for a in kept], bool)
        for h, gone in self.cuts:
            own = [a for a in h.grid.axes if a in kept]
            others = tuple(d for d, a in enumerate(h.grid.axes) if a not in kept)
            index = tuple(slice(None) if a in kept else at.get(a, 0) for a in h.grid.axes)
            here = np.asarray(gone[index] if at else gone.all(others))
            dead |= here.transpose(np.argsort(own)).reshape([self._view[a] if a in own else 1 for a in kept])
        return dead

    def _places(self, rest: Sequence[int]) -> Iterator[dict[int, int]]:
        """Positions on the other axes, where something is left."""
        choices: dict[tuple[int, ...], np.ndarray] = {}
        for axes, gone in [*((h.grid.axes, g) for h, g in self.cuts), *(((m.axis,), m.gone) for m in self.means)]:
            if set(axes) <= set(rest) and not any(set(axes) & set(other) for other in choices):
                choices[axes] = np.argwhere(~gone)
        for a in rest:
            if not any(a in axes for axes in choices):
                choices[a,] = np.arange(self._view[a])[:, None]
        for k in range(SAMPLES):
            at: dict[int, int] = {}
            for axes, positions in choices.items():
                picked = positions[(len(positions) - 1) * k // (SAMPLES - 1)] if len(positions) else [0] * len(axes)
                at.update(zip(axes, map(int, picked), strict=True))
            yield at


def _within(view: Sequence[int], finer: Sequence[int], axes: Sequence[int]) -> list[int] | None:
    """The axes of a finer view that make up these ones; None where it isn't finer there."""
    if tuple(view) == tuple(finer):
        return list(axes)
    parts = {here[0]: there for here, there in grouped(view, finer) if len(here) == 1}
    return [a for axis in axes for a in parts[axis]] if all(a in parts for a in axes) else None


def blank(array: np.ndarray, h: Hold, gone: Flags) -> None:
    """Set what lies under ids that are `gone` (a flag per id of the grid) to zero, or to what it is filled with."""
    seen = array.reshape(h.view)
    if h.fill is not None:
        here = _spread(h.view, h.grid.axes, gone)
        seen[here] = np.broadcast_to(h.fill, h.view)[here]
        return
    first, last = min(h.grid.axes), max(h.grid.axes)
    if last < len(h.grid.axes):
        # Whole rows, one after the other in memory.
        flat = gone.transpose(np.argsort(h.grid.axes)).reshape(-1)
        seen.reshape(flat.size, -1)[np.flatnonzero(flat)] = 0
        return
    # The same positions in every row. Bits that are cleared make zeros faster than numbers that are assigned.
    inside = h.view[first:]
    word = np.dtype(f"u{array.dtype.itemsize}")
    stays = ~_spread(inside, [a - first for a in h.grid.axes], gone).reshape(-1)
    rows = seen.view(word).reshape(math.prod(h.view[:first]), stays.size)
    np.bitwise_and(rows, stays.astype(word) * ~word.type(0), out=rows)


def _spread(view: Sequence[int], axes: Sequence[int], over_ids: np.ndarray) -> np.ndarray:
    """What is given per id, for every element of a constant."""
    front = over_ids.transpose(np.argsort(axes))
    return np.broadcast_to(front.reshape([n if a in axes else 1 for a, n in enumerate(view)]), view)
