"""Walks an ML Program and builds the ONNX model that computes the same."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from ...compiler import functions
from ...compiler.errors import Missing, ModelError, UnsupportedOp
from ...compiler.targets import OPSET
from ...formats.mlpackage import Package
from . import rules as _rules  # noqa: F401  registers the rules
from .call import RULES, Call, Poisoned, Unsupported, Var
from .graph import Builder
from .packed_bits import unpack
from .values import Literal, TensorType, tensor_type

_IR_VERSION = 13
_SMALL = 256
"""Constants of up to this many elements may be converted while loading; larger ones stay where they lie on disk."""


def main_function(package: Package) -> tuple[str, Any, Any]:
    """Name, function and active block of the program that a package runs. Raises ModelError for other models."""
    spec = package.spec
    if spec.WhichOneof("Type") != "mlProgram":
        raise ModelError(
            f"{package.path} holds a model of type '{spec.WhichOneof('Type')}', not an ML Program. "
            "Convert it again with convert_to='mlprogram' (iOS 15 and later)"
        )
    programs = spec.mlProgram.functions
    name = spec.description.defaultFunctionName or "main"
    if name not in programs:
        found = ", ".join(sorted(programs)) or "none"
        raise ModelError(f"{package.path}: the program has no function '{name}', only: {found}")
    function = programs[name]
    if function.opset not in function.block_specializations:
        found = ", ".join(sorted(function.block_specializations)) or "none"
        raise ModelError(f"{package.path}: function '{name}' is for {function.opset}, but has code for: {found}")
    return name, function, function.block_specializations[function.opset]


@dataclass(frozen=True)
class Lifted:
    """An ONNX model, and for each result of the program what it declares: operator, name, type, and the ONNX value."""

    model: ir.Model
    declared: list[tuple[str, str, TensorType, ir.Value]]

    def disagreements(self) -> list[str]:
        """Where the program declares a shape that its operator does not give. Call it once shapes are inferred."""
        return [
            f"{kind} '{name}' is declared as {list(declared.shape)}, but gives {list(value.shape)}"
            for kind, name, declared, value in self.declared
            if value.shape is not None and not _agree(declared.shape, value.shape)
        ]


def _agree(declared: Sequence[int | None], given: ir.Shape) -> bool:
    if len(declared) != len(given):
        return False
    return all(d is None or not isinstance(g, int) or d == g for d, g in zip(declared, given, strict=True))


def lift(package: Package) -> Lifted:
    """The ONNX model of a package. Raises ModelError, or UnsupportedOp with everything that can't be lifted."""
    name, function, block = main_function(package)
    lifter = _Lifter(package, int(function.opset.removeprefix("CoreML")))
    inputs = [lifter.add_input(i.name, tensor_type(i.type)) for i in function.inputs]
    for output in block.outputs:
        lifter.names.fresh(output)
    results = lifter.block(lifter.root, lifter.scope, block)
    if lifter.missing:
        raise UnsupportedOp(
            f"{package.path} uses what can't be lifted to ONNX:", lifter.missing,
            "Only the lifted model can be checked; compile without these operators, or check the package on a Mac",
        )
    outputs = [lifter.add_output(n, v) for n, v in zip(block.outputs, results, strict=True)]
    graph = ir.Graph(
        inputs, outputs, nodes=lifter.root.nodes, name=name, opset_imports={"": OPSET},
        initializers=list(lifter.root.initializers.values()),
    )
    _sweep(graph, lifter.root)
    model = ir.Model(graph, ir_version=_IR_VERSION, producer_name="edgec")
    for used in lifter.root.functions:
        functions.declare(model, used)
    return Lifted(model, lifter.declared)


def _sweep(graph: ir.Graph, root: Builder) -> None:
    """Remove what was made in case that something reads it, where nothing does."""
    if not root.spare:
        return
    for node in reversed(list(graph)):
        if not any(o.uses() or o.is_graph_output() for o in node.outputs):
            graph.remove(node, safe=True)
    for name, value in list(graph.initializers.items()):
        if not value.uses() and not value.is_graph_output():
            del graph.initializers[name]


