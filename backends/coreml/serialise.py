"""The MIL program as protobuf messages, and its weights as a blob file, one weight in memory at a time.

Written here instead of by `ct.convert`, whose passes the ONNX passes make superfluous. What each of the passes that it
always runs would have done, and who does it now:

| coremltools pass                              | here                                                             |
|-----------------------------------------------|------------------------------------------------------------------|
| mil_backend::adjust_io_to_supported_types     | interface.py chooses the types and adds the casts                |
| mil_backend::insert_image_preprocessing_ops   | no image inputs                                                  |
| mil_backend::fuse_activation_silu, pow2_sqrt  | the ONNX passes fuse; MIL `silu` is lowered to directly          |
| common::sanitize_input_output_names, mil_backend::sanitize_name_strings | interface.Names: legal by construction |
| common::dedup_op_and_var_names                | interface.Names: every name is given once                        |
| common::const_deduplication                   | build.Builder.constant: one variable for each content and type   |
| common::const_elimination, dead_code_elimination | constants are folded in ONNX; what nothing reads is not written |
| common::cast_optimization                     | Slot keeps both precisions of a value; no cast is made twice      |

Sources: MIL.proto and Model.proto; coremltools 9.0 `converters/mil/backend/mil/load.py` for what goes where.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ...compiler.copying import in_rows
from ...compiler.errors import EdgecError, ModelError
from ...formats.coremlproto import blob_library, mil_pb2
from ...formats.mlpackage import Package
from .build import Builder, Var
from .constants import Affine
from .interface import Names
from .packed import Packed
from .serialise_packed import write_packed

WEIGHT_FILE = "@model_path/weights/weight.bin"
FILE_FROM = 10
"""Elements from which coremltools stores a constant in the weight file instead of the program."""

_FILE_TYPES = {"float16": "fp16", "float32": "float", "uint8": "uint8", "int8": "int8"}
_FILE_TYPES_18 = _FILE_TYPES | {"int32": "int32", "uint16": "uint16", "int16": "int16", "uint32": "uint32"}
_PROTO = {
    "float16": "FLOAT16", "float32": "FLOAT32", "int32": "INT32", "bool": "BOOL", "str": "STRING", "int8": "INT8",
    "uint8": "UINT8", "int16": "INT16", "uint16": "UINT16", "int4": "INT4", "uint4": "UINT4", "uint1": "UINT1",
    "uint2": "UINT2", "uint3": "UINT3", "uint6": "UINT6", "uint32": "UINT32",
}  # fmt: skip
BITS = frozenset({"int4", "uint1", "uint2", "uint3", "uint4", "uint6"})
"""Types of less than a byte: always in the weight file, which packs them."""
_FIELD = {"float32": "floats", "int32": "ints", "int16": "ints", "uint16": "ints", "bool": "bools"}


class Writer:
    """Writes the program of one function and its weight file."""

    def __init__(self, builder: Builder, names: Names, weights: Path) -> None:
        self._builder = builder
        self._names = names
        self._path = weights
        self._pb = mil_pb2()
        self._blob: Any = None
        self._last = 0
        self._types: dict[tuple[str, tuple[int, ...]], Any] = {}
        self._named: dict[Var, str] = {}

    def program(self, function: Any, opset: str, program: Any) -> None:
        """Fill a Program message. The weights that it reads are in the weight file afterwards, if there are any."""
        program.version = 1
        main = program.functions["main"]
        main.opset = opset
        for name, var in function.inputs.items():
            main.inputs.add(name=name, type=self.type(var))
            self._named[var] = name
        self._block(function, main.block_specializations[opset])
        self._close()

    def _block(self, block: Any, out: Any) -> None:
        live = _live(block)
        operations = [op for op in block.operations if op in live]
        self._name(operations, block.outputs)
        for op in operations:
            if op.op_type == "const":
                self._const(op, out)
            else:
                self._operation(op, out.operations.add())
        out.outputs.extend(self._named[v] for v in block.outputs)

    # Names

    @property
    def version(self) -> int:
        """The iOS version that is written for."""
        return self._builder.version

    def dtype(self, var: Var) -> np.dtype[Any]:
        """The element type of a variable."""
        return self._builder.dtype(var)

    def named(self, var: Var) -> str:
        """The name of a variable."""
        return self._named[var]

    def fresh(self, wish: str) -> str:
        """A name that nothing has yet."""
        return self._names.new(wish)

    def name(self, var: Var) -> str | None:
        """The name of a variable that was written, else None."""
        return self._named.get(var)

    def _name(self, operations: list[Any], outputs: Iterable[Var]) -> None:
        """Name every variable: outputs as the interface says, then results after ONNX values, constants after both."""
        known = self._builder.names
        for var in outputs:
            self._named.setdefault(var, known.get(var) or self._names.new(var.op.op_type))
        for op in operations:
            if op.op_type != "const":
                for var in op.outputs:
                    if var not in self._named:
                        self._named[var] = self._names.new(known.get(var) or op.op_type)
        for op in operations:
            for parameter, var in _inputs(op):
                if var not in self._named:
                    wish = known.get(var) or f"{self._named[op.outputs[0]]}_{parameter}"
                    self._named[var] = self._names.new(wish)

    # Operators

    def _operation(self, op: Any, out: Any) -> None:
        out.type = op.op_type
        for parameter, vars_ in op.inputs.items():
            if parameter.startswith("_"):
                continue
            arguments = out.inputs[parameter].arguments
            for var in vars_ if isinstance(vars_, (list, tuple)) else (vars_,):
                arguments.add().name = self._named[var]
        self.string(out.attributes["name"], self._named[op.outputs[0]])
        for var in op.outputs:
            out.outputs.add(name=self._named[var], type=self.type(var))
        for block in op.blocks:
            self._block(block, out.blocks.add())

    def _const(self, op: Any, out: Any) -> None:
        var = op.outputs[0]
        weight = self._builder.weights.get(var)
        if isinstance(weight, (Affine, Packed)):
            write_packed(self, var, weight, out)
            return
        message = out.operations.add(type="const")
        self.string(message.attributes["name"], self._named[var])
        if weight is not None:
            self.value(message.attributes["val"], weight.numpy())
            weight.forget()
        elif isinstance(var.val, str):
            self.string(message.attributes["val"], var.val)
        else:
            self.value(message.attributes["val"], np.asarray(var.val))
        message.outputs.add(name=self._named[var], type=self.type(var))

    # Values

    def type(self, var: Var) -> Any:
        """The ValueType message of a variable."""
        types = self._builder.mil.types
        kind = "str" if var.dtype == types.str else self._builder.dtype(var).name
        return self.tensor_type(kind, tuple(int(d) for d in var.shape))

    def tensor_type(self, kind: str, shape: tuple[int, ...]) -> Any:
        """The ValueType message of a tensor."""
        found = self._types.get((kind, shape))
        if found is None:
            found = self._types[kind, shape] = self._pb.ValueType()
            tensor = found.tensorType
            tensor.dataType = getattr(self._pb, _PROTO[kind])
            tensor.rank = len(shape)
            for size in shape:
                tensor.dimensions.add().constant.size = size
        return found

    def string(self, out: Any, text: str) -> None:
        """Fill a Value message with a text."""
        out.type.CopyFrom(self.tensor_type("str", ()))
        out.immediateValue.tensor.strings.values.append(text)

    def value(self, out: Any, array: np.ndarray, kind: str = "") -> None:
        """Fill a Value message: small ones hold their numbers, others point into the weight file."""
        kind = kind or array.dtype.name
        out.type.CopyFrom(self.tensor_type(kind, array.shape))
        files = _FILE_TYPES if self._builder.version < 18 else _FILE_TYPES_18
        if kind in BITS or (array.size >= FILE_FROM and kind in files):
            out.blobFileValue.fileName = WEIGHT_FILE
            out.blobFileValue.offset = self._write(array, files.get(kind, kind))
            return
        tensor = out.immediateValue.tensor
        if kind in _FIELD:
            getattr(tensor, _FIELD[kind]).values.extend(array.reshape(-1).tolist())
        else:
            tensor.bytes.values = array.tobytes()

    def _write(self, array: np.ndarray, kind: str) -> int:
        try:
            return self._append(array, kind)
        except RuntimeError as e:
            # The library does not say why; a full disk is the usual reason.
            why = "the disk is full" if shutil.disk_usage(self._path.parent).free < array.nbytes else e
            raise EdgecError(f"can't write the weights: {why}; nothing was written") from e

    def _append(self, array: np.ndarray, kind: str) -> int:
        if self._blob is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._blob = blob_library()._BlobStorageWriter(str(self._path))
        flat = in_rows(array).reshape(-1)
        if kind == "fp16":
            flat = flat.view(np.uint16)
        self._last = int(getattr(self._blob, f"write_{kind}_data")(flat))
        return self._last

    def _close(self) -> None:
        """Close the weight file and see that its last weight is whole: what was held back until now may not fit."""
        if self._blob is None:
            return
        self._blob = None
        folder = self._path.parents[1]
        try:
            Package(folder, folder / "model.mlmodel", None).blob(WEIGHT_FILE, self._last)
        except ModelError as e:
            raise EdgecError(f"can't write the weights: {self._path.name} is cut off; nothing was written") from e


def _inputs(op: Any) -> Iterator[tuple[str, Var]]:
    for parameter, vars_ in op.inputs.items():
        if isinstance(vars_, (list, tuple)):
            for i, var in enumerate(vars_):
                yield f"{parameter}_{i}", var
        else:
            yield parameter, vars_


def _live(block: Any) -> set[Any]:
    """The operators that an output depends on, those of inner blocks included."""
    live: set[Any] = set()
    stack = [v.op for v in block.outputs]
    while stack:
        op = stack.pop()
        if op is None or op in live:
            continue
        live.add(op)
        stack.extend(var.op for _, var in _inputs(op))
        for inner in op.blocks:
            stack.extend(v.op for v in inner.outputs)
    return live
