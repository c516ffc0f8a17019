"""Core ML packages on disk: the manifest, the model specification, the weight file.

A `.mlpackage` is a folder: `Manifest.json` names its items, `Data/com.apple.CoreML/model.mlmodel` is a protobuf, and
`weights/weight.bin` beside it holds the large constants. The weight file (MIL blob storage, version 2) is a 64-byte
header, then for each constant 64 bytes of metadata (sentinel, type, size, offset of the data) and its data, all
little-endian. Weights are described, never read: a `Blob` is a range of a file. This module knows nothing of operators.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..compiler.errors import ModelError
from . import coremlproto

BLOB_TYPES = {
    1: "fp16", 2: "fp32", 3: "uint8", 4: "int8", 6: "int16", 7: "uint16", 8: "int4", 9: "uint1", 10: "uint2",
    11: "uint4", 12: "uint3", 13: "uint6", 14: "int32", 15: "uint32",
}
"""Number in a blob's metadata → element type. Types under eight bits are packed, lowest bits first."""

_SENTINEL = 0xDEADBEEF
_HEADER = struct.Struct("<II56x")
_METADATA = struct.Struct("<IIQQ40x")
_MODEL_PATH = "@model_path"
_BROKEN = "the package is damaged or incomplete: copy or convert it again"


@dataclass(frozen=True)
class Blob:
    """One constant in a weight file: a range of bytes and its element type. Nothing is read until somebody maps it."""

    folder: Path
    """The folder of the model specification, to which `location` is relative."""
    location: str
    offset: int
    length: int
    dtype: str

    @property
    def path(self) -> Path:
        return self.folder / self.location


@dataclass
class Package:
    """A Core ML package that has been opened. `spec` is a `Model` protobuf message."""

    path: Path
    spec_path: Path
    spec: Any
    _sizes: dict[str, int] = field(default_factory=dict)

    def blob(self, file_name: str, offset: int) -> Blob:
        """The constant whose metadata is at `offset` of the file that the specification calls `file_name`.

        Raises ModelError when the file is missing, outside the package, truncated, or holds no metadata there.
        """
        location = file_name.removeprefix(_MODEL_PATH).lstrip("/")
        path = self.spec_path.parent / location
        if location not in self._sizes:
            _require_inside(self.path, path, f"{self.spec_path.name} names the weight file '{file_name}'")
            self._sizes[location] = _weight_file_size(path)
        size = self._sizes[location]
        where = f"{path}: the constant at offset {offset}"
        if offset < _HEADER.size or offset + _METADATA.size > size:
            raise ModelError(f"{where} lies outside the file ({size} bytes); {_BROKEN}")
        with path.open("rb") as file:
            file.seek(offset)
            sentinel, kind, length, start = _METADATA.unpack(file.read(_METADATA.size))
        if sentinel != _SENTINEL or kind not in BLOB_TYPES:
            raise ModelError(f"{where} has no valid metadata (sentinel {sentinel:#x}, type {kind}); {_BROKEN}")
        if start < _HEADER.size or start + length > size:
            raise ModelError(f"{where} needs bytes {start} to {start + length} of {size}; {_BROKEN}")
        return Blob(self.spec_path.parent, location, start, length, BLOB_TYPES[kind])


def open_package(path: Path | str) -> Package:
    """Open a `.mlpackage`. Raises ModelError, naming the file and what to do, if it is not one or is damaged."""
    root = Path(path)
    if not root.exists():
        raise ModelError(f"{root} does not exist")
    if not root.is_dir() or not (root / "Manifest.json").is_file():
        raise ModelError(
            f"{root} is not a Core ML package: a package is a folder with a Manifest.json. "
            "Save it as .mlpackage (a single .mlmodel file holds an old neural network)"
        )
    spec_path = root / "Data" / _root_item(root)
    _require_inside(root, spec_path, "Manifest.json names the model")
    if spec_path.is_dir() or not spec_path.is_file():
        raise ModelError(f"{spec_path}, named by Manifest.json, is missing; {_BROKEN}")
    return Package(root, spec_path, _parse_spec(spec_path))


def _root_item(root: Path) -> str:
    """The path of the model specification below `Data`, as the manifest has it."""
    file = root / "Manifest.json"
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
        location = manifest["itemInfoEntries"][manifest["rootModelIdentifier"]]["path"]
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{file} does not name a root model ({type(error).__name__}: {error}); {_BROKEN}") from error
    if not isinstance(location, str) or not location:
        raise ModelError(f"{file} does not name a root model: its path is {location!r}; {_BROKEN}")
    return location


def _require_inside(root: Path, path: Path, what: str) -> None:
    if not path.resolve().is_relative_to(root.resolve()):
        raise ModelError(f"{root}: {what}, which lies outside the package; refusing to follow it")


def _weight_file_size(path: Path) -> int:
    """The size of a weight file in bytes, once its header is known to be right."""
    if not path.is_file():
        raise ModelError(f"{path} is missing: the package's weights were not copied along; {_BROKEN}")
    size = path.stat().st_size
    with path.open("rb") as file:
        header = file.read(_HEADER.size)
    if len(header) < _HEADER.size:
        raise ModelError(f"{path} is truncated to {size} bytes; {_BROKEN}")
    version = _HEADER.unpack(header)[1]
    if version != 2:
        raise ModelError(f"{path} is not a weight file of blob storage version 2 (version {version}); {_BROKEN}")
    return size


def _parse_spec(path: Path) -> Any:
    from google.protobuf.message import DecodeError

    spec = coremlproto.model_pb2().Model()
    try:
        spec.ParseFromString(path.read_bytes())
    except DecodeError as error:
        what = "is not a Core ML model specification, or is truncated"
        raise ModelError(f"{path} {what} ({error}); {_BROKEN}") from error
    if not spec.specificationVersion:
        raise ModelError(f"{path} is not a Core ML model specification: it states no version; {_BROKEN}")
    return spec
