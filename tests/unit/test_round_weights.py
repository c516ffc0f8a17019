"""round-weights with any option on any target: what is stored, what is said, what stays."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from edgec.compiler.errors import UsageError
from edgec.compiler.numerics import difference
from edgec.compiler.plugins import find_pass
from edgec.compiler.quantization import grids
from edgec.compiler.quantization.grids import Affine, NumberFormat, Table
from edgec.compiler.targets import find_target
from edgec.passes import weight_grid
from edgec.passes.grid_options import SCHEMES, Wish, spec_for, spec_of_weight
from edgec.passes.round_weights import RoundWeights
from passcheck import check_pass, context, load, run

HEAD = '<ir_version: 10, opset_import: ["" : 25]>\n'
TIED = """agraph (float[2,64] x, int64[3] i, float[50,64] w) => (float[3,64] z, float[2,50] y)
{ z = Gather(w, i) t = Transpose<perm=[1,0]>(w) y = MatMul(x, t) }"""
CONV = "agraph (float[1,32,8,8] x, float[24,32,3,3] w) => (float[1,24,6,6] y) { y = Conv(x, w) }"
MATMUL = "agraph (float[2,64] x, float[64,48] w) => (float[2,48] y) { y = MatMul(x, w) }"


def model(text: str, w: np.ndarray) -> ir.Model:
    m = ir.from_onnx_text(HEAD + text)
    value = next(v for v in m.graph.inputs if v.name == "w")
    m.graph.inputs.remove(value)
    value.const_value = ir.Tensor(w, name="w")
    m.graph.register_initializer(value)
    return load(m)


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def rounded(m: ir.Model, options: str, target: str = "ios18", rewrites: int = 1) -> tuple[ir.Value, list[str]]:
    """The weight after the pass, and what the pass said. Twice is once, and only numbers change (check_pass)."""
    ctx = context(target)
    found = check_pass(m, find_pass(f"round-weights{{{options}}}"), rewrites=rewrites, ctx=ctx, rtol=3)
    return found.graph.initializers["w"], ctx.notes


@pytest.mark.parametrize(
    "options, kind, distinct",
    [
        ("bits=4", Table, 16), ("bits=3,per=tensor", Table, 8), ("bits=4,scheme=affine", Affine, 16),
        ("bits=4,block=32", Affine, 16), ("bits=4,symmetric=false", Affine, 16), ("scheme=ternary", Affine, 3),
        ("scheme=binary", Table, 2), ("scheme=float8e4m3", NumberFormat, 253), ("scheme=nf4", NumberFormat, 16),
        ("bits=4,vector=2,group=8", Table, 16), ("scheme=bfloat16", NumberFormat, 65536),
    ],
)  # fmt: skip
@pytest.mark.parametrize("text, shape", [(CONV, (24, 32, 3, 3)), (MATMUL, (64, 48))])
def test_a_weight_lies_on_the_grid_that_it_says(
    options: str, kind: type[grids.Grid], distinct: int, text: str, shape: tuple[int, ...]
) -> None:
    m = model(text, normal(*shape))
    target = "onnx" if "bfloat" in options else "ios18"
    value, notes = rounded(m, options, target)
    grid = grids.read(value)
    assert isinstance(grid, kind) and not notes
    array = value.const_value.numpy()  # type: ignore[union-attr]
    codes = grid.indices(array)
    assert codes is not None and np.array_equal(grid.decode(codes), array)
    assert 1 < len(np.unique(codes)) <= distinct
    axis = 0 if len(shape) == 4 else 1
    for part in np.moveaxis(array, axis, 0):
        assert "block" in options or "nf4" in options or len(np.unique(part)) <= distinct * 2
    original = m.graph.initializers["w"].const_value.numpy()  # type: ignore[union-attr]
    assert not np.array_equal(array, original) and difference(original, array).snr_db > 3


def test_a_tied_embedding_stays_one_tensor_in_every_scheme() -> None:
    for options in ("bits=8", "bits=4", "bits=4,block=16", "scheme=float8e5m2", "bits=4,group=10"):
        value, notes = rounded(model(TIED, normal(50, 64)), options)
        grid = grids.read(value)
        assert grid is not None and not notes, options
        assert len(value.uses()) == 2
        if "block" in options:
            assert isinstance(grid, Affine) and (grid.axis, grid.scales.shape) == (1, (50, 4))


@pytest.mark.parametrize(
    "text, shape, inputs",
    [
        (CONV, (24, 32, 3, 3), (1, 2, 3)), (MATMUL, (64, 48), (0,)), (TIED, (50, 64), (1,)),
        (MATMUL.replace("MatMul(x, w)", "Gemm(x, w)"), (64, 48), (0,)),
        ("agraph (float[4,3,32] x, float[4,32,24] w) => (float[4,3,24] y) { y = MatMul(x, w) }", (4, 32, 24), (1,)),
        ("agraph (float[1,16,5,5] x, float[16,24,3,3] w) => (float[1,24,7,7] y) { y = ConvTranspose(x, w) }",
         (16, 24, 3, 3), (0, 2, 3)),
        ("""agraph (float[64,50] x, int64[3] i, float[50,64] w) => (float[3,64] z, float[64,64] y)
         { z = Gather(w, i) y = MatMul(x, w) }""", (50, 64), ()),
    ],
)  # fmt: skip
def test_inputs_are_what_is_summed_over(text: str, shape: tuple[int, ...], inputs: tuple[int, ...]) -> None:
    (weight,) = weight_grid.weights(model(text, normal(*shape)), 1)
    assert weight_grid.inputs(weight) == inputs


@pytest.mark.parametrize(
    "target, options, kind, said",
    [
        ("ios16", "bits=4", "table", []),
        ("ios16", "bits=4,per=channel", "table", ["ios16 does not store scales on a table (ios18 does)"]),
        ("ios16", "bits=3", "table", ["tables of 4 bits, not 3"]),
        ("ios16", "bits=4,scheme=affine", "table", ["integers of 4 bits (ios18 does): a table instead"]),
        ("ios16", "bits=4,group=16", "table", ["groups of channels and vectors in tables (ios18 does): one table"]),
        ("ios16", "bits=8,block=32", "affine", ["a scale for each block (ios18 does): one for each channel"]),
        ("ios17", "bits=4,symmetric=false", "affine", ["integers of 8 bits, not 4"]),
        ("ios18", "bits=5", "table", ["tables of 6 bits, not 5"]),
        ("ios18", "bits=7,scheme=affine", "affine", ["integers of 8 bits, not 7"]),
        ("ios16", "bits=4,block=32", "table", ["integers of 4 bits (ios18 does): a table instead"]),
        ("ios17", "scheme=nf4", None, ["ios17 stores no nf4 weights: nothing is rounded; ios18 does"]),
        ("ios18", "scheme=bfloat16", None, ["ios18 stores no bfloat16 weights: nothing is rounded; onnx does"]),
        ("ios15", "bits=8", None, ["ios15 stores no 8-bit weights: nothing is rounded; ios16 does"]),
        ("ios15", "scheme=float16", "float16", []),
        ("ios16", "scheme=ternary", None, ["ios16 stores no ternary weights"]),
    ],
)  # fmt: skip
def test_what_a_target_does_not_store_is_replaced_or_refused_and_said(
    target: str, options: str, kind: str | None, said: list[str]
) -> None:
    value, notes = rounded(model(CONV, normal(24, 32, 3, 3)), options, target, rewrites=int(kind is not None))
    grid = grids.read(value)
    names = {Affine: "affine", Table: "table", NumberFormat: getattr(grid, "name", "")}
    assert (names[type(grid)] if grid is not None else None) == kind  # type: ignore[index]
    assert len(notes) == len(said) and all(s in n for s, n in zip(said, notes, strict=True)), notes


@pytest.mark.parametrize("target", ["ios16", "ios17", "ios18", "ios26", "onnx"])
@pytest.mark.parametrize("scheme", [None, *SCHEMES])
def test_every_wish_comes_to_something_that_the_target_stores(target: str, scheme: str | None) -> None:
    storage = find_target(target).storage
    for bits in range(2, 9):
        for per in (None, "tensor", "channel", "block"):
            if per == "block" and scheme in ("table", "binary"):
                continue
            spec, notes = spec_for(Wish(bits, scheme, True, per, None, 8, 2), find_target(target))
            if spec is None:
                assert "stores no" in notes[-1]
                continue
            assert spec.bits >= bits or scheme not in (None, "affine", "table"), "never fewer bits than wanted"
            assert spec.scheme != "table" or spec.bits in storage.tables
            assert spec.scheme != "affine" or spec.bits in storage.integers
            assert storage.groups or (spec.group, spec.vector) == (0, 1)
            for shape in ((48, 33, 3, 3), (48, 7), (31, 96), (6, 30)):
                own, why = spec_of_weight(spec, shape, 0, tuple(range(1, len(shape))), storage)
                assert own.scheme != "table" or own.per != "block"
                assert own.per != "block" or (storage.blocks and (storage.remainders or shape[1] % own.block == 0))
                assert shape[0] % own.vector == 0 and (
                    storage.remainders or own.group == 0 or shape[0] % own.group == 0
                )
                assert why or own.vector == spec.vector


def test_numbers_that_are_none_are_refused_by_name() -> None:
    for bad, word in ((np.nan, "NaN"), (np.inf, "infinit")):
        w = normal(64, 48)
        w[3, 4] = bad
        for options in ("bits=8", "bits=4", "scheme=float8e4m3"):
            m = model(MATMUL, w)
            ctx = context(inputs={"x": np.ones((2, 64), np.float32)})
            assert find_pass(f"round-weights{{{options}}}").run(m, ctx) == 0
            assert len(ctx.notes) == 1 and "weight 'w'" in ctx.notes[0] and word in ctx.notes[0]


@pytest.mark.parametrize(
    "options, said",
    [
        ("bits=9", "from 1 to 8"), ("bits=0", "from 1 to 8"), ("scheme=int4", "one of affine, table"),
        ("bits=1,scheme=affine", "binary"), ("block=1", "at least 2"), ("vector=3", "1, 2 or 4"),
        ("group=6,vector=4", "whole vectors"), ("block=32,per=tensor", "scale of its own"),
        ("scheme=table,symmetric=false", "affine"),
        ("scheme=table,block=32", "group=16"), ("per=row", "tensor, channel, block"), ("by=luck", "one of"),
    ],
)  # fmt: skip
def test_options_that_make_no_sense_are_refused(options: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        find_pass(f"round-weights{{{options}}}")


def test_few_bits_are_not_held_to_what_eight_keep() -> None:
    """2 bits keep 8 dB: whoever asks for them gets them, unless they ask for an SNR as well."""
    m = model(MATMUL, normal(64, 48))
    rounded(m, "bits=2")
    _, notes = rounded(m, "bits=2,min_snr=25", rewrites=0)
    assert len(notes) == 1 and "not rounded: 'w'" in notes[0]


def test_a_weight_without_one_channel_axis_can_have_one_scale() -> None:
    text = """agraph (float[64,64] x, float[64,64] i, float[64,64] w) => (float[64,64] y, float[64,64] z)
    { y = Gemm<transB=1>(x, w) z = MatMul(i, w) }"""
    m = model(text, normal(64, 64))
    rounded(m, "bits=4", rewrites=0)
    value, _ = rounded(m, "bits=4,per=tensor")
    assert len(np.unique(value.const_value.numpy())) == 16  # type: ignore[union-attr]


def test_better_scales_keep_more_of_the_output() -> None:
    w = np.random.default_rng(0).standard_t(4, size=(64, 48)).astype(np.float32)
    m, x = model(MATMUL, w), {"x": normal(2, 64)}
    kept = {}
    for by in ("nearest", "mse"):
        found = check_pass(m, RoundWeights(bits=3, scheme="affine", by=by), rewrites=1, rtol=3)
        kept[by] = difference(run(m, x)["y"], run(found, x)["y"]).snr_db
    assert kept["mse"] > kept["nearest"] + 1


def test_the_documentation_names_every_scheme_and_option() -> None:
    text = (Path(__file__).parents[2] / "docs" / "quantization.md").read_text()
    missing = [name for name in SCHEMES if f"`{name}`" not in text]
    missing += [f.name for f in fields(RoundWeights) if not re.search(rf"`[^`]*\b{f.name}\b", text)]
    assert not missing
