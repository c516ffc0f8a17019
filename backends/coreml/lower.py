"""From ONNX to MIL: every node through its row of the table, in float16 where the model's rounding pairs say so."""

from __future__ import annotations

import contextlib
import gc
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir as ir

from ...compiler.backend import EmitOptions
from ...compiler.errors import Missing, UnsupportedOp
from ...compiler.targets import Target
from .build import BOOL, F16, F32, I32, Builder, Slot, Var
from .call import Call, only_rounded
from .checks import FLOATS, MAX_RANK, check_attributes, check_input, check_output, check_values, is_static
from .constants import Constant, of_value
from .interface import Interface
from .mil import quiet
from .registry import Row, lowerings
from .unlowered import Follows, Unlowered, refused


class Lowering:
    """Lowers one model for one target. After `run`, `missing` lists what can't be expressed; empty means success."""

    def __init__(self, model: ir.Model, target: Target, options: EmitOptions) -> None:
        self.model = model
        self.target = target
        self.builder = Builder(target)
        self.interface = Interface(self.builder, options)
        self.missing: list[Missing] = []
        self.function: Any = None
        self._slots: dict[ir.Value, Slot] = {}
        self._lost: set[ir.Value] = set()
        self._table = lowerings()

    def run(self) -> None:
        """Build the whole program. Raises nothing for what is missing; see `missing`."""
        with paused(), quiet():
            self._run()

    def _run(self) -> None:
        graph = self.model.graph
        inputs = [v for v in graph.inputs if v.name not in graph.initializers]
        faults = {v: found for v in inputs if (found := check_input(v))}
        self.missing += [*faults.values(), *(m for v in graph.outputs if (m := check_output(v)))]
        fixed = [v for v in inputs if v not in faults]
        self._check_initializers()
        placeholders = self.interface.placeholders(fixed)
        with self.builder.mil.Function(placeholders, self.builder.mil.opset(self.builder.version)) as function:
            self.function = function
            for value in fixed:
                self._slots[value] = self.interface.read(value, function.inputs)
            for value in inputs:
                if value not in self._slots and is_static(value):
                    self._slots[value] = self._stand_in(value)
            self._lost.update(v for v in inputs if v not in self._slots)
            for node in graph:
                self.lower(node)
            if not self.missing:
                outputs = self.interface.write([(v, self.slot(v)) for v in graph.outputs])
                self.missing += self.interface.missing
                if not self.missing:
                    function.set_outputs(outputs)

    def lower(self, node: ir.Node) -> None:
        """Lower one node and bind its outputs."""
        row = self._table.get(node.op_type) if node.domain in ("", "ai.onnx", "edgec") else None
        if row is None:
            self._fail(node, "Core ML has no such operator" if not node.domain else f"unknown domain '{node.domain}'")
            return
        try:
            check_values(node)
            check_attributes(node)
            call = Call(self, node, self._half(node, row))
            result = row.lower(call, *row.args)
            self._bind(node, result)
        except Follows:
            self._lost.update(node.outputs)
        except Unlowered as e:
            self._fail(node, e.why)
        except Exception as e:
            if not refused(e):
                e.add_note(f"while lowering {node.op_type} '{node.name}'")
                raise
            self._fail(node, f"coremltools refuses it: {' '.join(str(e).split())[:300]}")

    def bind(self, slots: dict[ir.Value, Slot]) -> None:
        """Say what holds these values."""
        self._slots.update(slots)

    def inline(self, graph: ir.Graph) -> list[Slot]:
        """Lower a subgraph's nodes where the builder stands; what holds its outputs."""
        for node in graph:
            self.lower(node)
        return [self.slot(v) for v in graph.outputs]

    @contextlib.contextmanager
    def inner_block(self) -> Iterator[None]:
        """Constants and casts made inside are forgotten outside: another block can't see them."""
        slots = {value: replace(slot) for value, slot in self._slots.items()}
        with self.builder.inner_block():
            yield
        self._slots = slots

    # Values

    def shape(self, value: ir.Value) -> tuple[int, ...]:
        """The fixed shape of a value."""
        if not is_static(value):
            raise Unlowered(f"the shape of '{value.name}' is not fixed")
        return tuple(int(d) for d in value.shape)  # type: ignore[union-attr,arg-type]

    def held(self) -> Iterator[tuple[str, Var]]:
        """The values of the graph that variables hold, each with one of them."""
        for value, slot in self._slots.items():
            var = slot.half if slot.half is not None else slot.full if slot.full is not None else slot.other
            if var is not None and value.name:
                yield value.name, var

    def slot(self, value: ir.Value) -> Slot:
        """What holds `value`."""
        slot = self._slots.get(value)
        if slot is None:
            if value in self._lost:
                raise Follows
            if value.const_value is None:
                raise Unlowered(f"its input '{value.name}' has no value")
            slot = self._slots[value] = Slot(constant=of_value(value, value.name or ""))
        return slot

    def constant(self, value: ir.Value) -> Constant | None:
        """The constant that `value` is, or None."""
        return self.slot(value).constant

    def var(self, value: ir.Value, dtype: np.dtype[Any]) -> Var:
        """A variable for `value`; a float one of type `dtype`."""
        slot = self.slot(value)
        name = value.name
        if slot.other is not None:
            return slot.other
        if slot.constant is not None:
            kind = slot.constant.dtype.kind
            return self.builder.constant(slot.constant, {"f": dtype, "b": BOOL}.get(kind, I32), name)
        if slot.affine is not None:
            return self.affine(slot, dtype, name)
        if value.dtype not in FLOATS:
            slot.other = self.builder.cast(slot.full, I32)
            return slot.other
        if dtype == F16:
            if slot.half is None:
                half = self.builder.cast(slot.full, F16)
                if value.dtype != ir.DataType.FLOAT16:
                    return half
                slot.half = half
            return slot.half
        if slot.full is None or value.dtype == ir.DataType.FLOAT16:
            if slot.half is None:
                slot.half = self.builder.cast(slot.full, F16)
            slot.full = self.builder.cast(slot.half, F32)
        return slot.full

    def affine(self, slot: Slot, dtype: np.dtype[Any], name: str | None) -> Var:
        """A variable for the packed weight in a slot."""
        affine = slot.affine
        assert affine is not None
        if affine.is_exact():  # Not cast: what `linear` reads must be a constant.
            return self.builder.affine(affine, dtype, name)
        if affine.rounded and affine.is_half():
            return self.builder.cast(self.builder.affine(affine, F16, name), dtype)
        var = self.builder.affine(affine, F32, name)
        return self.builder.cast(self.builder.cast(var, F16) if affine.rounded else var, dtype)

    # Precision

    def rounded(self, value: ir.Value) -> bool:
        """Whether float16 holds `value` exactly, as far as the graph shows."""
        slot = self.slot(value)
        if slot.constant is not None:
            return slot.constant.is_float16()
        if slot.affine is not None:
            return slot.affine.rounded
        if slot.other is not None:
            return False
        return slot.half is not None or value.dtype == ir.DataType.FLOAT16

    def _half(self, node: ir.Node, row: Row) -> bool:
        """Whether the node computes in float16: all that goes in is float16's, and all that comes out is rounded."""
        if self.builder.version < row.half:
            return False
        positions = range(len(node.inputs)) if row.floats is None else row.floats
        values = [node.inputs[i] for i in positions if i < len(node.inputs)]
        inputs = [v for v in values if v is not None and v.dtype in FLOATS]
        outputs = [o for o in node.outputs if o.dtype in FLOATS]
        if any(v.dtype == ir.DataType.FLOAT16 for v in itertools.chain(inputs, outputs)):
            return True
        if not inputs or not all(self.rounded(v) for v in inputs):
            return False
        return row.exact or all(only_rounded(o) for o in outputs)

    # Results

    def _bind(self, node: ir.Node, result: Any) -> None:
        results = result if isinstance(result, (list, tuple)) else [result]
        for value, item in zip(node.outputs, results, strict=False):
            if item is None or not value.name:
                continue
            self._slots[value] = item if isinstance(item, Slot) else self._fill(value, item)

    def _fill(self, value: ir.Value, var: Var) -> Slot:
        expected = self.shape(value) if is_static(value) else None
        loose = expected is not None and len(expected) > MAX_RANK
        if expected is not None and not loose and tuple(var.shape) != expected:
            raise Unlowered(f"its output '{value.name}' has shape {tuple(var.shape)} instead of {expected}")
        if var not in self.builder.names and var.op is not None and var.op.op_type != "const":
            self.builder.names[var] = value.name or ""
        dtype = self.builder.dtype(var)
        if dtype.kind == "f":
            if value.dtype not in FLOATS:
                raise Unlowered(f"its output '{value.name}' became a float")
            return Slot(half=var) if dtype == F16 else Slot(full=var)
        if value.dtype in FLOATS:
            raise Unlowered(f"its output '{value.name}' became {dtype}")
        return Slot(other=var if dtype in (BOOL, I32) else self.builder.cast(var, I32))

    # What is missing

    def _fail(self, node: ir.Node, why: str) -> None:
        self.missing.append(Missing(node.name or (node.outputs[0].name or ""), node.op_type, why))
        for out in node.outputs:
            if is_static(out) and out.dtype is not None:
                self._slots[out] = self._stand_in(out)
            else:
                self._lost.add(out)

    def _stand_in(self, value: ir.Value) -> Slot:
        """A variable of the right type for a value that could not be made, so that what follows is checked too."""
        types = self.builder.mil.types
        kind = types.fp32 if value.dtype in FLOATS else types.bool if value.dtype == ir.DataType.BOOL else types.int32
        var = self.builder.mil.Placeholder(self.shape(value), kind, allow_rank0_input=True).outputs[0]
        return Slot(full=var) if kind == types.fp32 else Slot(other=var)

    def _check_initializers(self) -> None:
        for value in self.model.graph.initializers.values():
            if value.const_value is not None and value.dtype == ir.DataType.STRING and _read(value):
                self.missing.append(Missing("", f"initializer '{value.name}'", "Core ML has no strings"))
                self._slots[value] = Slot()


def _read(value: ir.Value) -> bool:
    return bool(value.uses()) or value.is_graph_output()


def build(model: ir.Model, target: Target, options: EmitOptions) -> Lowering:
    """The lowered model. Raises UnsupportedOp, listing everything, when something is missing."""
    lowering = Lowering(model, target, options)
    lowering.run()
    refuse(lowering.missing, target)
    return lowering


@contextlib.contextmanager
def paused() -> Iterator[None]:
    """Without the garbage collector, which would walk a growing program, all alive, again and again."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def refuse(missing: Sequence[Missing], target: Target) -> None:
    """Raise UnsupportedOp if anything is missing."""
    if missing:
        raise UnsupportedOp(f"{target.name} can't express this model:", missing)
