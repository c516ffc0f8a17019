"""How many bytes a model takes on disk, external data included, without reading its weights."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path

from .wireformat import DELIMITED, fields

_LOCATION = b"location"

# The way to TensorProto.external_data, as message kind → {field number: kind inside} (onnx.proto).
_INSIDE: dict[str, dict[int, str]] = {
    "model": {7: "graph", 25: "function"},
    "graph": {1: "node", 5: "tensor"},
    "function": {7: "node"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph"},
    "tensor": {13: "entry"},
}


def size(path: Path) -> int:
    """Bytes of a file; of an .onnx with the files that hold its external data; of all files in a folder.

    A file that is not there, or external data that is not, counts as 0.
    """
    if path.is_dir():
        return sum(p.stat().st_size for p in path.rglob("*") if p.is_file())
    if not path.is_file():
        return 0
    found = path.stat().st_size
    if path.suffix.lower() == ".onnx" and found:
        others = {(path.parent / name).resolve() for name in external_files(path)} - {path.resolve()}
        found += sum(p.stat().st_size for p in others if p.is_file())
    return found


def external_files(path: Path) -> set[str]:
    """The locations that the tensors of an .onnx file name as their external data, as written there.

    Weights are skipped. A file that is not protobuf has none: whoever loads it reports that.
    """
    with path.open("rb") as f, mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ) as data:
        try:
            return {name.decode() for name in _locations(data, 0, len(data), "model")}
        except ValueError:
            return set()


def _locations(data: mmap.mmap, start: int, end: int, kind: str) -> Iterator[bytes]:
    inside = _INSIDE[kind]
    for f in fields(data, start, end):
        child = inside.get(f.number) if f.wire == DELIMITED else None
        if child == "entry":
            entry = {e.number: data[e.body : e.stop] for e in fields(data, f.body, f.stop)}
            if entry.get(1) == _LOCATION and 2 in entry:
                yield entry[2]
        elif child is not None:
            yield from _locations(data, f.body, f.stop, child)
