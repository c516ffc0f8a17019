"""Reads an .onnx file without its weights: each big tensor becomes external data that points into the file itself.

The file is walked at the level of ModelProto, GraphProto, NodeProto and TensorProto (field numbers: onnx.proto); what
is small is copied as it stands.
"""

from __future__ import annotations

import mmap
from pathlib import Path

from ...compiler.errors import ModelError
from ...compiler.weights import SMALL
from ...compiler.wireformat import DELIMITED, VARINT, WireError, fields, varint

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
_DATA_TYPE, _RAW_DATA = 2, 9
_PACKED = {4: 1, 10: 11}


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
            try:
                _rewrite(data, 0, len(data), _MODEL, path, out)
            except WireError as e:
                raise ModelError(
                    f"{path}: the file is cut off or not an ONNX file: {e}. "
                    "Fetch it again; a Git LFS pointer looks like this, too."
                ) from None
            return bytes(out)


def _rewrite(data: mmap.mmap, start: int, end: int, kind: int, path: Path, out: bytearray) -> None:
    if kind == _TENSOR:
        _tensor(data, start, end, path, out)
        return
    inside = _INSIDE[kind]
    for f in fields(data, start, end):
        if f.wire == DELIMITED and f.number in inside and f.stop - f.body > SMALL:
            part = bytearray()
            _rewrite(data, f.body, f.stop, inside[f.number], path, part)
            _put(out, f.number, part)
        else:
            out += data[f.start : f.stop]


def _tensor(data: mmap.mmap, start: int, end: int, path: Path, out: bytearray) -> None:
    found = list(fields(data, start, end))
    dtype = next((varint(data, f.body, f.stop)[0] for f in found if f.number == _DATA_TYPE and f.wire == VARINT), 0)
    for f in found:
        mapped = f.number == _RAW_DATA or _PACKED.get(f.number) == dtype
        if f.wire == DELIMITED and mapped and f.stop - f.body > SMALL:
            where = {"location": path.name, "offset": str(f.body), "length": str(f.stop - f.body)}
            for key, value in where.items():
                entry = bytearray()
                _put(entry, 1, key.encode())
                _put(entry, 2, value.encode())
                _put(out, 13, entry)
            out += b"\x70\x01"  # data_location = EXTERNAL
        else:
            out += data[f.start : f.stop]


def _put(out: bytearray, number: int, payload: bytes | bytearray) -> None:
    for value in (number << 3 | DELIMITED, len(payload)):
        while value > 0x7F:
            out.append(value & 0x7F | 0x80)
            value >>= 7
        out.append(value)
    out += payload
