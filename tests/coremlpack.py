"""Helper for the tests of the Core ML backend: compile a small model, read the package back, run both, compare."""

from __future__ import annotations

import collections
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir

from edgec.backends.coreml import BACKEND
from edgec.compiler import shapes
from edgec.compiler.backend import EmitOptions, Emitted
from edgec.compiler.session import Session
from edgec.compiler.targets import find_target
from edgec.formats.coremlproto import model_pb2
from edgec.frontends.coreml import load as lift

TARGETS = ("ios15", "ios16", "ios17", "ios18", "ios26")


@dataclass
class Package:
    """What was written: the result of `emit`, the operators in the file, the outputs of model and package."""

    emitted: Emitted
    spec: Any
    expected: dict[str, np.ndarray]
    got: dict[str, np.ndarray]

    @property
    def operations(self) -> list[Any]:
        """The operators of the main function, constants left out."""
        blocks = self.spec.mlProgram.functions["main"].block_specializations
        return [o for o in next(iter(blocks.values())).operations if o.type != "const"]

    @property
    def ops(self) -> dict[str, int]:
        """How often each operator occurs, constants left out."""
        return dict(collections.Counter(o.type for o in self.operations))

    def types(self, op: str) -> set[str]:
        """The element types that operators of this name give."""
        from edgec.formats.coremlproto import mil_pb2

        kinds = mil_pb2().DataType
        return {kinds.Name(v.type.tensorType.dataType) for o in self.operations if o.type == op for v in o.outputs}


def parse(text: str, weights: Mapping[str, np.ndarray] | None = None) -> ir.Model:
    """A model from text; `weights` become initializers of the names that the text leaves open."""
    header = '<ir_version: 11, opset_import: ["" : 25]>\n'
    proto = onnx.parser.parse_model(text if "opset_import" in text else header + text)
    for name, array in (weights or {}).items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(array), name))
    model = ir.from_proto(proto)
    model.graph.sort()
    shapes.infer(model)
    return model


def feeds_for(model: ir.Model, seed: int = 0) -> dict[str, np.ndarray]:
    """Random inputs: floats around 0, integers and booleans 0 or 1."""
    rng = np.random.default_rng(seed)
    found = {}
    for value in model.graph.inputs:
        shape = [int(d) for d in value.shape or ()]
        kind = (value.dtype or ir.DataType.FLOAT).numpy()
        numbers = rng.normal(size=shape) if kind.kind == "f" else rng.integers(0, 2, shape)
        found[value.name or ""] = np.asarray(numbers).astype(kind)
    return found


def compile_package(
    model: ir.Model, path: Path, target: str, feeds: Mapping[str, np.ndarray] | None = None, io: str = "fp32"
) -> Package:
    """Emit the model, lift the package, run both on the same inputs (in the types that the package's border has)."""
    given = dict(feeds or feeds_for(model))
    emitted = BACKEND.emit(model, find_target(target), path, EmitOptions(io=io))
    spec = model_pb2().Model.FromString((path / "Data/com.apple.CoreML/model.mlmodel").read_bytes())
    expected = Session(model).run(given)
    lifted = lift(path)
    mine = {b: a for a, b in emitted.inputs.items()}
    inputs = {}
    for value in lifted.graph.inputs:
        array = given[mine[value.name or ""]].astype((value.dtype or ir.DataType.FLOAT).numpy())
        inputs[value.name or ""] = array.reshape([int(d) for d in value.shape or ()])
    raw = Session(lifted).run(inputs)
    got = {name: raw[emitted.outputs[name]] for name in expected}
    return Package(emitted, spec, expected, got)


def check(
    source: str | ir.Model,
    path: Path,
    target: str = "ios18",
    weights: Mapping[str, np.ndarray] | None = None,
    feeds: Mapping[str, np.ndarray] | None = None,
    tolerance: float = 1e-5,
    io: str = "fp32",
) -> Package:
    """Compile and assert that the package computes the model, relative to the output's scale."""
    model = parse(source, weights) if isinstance(source, str) else source
    package = compile_package(model, path, target, feeds, io)
    for name, want in package.expected.items():
        have = package.got[name]
        have = have.reshape(want.shape) if have.size == want.size == 1 else have
        assert have.shape == want.shape, f"{name}: shape {have.shape} instead of {want.shape}"
        scale = max(float(np.abs(want.astype(np.float64)).max(initial=0)), 1e-6)
        np.testing.assert_allclose(
            have.astype(np.float64), want.astype(np.float64), rtol=0, atol=tolerance * scale, err_msg=name
        )
    return package
