"""mask-weights: which weights become zero, by what measure, and that numbers are all that changes."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgec.compiler import cost
from edgec.compiler.errors import UsageError
from edgec.compiler.plugins import find_pass
from edgec.compiler.quantization.grids import Affine, Sparse
from edgec.passes.mask_weights import MaskWeights
from edgec.passes.pack_weights import PackWeights
from edgec.passes.weight_masks import Pattern, counts, least, repaired, spread_over
from linearmodels import Weights, build
from passcheck import check_pass, context, load, ops, run

ANY_LOSS = 10.0

LAYERS: dict[str, tuple[Any, dict[str, list[int | str]], tuple[int, ...], int]] = {
    # name: node, shape of its input, shape of the weight, the axis that is summed over
    "Conv": (("Conv", "x w", "y", {"pads": [1] * 4, "strides": [2, 1]}), {"x": ["N", 16, 7, 6]}, (24, 16, 3, 3), 1),
    "dilated Conv": (("Conv", "x w", "y", {"dilations": [2]}), {"x": ["N", 16, 9]}, (24, 16, 3), 1),
    "grouped Conv": (("Conv", "x w", "y", {"group": 4}), {"x": ["N", 32, 7, 7]}, (64, 8, 3, 3), 1),
    "ConvTranspose": (("ConvTranspose", "x w", "y", {"strides": [2, 2]}), {"x": ["N", 16, 5, 5]}, (16, 24, 3, 3), 0),
    "grouped ConvTranspose": (("ConvTranspose", "x w", "y", {"group": 2}), {"x": ["N", 16, 5, 5]}, (16, 24, 3, 3), 0),
    "Gemm": (("Gemm", "x w", "y"), {"x": ["N", 64]}, (64, 48), 0),
    "Gemm, transposed": (("Gemm", "x w", "y", {"transB": 1, "alpha": 0.5}), {"x": ["N", 64]}, (48, 64), 1),
    "Gemm, weight first": (("Gemm", "w x", "y"), {"x": [64, 6]}, (48, 64), 1),
    "MatMul": (("MatMul", "x w", "y"), {"x": ["N", 5, 64]}, (64, 48), 0),
    "MatMul of experts": (("MatMul", "x w", "y"), {"x": [4, "N", 16]}, (4, 16, 48), 1),
    "MatMul, weight first": (("MatMul", "w x", "y"), {"x": ["N", 64, 6]}, (48, 64), 1),
    "LSTM": (("LSTM", "x w r", "y", {"hidden_size": 16}), {"x": [5, "N", 32]}, (1, 64, 32), 2),
    "GRU": (
        ("GRU", "x w r", "y", {"hidden_size": 16, "direction": "bidirectional"}), {"x": [5, "N", 32]}, (2, 48, 32), 2),
}  # fmt: skip


def layer(name: str, seed: int = 0) -> ir.Model:
    node, inputs, shape, _ = LAYERS[name]
    w = Weights(seed)
    w.add("w", *shape)
    if node[0] in ("LSTM", "GRU"):
        w.add("r", *shape[:2], 16)
    return load(build([node], inputs, w))


def weight(model: ir.Model, name: str = "w") -> np.ndarray:
    tensor = model.graph.initializers[name].const_value
    assert tensor is not None
    return tensor.numpy()


@pytest.mark.parametrize("by", ["magnitude", "wanda", "sparsegpt"])
@pytest.mark.parametrize("name", LAYERS)
def test_half_of_any_layer(name: str, by: str) -> None:
    m = layer(name)
    p = MaskWeights(by=by, min_size=500)
    masked = check_pass(m, p, rtol=ANY_LOSS, seeds=1, rewrites=2 if "r" in m.graph.initializers else 1)
    assert ops(masked) == ops(m), "a lossy pass changes numbers only"
    before, after = weight(m), weight(masked)
    assert abs((after == 0).mean() - 0.5) < 0.01
    if by == "magnitude":
        assert np.array_equal(after[after != 0], before[after != 0])
        assert np.abs(before[after == 0]).max() <= np.abs(before[after != 0]).min()


@pytest.mark.parametrize("by", ["magnitude", "wanda", "sparsegpt"])
@pytest.mark.parametrize("name", [n for n in LAYERS if n != "grouped ConvTranspose"])
def test_two_of_four_neighbours_that_are_summed_stay(name: str, by: str) -> None:
    m, axis = layer(name), LAYERS[name][3]
    p, count = MaskWeights(pattern="2:4", by=by, min_size=1100), 2 if name == "GRU" else 1
    masked = check_pass(m, p, rtol=ANY_LOSS, seeds=1, rewrites=count)
    kept = np.moveaxis(weight(masked), axis, -1) != 0
    assert (kept.reshape(-1, 4).sum(1) == 2).all()
    if by == "magnitude":
        groups = np.abs(np.moveaxis(weight(m), axis, -1)).reshape(-1, 4)
        assert np.array_equal(np.sort(groups, 1)[:, 2:].sum(1), np.where(kept.reshape(-1, 4), groups, 0).sum(1))


def test_groups_of_channels_don_t_mix_and_what_is_left_over_stays() -> None:
    w = Weights()
    w.add("w", 32, 10, 5)
    m = build([("Conv", "x w", "y", {"group": 2})], {"x": ["N", 20, 9]}, w)
    masked = check_pass(m, MaskWeights(pattern="1:4", min_size=100), rtol=ANY_LOSS, rewrites=1)
    kept = weight(masked) != 0
    assert (kept[:, :4].sum(1) == 1).all() and (kept[:, 4:8].sum(1) == 1).all() and kept[:, 8:].all()
    w = Weights()
    w.add("w", 64, 1, 7, 7)
    ctx = context()
    depthwise = build([("Conv", "x w", "y", {"group": 64})], {"x": ["N", 64, 9, 9]}, w)
    check_pass(depthwise, MaskWeights(pattern="2:4", min_size=100), rewrites=0, ctx=ctx)
    assert any("1 channels" in n for n in ctx.notes)


@settings(max_examples=60, deadline=None)
@given(hnp.arrays(np.float32, st.tuples(st.integers(1, 4), st.integers(1, 12)), elements=st.integers(0, 3).map(float)),
       st.integers(0, 12))  # fmt: skip
def test_exactly_so_many_go_and_none_is_larger_than_one_that_stays(scores: np.ndarray, count: int) -> None:
    mask = least(scores, count)
    assert (mask.sum(1) == min(count, scores.shape[1])).all()
    for row, gone in zip(scores, mask, strict=True):
        assert not gone.any() or gone.all() or row[gone].max() <= row[~gone].min()


def test_blocks_of_outputs_go_together() -> None:
    m = layer("MatMul")
    masked = check_pass(m, MaskWeights(ratio=0.25, block=16, min_size=100), rtol=ANY_LOSS, rewrites=1)
    gone = (weight(masked) == 0).reshape(64, 3, 16)
    assert (gone.all(2) == gone.any(2)).all() and gone.all(2).mean() == 0.25
    size = np.square(weight(m)).reshape(64, 3, 16).sum(2)
    assert size[gone.all(2)].max() <= size[~gone.all(2)].min()
    # The last block may be smaller.
    gone = Pattern(0.5, block=5).mask(np.abs(np.random.default_rng(0).normal(size=(1, 7, 4))))
    assert all((part.all(1) == part.any(1)).all() for part in (gone[:, :5], gone[:, 5:]))
    assert gone[:, [0, 6]].sum() == 4


def test_wanda_takes_what_adds_least_to_each_output() -> None:
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(4000, 64)) * 10.0 ** rng.uniform(-2, 1, 64)).astype(np.float32)
    m = layer("MatMul")
    p = MaskWeights(by="wanda", min_size=100)
    masked = check_pass(m, p, inputs={"x": x.reshape(-1, 5, 64)}, rtol=ANY_LOSS, rewrites=1)
    w, norm = weight(m), np.sqrt(np.square(x, dtype=np.float64).mean(0))
    scores = np.abs(w) * norm[:, None].astype(np.float32)
    gone = weight(masked) == 0
    assert (gone.sum(0) == 32).all()
    for o in range(48):
        assert scores[gone[:, o], o].max() <= scores[~gone[:, o], o].min()


def mixed(count: int, seed: int = 0) -> np.ndarray:
    """Inputs that depend on each other, of mean 1."""
    rng = np.random.default_rng(seed)
    return np.asarray(rng.normal(size=(count, 16)) @ rng.normal(size=(16, 64)) + 0.3 * rng.normal(size=(count, 64)) + 1)


def test_sparsegpt_loses_less_than_wanda_and_wanda_less_than_magnitude() -> None:
    x = {"x": (mixed(2048) * 10.0 ** np.random.default_rng(1).uniform(-1, 1, 64)).astype(np.float32)}
    w = Weights()
    w.add("w", 64, 48)
    w.add("b", 48)
    for options in ({}, {"pattern": "2:4"}, {"block": 4}, {"pattern": "4:8"}):
        m = load(build([("Gemm", "x w b", "y")], {"x": ["N", 64]}, w))
        before, errors = run(m, x)["y"], []
        for by in ("magnitude", "wanda", "sparsegpt"):
            p = MaskWeights(by=by, min_size=100, **options)  # type: ignore[arg-type]
            masked = check_pass(m, p, inputs=x, rtol=ANY_LOSS, rewrites=1)
            errors.append(float(np.square(run(masked, x)["y"] - before).mean()))
            if by != "magnitude":
                assert np.abs((run(masked, x)["y"] - before).mean(0)).max() < 1e-3 * np.abs(before).max()
        assert errors[2] < 0.5 * errors[1] < 0.5 * errors[0], (options, errors)


def test_what_stays_is_the_least_squares_fit() -> None:
    """Of few inputs, where all masks can be tried: the choice is not far from the best, and so are the values."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 6)) @ rng.normal(size=(6, 6))
    gram = (x.T @ x / 200)[None]
    matrix = rng.normal(size=(1, 5, 6)).astype(np.float32)
    found = repaired(matrix, gram.astype(np.float32), Pattern(0.5, 3, 6), 1, 1e-8)
    assert ((found == 0).sum(2) == 3).all()
    for before, after in zip(matrix[0], found[0], strict=True):

        def loss(values: np.ndarray, before: np.ndarray = before) -> float:
            return float((values - before) @ gram[0] @ (values - before))

        def fitted(kept: Any, before: np.ndarray = before) -> np.ndarray:
            kept = list(kept)
            values = np.zeros(6)
            values[kept] = np.linalg.solve(gram[0][np.ix_(kept, kept)], gram[0][kept] @ before)
            return values

        own = fitted(np.flatnonzero(after))
        every = [loss(fitted(k)) for k in combinations(range(6), 3)]
        # An input's error goes to those behind it only, so a fit may do a little better.
        assert loss(after) <= np.median(every) and loss(own) <= loss(after) + 1e-6


