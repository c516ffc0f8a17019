"""MIL types and constants as the package stores them: element types, shapes, literals that are read when needed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from ...compiler.errors import ModelError
from ...compiler.quantization.bits import pack_bits, unpack_bits
from ...formats import coremlproto
from ...formats.mlpackage import Blob, Package

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class ElementType:
    """One MIL element type.

    Attributes:
        proto: the name in the protobuf enumeration `DataType`.
        bits: width of one element as stored.
        numpy: type of the decoded array.
        onnx: type of the stored tensor in ONNX, None where ONNX has none (unpacked in the graph instead).
        carried: type in which the lifted graph computes with it.
    """

    proto: str
    bits: int
    numpy: Any
    onnx: ir.DataType | None
    carried: ir.DataType


_D = ir.DataType
ELEMENTS: dict[str, ElementType] = {
    "fp16": ElementType("FLOAT16", 16, np.float16, _D.FLOAT16, _D.FLOAT),
    "fp32": ElementType("FLOAT32", 32, np.float32, _D.FLOAT, _D.FLOAT),
    "fp64": ElementType("FLOAT64", 64, np.float64, _D.DOUBLE, _D.DOUBLE),
    "bool": ElementType("BOOL", 8, np.bool_, _D.BOOL, _D.BOOL),
    "int8": ElementType("INT8", 8, np.int8, _D.INT8, _D.INT8),
    "uint8": ElementType("UINT8", 8, np.uint8, _D.UINT8, _D.UINT8),
    "int16": ElementType("INT16", 16, np.int16, _D.INT16, _D.INT32),
    "uint16": ElementType("UINT16", 16, np.uint16, _D.UINT16, _D.INT32),
    "int32": ElementType("INT32", 32, np.int32, _D.INT32, _D.INT32),
    "uint32": ElementType("UINT32", 32, np.uint32, _D.UINT32, _D.INT64),
    "int64": ElementType("INT64", 64, np.int64, _D.INT64, _D.INT64),
    "uint64": ElementType("UINT64", 64, np.uint64, _D.UINT64, _D.UINT64),
    "int4": ElementType("INT4", 4, np.int8, _D.INT4, _D.INT8),
    "uint4": ElementType("UINT4", 4, np.uint8, _D.UINT4, _D.UINT8),
    "uint1": ElementType("UINT1", 1, np.uint8, None, _D.UINT8),
    "uint2": ElementType("UINT2", 2, np.uint8, _D.UINT2, _D.UINT8),
    "uint3": ElementType("UINT3", 3, np.uint8, None, _D.UINT8),
    "uint6": ElementType("UINT6", 6, np.uint8, None, _D.UINT8),
    "string": ElementType("STRING", 0, np.str_, _D.STRING, _D.STRING),
}
_BY_PROTO = {element.proto: name for name, element in ELEMENTS.items()}


@dataclass(frozen=True)
class TensorType:
    """Element type and shape of a MIL tensor; a dimension is None where the program leaves it open."""

    dtype: str
    shape: tuple[int | None, ...]

    @property
    def rank(self) -> int:
        return len(self.shape)

    @property
    def element(self) -> ElementType:
        return ELEMENTS[self.dtype]


def tensor_type(proto: Any) -> TensorType | None:
    """The tensor type in a `ValueType` message; None for lists, tuples, dictionaries, states and unknown elements."""
    if proto.WhichOneof("type") != "tensorType":
        return None
    tensor = proto.tensorType
    dtype = _BY_PROTO.get(coremlproto.mil_pb2().DataType.Name(tensor.dataType))
    if dtype is None:
        return None
    dims = tuple(d.constant.size if d.WhichOneof("dimension") == "constant" else None for d in tensor.dimensions)
    return TensorType(dtype, dims)


@dataclass(frozen=True, eq=False)
class Literal:
    """A constant of the program, either in the specification itself or a range of the weight file."""

    name: str
    type: TensorType
    proto: Any
    package: Package

    @property
    def count(self) -> int:
        return math.prod(d or 0 for d in self.type.shape)

    @cached_property
    def blob(self) -> Blob | None:
        """Where the data lies in the weight file, checked against the type; None for an immediate value."""
        if self.proto.WhichOneof("value") != "blobFileValue":
            return None
        stored = self.proto.blobFileValue
        blob = self.package.blob(stored.fileName, stored.offset)
        needed = math.ceil(self.count * self.type.element.bits / 8)
        if blob.dtype != self.type.dtype or blob.length != needed:
            raise ModelError(
                f"{blob.path}: '{self.name}' is declared as {self.type.dtype}{list(self.type.shape)} ({needed} bytes), "
                f"but the constant at offset {stored.offset} holds {blob.length} bytes of {blob.dtype}; "
                "convert the model again"
            )
        return blob

    def raw(self) -> Array:
        """The stored bytes, mapped where they lie in a file."""
        if self.blob is not None:
            return np.memmap(self.blob.path, np.uint8, "r", self.blob.offset, (self.blob.length,))
        return np.frombuffer(self.proto.immediateValue.tensor.bytes.values, np.uint8)

    def numpy(self) -> Array:
        """The value in its own type (float16 stays float16; types under eight bits become int8 or uint8)."""
        element = self.type.element
        shape = tuple(d or 0 for d in self.type.shape)
        field = self.proto.immediateValue.tensor.WhichOneof("value") if self.blob is None else "bytes"
        if field != "bytes":
            values = getattr(self.proto.immediateValue.tensor, field).values if field else []
            return np.array(list(values), element.numpy).reshape(shape)
        if element.bits >= 8:
            whole: Array = self.raw().view(element.numpy)
            return whole.reshape(shape)
        flat = unpack_bits(self.raw(), element.bits, self.count)
        if self.type.dtype.startswith("int"):
            sign = 1 << (element.bits - 1)
            flat = ((flat.view(np.int8) ^ sign) - sign).astype(np.int8)
        return flat.reshape(shape)

    def stored(self, shape: Sequence[int] | None = None) -> ir.TensorProtocol:
        """The constant as an ONNX tensor in its stored type, mapped if it lies in the weight file, or reshaped."""
        dims = self.type.shape if shape is None else tuple(shape)
        onnx_type = self.type.element.onnx
        if onnx_type is None:
            raise ModelError(f"constant '{self.name}': ONNX has no type for {self.type.dtype}")
        if self.blob is not None:
            return self._mapped(onnx_type, dims)
        return ir.tensor(self.numpy().reshape([d or 0 for d in dims]), dtype=onnx_type, name=self.name)

    def packed(self) -> ir.TensorProtocol:
        """The packed bytes of elements under eight bits, as a one-dimensional UINT8 tensor."""
        if self.blob is not None:
            return self._mapped(ir.DataType.UINT8, (self.blob.length,))
        if self.type.element.bits < 8:
            return ir.tensor(pack_bits(self.numpy().view(np.uint8), self.type.element.bits), name=self.name)
        return ir.tensor(self.raw(), name=self.name)

    def bytes_as(self, dtype: ir.DataType, shape: Sequence[int]) -> ir.TensorProtocol:
        """Bytes that hold elements of a smaller type, as a tensor of that type."""
        if self.blob is not None:
            return self._mapped(dtype, tuple(shape))
        return ir.PackedTensor(np.ascontiguousarray(self.numpy()).view(np.uint8), dtype, shape=shape, name=self.name)

    def _mapped(self, dtype: ir.DataType, shape: tuple[int | None, ...]) -> ir.ExternalTensor:
        assert self.blob is not None
        where = self.blob
        return ir.ExternalTensor(
            where.location,
            where.offset,
            where.length,
            dtype,
            shape=ir.Shape(shape),
            name=self.name,
            base_dir=str(where.folder),
        )
