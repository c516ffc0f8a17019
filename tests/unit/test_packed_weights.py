"""pack-weights stores a weight on any grid in the smallest form, and onnxruntime makes the same bits of it again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from coremlpack import parse
from edgec.backends.onnx import BACKEND as ONNX
from edgec.compiler import shapes
from edgec.compiler.backend import EmitOptions
from edgec.compiler.checks import check_structure
from edgec.compiler.cost import stats
from edgec.compiler.passbase import Pass
from edgec.compiler.plugins import find_pass
from edgec.compiler.quantization import grids, packed
from edgec.compiler.quantization.bits import pack_bits, unpack_bits
from edgec.compiler.quantization.grids import Affine, Grid, NumberFormat, Sparse, Table
from edgec.compiler.session import Session
from edgec.compiler.targets import find_target
from edgec.frontends.onnx import load
from edgec.passes.pack_weights import PackWeights
from passcheck import context, ops

MATMUL = "g (float[2,64] x) => (float y) { y = MatMul(x, w) }"
TEXT = "g (float[1] x) => (float y) { y = Mul(x, w) }"


def half(array: np.ndarray) -> np.ndarray:
    return np.asarray(array).astype(np.float16)


def model(array: np.ndarray, grid: Grid | Sparse | None = None) -> ir.Model:
    """One multiplication with the weight; its grid is known if given."""
    made = parse(TEXT, {"w": array})
    if grid is not None:
        grids.write(made.graph.initializers["w"], grid)
    return made


def pack(array: np.ndarray, grid: Grid | Sparse | None = None, target: str = "onnx") -> tuple[ir.Model, int]:
    """The packed model and its rewrites; it is valid, runs, and gives the same bits."""
    made = model(array, grid)
    count = PackWeights(min_size=1).run(made, context(target))
    shapes.infer(made)
    check_structure(made)
    for bodies in (False, True):  # Decoded by us, and by onnxruntime.
        found = Session(made, bodies=bodies).run({"x": np.ones(1, np.float32)})["y"]
        np.testing.assert_array_equal(found.reshape(array.shape), array)
    assert not PackWeights(min_size=1).run(made, context(target)), "packing twice changes nothing"
    return made, count


def stored(made: ir.Model) -> int:
    return sum(v.const_value.nbytes for v in made.graph.initializers.values())  # type: ignore[union-attr]


@st.composite
def weights(draw: st.DrawFn) -> tuple[np.ndarray, Grid | Sparse]:
    """A weight of any shape on a grid of any kind, with zero, constant and tiny channels."""
    shape = tuple(draw(st.lists(st.integers(1, 7), min_size=1, max_size=4)))
    axis = draw(st.integers(0, len(shape) - 1))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    bits = draw(st.integers(1, 8))
    kind = draw(st.sampled_from(["tensor", "channel", "block", "table", "format"]))
    channels = shape[axis]
    scale = half(rng.choice([1e-7, 6e-5, 0.1, 1.0, 3.0, 250.0], channels) * (1 + rng.random(channels)))
    scale[scale == 0] = half(np.array(6e-8))
    grid: Grid
    if kind in ("tensor", "channel", "block"):
        block = draw(st.integers(1, 4)) if kind == "block" else 0
        if kind == "tensor":
            scale = half(np.array(0.25))
        if block:
            one = draw(st.booleans())
            dims = [1 if one and a != axis else -(-n // block) if a == axis else n for a, n in enumerate(shape)]
            scale = half(rng.random(dims) + 0.01)
        zeros = draw(st.booleans())
        low, high = (0, 1 << bits) if zeros else (-(1 << (bits - 1)), 1 << (bits - 1))
        offset = rng.integers(0, 1 << bits, scale.shape).astype(np.uint8) if zeros else None
        grid = Affine(bits, scale, None if kind == "tensor" else axis, block, offset, not zeros)
        dense = grid.decode(rng.integers(low, high, shape).astype(np.uint8 if zeros else np.int8))
    elif kind == "table":
        vector = draw(st.sampled_from([v for v in (1, 2, 4) if channels % v == 0]))
        group = draw(st.sampled_from([0, *(g for g in (1, 2, 4) if g % vector == 0 and g < channels)]))
        count = -(-channels // group) if group else 1
        tables = half(rng.normal(size=(count, 1 << bits, vector)))
        grid = Table(bits, tables, axis, group, scale if draw(st.booleans()) else None)
        dense = grid.decode(rng.integers(0, 1 << bits, grid.packed_shape(shape)).astype(np.uint8))
    else:
        name = draw(st.sampled_from(["float16", "bfloat16", "float8e4m3", "float8e5m2", "float4", "nf4"]))
        scales = half(1 + rng.random(channels)) if draw(st.booleans()) and name not in ("float16", "bfloat16") else None
        grid = NumberFormat(name, scales, None if scales is None else axis)
        dense = grid.decode(grid.nearest(rng.normal(size=shape).astype(np.float32)))
    if channels > 1:  # Whole channels of zeros.
        dense[(slice(None),) * axis + (0,)] *= draw(st.sampled_from([0.0, 1.0]))
    if draw(st.booleans()):
        dense = np.where(rng.random(shape) < draw(st.sampled_from([0.05, 0.5, 0.9])), dense, np.float32(0))
        return dense, Sparse(grid)
    return dense, grid


@pytest.mark.parametrize("target", ["onnx", "ios18", "ios16"])
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(weights())
def test_packed_is_the_same_bit_for_bit(target: str, weight: tuple[np.ndarray, Grid | Sparse]) -> None:
    """For every scheme, shape, axis and remainder, with the hint and without."""
    array, grid = weight
    array = array + np.float32(0)  # No negative zeros: they come back positive.
    for hint in (grid, None):
        made, count = pack(array, hint, target)
        if count:
            # Floats in a row, what isn't zero, become half where the dense weight would.
            kept = made.graph[0].inputs[1] if made.graph[0].op_type == "SparseWeight" else None
            whole = target == "onnx" or (kept is not None and kept.dtype == ir.DataType.FLOAT)
            assert stored(made) < array.size * (4 if whole else 2), "packing must pay"


GRIDS: dict[str, tuple[Grid | Sparse, float]] = {
    # name → the grid for [64, 96], and the bits that an element takes, scales and tables included.
    "int2 per channel": (Affine(2, half(np.linspace(1, 2, 64)), 0), 2 + 32 / 96),
    "int3 per channel": (Affine(3, half(np.linspace(1, 2, 64)), 0), 3 + 32 / 96),
    "int4 in blocks of 32": (Affine(4, half(np.linspace(1, 2, 192).reshape(64, 3)), 1, 32), 4 + 16 / 32),
    "int4 in blocks with zeros": (
        Affine(4, half(np.linspace(1, 2, 192).reshape(64, 3)), 1, 32,
               np.arange(192).reshape(64, 3).astype(np.uint8) % 16, signed=False), 4 + 20 / 32),
    "int6": (Affine(6, half(np.array(0.5))), 6),
    "int8 per channel": (Affine(8, half(np.linspace(1, 2, 64)), 0), 8 + 32 / 96),
    **{
        f"{bits}-bit table": (Table(bits, half(np.linspace(-1, 1, 1 << bits).reshape(1, -1, 1))),
                              bits + 16 * (1 << bits) / (64 * 96))
        for bits in (1, 2, 3, 4, 6)
    },
    "3-bit tables of 16 channels": (
        Table(3, half(np.linspace(-1, 1, 32).reshape(4, 8, 1)), 0, 16), 3 + 16 * 32 / (64 * 96)),
    "4-bit vectors of 2": (Table(4, half(np.linspace(-1, 1, 32).reshape(1, 16, 2))), 2 + 16 * 32 / (64 * 96)),
    "6-bit vectors of 4": (Table(6, half(np.linspace(-1, 1, 256).reshape(1, 64, 4))), 1.5 + 16 * 256 / (64 * 96)),
    "3-bit table with scales": (
        Table(3, half(np.linspace(-1, 1, 8).reshape(1, 8, 1)), 0, 0, half(np.linspace(1, 2, 64))), 3 + 16 / 96 + 0.03),
    "float8": (NumberFormat("float8e4m3"), 8),
}  # fmt: skip


@pytest.mark.parametrize("name", GRIDS)
def test_the_file_is_as_small_as_the_bits_say(name: str, tmp_path: Path) -> None:
    """Within 2 %, and some bytes for the graph and the functions; what is loaded again runs and stays packed."""
    grid, bits = GRIDS[name]
    rng = np.random.default_rng(0)
    array = grid.decode(grid.nearest(rng.normal(size=(64, 96)).astype(np.float32)))  # type: ignore[union-attr]
    made, count = pack(array + np.float32(0), grid)
    assert count == 1
    expected = bits * array.size / 8
    assert stored(made) <= 1.02 * expected + 16
    path = tmp_path / "m.onnx"
    ONNX.emit(made, find_target("onnx"), path, EmitOptions())
    functions = sum(len(ir.serde.serialize_function(f).SerializeToString()) for f in made.functions.values())
    assert path.stat().st_size <= 1.02 * expected + functions + 1000
    again = load(path)
    got = Session(again).run({"x": np.ones(1, np.float32)})["y"]
    np.testing.assert_array_equal(got, array)
    assert stats(again).parameters == array.size
    assert stats(again).weight_bytes <= 1.02 * expected + 300, "what is counted is what is stored"


def test_onnxruntime_itself_reads_the_file(tmp_path: Path) -> None:
    """Without edgec: the functions in the file are enough, at every optimisation level."""
    import onnxruntime as ort

    grid, _ = GRIDS["3-bit table with scales"]
    array = grid.decode(grid.nearest(np.random.default_rng(0).normal(size=(64, 96)).astype(np.float32)))  # type: ignore[union-attr]
    made, _ = pack(array, grid)
    ONNX.emit(made, find_target("onnx"), tmp_path / "m.onnx", EmitOptions())
    for level in (ort.GraphOptimizationLevel.ORT_DISABLE_ALL, ort.GraphOptimizationLevel.ORT_ENABLE_ALL):
        options = ort.SessionOptions()
        options.graph_optimization_level = level
        session = ort.InferenceSession(tmp_path / "m.onnx", options, providers=["CPUExecutionProvider"])
        np.testing.assert_array_equal(session.run(None, {"x": np.ones(1, np.float32)})[0], array)


@pytest.mark.parametrize("opset", [13, 17, 18, 21, 24, 27])
@pytest.mark.parametrize("name", ["int2 per channel", "3-bit table with scales", "int4 in blocks of 32", "float8"])
def test_older_opsets_get_what_they_have(name: str, opset: int, tmp_path: Path) -> None:
    """Functions are inlined from 18 on; types and operators that an opset lacks are written out."""
    import onnxruntime as ort

    grid, _ = GRIDS[name]
    array = grid.decode(grid.nearest(np.random.default_rng(0).normal(size=(64, 96)).astype(np.float32)))  # type: ignore[union-attr]
    made, _ = pack(array + np.float32(0), grid)
    for p in _for_opset(opset):
        if p.run(made, context("onnx")):
            shapes.infer(made)
    path = tmp_path / "m.onnx"
    ONNX.emit(made, find_target("onnx"), path, EmitOptions(opset=opset))
    proto = onnx.load(path)
    onnx.checker.check_model(proto, full_check=True)
    assert proto.opset_import[0].version == opset and not proto.functions
    if opset <= 25:
        session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
        np.testing.assert_array_equal(session.run(None, {"x": np.ones(1, np.float32)})[0], array)
    since = {"int2 per channel": 25, "3-bit table with scales": 18, "int4 in blocks of 32": 21, "float8": 19}
    assert (path.stat().st_size < array.nbytes / 2) == (opset >= since[name])


def _for_opset(opset: int) -> list[Pass]:
    names = [f"unpack-weights{{opset={opset}}}", f"legalize{{opset={opset}}}"] if opset < 25 else []
    return [find_pass(n) for n in names]


EXACT_PASSES = [
    "canonicalize", "fold-constants", "fold-shapes", "remove-no-ops", "simplify-casts", "simplify-reshapes",
    "simplify-transposes", "merge-common-subexpressions", "fuse-dequantize", "fuse-gelu", "fuse-activations",
    "fuse-normalization", "fuse-softmax", "fuse-attention", "fuse-pad", "fold-affine", "fold-batch-norm",
    "merge-parallel-linear", "flatten-linear", "fuse-gemm", "remove-channels", "remove-dead-code", "round-weights",
    "pack-weights", "legalize", "round-activations",
]  # fmt: skip


@pytest.mark.parametrize("name", [n for n in GRIDS if n != "int8 per channel"])
def test_no_pass_unpacks_a_weight(name: str) -> None:
    """Every pass of O2, over a matrix product and its neighbours: the stored bytes and the result stay."""
    grid, _ = GRIDS[name]
    rng = np.random.default_rng(0)
    array = grid.decode(grid.nearest(rng.normal(size=(64, 96)).astype(np.float32)))  # type: ignore[union-attr]
    text = """g (float[2,64] x) => (float y) { t = Transpose<perm=[1,0]>(w) a = MatMul(x, w) b = Add(a, c) r = Relu(b)
              m = MatMul(r, t) y = Add(m, d) }"""
    made = parse(text, {"w": array + np.float32(0), "c": np.ones(96, np.float32), "d": np.ones(64, np.float32)})
    grids.write(made.graph.initializers["w"], grid)
    ctx = context("ios18")
    assert PackWeights().run(made, ctx) == 1
    shapes.infer(made)
    feeds = {"x": rng.normal(size=(2, 64)).astype(np.float32)}
    expected, size = Session(made).run(feeds)["y"], stored(made)
    for p in EXACT_PASSES:
        if find_pass(p).run(made, ctx):
            shapes.infer(made)
    got = Session(made).run(feeds)["y"]
    assert np.abs(got - expected).max() <= 2e-2 * np.abs(expected).max(), "float16 activations"
    assert stored(made) <= size + 200


def test_one_block_is_the_whole_tensor() -> None:
    """onnxruntime refuses blocks with one scale in all."""
    grid = Affine(4, half(np.array([0.25])), 0, 8, np.array([3], np.uint8), signed=False)
    assert pack(grid.decode(np.arange(8, dtype=np.uint8)), grid)[1]


def test_a_shared_weight_is_stored_once() -> None:
    grid, _ = GRIDS["4-bit table"]
    array = grid.decode(grid.nearest(np.random.default_rng(0).normal(size=(64, 96)).astype(np.float32)))  # type: ignore[union-attr]
    text = """g (float[2,64] x, int64[3] i) => (float y, float z) { y = MatMul(x, w) z = Gather(w, i) }"""
    made = parse(text, {"w": array})
    grids.write(made.graph.initializers["w"], grid)
    assert PackWeights().run(made, context("ios18")) == 1
    assert ops(made)["edgec::LookupWeight"] == 1 and stored(made) < 64 * 96 / 2 + 100


def test_a_stale_hint_does_no_harm() -> None:
    """The numbers count: a grid that they don't lie on is not used."""
    rng = np.random.default_rng(0)
    array = rng.normal(size=(64, 96)).astype(np.float32)
    assert pack(array, GRIDS["int4 in blocks of 32"][0])[1] == 0
    array[3, 5] = np.nan
    made = model(array, Affine(8, half(np.array(0.1))))
    assert not PackWeights(min_size=1).run(made, context("ios18"))


