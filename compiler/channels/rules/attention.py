"""The fused Attention operator and RotaryEmbedding: heads, and dimensions within heads."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...graph import attr, is_const
from ..flow import Step, rule
from ..grids import FROZEN, Grid, Ids


@dataclass(frozen=True)
class _Heads:
    """Ids of an operand, heads x dimensions, and whether masked dimensions of it are zero."""

    ids: Ids
    zero: bool


@rule("Attention")
def _attention(s: Step) -> None:
    """Heads go with the head of keys and values that they read; dimensions of q and k together, those of v alone.

    Of several query heads that share a head of keys, some may go, the same of every such group.
    """
    flat = len(s.dims(0)) == 3
    sizes = [_sizes(s, i, name) for i, name in enumerate(("q_num_heads", "kv_num_heads", "kv_num_heads"))]
    q, k, v = (_operand(s, i, size) for i, size in enumerate(sizes))
    groups, repeats = sizes[1][0], sizes[0][0] // sizes[1][0]
    by_group = q.ids.reshape(groups, repeats, -1)
    if repeats > 1:
        s.atoms.tie(s.atoms.slab(by_group, [0, 2]), k.ids)
        s.atoms.lay(by_group)
    else:
        s.atoms.tie(q.ids, k.ids)
    for own, i in ((k, 4), (v, 5)):
        _cached(s, own, i)
    s.atoms.tie(s.atoms.slab(k.ids, [0]), s.atoms.slab(v.ids, [0]))
    if not (q.zero or k.zero):
        s.atoms.freeze(s.atoms.slab(k.ids, [1]))
    for ids in (q.ids, k.ids, v.ids):
        s.atoms.lay(ids)
    heads = s.atoms.slab(q.ids, [0])
    _mask(s, heads)
    found = v.ids if repeats == 1 else s.atoms.repeated(v.ids, 1, repeats).reshape(-1, v.ids.shape[1])
    s.atoms.tie(s.atoms.slab(found, [0]), heads)
    s.emit([Grid(found.reshape(-1), (2,), v.zero) if flat else Grid(found, (1, 3), v.zero)])
    for at, own, i in ((1, k, 4), (2, v, 5)):
        if at < len(s.node.outputs) and s.node.outputs[at].name:
            s.emit([Grid(own.ids, (1, 3), own.zero and s.value(i) is None)], at)
    if len(s.node.outputs) > 3 and s.node.outputs[3].name:
        s.emit([Grid(heads, (1,), False)], 3)


def _sizes(s: Step, i: int, name: str) -> tuple[int, int]:
    """Heads and dimensions of operand i. Raises LookupError where they are not known."""
    dims = s.dims(i)
    heads = attr(s.node, name) if len(dims) == 3 else dims[1]
    wide = dims[-1]
    if not isinstance(heads, int) or not isinstance(wide, int) or not heads:
        raise LookupError("the number of heads or their size is not known")
    return heads, wide // heads if len(dims) == 3 else wide


def _operand(s: Step, i: int, size: tuple[int, int]) -> _Heads:
    """What lies over the heads and dimensions of operand i; frozen where nothing does."""
    if len(s.dims(i)) == 4:
        return _Heads(*s.joint(i, (1, 3), size))
    g = s.at(i, 2)
    ids = s.ids_at(i, 2)
    if g is None or ids is None:
        return _Heads(np.full(size, FROZEN), False)
    return _Heads(ids.reshape(size), g.zero)


def _cached(s: Step, own: _Heads, i: int) -> None:
    """Keys and values of earlier steps lose what the new ones lose."""
    if s.value(i) is not None:
        dims = s.dims(i)
        if dims[1] != own.ids.shape[0] or dims[3] != own.ids.shape[1]:
            raise LookupError("the sizes of its cache are not known")
        if is_const(s.value(i)):
            s.coupling.hold(s.const(i) or s.node.inputs[i], own.ids, [1, 3])  # type: ignore[arg-type]
        else:
            s.atoms.tie(s.joint(i, (1, 3), (own.ids.shape[0], own.ids.shape[1]))[0], own.ids)


def _mask(s: Step, heads: Ids) -> None:
    """A mask with an axis of heads loses those of the heads. It is not set to zero: other rows may read it, too."""
    mask = s.value(3)
    if mask is None:
        return
    dims = s.dims(3)
    axis = len(dims) - 3
    s.const(3)
    if axis < 0 or dims[axis] == 1:
        return
    if is_const(mask):
        s.coupling.hold(mask, heads, [axis], masked=False)
    else:
        own = s.ids_at(3, axis)
        s.atoms.tie(heads, FROZEN if own is None else own)


@rule("RotaryEmbedding")
def _rotary(s: Step) -> None:
    """Both dimensions of a pair go, in all heads alike, and with them their column of the tables of angles.

    Dimensions of a head of which only some are rotated stay.
    """
    dims = s.dims(0)
    flat = len(dims) == 3
    heads, wide = (attr(s.node, "num_heads", 0), dims[2]) if flat else (dims[1], dims[3])
    if not heads or not isinstance(heads, int) or not isinstance(wide, int):
        raise LookupError("the number of heads or their size is not known")
    size = (heads, wide // heads if flat else wide)
    x = _operand(s, 0, size)
    half, some = size[1] // 2, attr(s.node, "rotary_embedding_dim", 0)
    interleaved = attr(s.node, "interleaved", 0)
    one, two = (x.ids[:, ::2], x.ids[:, 1::2]) if interleaved else (x.ids[:, :half], x.ids[:, half:])
    if half * 2 != size[1]:
        raise LookupError("an odd number of dimensions")
    s.atoms.tie(one, two)
    angles = s.atoms.slab(one, [1])
    s.atoms.align(x.ids)
    whole = some in (0, size[1])
    if not whole:
        s.atoms.freeze(s.atoms.slab(x.ids, [1]))
    for i in (1, 2):
        _table(s, i, angles if whole else np.full(s.dims(i)[-1], FROZEN))  # type: ignore[arg-type]
    s.const(3)
    s.atoms.lay(x.ids)
    s.emit([Grid(x.ids.reshape(-1), (2,), x.zero) if flat else Grid(x.ids, (1, 3), x.zero)])


def _table(s: Step, i: int, angles: Ids) -> None:
    """A table of angles, with a column per pair. It is not set to zero: that would be no rotation."""
    value = s.value(i)
    if value is None:
        return
    last = len(s.dims(i)) - 1
    if s.dims(i)[last] != len(angles):
        raise LookupError("its tables have another number of columns than there are pairs")
    if s.const(i) is not None:
        s.coupling.hold(value, angles, [last], masked=False)
    else:
        own = s.ids_at(i, last)
        s.atoms.tie(angles, FROZEN if own is None else own)
