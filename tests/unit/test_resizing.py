"""Free dimensions stay free: a pass that froze one computes the same at one size only, and is caught at the other."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest

import edgec
from edgec.compiler import graph
from edgec.compiler.passbase import Context, Pass
from edgec.compiler.resizing import resized
from edgec.compiler.synthesis import synthesise
from passcheck import load

TEXT = """<ir_version: 8, opset_import: ["" : 17]> agraph (float[B,T,6] x) => (float[B,T,2,3] y)
    <int64[4] dims = {0, 0, 2, 3}> { h = Relu(x) y = Reshape(h, dims) }"""


@dataclass(frozen=True)
class Freeze(Pass):
    """Writes the sizes of the measured inputs into every Reshape, as a careless pass may."""

    name: ClassVar[str] = "freeze-test"
    axis: int = 0

    def run(self, model: ir.Model, ctx: Context) -> int:
        size = ctx.inputs["x"].shape[self.axis]
        for node in graph.nodes(model, "Reshape"):
            dims = list(graph.ints(node.inputs[1]) or ())
            dims[self.axis] = size
            node.replace_input_with(1, graph.initializer(model.graph, np.array(dims, np.int64), "frozen"))
        return 1


@dataclass(frozen=True)
class FreezeLossy(Freeze):
    """The same, in a pass that may change numbers, but not shapes."""

    name: ClassVar[str] = "freeze-lossy-test"
    lossy: ClassVar[bool] = True


@dataclass(frozen=True)
class Cut(Pass):
    """Keeps the first rows, as many as were measured with: it runs at all sizes, and is wrong at larger ones."""

    name: ClassVar[str] = "cut-test"
    lossy: ClassVar[bool] = True

    def run(self, model: ir.Model, ctx: Context) -> int:
        (node,) = graph.nodes(model, "Relu")
        main, size = model.graph, ctx.inputs["x"].shape[0]
        start, end, axes = (graph.initializer(main, np.array([v], np.int64), "n") for v in (0, size, 0))
        node.replace_input_with(0, graph.insert_before(node, "Slice", [node.inputs[0], start, end, axes]).outputs[0])
        return 1


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "m.onnx"
    onnx.save(onnx.parser.parse_model(TEXT), path)
    return path


@pytest.mark.parametrize("broken", [Freeze(), Freeze(1), FreezeLossy(), Cut()])
def test_a_pass_that_freezes_a_dimension_is_undone(model: Path, broken: Pass) -> None:
    with edgec.compile(model, target="onnx", level="O1", extra_passes=[broken]) as c:
        (record,) = (r for r in c.report.passes if r.spec == broken.spec)
        assert record.status == "undone"
        assert c.proof is not None and c.proof.ok
        assert any("x 2×8×6" in name for name in (c.proof.exact.outputs if c.proof.exact else ()))


@pytest.mark.parametrize("broken", [Freeze(), Freeze(1), FreezeLossy(), Cut()])
def test_the_check_at_the_end_catches_it_too(model: Path, broken: Pass) -> None:
    with pytest.raises(edgec.EdgecError):
        edgec.compile(model, target="onnx", level="O1", extra_passes=[broken], verify="end")


def sizes(text: str, **first: np.ndarray) -> dict[str, tuple[int, ...]] | None:
    model = load(f'<ir_version: 10, opset_import: ["" : 25]> agraph {text}')
    found = resized(model, first or synthesise(model))
    return None if found is None else {n: a.shape for n, a in found.items()}


def test_every_free_dimension_gets_another_size_and_equal_names_the_same() -> None:
    text = "(float[B,T,6] x, float[T,6] z) => (float[B,T,6] y) { y = Add(x, z) }"
    assert sizes(text) == {"x": (2, 8, 6), "z": (8, 6)}


def test_dimensions_that_the_model_fixes_inside_are_left_alone() -> None:
    text = "(float[B,T] x) => (float[B,4] y) <float[16,4] w> { y = MatMul(x, w) }"
    text = text.replace("<float[16,4] w>", "<float[16,4] w = {" + ",".join(["1"] * 64) + "}>")
    assert sizes(text) == {"x": (2, 16)}


def test_fixed_models_have_no_other_sizes() -> None:
    assert sizes("(float[2,3] x) => (float[2,3] y) { y = Relu(x) }") is None


def test_given_sizes_are_not_repeated() -> None:
    found = sizes("(float[B,T] x) => (float[B,T] y) { y = Relu(x) }", x=np.zeros((2, 3), np.float32))
    assert found == {"x": (3, 2)}