@pytest.mark.parametrize(("grid", "first"), [
    (Affine(4, half(np.linspace(1, 2, 192).reshape(64, 3)), 1, 32), "ios18"),
    (Table(3, half(np.linspace(-1, 1, 512).reshape(64, 8, 1)), 0, 1), "ios18"),
])  # fmt: skip
def test_what_a_target_lacks_is_said(grid: Grid, first: str) -> None:
    array = grid.decode(grid.nearest(np.random.default_rng(0).normal(size=(64, 96)).astype(np.float32)))
    made, ctx = model(array + np.float32(0), grid), context("ios17")
    PackWeights(min_size=1).run(made, ctx)
    assert any("ios17 does not store" in n and first in n for n in ctx.notes)


def test_forms_can_be_chosen() -> None:
    grid, _ = GRIDS["int8 per channel"]
    array = grid.decode(grid.nearest(np.random.default_rng(0).normal(0, 50, (64, 96)).astype(np.float32)))  # type: ignore[union-attr]
    made = model(array, grid)
    assert PackWeights(min_size=1, forms=("integers",)).run(made, context("ios18")) == 1
    made = model(array, grid)
    assert PackWeights(min_size=1, forms=("sparse",)).run(made, context("ios18")) == 0
    with pytest.raises(ValueError, match="palette"):
        PackWeights(forms=("palette",))