def test_global_takes_more_where_it_costs_less() -> None:
    w = Weights()
    w.add("u", 64, 64)
    w.add("v", 64, 64)
    w["u"] *= np.where(np.random.default_rng(0).random((64, 64)) < 0.8, 1e-3, 1.0).astype(np.float32)
    m = build([("MatMul", "x u", "h"), ("MatMul", "h v", "y")], {"x": ["N", 64]}, w)
    masked = check_pass(m, MaskWeights(spread="global", min_size=100), rtol=ANY_LOSS, rewrites=2)
    shares = [float((weight(masked, n) == 0).mean()) for n in "uv"]
    assert shares[0] > 0.7 and abs(sum(shares) - 1) < 0.02
    other = {**w, "u": w["u"] * np.float32(100)}
    scaled = check_pass(build([("MatMul", "x u", "h"), ("MatMul", "h v", "y")], {"x": ["N", 64]}, other),
                        MaskWeights(spread="global", min_size=100), rtol=ANY_LOSS)  # fmt: skip
    assert abs((weight(scaled, "u") == 0).mean() - shares[0]) < 0.02, "a layer's scale says nothing"


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.floats(0, 0.99))
def test_shares_of_layers_make_up_the_ratio(seed: int, ratio: float) -> None:
    rng = np.random.default_rng(seed)
    scores = [np.square(rng.normal(size=rng.integers(1, 2000)) ** rng.integers(1, 4)).astype(np.float32) for _ in "abc"]
    found = spread_over([counts(s) for s in scores], ratio)
    assert all(0 <= f <= 1 for f in found)
    gone = sum(f * s.size for f, s in zip(found, scores, strict=True))
    assert gone == pytest.approx(ratio * sum(s.size for s in scores))


