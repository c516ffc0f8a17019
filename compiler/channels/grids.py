"""Which slices of values live and die together: ids for slices (atoms), grids of them, and the ties between.

Every axis that can lose slices carries ids. Two slices with tied ids are removed together or not at all; the id 0 is
never removed. Where an axis was split into several (heads x dimensions, groups x channels), its ids form a grid over
all of them: an element goes if its id does.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from .components import components

Ids = np.ndarray
"""int64, one id per combination of positions on the axes that it lies over."""
FROZEN = 0


@dataclass(frozen=True, eq=False)
class Grid:
    """Ids over axes of one value.

    Attributes:
        ids: k-dimensional, in the order in which the axes were split: of each row (all but the last dimension) other
            columns may go, equally many, unless the grid is aligned.
        axes: the axis of the value that each dimension lies over. Over one of free size (`12 * batch`) the ids are
            those of its last part (12), the same throughout.
        zero: whether a slice whose id is masked is exactly zero in this value.
    """

    ids: Ids
    axes: tuple[int, ...]
    zero: bool = False

    def at(self, axis: int) -> int:
        """The dimension that lies over `axis`."""
        return self.axes.index(axis)


Label = tuple[Grid, ...]
"""The grids of a value. An axis under no grid can't lose anything. Grids of one activation share no axis."""


@dataclass(frozen=True, eq=False)
class Slab:
    """`atoms[i]` stands for all of `members[i]`: it is removed if, and only if, they all are."""

    atoms: Ids
    members: Ids


@dataclass
class Atoms:
    """All ids of a model and what is known of them. Ties are only collected; `classes` solves them at once."""

    count: int = 1
    slabs: list[Slab] = field(default_factory=list)
    aligned: list[Ids] = field(default_factory=list)
    """Grids whose survivors must be rows times columns."""
    grids: dict[bytes, Ids] = field(default_factory=dict)
    """Every grid of two and more dimensions that lies over a value."""
    axes: dict[bytes, Ids] = field(default_factory=dict)
    """All ids over one axis of a value, which must not all go."""
    _edges: list[tuple[Ids, Ids]] = field(default_factory=list)
    _slabs: dict[tuple[bytes, tuple[int, ...]], Ids] = field(default_factory=dict)
    _keys: dict[int, tuple[Ids, bytes]] = field(default_factory=dict)

    def fresh(self, *shape: int) -> Ids:
        """New ids, tied to nothing."""
        size = int(np.prod(shape))
        self.count += size
        return np.arange(self.count - size, self.count).reshape(shape)

    def tie(self, a: Ids | int, b: Ids | int) -> None:
        """Element by element: both go or none."""
        a, b = np.broadcast_arrays(np.asarray(a), np.asarray(b))
        if a is not b and a.size:
            self._edges.append((a.reshape(-1), b.reshape(-1)))

    def freeze(self, ids: Ids) -> None:
        """None of these is ever removed."""
        self.tie(ids, FROZEN)

    def slab(self, ids: Ids, kept: Sequence[int]) -> Ids:
        """One id per combination of positions on the dimensions `kept`, standing for everything that lies there."""
        kept = tuple(kept)
        dropped = tuple(i for i in range(ids.ndim) if i not in kept)
        order = ids.transpose(*kept, *dropped)
        if all(ids.shape[i] == 1 for i in dropped):
            return order.reshape(order.shape[: len(kept)])
        flat = order.reshape(*order.shape[: len(kept)], -1)
        if _same_at_ends(flat, flat.ndim - 1) and (flat == flat[..., :1]).all():
            return flat[..., 0]
        key = (self._key(ids), kept)
        if key not in self._slabs:
            atoms = self._slabs[key] = self.fresh(*flat.shape[:-1])
            self.slabs.append(Slab(atoms.reshape(-1), flat.reshape(atoms.size, -1)))
            if ids.ndim - 1 in kept:
                self.align(ids)
        return self._slabs[key]

    def repeated(self, ids: Ids, at: int, times: int) -> Ids:
        """Ids for copies of a grid, along a new dimension: some copies may go, the same everywhere.

        A slice goes where it goes from what is copied, or its copy does; from what is copied where it goes from all.
        """
        copies = self.fresh(*ids.shape[:at], times, *ids.shape[at:])
        self.tie(self.slab(copies, [d for d in range(copies.ndim) if d != at]), ids)
        self.align(copies)
        self.lay(copies)
        return copies

    def align(self, ids: Ids) -> None:
        """From now on the survivors of this grid are rows times columns."""
        if ids.ndim > 1:
            self.aligned.append(ids)

    def lay(self, ids: Ids) -> None:
        """Note that this grid lies over some value, and so binds what may go."""
        (self.grids if ids.ndim > 1 else self.axes).setdefault(self._key(ids), ids)

    def _key(self, ids: Ids) -> bytes:
        """See `_key`. The same arrays come again and again: what was found is kept, and they with it."""
        found = self._keys.get(id(ids))
        if found is None:
            found = self._keys[id(ids)] = ids, _key(ids)
        return found[1]

    def classes(self) -> Ids:
        """The class of every id: what is tied, directly or through others, has the same. Class 0 is never removed."""
        if not self._edges:
            return np.arange(self.count)
        a, b = (np.concatenate([e[i] for e in self._edges]) for i in (0, 1))
        found = components(a, b, self.count)
        # Component numbers follow the lowest id, so the frozen one is 0 already; say so rather than trust it.
        if found[FROZEN] != 0:
            found = np.where(found == found[FROZEN], 0, np.where(found == 0, found[FROZEN], found))
        return np.asarray(found, np.int64)


def _key(ids: Ids) -> bytes:
    """Equal for equal ids in equal shape, and short. Most are a range, as they were made."""
    flat = ids.reshape(-1)
    if flat.size and flat[-1] - flat[0] == flat.size - 1 and (flat[1:] - flat[:-1] == 1).all():
        return repr((ids.shape, int(flat[0]))).encode()
    return repr(ids.shape).encode() + hashlib.blake2b(np.ascontiguousarray(ids).data, digest_size=16).digest()


def _same_at_ends(ids: Ids, d: int) -> bool:
    """Whether the first and the last id along a dimension are equal: elsewhere, too, if all are."""
    first = (0,) * ids.ndim
    return 0 in ids.shape or bool(ids[first] == ids[(*first[:d], -1, *first[d + 1 :])])


def squeezed(grid: Grid) -> Grid | None:
    """The grid without dimensions along which nothing differs; None if nothing is left."""
    ids, axes = grid.ids, list(grid.axes)
    for d in reversed(range(ids.ndim)):
        if ids.ndim > 1 and ids.shape[d] > 1 and _same_at_ends(ids, d) and (ids == ids.take([0], d)).all():
            ids = ids.take(0, d)
            del axes[d]
    return Grid(ids, tuple(axes), grid.zero) if axes else None
