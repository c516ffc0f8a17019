"""What a packed weight is made of: constants, and operators on them, before they are nodes of a graph."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from ..compiler import functions
from ..compiler import graph as g
from ..compiler.weights import Scratch


@dataclass(frozen=True, eq=False)
class Leaf:
    """A constant: an array and its element type in ONNX."""

    array: np.ndarray
    dtype: ir.DataType
    hint: str

    @property
    def nbytes(self) -> int:
        """Bytes as stored."""
        return -(-self.array.size * self.dtype.bitwidth // 8)


@dataclass(frozen=True, eq=False)
class Form:
    """An operator, of the standard or of `functions.py`, on constants and other forms.

    Attributes:
        kind: what it is called in options and notes.
    """

    op: str
    inputs: tuple[Leaf | Form, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    kind: str = ""

    @property
    def nbytes(self) -> int:
        """Bytes of all constants."""
        return sum(part.nbytes for part in self.inputs)


class Emitter:
    """Writes a form into a model. Its constants are made once, its nodes once for each graph that reads the weight."""

    def __init__(self, model: ir.Model, old: ir.Value, scratch: Scratch) -> None:
        assert isinstance(old.graph, ir.Graph)
        self._model, self._old, self._graph, self._scratch = model, old, old.graph, scratch
        self._leaves: dict[Leaf, ir.Value] = {}

    def value(self, part: Leaf | Form, anchor: ir.Node, like: ir.Value | None = None) -> ir.Value:
        """What holds `part`, made before the node `anchor`; `like` gives it its type and shape."""
        if isinstance(part, Leaf):
            if part not in self._leaves:
                self._leaves[part] = self._constant(part)
            return self._leaves[part]
        inputs = [self.value(p, anchor) for p in part.inputs]
        domain = functions.DOMAIN if part.op in functions.DECODERS else ""
        if domain:
            functions.declare(self._model, part.op)
        hint = f"{self._old.name}__{'dense' if like is not None else part.op.lower()}"
        made = g.insert_before(anchor, part.op, inputs, part.attributes, like=like, hint=hint, domain=domain)
        if like is None:
            made.outputs[0].type, made.outputs[0].shape = _inner_type(part)
        return made.outputs[0]

    def _constant(self, leaf: Leaf) -> ir.Value:
        name = g.fresh_name(self._graph, f"{self._old.name}__{leaf.hint}")
        tensor = self._scratch.tensor(np.ascontiguousarray(leaf.array).reshape(leaf.array.shape), name, leaf.dtype)
        shape, kind = ir.Shape(leaf.array.shape), ir.TensorType(leaf.dtype)
        value = ir.Value(name=name, shape=shape, type=kind, const_value=tensor)
        self._graph.register_initializer(value)
        return value


def _inner_type(part: Form) -> tuple[ir.TensorType, ir.Shape | None]:
    """Type and shape of what an inner operator makes."""
    shape: Any = part.attributes.get("shape")
    first = part.inputs[0]
    if shape is None and isinstance(first, Leaf):
        shape = first.array.shape
    elif shape is None:
        known = _inner_type(first)[1]  # type: ignore[arg-type]
        shape = None if known is None else known.dims
    kind = ir.DataType(part.attributes.get("to", ir.DataType.UINT8 if part.op == "UnpackBits" else ir.DataType.FLOAT))
    return ir.TensorType(kind), None if shape is None else ir.Shape(shape)