TIED = [
    ("ArgMax", "x", "i", {"axis": 1, "keepdims": 0}), ("Gather", "w i", "g"), ("Transpose", "w", "t", {"perm": [1, 0]}),
    ("MatMul", "g t", "y"),
]  # fmt: skip


def test_embeddings_only_when_asked_for() -> None:
    w = Weights()
    w.add("w", 50, 64)
    m = build(TIED, {"x": ["N", 50]}, w)
    check_pass(m, MaskWeights(min_size=100), rewrites=0)
    masked = check_pass(m, MaskWeights(min_size=100, embeddings=True), rewrites=1, rtol=ANY_LOSS)
    assert (weight(masked) == 0).mean() == 0.5


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ([("MatMul", "x w", "h"), ("Gemm", "h w", "y", {"transB": 1})], "disagree"),
        ([("MatMul", "x w", "h"), ("Add", "h w", "y")], "something else"),
    ],
)
def test_weights_that_others_read_in_another_way_stay(text: list[Any], why: str) -> None:
    w = Weights()
    w.add("w", 64, 64)
    ctx = context()
    check_pass(build(text, {"x": [64, 64]}, w), MaskWeights(), rewrites=0, ctx=ctx)
    assert any(why in n for n in ctx.notes), ctx.notes


def test_a_weight_that_is_read_twice_is_masked_once() -> None:
    w = Weights()
    w.add("w", 64, 64)
    text = [("MatMul", "x w", "h"), ("Relu", "h", "r"), ("Gemm", "r w", "y")]
    for by in ("magnitude", "wanda", "sparsegpt"):
        check_pass(build(text, {"x": ["N", 64]}, w), MaskWeights(by=by), rewrites=1, rtol=ANY_LOSS)


