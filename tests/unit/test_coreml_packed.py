"""Every packed form in a Core ML package: written as the target has it, read back packed, kept when compiled again."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from packedforms import (
    CONV,
    FORMS,
    LUT,
    OLD,
    RNG,
    SCALE,
    SPARSE,
    arrays,
    compressed,
    half,
    packed,
    table,
    weight,
    write,
)

import edgec
from coremlpack import parse
from edgec.backends.coreml import BACKEND
from edgec.compiler import shapes
from edgec.compiler.backend import EmitOptions
from edgec.compiler.compilation import Compilation
from edgec.compiler.errors import VerifyFailed
from edgec.compiler.quantization import grids
from edgec.compiler.quantization.grids import Affine, Grid, Sparse, Table
from edgec.compiler.targets import find_target
from edgec.formats.mlpackage import open_package
from edgec.frontends.coreml import load
from edgec.frontends.coreml.lifter import main_function
from edgec.passes.pack_weights import PackWeights
from edgec.passes.unpack_weights import UnpackWeights
from passcheck import context, ops


@pytest.mark.parametrize("halved", [False, True], ids=["float32", "float16"])
@pytest.mark.parametrize("target", ["ios18", "ios16"])
@pytest.mark.parametrize("name", FORMS)
def test_the_form_of_the_target(name: str, target: str, halved: bool, tmp_path: Path) -> None:
    """The operators that the target has for it, no others; the same numbers, to float16's rounding; small."""
    _, new, old = FORMS[name]
    package = write(packed(name, target, halved), tmp_path / "a.mlpackage", target)
    if target == "ios18":
        wanted = new
        assert compressed(package) == wanted
    else:  # Without blocks and tables of groups, there may still be few numbers in all.
        wanted = compressed(package)
        assert len(wanted) <= 1 and set(wanted) <= {OLD, LUT, SPARSE}
        assert len(wanted) >= len(old)
    got, expected = package.got["y"], package.expected["y"]
    assert np.abs(got - expected).max() <= (2e-3 if halved else 1e-5) * np.abs(expected).max()
    if wanted and halved:
        assert package.types(wanted[-1]) == {"FLOAT16"}, "float16 compute unpacks to float16"