class _Lifter:
    """State of one run: the outermost builder, its scope, and what could not be lifted so far."""

    def __init__(self, package: Package, opset: int) -> None:
        self.package = package
        self.opset = opset
        self.root = Builder()
        self.names = self.root.names
        self.scope: dict[str, Var] = {}
        self.missing: list[Missing] = []
        self.declared: list[tuple[str, str, TensorType, ir.Value]] = []
        self._output_names: set[str] = set()
        self._named: set[int] = set()

    # Interface of the model ------------------------------------------------------------------------------------------

    def add_input(self, name: str, declared: TensorType | None) -> ir.Value:
        """A graph input, and in the scope its value as the program computes with it."""
        if declared is None or declared.element.onnx is None:
            raise ModelError(f"{self.package.path}: input '{name}' is not a tensor (a state, list or dictionary)")
        dims = [f"{name}_{axis}" if d is None else d for axis, d in enumerate(declared.shape)]
        value = ir.Value(name=self.names.fresh(name), type=ir.TensorType(declared.element.onnx), shape=ir.Shape(dims))
        carried = value
        if declared.element.carried != declared.element.onnx:
            self.root.prefix = name
            carried = self.root.cast(value, declared.element.carried)
        self.scope[name] = Var(declared, carried)
        return value

    def add_output(self, name: str, var: Var) -> ir.Value:
        """The value of a program output under its own name and in its declared type."""
        value, declared = self.valued(var), var.type
        if declared is None or declared.element.onnx is None:
            raise ModelError(f"{self.package.path}: output '{name}' is not a tensor")
        self.root.prefix = name
        if declared.element.carried != declared.element.onnx:
            value = self.root.cast(value, declared.element.onnx)
        elif value.producer() is None or value.name in self._output_names:
            value = self.root.op("Identity", value)
        value.name = name
        self._output_names.add(name)
        dims = [f"{name}_{axis}" if d is None else d for axis, d in enumerate(declared.shape)]
        value.type, value.shape = ir.TensorType(declared.element.onnx), ir.Shape(dims)
        return value

    # Operations ------------------------------------------------------------------------------------------------------

    def block(self, builder: Builder, scope: dict[str, Var], block: Any) -> list[Var]:
        """Lift the operations of a block in order; its outputs."""
        for op in block.operations:
            if op.type == "const":
                self._const(scope, op)
            else:
                self._operation(builder, scope, op)
        return [scope[name] for name in block.outputs]

    def _const(self, scope: dict[str, Var], op: Any) -> None:
        name = op.outputs[0].name
        scope[name] = self._literal_var(name, op.attributes["val"])

    def _literal_var(self, name: str, value: Any) -> Var:
        declared = tensor_type(value.type)
        return Var(declared, literal=Literal(name, declared, value, self.package) if declared is not None else None)

    def _arguments(self, scope: Mapping[str, Var], op: Any) -> dict[str, list[Var]]:
        """Parameters, whether the program binds them as inputs or as attributes."""
        arguments = {}
        for parameter, argument in op.inputs.items():
            arguments[parameter] = [
                scope[b.name] if b.WhichOneof("binding") == "name" else self._literal_var(f"{parameter}", b.value)
                for b in argument.arguments
            ]
        for parameter, value in op.attributes.items():
            if parameter != "name":
                arguments.setdefault(parameter, [self._literal_var(parameter, value)])
        return arguments

    def _operation(self, builder: Builder, scope: dict[str, Var], op: Any) -> None:
        name = _own_name(op)
        declared = [tensor_type(o.type) for o in op.outputs]
        builder.prefix = name
        call = Call(
            op.type, name, self.opset, self._arguments(scope, op), declared, op.blocks, builder, self.valued,
            lambda inner, block, values: self._branch(inner, scope, block, values),
        )
        try:
            values = self._lifted(call)
        except Unsupported as reason:
            self.missing.append(Missing(name, op.type, str(reason)))
            values = None
        except Poisoned:
            values = None
        except (ValueError, IndexError, ArithmeticError) as error:
            what = f"{self.package.path}: the arguments of {op.type} '{name}' do not fit together"
            raise ModelError(f"{what} ({error}); convert the model again") from error
        for index, output in enumerate(op.outputs):
            value = values[index] if values is not None else None
            kind = declared[index]
            scope[output.name] = Var(kind, value, poisoned=value is None)
            if kind is not None and value is not None:
                self.declared.append((op.type, output.name, kind, value))
            if value is not None and value.producer() is not None and id(value) not in self._named:
                value.name = self.names.fresh(output.name)
                self._named.add(id(value))

    def _lifted(self, call: Call) -> list[ir.Value]:
        found = RULES.get(call.kind)
        if found is None:
            raise Unsupported("there is no lifting rule for this operator")
        result = found.lift(call)
        values = [result] if isinstance(result, ir.Value) else list(result)
        if len(values) != len(call.outputs):
            raise Unsupported(f"the program declares {len(call.outputs)} results, the operator has {len(values)}")
        if found.exact:
            return values
        return [
            call.b.round16(v) if t is not None and t.dtype == "fp16" else v
            for v, t in zip(values, call.outputs, strict=True)
        ]

    def _branch(
        self, builder: Builder, scope: Mapping[str, Var], block: Any, values: Sequence[ir.Value]
    ) -> list[ir.Value]:
        """Lift a nested block; it sees everything outside, and its own inputs."""
        inner = dict(scope)
        for declared, value in zip(block.inputs, values, strict=True):
            inner[declared.name] = Var(tensor_type(declared.type), value)
        outputs = self.block(builder, inner, block)
        if any(v.poisoned for v in outputs):
            raise Poisoned
        return [self.valued(v) for v in outputs]

    # Constants -------------------------------------------------------------------------------------------------------

    def valued(self, var: Var) -> ir.Value:
        """The ONNX value of a name; a constant gets its nodes in the outermost graph the first time."""
        if var.poisoned:
            raise Poisoned
        if var.value is None:
            if var.literal is None:
                raise Unsupported("one of its inputs is not a tensor")
            var.value = self._constant(var.literal)
        return var.value

    def _constant(self, literal: Literal) -> ir.Value:
        element = literal.type.element
        if literal.type.dtype == "string":
            raise Unsupported(f"it computes with the string '{literal.name}'")
        b = self.root
        prefix, b.prefix = b.prefix, literal.name
        if literal.count <= _SMALL or (element.bits < 8 and literal.blob is None):
            value = b.constant(literal.numpy().astype(element.carried.numpy()))
        elif element.bits < 8:
            packed = literal.packed()
            shape = [d or 0 for d in literal.type.shape]
            value = unpack(b, b.initializer(packed, literal.name), packed.size, element.bits, shape)
            if literal.type.dtype == "int4":
                value = _sign_extend(b, value)
        else:
            value = b.initializer(literal.stored(), literal.name)
            if element.carried != element.onnx:
                value = b.cast(value, element.carried)
        b.prefix = prefix
        return value


def _sign_extend(b: Builder, value: ir.Value) -> ir.Value:
    """Four-bit two's complement in UINT8 → INT8."""
    wide = b.cast(value, ir.DataType.INT32)
    eight, sixteen = b.constant(np.array(8, np.int32)), b.constant(np.array(16, np.int32))
    shifted = b.op("Sub", b.op("Mod", b.op("Add", wide, eight), sixteen), eight)
    return b.cast(shifted, ir.DataType.INT8)


def _own_name(op: Any) -> str:
    stored = op.attributes["name"].immediateValue.tensor.strings.values if "name" in op.attributes else ()
    return str(next(iter(stored), None) or (op.outputs[0].name if op.outputs else op.type))


def all_operations(block: Any) -> Iterable[Any]:
    """Every operation of a block, nested ones included."""
    for op in block.operations:
        yield op
        for inner in op.blocks:
            yield from all_operations(inner)