def test_weights_in_branches_are_masked_by_magnitude() -> None:
    text = """<ir_version: 10, opset_import: ["" : 25]>
    agraph (float[2,64] x, bool c, float[64,64] w) => (float[2,64] y)
    { y = If(c) <then_branch = g () => (float[2,64] a) { a = MatMul(x, w) },
                 else_branch = h () => (float[2,64] b) { t = MatMul(x, w) b = Neg(t) }> }"""
    m = ir.from_onnx_text(text)
    value = next(v for v in m.graph.inputs if v.name == "w")
    m.graph.inputs.remove(value)
    value.const_value = ir.Tensor(np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32), name="w")
    m.graph.register_initializer(value)
    ctx = context()
    check_pass(m, MaskWeights(by="wanda"), rewrites=1, rtol=ANY_LOSS, ctx=ctx)
    assert any("'w' is masked by magnitude" in n for n in ctx.notes)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_numbers_that_are_not_finite_are_refused(bad: float) -> None:
    w = Weights()
    w.add("w", 64, 64)
    w["w"][3, 5] = bad
    m, ctx = load(build([("MatMul", "x w", "y")], {"x": ["N", 64]}, w)), context()
    assert MaskWeights().run(m, ctx) == 0
    assert any("'w'" in n and "not finite" in n for n in ctx.notes)


def test_zero_weights_no_ratio_keep_and_small_ones() -> None:
    zero = build([("MatMul", "x w", "y")], {"x": ["N", 64]}, {"w": np.zeros((64, 64), np.float32)})
    for by in ("magnitude", "wanda", "sparsegpt"):
        check_pass(zero, MaskWeights(by=by, spread="global"), rewrites=0)
        check_pass(layer("MatMul"), MaskWeights(ratio=0.0, by=by, min_size=100), rewrites=0)
    check_pass(layer("MatMul"), MaskWeights(min_size=64 * 48 + 1), rewrites=0)
    ctx = context()
    check_pass(layer("LSTM"), MaskWeights(keep="w;z*", min_size=100), rewrites=1, rtol=ANY_LOSS, ctx=ctx)
    assert any("keep=z*" in n for n in ctx.notes)


def test_it_says_on_which_grid_what_is_left_lies() -> None:
    m = layer("MatMul")
    value = m.graph.initializers["w"]
    scale = np.float16(0.02)
    rounded = (np.clip(np.rint(weight(m) / np.float32(scale)), -127, 127) * np.float32(scale)).astype(np.float32)
    value.const_value = ir.Tensor(rounded, name="w")
    value.meta["edgec.grid"] = Affine(8, np.asarray(scale))
    assert MaskWeights(min_size=100).run(m, context()) == 1
    grid = value.meta["edgec.grid"]
    assert isinstance(grid, Sparse) and isinstance(grid.inner, Affine)
    assert grid.indices(weight(m)) is not None, "zeros, and the others still on their grid"


def test_without_inputs_it_says_so() -> None:
    with pytest.raises(UsageError, match="--inputs"):
        MaskWeights(by="wanda", min_size=100).run(layer("MatMul"), context())


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ("ratio=1", "less than 1"), ("pattern=4:2", "n:m"), ("pattern=2of4", "n:m"), ("pattern=0:4", "n:m"),
        ("pattern=2:4,ratio=0.5", "takes no ratio"), ("pattern=2:4,spread=global", "takes no ratio"),
        ("block=0", "1 or more"), ("by=magic", "sparsegpt"), ("spread=row", "global"), ("sparsity=0.5", "no option"),
    ],
)  # fmt: skip
def test_options_are_checked(options: str, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        find_pass(f"mask-weights{{{options}}}")


def test_a_spec_names_it() -> None:
    p = find_pass("mask-weights{pattern=2:4,by=sparsegpt}")
    assert p == MaskWeights(pattern="2:4", by="sparsegpt") and find_pass(p.spec) == p


@pytest.mark.parametrize("target", ["ios16", "ios17", "ios18", "onnx"])
@pytest.mark.parametrize("options", [{}, {"pattern": "2:4"}, {"ratio": 0.75}, {"block": 4}])
def test_what_is_masked_is_stored_sparse(target: str, options: dict[str, Any]) -> None:
    """From half of zeros on it is smaller, at four bytes each and at two. A quarter isn't worth it everywhere."""
    model = layer("MatMul")
    MaskWeights(min_size=1000, **options).run(model, context(target))
    packed = check_pass(model, PackWeights(min_size=1000), rewrites=1, target=target)
    assert ops(packed)["edgec::SparseWeight"] == 1
    assert cost.weight_bytes(packed) < 0.6 * cost.weight_bytes(model)
    dense = layer("MatMul")
    assert PackWeights(min_size=1000).run(dense, context(target)) == 0