@pytest.mark.parametrize("name", FORMS)
def test_a_package_becomes_onnx_and_the_same_package_again(name: str, tmp_path: Path) -> None:
    """What is stored survives: types and bytes of indices, tables, scales, masks are those of the first package."""
    first = tmp_path / "a.mlpackage"
    write(packed(name, "ios18", halved=True), first, "ios18")
    lifted = load(first)
    stored = map(_tensor, lifted.graph.initializers.values())
    assert not any(t.size > 32 * 8 * 9 // 2 and t.dtype == ir.DataType.FLOAT for t in stored), "packed, not dense"
    BACKEND.emit(lifted, find_target("ios18"), tmp_path / "b.mlpackage", EmitOptions())
    assert arrays(tmp_path / "b.mlpackage") == arrays(first)


def _tensor(value: ir.Value) -> ir.TensorProtocol:
    assert value.const_value is not None
    return value.const_value


@pytest.mark.parametrize("name", FORMS)
def test_an_older_target_gets_the_nearest_form(name: str, tmp_path: Path) -> None:
    """A file packed for iOS 18, compiled for iOS 16 and 15: packed anew or written out, and said."""
    model = packed(name, "ios18")
    for target in ("ios16", "ios15"):
        other, ctx = model.clone(), context(target)
        if UnpackWeights().run(other, ctx):
            assert any(f"{target} does not store" in n for n in ctx.notes)
            shapes.infer(other)
        package = write(other, tmp_path / f"{target}.mlpackage", target)
        np.testing.assert_allclose(package.got["y"], package.expected["y"], atol=1e-4)
        if target == "ios15":
            assert not compressed(package)


LAYERS = {
    "matmul": "g (float[2,32] x) => (float y) { y = MatMul(x, w) }",
    "gemm": "g (float[2,32] x, float[64] b) => (float y) { y = Gemm(x, w, b) }",
    "gemm_rows": "g (float[2,64] x) => (float y) { y = Gemm<transB=1>(x, w) }",
    "transposed": "g (float[2,64] x) => (float y) { t = Transpose(w) y = MatMul(x, t) }",
    "tied": "g (int64[3] i) => (float y) { e = Gather(w, i) t = Transpose(w) y = MatMul(e, t) }",
}


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("grid", [
    Table(4, table(4), 0, 0, SCALE), Table(3, table(3, 4), 0, 8), Sparse(Table(4, table(4))), Affine(3, SCALE, 0),
    Sparse(Affine(4, SCALE, 0)), Table(4, table(4, 1, 2)), Sparse(),
], ids=["scaled", "grouped", "sparse table", "int3", "sparse int4", "vectors", "sparse"])  # fmt: skip
def test_weights_of_other_layers_stay_packed(layer: str, grid: Grid | Sparse, tmp_path: Path) -> None:
    """Transposed for `linear`, shared by an embedding and the last layer: stored once, packed."""
    array = weight(grid, (32, 64))
    model = parse(LAYERS[layer], {"w": array})
    grids.write(model.graph.initializers["w"], grid)
    assert PackWeights(min_size=1).run(model, context("ios18")) == 1
    shapes.infer(model)
    package = write(model, tmp_path / "a.mlpackage", "ios18")
    np.testing.assert_allclose(package.got["y"], package.expected["y"], atol=1e-3)
    assert compressed(package)
    size = (tmp_path / "a.mlpackage/Data/com.apple.CoreML/weights/weight.bin").stat().st_size
    assert size < array.size * 2 + 2000


def test_recurrent_weights(tmp_path: Path) -> None:
    """Gates are put in Core ML's order: a table follows, tables per channel are written out and said."""
    text = "g (float[5,2,16] x) => (float y) { y = LSTM<hidden_size=8>(x, w, r) }"
    for groups, expected in ((0, 1), (8, 0)):
        grid = Table(4, half(RNG.normal(size=(4 if groups else 1, 16, 1)) * 0.3), 1, groups)
        rng = np.random.default_rng(0)
        model = parse(text, {"w": grid.decode(rng.integers(0, 16, (1, 32, 16)).astype(np.uint8)),
                             "r": rng.normal(size=(1, 32, 8)).astype(np.float32)})  # fmt: skip
        grids.write(model.graph.initializers["w"], grid)
        assert PackWeights(min_size=512).run(model, context("ios18")) == 1
        shapes.infer(model)
        package = write(model, tmp_path / f"{groups}.mlpackage", "ios18")
        np.testing.assert_allclose(package.got["y"], package.expected["y"], atol=1e-5)
        assert len(compressed(package)) == expected


@pytest.mark.parametrize("rows", [1, 32])
def test_recurrent_weights_in_blocks(rows: int, tmp_path: Path) -> None:
    """Scales of blocks go with the rows of their gates."""
    rng = np.random.default_rng(0)
    grid = Affine(4, half(rng.random((1, rows, 2)) + 0.1), 2, 8)
    model = parse("g (float[5,2,16] x) => (float y) { y = LSTM<hidden_size=8>(x, w, r) }",
                  {"w": grid.decode(rng.integers(-8, 8, (1, 32, 16)).astype(np.int8)),
                   "r": rng.normal(size=(1, 32, 8)).astype(np.float32)})  # fmt: skip
    grids.write(model.graph.initializers["w"], grid)
    assert PackWeights(min_size=512).run(model, context("ios18")) == 1
    shapes.infer(model)
    package = write(model, tmp_path / "blocks.mlpackage", "ios18")
    np.testing.assert_allclose(package.got["y"], package.expected["y"], atol=1e-5)
    assert len(compressed(package)) == 1


@pytest.mark.parametrize("name", ["4-bit table", "table with scales", "int4 in blocks", "sparse tables", "int8"])
def test_one_wrong_number_is_caught(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A scale or table entry, an index or a part of the mask: the proof reads the file and sees it."""
    damage: list[str] = []
    emit = type(BACKEND).emit

    def broken(self: Any, *args: Any, **options: Any) -> Any:
        found = emit(self, *args, **options)
        for parameter in damage:
            assert _damage(found.path, parameter), f"{parameter} is not in the file"
        return found

    monkeypatch.setattr(type(BACKEND), "emit", broken)
    parameters = _parameters(packed(name, "ios18"), tmp_path / "p.mlpackage")
    assert parameters
    for damage in ([], *([p] for p in parameters)):
        grid = FORMS[name][0]
        model = parse(CONV, {"w": weight(grid)})
        grids.write(model.graph.initializers["w"], grid)

        def run(model: ir.Model = model) -> Compilation:
            return edgec.compile(model, target="ios18", passes="pack-weights", workdir=tmp_path, precision="fp32")

        if damage:
            with pytest.raises(VerifyFailed):
                run()
        else:
            run()


def _parameters(model: ir.Model, path: Path) -> list[str]:
    BACKEND.emit(model, find_target("ios18"), path, EmitOptions())
    found = list(dict.fromkeys(name for name, _, _ in arrays(path)))
    shutil.rmtree(path)
    return found


def _damage(path: Path, parameter: str) -> bool:
    """Change the second byte of what a parameter stores, the exponent of a float; whether there was one."""
    package = open_package(path)
    for op in main_function(package)[2].operations:
        for name, argument in op.inputs.items():
            if f"{op.type}.{name}" == parameter:
                value = argument.arguments[0].value.blobFileValue
                blob = package.blob(value.fileName, value.offset)
                data = bytearray(blob.path.read_bytes())
                data[blob.offset + 1] ^= 0x44
                blob.path.write_bytes(data)
                return True
    return False


def test_lifted_forms_are_the_packed_ones(tmp_path: Path) -> None:
    write(packed("table with scales", "ios18", halved=True), tmp_path / "a.mlpackage", "ios18")
    found = ops(load(tmp_path / "a.mlpackage"))
    assert found["edgec::LookupWeight"] == found["edgec::ScaleWeight"] == 1 and not found["Gather"]
