"""The contract of inputs and outputs: legal names, and the types and shapes that Core ML's interface knows."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from ...compiler.backend import EmitOptions
from ...compiler.errors import Missing
from .build import BOOL, F16, F32, I32, Builder, Slot, Var
from .unlowered import Unlowered

HALF, FLOAT, DOUBLE = ir.DataType.FLOAT16, ir.DataType.FLOAT, ir.DataType.DOUBLE


class Names:
    """Legal MIL names, each given once: letters, digits and underscores, no digit first."""

    def __init__(self) -> None:
        self._taken: set[str] = set()
        self._next: dict[str, int] = {}

    def new(self, wish: str) -> str:
        """The wish made legal, with a number behind it when it is taken."""
        legal = re.sub(r"[^A-Za-z0-9_]", "_", wish) or "value"
        if legal[0].isdigit():
            legal = f"var_{legal}"
        name, i = legal, self._next.get(legal, 1)
        while name in self._taken:
            name, i = f"{legal}_{i}", i + 1
        self._next[legal] = i
        self._taken.add(name)
        return name


class Interface:
    """Names and types at the border of the program, and what was changed there."""

    def __init__(self, builder: Builder, options: EmitOptions) -> None:
        self.builder = builder
        self.names = Names()
        self.inputs: dict[str, str] = {}
        self.outputs: dict[str, str] = {}
        self.missing: list[Missing] = []
        self.contract: list[str] = []
        self._fp16 = options.io == "fp16" and builder.target.fp16_io
        if options.io == "fp16" and not builder.target.fp16_io:
            self.contract.append(f"{builder.target.name} has no float16 inputs and outputs: they are float32")

    def placeholders(self, values: Sequence[ir.Value]) -> dict[str, Any]:
        """The program's inputs by their names in the file."""
        types = self.builder.mil.types
        found = {}
        for value in values:
            name = self._rename("input", value, self.inputs)
            dtype = self._type("input", value, name)
            shape = tuple(int(d) for d in value.shape) or (1,)  # type: ignore[union-attr,arg-type]
            if not value.shape:
                self.contract.append(f"input '{name}': a scalar is given as shape [1]")
            found[name] = self.builder.mil.Placeholder(shape, types.numpy_type_to_builtin_type(dtype), name=name)
        return found

    def read(self, value: ir.Value, inputs: dict[str, Var]) -> Slot:
        """The slot of a model input: cast and shaped as the graph wants it."""
        var = inputs[self.inputs[value.name or ""]]
        self.builder.names[var] = self.inputs[value.name or ""]
        if not value.shape:
            var = self.builder.op("squeeze", x=var, axes=[0])
        dtype = self.builder.dtype(var)
        if value.dtype == ir.DataType.BOOL:
            return Slot(other=self.builder.cast(var, BOOL))
        if dtype.kind != "f":
            return Slot(other=var)
        return Slot(half=var) if dtype == F16 else Slot(full=var)

    def write(self, outputs: Sequence[tuple[ir.Value, Slot]]) -> list[Var]:
        """The program's outputs: each its own variable, of a type that Core ML can hand out, under its legal name.

        What Core ML can't hold goes into `missing` instead.
        """
        done: list[Var] = []
        for value, slot in outputs:
            name = self._rename("output", value, self.outputs)
            try:
                held = self._plain(slot)
            except Unlowered as e:
                self.missing.append(Missing("", f"output '{value.name}'", e.why))
                continue
            var = self.builder.cast(held, self._type("output", value, name))
            if len(var.shape) == 0:
                self.contract.append(f"output '{name}': a scalar is given as shape [1]")
                var = self.builder.op("expand_dims", x=var, axes=[0])
            if var in done or var.op is None or var.op.op_type in ("const", "placeholder"):
                var = self.builder.op("identity", x=var)
            self.builder.names[var] = name
            done.append(var)
        return done

    def _plain(self, slot: Slot) -> Var:
        if slot.affine is not None:
            return self.builder.affine(slot.affine, F32)
        if slot.constant is not None:
            kind = slot.constant.dtype.kind
            return self.builder.constant(slot.constant, F32 if kind == "f" else BOOL if kind == "b" else I32)
        return slot.other if slot.other is not None else slot.full if slot.full is not None else slot.half

    def _rename(self, what: str, value: ir.Value, into: dict[str, str]) -> str:
        old = value.name or what
        if old in into:
            return self.names.new(old)
        into[old] = new = self.names.new(old)
        if new != old:
            self.contract.append(f"{what} '{old}' is called '{new}'")
        return new

    def _type(self, what: str, value: ir.Value, name: str) -> np.dtype[Any]:
        """The element type at the border, with a sentence where it differs from the model's."""
        kind = value.dtype
        assert kind is not None
        if kind in (FLOAT, DOUBLE, HALF):
            dtype = F16 if self._fp16 or (kind == HALF and self.builder.target.fp16_io) else F32
        else:
            dtype = I32
        old = kind.numpy().name
        if old != dtype.name:
            self.contract.append(f"{what} '{name}': {old} is {dtype.name}{', 0 or 1' if old == 'bool' else ''}")
        return dtype
