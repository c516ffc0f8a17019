"""Integers of a few bits, packed into bytes: the lowest bits of a byte first, as Core ML and ONNX have them."""

from __future__ import annotations

import math

import numpy as np

_PIECE = 1 << 18
"""Integers that are packed at a time; a multiple of 8, so that each piece fills whole bytes."""


def pack_bits(values: np.ndarray, bits: int, low: int = 0) -> np.ndarray:
    """The bytes (uint8) that hold `bits` bits of each of the integers, less `low`, in a row."""
    flat = values.reshape(-1)
    if bits == 8 and not low:
        return flat.view(np.uint8)
    found = np.empty(math.ceil(flat.size * bits / 8), np.uint8)
    for i in range(0, flat.size, _PIECE):
        some = (flat[i : i + _PIECE].astype(np.int16) - low).astype(np.uint8)
        packed = _packed(some, bits)
        found[i * bits // 8 : i * bits // 8 + packed.size] = packed
    return found


def _packed(values: np.ndarray, bits: int) -> np.ndarray:
    """Eight integers fill `bits` bytes: they are shifted into a word of 64 bits, whose first bytes are kept."""
    size = math.ceil(values.size * bits / 8)
    whole = np.zeros(-(-values.size // 8) * 8, np.uint64)
    whole[: values.size] = values
    shifts = np.arange(0, 8 * bits, bits, dtype=np.uint64)
    words = np.bitwise_or.reduce(whole.reshape(-1, 8) << shifts, axis=1)
    return np.asarray(words.astype("<u8").view(np.uint8).reshape(-1, 8)[:, :bits].reshape(-1)[:size])


def unpack_bits(packed: np.ndarray, bits: int, count: int, low: int = 0) -> np.ndarray:
    """The first `count` integers in these bytes, plus `low`: int8 where that is below 0, else uint8."""
    found = np.empty(count, np.int8 if low < 0 else np.uint8)
    step = _PIECE * bits // 8
    shifts = np.arange(0, 8 * bits, bits, dtype=np.uint64)
    top = np.uint64((1 << bits) - 1)
    for i in range(0, packed.size, step):
        some = packed[i : i + step]
        rows = np.zeros((-(-some.size // bits), 8), np.uint8)
        padded = np.zeros(rows.shape[0] * bits, np.uint8)
        padded[: some.size] = some
        rows[:, :bits] = padded.reshape(-1, bits)
        words = rows.reshape(-1).view("<u8").reshape(-1, 1)
        values = ((words >> shifts) & top).astype(np.int16).reshape(-1) + low
        start = i // bits * 8
        stop = min(count, start + values.size)
        found[start:stop] = values[: stop - start]
    return found
