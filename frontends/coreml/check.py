"""Structural check of an ML Program: what Apple's compiler would refuse, as far as a table can tell.

Independent of how a program was made: single assignment, legal names, operators and their inputs in the opset of the
function, constants that are where they should be, and an interface that agrees with the model description. Operator
signatures come from signatures.json (see tools/mil_signatures.py).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from ...compiler.errors import ModelError
from ...formats import coremlproto
from ...formats.mlpackage import Package
from .lifter import main_function
from .values import Literal, TensorType, tensor_type

_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_@]*\Z")
_OPSET = re.compile(r"CoreML([5-9])\Z")
_FEATURE_TYPES = {"FLOAT32": "fp32", "FLOAT16": "fp16", "DOUBLE": "fp32", "INT32": "int32", "INT8": "int8"}
# Operators of the format that coremltools' builder does not register: no signature to check.
_WITHOUT_SIGNATURE = ("const", "custom_layer", "write_state")


@cache
def signatures() -> dict[str, list[dict[str, Any]]]:
    """Operator → its versions, oldest first: `since` and `inputs`."""
    table: dict[str, list[dict[str, Any]]] = json.loads((Path(__file__).parent / "signatures.json").read_text())
    return table


def signature(kind: str, opset: int) -> dict[str, Any] | None:
    """The newest version of an operator that `opset` has; None if the operator is unknown or newer."""
    return next((row for row in reversed(signatures().get(kind, [])) if row["since"] <= opset), None)


def check(package: Package) -> list[str]:
    """All problems of the program in a package, a sentence each; empty for a sound one.

    Raises ModelError when there is no ML Program to check.
    """
    name, function, block = main_function(package)
    found = _OPSET.match(function.opset)
    if found is None:
        return [f"function '{name}' is for opset '{function.opset}'; known are CoreML5 to CoreML9"]
    opset = int(found.group(1))
    walk = _Walk(package, opset)
    if package.spec.specificationVersion < opset + 1:
        stated = package.spec.specificationVersion
        walk.problems.append(f"specificationVersion {stated} is too old for {function.opset}, which needs {opset + 1}")
    scope: dict[str, _Name] = {}
    for declared in function.inputs:
        walk.define(scope, declared.name, tensor_type(declared.type), constant=False, by=f"function '{name}'")
    walk.block(scope, block)
    walk.problems += [
        f"'{name}' is an input and an output of the program"
        for name in block.outputs
        if name in {i.name for i in function.inputs}
    ]
    description = _interface(package, name)
    tensors = {i.name: tensor_type(i.type) for i in function.inputs if i.type.WhichOneof("type") != "stateType"}
    walk.problems += _compare("input", description.input, tensors)
    walk.problems += _compare("output", description.output, {n: scope[n].type for n in block.outputs if n in scope})
    return walk.problems


@dataclass(frozen=True)
class _Name:
    type: TensorType | None
    constant: bool


@dataclass
class _Walk:
    """Goes through a program in order, with the names that are visible, and collects problems."""

    package: Package
    opset: int
    problems: list[str] = field(default_factory=list)

    def define(self, scope: dict[str, _Name], name: str, kind: TensorType | None, constant: bool, by: str) -> None:
        if not _IDENTIFIER.match(name):
            self.problems.append(f"'{name}', defined by {by}, is not a legal name (letters, digits, underscores)")
        if name in scope:
            self.problems.append(f"'{name}' is defined a second time, by {by}")
        scope[name] = _Name(kind, constant)

    def block(self, scope: dict[str, _Name], block: Any) -> None:
        for op in block.operations:
            self.operation(scope, op)
        for name in block.outputs:
            if name not in scope:
                self.problems.append(f"the block output '{name}' is never defined")

    def operation(self, scope: dict[str, _Name], op: Any) -> None:
        where = f"{op.type} '{op.outputs[0].name if op.outputs else '?'}'"
        constant = op.type == "const" or op.type.startswith("constexpr_")
        self.problems += [f"{where}: {problem}" for problem in self.arguments(scope, op)]
        for inner in op.blocks:
            inside = dict(scope)
            for declared in inner.inputs:
                self.define(inside, declared.name, tensor_type(declared.type), constant=False, by=f"a block of {where}")
            self.block(inside, inner)
        for output in op.outputs:
            self.define(scope, output.name, tensor_type(output.type), constant, by=where)

    def arguments(self, scope: Mapping[str, _Name], op: Any) -> Iterator[str]:
        """Problems with the arguments of one operation."""
        bound: dict[str, list[_Name]] = {}
        for parameter, argument in op.inputs.items():
            bound[parameter] = []
            for binding in argument.arguments:
                if binding.WhichOneof("binding") == "value":
                    yield from self.literal(parameter, binding.value)
                    bound[parameter].append(_Name(tensor_type(binding.value.type), True))
                elif binding.name in scope:
                    bound[parameter].append(scope[binding.name])
                else:
                    yield f"its input {parameter} is '{binding.name}', which is not defined before"
        for parameter, value in op.attributes.items():
            if parameter != "name":
                yield from self.literal(parameter, value)
                bound.setdefault(parameter, []).append(_Name(tensor_type(value.type), True))
        if op.type not in _WITHOUT_SIGNATURE:
            yield from self.against_signature(op.type, bound)

    def literal(self, parameter: str, value: Any) -> Iterator[str]:
        kind = tensor_type(value.type)
        if kind is None:
            return
        literal = Literal(parameter, kind, value, self.package)
        try:
            if literal.blob is None and kind.dtype != "string":
                literal.numpy()
        except ModelError as error:
            yield str(error)
        except ValueError as error:
            yield f"the constant {parameter} does not fill its type {kind.dtype}{list(kind.shape)}: {error}"

    def against_signature(self, kind: str, bound: Mapping[str, list[_Name]]) -> Iterator[str]:
        found = signature(kind, self.opset)
        if found is None:
            newer = signatures().get(kind)
            needed = f"needs opset CoreML{newer[0]['since']}, the function has CoreML{self.opset}" if newer else ""
            yield needed or "is unknown"
            return
        inputs = found["inputs"]
        for name in sorted(set(bound) - set(inputs)):
            if bound[name]:
                yield f"has no input '{name}' in CoreML{self.opset} (it has: {', '.join(inputs)})"
        domains: dict[str, tuple[str, str]] = {}
        for name, facts in inputs.items():
            given = bound.get(name, [])
            if not given:
                if facts["required"]:
                    yield f"its required input '{name}' is missing"
                continue
            if len(given) > 1 and not facts["many"]:
                yield f"its input '{name}' takes one value and got {len(given)}"
            if facts["const"] and not given[0].constant:
                yield f"its input '{name}' must be a constant"
            yield from _type_problems(name, facts, given[0], domains)


def _type_problems(
    name: str, facts: Mapping[str, Any], bound: _Name, domains: dict[str, tuple[str, str]]
) -> Iterator[str]:
    """Types that the operator does not take.

    A constant scalar may differ from its domain: coremltools writes such defaults.
    """
    given = bound.type
    if given is None or facts["types"] is None:
        return
    if given.dtype not in facts["types"]:
        yield f"its input '{name}' is {given.dtype}, allowed are {', '.join(facts['types'])}"
    if bound.constant and not given.rank:
        return
    first, dtype = domains.setdefault(facts["domain"] or name, (name, given.dtype))
    if dtype != given.dtype:
        yield f"its inputs '{first}' ({dtype}) and '{name}' ({given.dtype}) must have one type"


def _interface(package: Package, function: str) -> Any:
    """The description that states inputs and outputs: the function's own in a package with several, or the model's."""
    own = [f for f in package.spec.description.functions if f.name == function]
    return own[0] if own else package.spec.description


def _compare(side: str, features: Any, program: Mapping[str, TensorType | None]) -> Iterator[str]:
    """Where the model description and the program disagree about inputs or outputs."""
    described = {f.name: f for f in features}
    for name in [*described, *(n for n in program if n not in described)]:
        if name not in program:
            yield f"the description has an {side} '{name}' that the program lacks"
        elif name not in described:
            yield f"the program has an {side} '{name}' that the description lacks"
        else:
            yield from _compare_type(side, described[name], program[name])


def _compare_type(side: str, feature: Any, kind: TensorType | None) -> Iterator[str]:
    if kind is None or feature.type.WhichOneof("Type") != "multiArrayType":
        return
    array = feature.type.multiArrayType
    stated = coremlproto.feature_types_pb2().ArrayFeatureType.ArrayDataType.Name(array.dataType)
    if _FEATURE_TYPES.get(stated) != kind.dtype:
        yield f"{side} '{feature.name}' is {stated} in the description and {kind.dtype} in the program"
    flexible = array.WhichOneof("ShapeFlexibility") is not None
    shape = tuple(array.shape)
    fits = len(shape) == kind.rank and all(d in (s, None) for s, d in zip(shape, kind.shape, strict=True))
    if shape and not flexible and not fits:
        yield f"{side} '{feature.name}' is {list(shape)} in the description and {list(kind.shape)} in the program"