@pytest.mark.parametrize(("kind", "kept"), [("unstructured", 0.2), ("2:4", 0.5), ("blocks", 0.25)])
def test_zeros_are_left_out(kind: str, kept: float) -> None:
    """A bitmap and what is not zero, whatever the pattern; found in the numbers."""
    rng = np.random.default_rng(0)
    array = half(rng.normal(size=(64, 96))).astype(np.float32)
    if kind == "unstructured":
        flags = rng.random((64, 96)) < kept
    elif kind == "2:4":
        flags = np.argsort(rng.random((64, 24, 4)), -1).reshape(64, 96) < 2
    else:
        flags = np.kron(rng.permutation(64 * 96 // 16) < kept * 64 * 96 // 16, np.ones(16)).reshape(64, 96) > 0
    made = parse(MATMUL, {"w": np.where(flags, array, np.float32(0))})
    assert PackWeights().run(made, context("ios17")) == 1 and ops(made)["edgec::SparseWeight"] == 1
    assert stored(made) <= 64 * 96 / 8 + 2 * flags.sum() + 16


@given(st.sampled_from([1, 2, 3, 4, 6, 8]), st.integers(0, 999), st.booleans(), st.integers(0, 2**32 - 1))
def test_bits_go_into_bytes_and_back(bits: int, count: int, signed: bool, seed: int) -> None:
    """In the order that Core ML has: numpy's little-endian bits say so."""
    low = -(1 << (bits - 1)) if signed else 0
    values = np.random.default_rng(seed).integers(low, low + (1 << bits), count).astype(np.int8 if signed else np.uint8)
    flat = np.unpackbits((values.astype(int) - low).astype(np.uint8).reshape(-1, 1), axis=1, bitorder="little")
    packed_bits = pack_bits(values, bits, low)
    assert np.array_equal(packed_bits, np.packbits(flat[:, :bits].reshape(-1), bitorder="little"))
    assert np.array_equal(unpack_bits(packed_bits, bits, count, low), values)


def test_every_packed_weight_is_found_and_decoded() -> None:
    """What unpack-weights and the analysis go by."""
    for name, (grid, _) in GRIDS.items():
        array = grid.decode(grid.nearest(np.random.default_rng(0).normal(size=(64, 96)).astype(np.float32)))  # type: ignore[union-attr]
        made, _ = pack(array + np.float32(0), grid)
        found = list(packed.roots(made))
        assert len(found) == 1, name
        np.testing.assert_array_equal(packed.dense(made, *found[0]), array, err_msg=name)
        assert packed.lacks(found[0][1], find_target("ios15").storage)
        assert packed.lacks(found[0][1], find_target("ios18").storage) == (name == "float8")
        assert not packed.lacks(found[0][1], find_target("onnx").storage)
