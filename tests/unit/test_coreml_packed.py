"""Every packed form in a Core ML package: written as the target has it, read back packed, kept when compiled again."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

import edgec
from coremlpack import Package, compile_package, parse
from edgec.backends.coreml import BACKEND
from edgec.compiler import grids, shapes
from edgec.compiler.backend import EmitOptions
from edgec.compiler.compilation import Compilation
from edgec.compiler.errors import VerifyFailed
from edgec.compiler.grids import Affine, Grid, NumberFormat, Sparse, Table
from edgec.compiler.targets import find_target
from edgec.formats.mlpackage import open_package
from edgec.frontends.coreml import load
from edgec.frontends.coreml.check import check as faults
from edgec.frontends.coreml.lifter import main_function
from edgec.passes.pack_weights import PackWeights
from edgec.passes.round_activations import RoundActivations
from edgec.passes.unpack_weights import UnpackWeights
from passcheck import context, ops

CONV = "g (float[1,8,9,9] x) => (float y) { y = Conv(x, w) }"
SHAPE = (32, 8, 3, 3)
RNG = np.random.default_rng(5)
AFFINE, LUT, SPARSE = "constexpr_blockwise_shift_scale", "constexpr_lut_to_dense", "constexpr_sparse_to_dense"
LUT_SPARSE, AFFINE_SPARSE = "constexpr_lut_to_sparse", "constexpr_sparse_blockwise_shift_scale"
OLD = "constexpr_affine_dequantize"


def half(array: np.ndarray) -> np.ndarray:
    return np.asarray(array).astype(np.float16)


def table(bits: int, groups: int = 1, vector: int = 1) -> np.ndarray:
    return half(RNG.normal(size=(groups, 1 << bits, vector)))


SCALE = half(RNG.random(32) + 0.5)
BLOCKS = half(RNG.random((32, 2, 1, 1)) + 0.5)
ZEROS = RNG.integers(0, 4, (32, 2, 1, 1)).astype(np.uint8)

FORMS: dict[str, tuple[Grid | Sparse, list[str], list[str]]] = {
    # name → grid; operators for iOS 18; for iOS 16 (none: dense)
    "int2": (Affine(2, SCALE, 0), [LUT, AFFINE], [OLD]),
    "int3 in blocks": (Affine(3, BLOCKS, 1, 4), [LUT, AFFINE], []),
    "uint2 in blocks": (Affine(2, BLOCKS, 1, 4, ZEROS, signed=False), [LUT, AFFINE], []),
    "int4": (Affine(4, SCALE, 0), [AFFINE], [OLD]),
    "int4 in blocks": (Affine(4, BLOCKS, 1, 4), [AFFINE], []),
    "uint4 in blocks": (Affine(4, BLOCKS, 1, 4, ZEROS, signed=False), [AFFINE], []),
    "int8": (Affine(8, half(SCALE / 50), 0), [AFFINE], [OLD]),
    **{f"{n}-bit table": (Table(n, table(n)), [LUT], [LUT]) for n in (1, 2, 3, 4, 6)},
    "8-bit table": (Table(8, table(8)), [LUT], [LUT]),
    "tables of 8 channels": (Table(3, table(3, 4), 0, 8), [LUT], [LUT]),
    "tables of input channels": (Table(2, table(2, 4), 1, 2), [LUT], [LUT]),
    "table with scales": (Table(4, table(4), 0, 0, SCALE), [LUT, AFFINE], []),
    "vectors of 2": (Table(4, table(4, 1, 2)), [LUT], [LUT]),
    "vectors of 4 in groups": (Table(3, table(3, 4, 4), 0, 8), [LUT], []),
    "float8": (NumberFormat("float8e4m3"), [LUT], [LUT]),
    "float4 with scales": (NumberFormat("float4", SCALE, 0), [LUT, AFFINE], []),
    "sparse": (Sparse(), [SPARSE], [SPARSE]),
    "sparse int4": (Sparse(Affine(4, SCALE, 0)), [AFFINE_SPARSE, SPARSE], [SPARSE]),
    "sparse int3 in blocks": (Sparse(Affine(3, BLOCKS, 1, 4)), [LUT_SPARSE, AFFINE_SPARSE, SPARSE], [SPARSE]),
    "sparse uint4": (Sparse(Affine(4, SCALE, 0, 0, ZEROS[:, 0, 0, 0] + np.uint8(8), signed=False)),
                     [AFFINE_SPARSE, SPARSE], [SPARSE]),
    "sparse table": (Sparse(Table(4, table(4))), [LUT_SPARSE, SPARSE], [SPARSE]),
    "sparse tables": (Sparse(Table(2, table(2, 4), 0, 8)), [LUT_SPARSE, SPARSE], [SPARSE]),
    "sparse table with scales": (Sparse(Table(3, table(3), 0, 0, SCALE)),
                                 [LUT_SPARSE, AFFINE_SPARSE, SPARSE], [SPARSE]),
}  # fmt: skip


def weight(grid: Grid | Sparse, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    """Any weight on the grid."""
    rng = np.random.default_rng(1)
    inner = grid.inner if isinstance(grid, Sparse) else grid
    array = 2 * rng.normal(size=shape).astype(np.float32)
    array = half(array).astype(np.float32) if inner is None else inner.decode(inner.nearest(array)) + np.float32(0)
    return np.where(rng.random(shape) < 0.2, array, np.float32(0)) if isinstance(grid, Sparse) else array


def packed(name: str, target: str, halved: bool = False, text: str = CONV) -> ir.Model:
    """The model with its weight in the form that pack-weights chooses for the target."""
    grid = FORMS[name][0]
    model = parse(text, {"w": weight(grid)})
    grids.write(model.graph.initializers["w"], grid)
    ctx = context(target)
    PackWeights(min_size=1).run(model, ctx)
    shapes.infer(model)
    if halved:
        RoundActivations().run(model, ctx)
        shapes.infer(model)
    return model


def write(model: ir.Model, path: Path, target: str) -> Package:
    """The package, sound by the checker's book."""
    found = compile_package(model, path, target)
    assert not faults(open_package(path))
    return found


def compressed(package: Package) -> list[str]:
    return [o.type for o in package.operations if o.type.startswith("constexpr_")]


def arrays(path: Path) -> list[tuple[str, str, bytes]]:
    """Parameter, type and bytes of everything that the constexpr operators of a package store in its weight file."""
    package = open_package(path)
    found = []
    for op in main_function(package)[2].operations:
        given = {k: v.arguments[0] for k, v in op.inputs.items()}
        values = {k: v.value for k, v in given.items() if v.WhichOneof("binding") == "value"}
        for name, value in {**values, **op.attributes}.items():
            if op.type.startswith("constexpr_") and value.WhichOneof("value") == "blobFileValue":
                blob = package.blob(value.blobFileValue.fileName, value.blobFileValue.offset)
                data = blob.path.read_bytes()[blob.offset : blob.offset + blob.length]
                found.append((f"{op.type}.{name}", blob.dtype, data))
    return sorted(found)


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
