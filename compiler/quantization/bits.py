"""Integers of a few bits, packed into bytes: the lowest bits of a byte first, as Core ML and ONNX have them.

A word of 8 bits, or of 12 where three bytes hold two, is a whole number of integers: so what words stand for is looked
up, several integers at once.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

_PIECE = 3 << 16
"""Bytes that are worked on at a time: whole words, and they fit a cache."""

_ITEMS = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64, 16: np.complex128}
"""Types of so many bytes: numpy looks them up faster than rows."""


def _word(bits: int) -> int:
    """Bits of a word. Raises ValueError for widths that don't fill one."""
    for word in (8, 12):
        if word % bits == 0:
            return word
    raise ValueError(f"{bits} bits: integers are packed in 1, 2, 3, 4, 6 or 8")


def pack_bits(values: np.ndarray, bits: int, low: int = 0) -> np.ndarray:
    """The bytes (uint8) that hold `bits` bits of each of the integers, less `low`, in a row."""
    flat = values.reshape(-1)
    if bits == 8 and not low:
        return flat.view(np.uint8)
    found = np.empty(math.ceil(flat.size * bits / 8), np.uint8)
    step = _PIECE // bits * 8
    for i in range(0, flat.size, step):
        some = flat[i : i + step]
        packed = _packed(some.astype(np.uint8) - np.uint8(low % 256) if low else some, bits)
        start = i * bits // 8
        found[start : start + packed.size] = packed[: found.size - start]
    return found


def _packed(values: np.ndarray, bits: int) -> np.ndarray:
    """The bytes of a piece, whole words: the last integers are zeros."""
    word = _word(bits)
    each = word // bits
    whole = -(-values.size // (each * (word // 4 - 1))) * each * (word // 4 - 1)
    line = np.zeros(whole, np.uint8)
    line[: values.size] = values
    lanes = line.reshape(-1, each)
    words: np.ndarray = lanes[:, 0].astype(np.uint8 if word == 8 else np.uint16)
    for j in range(1, each):
        np.bitwise_or(words, lanes[:, j].astype(words.dtype) << words.dtype.type(j * bits), out=words)
    if word == 8:
        return words
    first: Any = words[::2]
    second: Any = words[1::2]
    found = np.empty((first.size, 3), np.uint8)
    found[:, 0] = first & 255
    found[:, 1] = (first >> 8) | ((second & 15) << 4)
    found[:, 2] = second >> 4
    return found.reshape(-1)


def unpack_bits(packed: np.ndarray, bits: int, count: int, low: int = 0) -> np.ndarray:
    """The first `count` integers in these bytes, plus `low`: int8 where that is below 0, else uint8."""
    return expand_bits(packed, bits, count, (np.arange(1 << bits) + low).astype(np.int8 if low < 0 else np.uint8))


def expand_bits(packed: np.ndarray, bits: int, count: int, numbers: np.ndarray) -> np.ndarray:
    """What the first `count` integers in these bytes stand for: `numbers` [2^bits], of any type."""
    word = _word(bits)
    each = word // bits
    places = np.arange(1 << word)[:, None] >> (bits * np.arange(each)) & ((1 << bits) - 1)
    table = np.ascontiguousarray(numbers[places])
    kind = _ITEMS.get(each * table.itemsize)
    table = table if kind is None else table.view(kind).reshape(-1)
    stored = math.ceil(count * bits / 8)
    found = np.empty(count, numbers.dtype)
    done = 0
    for i in range(0, stored, _PIECE):
        words = packed[i : min(i + _PIECE, stored)]
        many = table.take(words if word == 8 else _twelve(words), axis=0, mode="clip").view(numbers.dtype).reshape(-1)
        many = many[: count - done]
        found[done : done + many.size] = many
        done += many.size
    return found


def _twelve(packed: np.ndarray) -> np.ndarray:
    """Words of 12 bits, two in three bytes; what is left over at the end counts as zeros."""
    short = -packed.size % 3
    rows = np.append(packed, np.zeros(short, np.uint8)) if short else packed
    rows = rows.reshape(-1, 3).astype(np.uint16)
    found = np.empty((len(rows), 2), np.uint16)
    found[:, 0] = rows[:, 0] | (rows[:, 1] & 15) << 8
    found[:, 1] = rows[:, 1] >> 4 | rows[:, 2] << 4
    return found.reshape(-1)
