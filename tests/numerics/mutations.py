"""Breaks a saved Core ML package in one place at a time: every literal of its program, and its weight file."""

from __future__ import annotations

import shutil
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgec.formats.coremlproto import model_pb2

SPEC = Path("Data/com.apple.CoreML/model.mlmodel")
WEIGHTS = Path("Data/com.apple.CoreML/weights/weight.bin")

OTHER_TEXT = {
    "EXACT": "TANH_APPROXIMATION",
    "TANH_APPROXIMATION": "EXACT",
    "custom": "valid",
    "valid": "same",
    "constant": "reflect",
    "forward": "reverse",
    "tanh": "sigmoid",
    "sigmoid": "tanh",
}


@dataclass(frozen=True)
class Mutation:
    """One literal of one operator, changed."""

    op: str
    parameter: str
    old: Any
    new: Any
    index: tuple[int, int, str, int]

    def __str__(self) -> str:
        return f"{self.op}.{self.parameter}: {self.old} -> {self.new}"


def read_spec(package: Path) -> Any:
    """The package's model specification."""
    return model_pb2().Model.FromString((package / SPEC).read_bytes())


def _block(spec: Any) -> Any:
    function = next(iter(spec.mlProgram.functions.values()))
    return function.block_specializations[function.opset]


def _literal(value: Any) -> tuple[Any, str] | None:
    """The repeated field that holds an immediate value's elements, and its kind."""
    if value.WhichOneof("value") != "immediateValue":
        return None
    tensor = value.immediateValue.tensor
    kind = tensor.WhichOneof("value")
    return (getattr(tensor, kind).values, kind) if kind and kind != "bytes" else None


def _literals(spec: Any) -> Iterator[tuple[str, str, Any, str, tuple[int, int, str, int]]]:
    """(operator, parameter, elements, kind, place) of each literal that an operator reads."""
    operations = _block(spec).operations
    constants = {op.outputs[0].name: i for i, op in enumerate(operations) if op.type == "const"}
    for i, op in enumerate(operations):
        if op.type == "const":
            continue
        for parameter in sorted(op.inputs):
            for j, argument in enumerate(op.inputs[parameter].arguments):
                source = constants.get(argument.name) if argument.WhichOneof("binding") == "name" else None
                value = operations[source].attributes["val"] if source is not None else argument.value
                found = _literal(value)
                if found is not None and len(found[0]):
                    place = (i if source is None else source, j, parameter if source is None else "val", 0)
                    yield op.type, parameter, found[0], found[1], place


def mutations(package: Path) -> list[Mutation]:
    """Everything that can be changed in one place; operator names, weights in the blob file and shapes are left."""
    found = []
    for op, parameter, elements, kind, place in _literals(read_spec(package)):
        old = list(elements)
        for new in _changed(old, kind):
            found.append(Mutation(op, parameter, old, new, place))
    return found


def _changed(old: list[Any], kind: str) -> Iterator[list[Any]]:
    if kind == "strings" and old[0] in OTHER_TEXT:
        yield [OTHER_TEXT[old[0]], *old[1:]]
    elif kind == "bools":
        yield [*old[:-1], not old[-1]]
    elif kind in ("ints", "longInts"):
        # The last element: the first is often the batch, an axis of one on which nothing can go wrong.
        yield [*old[:-1], old[-1] + 1]
        if len(old) > 1 and old[0] != old[-1]:
            yield [old[-1], *old[1:-1], old[0]]
        if len(old) >= 4 and old[0] == old[1]:
            yield [old[0] - 1, old[1] + 1, *old[2:]]
    elif kind in ("floats", "doubles"):
        yield [old[0] * 1.25 + 0.01, *old[1:]]


def apply(mutation: Mutation, package: Path, out: Path) -> None:
    """Write a copy of `package` with one literal changed."""
    shutil.copytree(package, out)
    spec = read_spec(package)
    i, j, parameter, _ = mutation.index
    op = _block(spec).operations[i]
    value = (
        op.attributes["val"] if parameter == "val" and op.type == "const" else op.inputs[parameter].arguments[j].value
    )
    found = _literal(value)
    assert found is not None
    elements = found[0]
    del elements[:]
    elements.extend(mutation.new)
    (out / SPEC).write_bytes(spec.SerializeToString(deterministic=True))


def corrupt_weights(package: Path, out: Path, offset: int, data: bytes) -> None:
    """Write a copy of `package` with some bytes of the weight file replaced."""
    shutil.copytree(package, out)
    raw = bytearray((out / WEIGHTS).read_bytes())
    raw[offset : offset + len(data)] = data
    (out / WEIGHTS).write_bytes(raw)


def scale_blobs(package: Path) -> list[tuple[int, int]]:
    """(offset, bytes) in the weight file of the scales of packed weights."""
    raw = (package / WEIGHTS).read_bytes()
    found = []
    for op in _block(read_spec(package)).operations:
        scale = op.attributes.get("scale") if op.type == "constexpr_affine_dequantize" else None
        if scale is not None and scale.WhichOneof("value") == "blobFileValue":
            _, _, size, offset = struct.unpack_from("<IIQQ", raw, scale.blobFileValue.offset)
            found.append((offset, size))
    return found
