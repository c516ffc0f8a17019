"""Weights in every packed form, for the tests that write them into packages."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx_ir as ir

from coremlpack import Package, compile_package, parse
from edgec.compiler import shapes
from edgec.compiler.quantization import grids
from edgec.compiler.quantization.grids import Affine, Grid, NumberFormat, Sparse, Table
from edgec.formats.mlpackage import Blob, open_package
from edgec.frontends.coreml.check import check as faults
from edgec.frontends.coreml.lifter import main_function
from edgec.passes.pack_weights import PackWeights
from edgec.passes.round_activations import RoundActivations
from passcheck import context

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


def stored(path: Path) -> Iterator[tuple[str, str, str, Blob]]:
    """Operator, its output, parameter, and where it lies: all that constexpr operators have in the weight file."""
    package = open_package(path)
    for op in main_function(package)[2].operations:
        given = {k: v.arguments[0] for k, v in op.inputs.items()}
        values = {k: v.value for k, v in given.items() if v.WhichOneof("binding") == "value"}
        for name, value in {**values, **op.attributes}.items():
            if op.type.startswith("constexpr_") and value.WhichOneof("value") == "blobFileValue":
                blob = package.blob(value.blobFileValue.fileName, value.blobFileValue.offset)
                yield op.type, op.outputs[0].name, name, blob


def arrays(path: Path) -> list[tuple[str, str, bytes]]:
    """Parameter, type and bytes of everything that the constexpr operators of a package store in its weight file."""
    found = []
    for op, _, name, blob in stored(path):
        data = blob.path.read_bytes()[blob.offset : blob.offset + blob.length]
        found.append((f"{op}.{name}", blob.dtype, data))
    return sorted(found)
