"""The protobuf wire format, walked in a mapped file without copying it (protobuf.dev/programming-guides/encoding)."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from dataclasses import dataclass

VARINT, FIXED64, DELIMITED, FIXED32 = 0, 1, 2, 5
_SIZES = {FIXED64: 8, FIXED32: 4}


class WireError(ValueError):
    """The bytes are no protobuf message, or end too early."""


@dataclass(frozen=True, slots=True)
class Field:
    """A field of a message: its number, wire type, and where its tag starts, its payload starts, and it ends."""

    number: int
    wire: int
    start: int
    body: int
    stop: int


def varint(data: mmap.mmap, at: int, end: int) -> tuple[int, int]:
    """The number at `at`, and where it ends. Raises WireError."""
    value = shift = 0
    while at < end and shift < 70:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return value, at
        shift += 7
    raise WireError(f"a number at byte {at} doesn't end")


def fields(data: mmap.mmap, start: int, end: int) -> Iterator[Field]:
    """The fields of the message in data[start:end]. Raises WireError."""
    at = start
    while at < end:
        tag, body = varint(data, at, end)
        wire = tag & 7
        if wire == VARINT:
            stop = varint(data, body, end)[1]
        elif wire == DELIMITED:
            size, body = varint(data, body, end)
            stop = body + size
        elif wire in _SIZES:
            stop = body + _SIZES[wire]
        else:
            raise WireError(f"byte {at} starts no field")
        if stop > end or tag >> 3 == 0:
            raise WireError(f"the field at byte {at} ends at byte {stop}, beyond {end}")
        yield Field(tag >> 3, wire, at, body, stop)
        at = stop
