"""What was measured, kept in a file line by line, so that an interrupted search goes on where it was."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from ..compiler.errors import EdgecError, UsageError
from ..compiler.place import place_text
from ..compiler.session import slim_proto
from ..compiler.weights import release_tensor

HEAD = "edgec measurements"
VERSION = 1
Entry = Mapping[str, Any]


class Measurements:
    """Entries by name; without a path, in memory only. Any thread may write.

    The file's first line says what was measured on what: entries of anything else don't count, and the file begins
    anew. A line that an interrupt has cut off is dropped.
    """

    def __init__(self, path: Path | None = None, key: str = "") -> None:
        """Raises UsageError where `path` is a file of something else, or can't be written."""
        self._path, self._lock = path, threading.Lock()
        self._entries: dict[str, Entry] = {}
        self.stale = False
        """Whether the file held what was measured otherwise: of another model, with other inputs or options."""
        if path is None:
            return
        head = {"file": HEAD, "version": VERSION, "key": key}
        if path.exists():
            first, lines = _read(path)
            self.stale = first != head
            self._entries = {} if self.stale else {e["name"]: e for e in lines}
        try:
            place_text(path, "".join(_line(e) for e in (head, *self._entries.values())), "the measurements ")
        except EdgecError as e:
            raise UsageError(str(e)) from e

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, *name: object) -> Entry | None:
        """What was measured under this name."""
        return self._entries.get(_name(name))

    def put(self, *name: object, **figures: Any) -> None:
        """Keep these figures, which JSON can hold; they are on disk when this returns."""
        entry = {"name": _name(name), **figures}
        with self._lock:
            self._entries[entry["name"]] = entry
            if self._path is not None:
                with self._path.open("a", encoding="utf-8") as f:
                    f.write(_line(entry))


def key(model: ir.Model, runs: Iterable[Mapping[str, np.ndarray]], *options: object) -> str:
    """A digest of a model with its weights, of inputs, and of whatever else a measurement depends on."""
    found = hashlib.blake2b(repr(options).encode(), digest_size=16)
    proto, tensors = slim_proto(model)
    found.update(proto.SerializeToString(deterministic=True))
    for name, tensor in sorted(tensors.items()):
        found.update(f"{name} {tensor.dtype} {tensor.shape}".encode())
        found.update(tensor.tobytes())
        release_tensor(tensor)
    for feeds in runs:
        for name, array in sorted(feeds.items()):
            found.update(f"{name} {array.dtype} {array.shape}".encode())
            found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()


def _name(parts: Iterable[object]) -> str:
    return "/".join(map(str, parts))


def _line(entry: Entry) -> str:
    return json.dumps(entry, ensure_ascii=False) + "\n"


def _read(path: Path) -> tuple[Entry, list[Entry]]:
    """The first line and all others that are whole. Raises UsageError for a file that is none of ours."""
    try:
        lines = path.read_text("utf-8").splitlines()
        first = json.loads(lines[0]) if lines else {}
        if lines and (not isinstance(first, dict) or first.get("file") != HEAD):
            raise ValueError
    except (OSError, UnicodeDecodeError, ValueError) as e:
        raise UsageError(f"'{path}' is no file of edgec's measurements; name another, or a new one") from e
    found = []
    for line in lines[1:]:
        try:
            found.append(json.loads(line))
        except ValueError:
            break
    return first, found
