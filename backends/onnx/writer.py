"""Writes an .onnx file in one stream: weights go from their mapped pages straight into the file.

A protobuf library would hold every weight in memory twice or three times. Field numbers: onnx.proto.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np
import onnx
import onnx_ir as ir

from ...compiler.place import data_file
from ...compiler.weights import release_tensor

LIMIT = (1 << 31) - (1 << 20)
"""Protobuf messages end at 2 GiB; a megabyte is kept for the rest."""
ALIGN = 4096
"""Offsets in external data: a page, so that runtimes can map the tensors (onnx, docs/ExternalData.md)."""

_GRAPH, _INITIALIZER, _RAW_DATA = 7, 5, 9


def write(proto: onnx.ModelProto, tensors: Mapping[str, ir.TensorProtocol], path: Path) -> Path | None:
    """Write `proto`, whose initializers named in `tensors` hold no data, to `path`; returns the data file, if any."""
    big = [t for t in proto.graph.initializer if t.name in tensors]
    if sum(tensors[t.name].nbytes for t in big) + proto.ByteSize() > LIMIT:
        return _write_external(proto, big, tensors, path)
    graph = onnx.GraphProto()
    graph.CopyFrom(proto.graph)
    kept = [t for t in graph.initializer if t.name not in tensors]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    head = onnx.ModelProto()
    head.CopyFrom(proto)
    head.ClearField("graph")
    fields = [_tensor_head(t, tensors[t.name].nbytes) for t in big]
    body = graph.SerializeToString(deterministic=True)
    size = len(body) + sum(len(f) + tensors[t.name].nbytes for f, t in zip(fields, big, strict=True))
    with path.open("wb") as out:
        out.write(head.SerializeToString(deterministic=True) + _key(_GRAPH, size) + body)
        for field, tensor in zip(fields, big, strict=True):
            out.write(field)
            _put(tensors[tensor.name], out)
    return None


def _write_external(
    proto: onnx.ModelProto, big: list[onnx.TensorProto], tensors: Mapping[str, ir.TensorProtocol], path: Path
) -> Path:
    data = data_file(path)
    with data.open("wb") as out:
        for tensor in big:
            offset = -(-out.tell() // ALIGN) * ALIGN
            out.write(b"\0" * (offset - out.tell()))
            _put(tensors[tensor.name], out)
            del tensor.external_data[:]
            for key, value in (("location", data.name), ("offset", offset), ("length", out.tell() - offset)):
                tensor.external_data.add(key=key, value=str(value))
    path.write_bytes(proto.SerializeToString(deterministic=True))
    return data


def renamed(path: Path, target: Path) -> None:
    """Write a model whose weights lie in `<name>.data` to `target`, for weights that lie in `<name of target>.data`."""
    proto = onnx.ModelProto.FromString(path.read_bytes())
    for tensor in proto.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location" and entry.value == data_file(path).name:
                entry.value = data_file(target).name
    target.write_bytes(proto.SerializeToString(deterministic=True))


def _tensor_head(tensor: onnx.TensorProto, size: int) -> bytes:
    """Everything of an initializer field up to its raw bytes."""
    head = onnx.TensorProto(dims=tensor.dims, data_type=tensor.data_type, name=tensor.name)
    body: bytes = head.SerializeToString(deterministic=True) + _key(_RAW_DATA, size)
    return _key(_INITIALIZER, len(body) + size) + body


def _key(field: int, size: int) -> bytes:
    """Tag and length of a length-delimited field."""
    out = bytearray()
    for value in (field << 3 | 2, size):
        while value > 0x7F:
            out.append(value & 0x7F | 0x80)
            value >>= 7
        out.append(value)
    return bytes(out)


def _put(tensor: ir.TensorProtocol, out: BinaryIO) -> None:
    """Write the bytes of a tensor and let go of the memory that reading them took."""
    if tensor.dtype.bitwidth < 8 or sys.byteorder != "little":
        out.write(tensor.tobytes())
    else:
        out.write(np.ascontiguousarray(tensor.numpy()).reshape(-1).view(np.uint8).data)
    release_tensor(tensor)
