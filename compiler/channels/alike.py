"""Which slices of a weight are equal, bit by bit, told without hashing those that most weights have many of."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

import numpy as np

FEW = 8
"""Slices up to which a group is hashed one by one."""
BLOCK = 1 << 18
"""Elements that are compared at a time."""


def kinds(columns: Sequence[np.ndarray]) -> np.ndarray:
    """Per position a number: equal where all columns are."""
    order = np.lexsort(columns)
    differs = np.zeros(order.size, bool)
    for column in columns:
        lined = column[order]
        differs[1:] |= lined[1:] != lined[:-1]
    kind = np.empty(order.size, np.int64)
    kind[order] = np.cumsum(differs)
    return kind


def first_alike(front: np.ndarray, rows: np.ndarray, also: np.ndarray) -> np.ndarray:
    """For each of some rows of a matrix the first among them that is equal to it, itself where no other is.

    Equal ones agree in `also`, too, which holds a number per row of the matrix. Rows of zeros, or those of a mask, come
    in hundreds: they are compared with the first of their kind. Others are hashed.
    """
    bits = front.view(f"u{front.dtype.itemsize}")
    kind = kinds([also[rows], front[rows, 0], front[rows, -1]])
    order = np.argsort(kind, kind="stable")
    first, left = rows.copy(), []
    for part in np.split(order, np.flatnonzero(np.diff(kind[order])) + 1):
        if part.size <= FEW:
            left.append(part if part.size > 1 else part[:0])
            continue
        same = _equal(bits, rows[part], int(rows[part[0]]))
        first[part[same]] = rows[part[0]]
        left.append(part[~same])
    seen: dict[tuple[int, bytes], int] = {}
    hashed = np.sort(np.concatenate(left)) if left else np.zeros(0, np.int64)
    for part in _parts(hashed, bits.shape[1]):
        for k, row in zip(part.tolist(), np.ascontiguousarray(bits[rows[part]]), strict=True):
            key = int(kind[k]), hashlib.blake2b(row.data, digest_size=16).digest()
            first[k] = seen.setdefault(key, int(rows[k]))
    return first


def _parts(positions: np.ndarray, width: int) -> Iterator[np.ndarray]:
    step = max(1, BLOCK // max(width, 1))
    return (positions[k : k + step] for k in range(0, positions.size, step))


def _equal(bits: np.ndarray, rows: np.ndarray, one: int) -> np.ndarray:
    """Which rows are equal to one of them. Reads in the order in which the matrix lies in memory."""
    if bits.flags.c_contiguous:
        return np.concatenate([(bits[part] == bits[one]).all(1) for part in _parts(rows, bits.shape[1])])
    same = np.ones(rows.size, bool)
    for part in _parts(np.arange(bits.shape[1]), bits.shape[0]):
        block = bits.T[part[0] : part[-1] + 1]
        same &= (block == block[:, one, None]).all(0)[rows]
    return same
