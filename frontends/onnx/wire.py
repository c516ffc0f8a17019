"""Reads an .onnx file without its weights: each big tensor becomes external data that points into the file itself.

The protobuf wire format (protobuf.dev/programming-guides/encoding) is walked at the level of ModelProto, GraphProto,
NodeProto and TensorProto (field numbers: onnx.proto); whatever is small is copied as it stands.
"""

from __future__ import annotations

import mmap
from pathlib import Path

from ...compiler.errors import ModelError
from ...compiler.weights import SMALL

_MODEL, _GRAPH, _NODE, _ATTRIBUTE, _TENSOR, _FUNCTION = range(6)

# message kind → {field number: kind of the message inside}
_INSIDE: dict[int, dict[int, int]] = {
    _MODEL: {7: _GRAPH, 25: _FUNCTION},
    _GRAPH: {1: _NODE, 5: _TENSOR},
    _FUNCTION: {7: _NODE},
    _NODE: {5: _ATTRIBUTE},
    _ATTRIBUTE: {5: _TENSOR, 6: _GRAPH, 10: _TENSOR, 11: _GRAPH},
}
# TensorProto: packed fields whose bytes are the tensor's bytes, by data type (FLOAT, DOUBLE)
_RAW_DATA = 9
_PACKED = {4: 1, 10: 11}
_LENGTH_DELIMITED = 2


def slim_bytes(path: Path) -> bytes:
    """The file's ModelProto, tensors above `SMALL` bytes replaced by references into `path` itself.

    Raises ModelError when the file is not protobuf or ends too early.
    """
    with path.open("rb") as f:
        try:
            data = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ)
        except ValueError:
            raise ModelError(f"{path}: the file is empty") from None
        with data:
            out = bytearray()
            _rewrite(data, 0, len(data), _MODEL, path, out)
            return bytes(out)


def _varint(data: mmap.mmap, at: int, end: int, path: Path) -> tuple[int, int]:
    value = shift = 0
    while at < end and shift < 70:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return value, at
        shift += 7
    raise ModelError(f"{path}: not an ONNX file, or cut off (a number at byte {at} doesn't end)")


def _fields(data: mmap.mmap, start: int, end: int, path: Path) -> list[tuple[int, int, int, int, int]]:
    """(field number, wire type, start of tag, start of payload, end) of each field in data[start:end]."""
    found = []
    at = start
    while at < end:
        tag, body = _varint(data, at, end, path)
        number, kind = tag >> 3, tag & 7
        if kind == 0:
            stop = _varint(data, body, end, path)[1]
        elif kind == 1:
            stop = body + 8
        elif kind == _LENGTH_DELIMITED:
            size, body = _varint(data, body, end, path)
            stop = body + size
        elif kind == 5:
            stop = body + 4
        else:
            raise ModelError(f"{path}: not an ONNX file (byte {at} starts no protobuf field)")
        if stop > end or number == 0:
            raise ModelError(
                f"{path}: the file is cut off or not an ONNX file: the field at byte {at} ends at byte {stop}, "
                f"beyond {end}. Fetch it again; a Git LFS pointer looks like this, too."
            )
        found.append((number, kind, at, body, stop))
        at = stop
    return found


def _rewrite(data: mmap.mmap, start: int, end: int, kind: int, path: Path, out: bytearray) -> None:
    if kind == _TENSOR:
        _tensor(data, start, end, path, out)
        return
    inside = _INSIDE[kind]
    for number, wire, at, body, stop in _fields(data, start, end, path):
        if wire == _LENGTH_DELIMITED and number in inside and stop - body > SMALL:
            part = bytearray()
            _rewrite(data, body, stop, inside[number], path, part)
            _put(out, number, part)
        else:
            out += data[at:stop]


def _tensor(data: mmap.mmap, start: int, end: int, path: Path, out: bytearray) -> None:
    fields = _fields(data, start, end, path)
    dtype = next((_varint(data, b, s, path)[0] for n, w, _, b, s in fields if n == 2 and w == 0), 0)
    for number, wire, at, body, stop in fields:
        mapped = number == _RAW_DATA or _PACKED.get(number) == dtype
        if wire == _LENGTH_DELIMITED and mapped and stop - body > SMALL:
            for key, value in (("location", path.name), ("offset", str(body)), ("length", str(stop - body))):
                entry = bytearray()
                _put(entry, 1, key.encode())
                _put(entry, 2, value.encode())
                _put(out, 13, entry)
            out += b"\x70\x01"  # data_location = EXTERNAL
        else:
            out += data[at:stop]


def _put(out: bytearray, number: int, payload: bytes | bytearray) -> None:
    for value in (number << 3 | _LENGTH_DELIMITED, len(payload)):
        while value > 0x7F:
            out.append(value & 0x7F | 0x80)
            value >>= 7
        out.append(value)
    out += payload
