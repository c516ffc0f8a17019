"""truncate-rank and factor-weights: the best approximation, written as two layers that compute the same."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgec.compiler import cost
from edgec.compiler.errors import UsageError
from edgec.compiler.graph import nodes
from edgec.compiler.plugins import find_pass
from edgec.passes.factor_weights import FactorWeights
from edgec.passes.low_rank import candidates, total_macs
from edgec.passes.rank_budget import of_budget
from edgec.passes.truncate_rank import TruncateRank, _spectrum
from linearmodels import Weights, build
from passcheck import check_pass, context, load, ops, run

ANY_LOSS = 10.0
LOW = TruncateRank(rank=8, min_size=1000)
FACTOR = FactorWeights(min_size=1000)


def of_rank(rank: int, *dims: int, seed: int = 0) -> np.ndarray:
    """A matrix of this rank, its rows and columns of very different size."""
    rng = np.random.default_rng(seed)
    found = rng.normal(size=(dims[0], rank)) @ rng.normal(size=(rank, dims[1])) / np.sqrt(rank)
    found *= 10.0 ** rng.uniform(-3, 1, (dims[0], 1)) * 10.0 ** rng.uniform(-2, 1, (1, dims[1]))
    return found.astype(np.float32)


def weights(model: ir.Model) -> dict[str, np.ndarray]:
    return {k: v.const_value.numpy() for k, v in model.graph.initializers.items() if v.const_value is not None}


PRODUCTS: dict[str, tuple[Any, dict[str, list[int | str]], tuple[int, int]]] = {
    # name: node, the shape of its input, the shape of the weight
    "MatMul": (("MatMul", "x w", "y"), {"x": ["N", 48]}, (48, 64)),
    "MatMul of a batch": (("MatMul", "x w", "y"), {"x": ["N", 3, "T", 48]}, (48, 64)),
    "MatMul of a vector": (("MatMul", "x w", "y"), {"x": [48]}, (48, 64)),
    "MatMul, weight first": (("MatMul", "w x", "y"), {"x": ["N", 48, 5]}, (64, 48)),
    "Gemm": (("Gemm", "x w b", "y", {"alpha": 0.5, "beta": 2.0}), {"x": ["N", 48]}, (48, 64)),
    "Gemm, weight transposed": (("Gemm", "x w b", "y", {"transB": 1}), {"x": ["N", 48]}, (64, 48)),
    "Gemm, both transposed": (
        ("Gemm", "x w", "y", {"transB": 1, "transA": 1, "alpha": 3.0}), {"x": [48, "N"]}, (64, 48)),
    "Gemm, weight first": (("Gemm", "w x c", "y", {"alpha": -1.0}), {"x": [48, 6]}, (64, 48)),
    "Gemm, weight first and transposed": (("Gemm", "w x", "y", {"transA": 1, "transB": 1}), {"x": [6, 48]}, (48, 64)),
}  # fmt: skip


@pytest.mark.parametrize("name", PRODUCTS)
def test_a_product_becomes_two(name: str) -> None:
    node, inputs, shape = PRODUCTS[name]
    w = Weights()
    w.add("b", 64)
    w.add("c", 64, 1)
    w.add("w", *shape)
    truncated = check_pass(build([node], inputs, w), LOW, rewrites=1, rtol=ANY_LOSS)
    u, s, v = np.linalg.svd(w["w"].astype(np.float64), full_matrices=False)
    np.testing.assert_allclose(weights(truncated)["w"], (u[:, :8] * s[:8]) @ v[:8], atol=1e-5)
    factored = check_pass(truncated, FACTOR, rewrites=1)
    assert ops(factored) == {node[0]: 2}
    assert sorted(a.size for n, a in weights(factored).items() if "__" in n) == [8 * 48, 8 * 64]
    assert "w" not in weights(factored)


@pytest.mark.parametrize("rank", [1, 5, 27])
def test_the_rank_is_found_whatever_the_size_of_rows_and_columns(rank: int) -> None:
    w = {"w": of_rank(rank, 64, 48)}
    m = build([("MatMul", "x w", "y")], {"x": ["N", 64]}, w)
    factored = check_pass(m, FACTOR, rewrites=1)
    assert weights(factored)["w__first"].shape == (64, rank)
    small = np.abs(w["w"]).max(0).argmin()
    product = weights(factored)["w__first"].astype(np.float64) @ weights(factored)["w__second"]
    assert np.abs(product - w["w"])[:, small].max() <= 1e-5 * np.abs(w["w"])[:, small].max()


def test_what_would_be_dearer_or_is_of_full_rank_stays() -> None:
    # Two matrices of rank 28 have 28 x 112 numbers, 3,136, and one has 3,072.
    check_pass(build([("MatMul", "x w", "y")], {"x": ["N", 64]}, {"w": of_rank(28, 64, 48)}), FACTOR, rewrites=0)
    w = Weights()
    w.add("w", 64, 48)
    check_pass(build([("MatMul", "x w", "y")], {"x": ["N", 64]}, w), FACTOR, rewrites=0)
    # A weight that is nearly, but not to rounding, of rank 8.
    near = of_rank(8, 64, 48) * (1 + 1e-5 * np.random.default_rng(1).normal(size=(64, 48)))
    m = build([("MatMul", "x w", "y")], {"x": ["N", 64]}, {"w": near.astype(np.float32)})
    check_pass(m, FACTOR, rewrites=0)


def test_zeros_and_small_weights_are_left() -> None:
    m = build([("MatMul", "x w", "y")], {"x": ["N", 64]}, {"w": np.zeros((64, 48), np.float32)})
    check_pass(m, FACTOR, rewrites=0)
    check_pass(m, LOW, rewrites=0)
    m = build([("MatMul", "x w", "y")], {"x": ["N", 64]}, {"w": of_rank(4, 64, 48)})
    check_pass(m, FactorWeights(min_size=64 * 48 + 1), rewrites=0)


@pytest.mark.parametrize("by", ["weights", "activations"])
def test_numbers_that_are_not_finite_are_refused(by: str) -> None:
    w = Weights()
    w.add("w", 64, 48)
    w.add("v", 48, 64)
    w["w"][3, 4] = np.inf
    m = load(build([("MatMul", "x v", "h"), ("MatMul", "x u", "g"), ("Add", "h g", "y")], {"x": ["N", 48]},
                   {"v": w["v"], "u": w["w"].T.copy()}))  # fmt: skip
    ctx = context(inputs={"x": np.ones((4, 48), np.float32)})
    assert TruncateRank(rank=8, by=by, min_size=1000).run(m, ctx) == 1
    assert any("'u'" in n and "not finite" in n for n in ctx.notes)
    assert FACTOR.run(m, ctx) == 1


sizes = st.integers(1, 3)


@st.composite
def convolutions(draw: Any) -> tuple[Any, list[int | str], tuple[int, ...], int]:
    """A Conv with any attributes, the shape of its input and weight, and a rank."""
    n = draw(st.integers(1, 3))
    kernel = [draw(st.sampled_from([1, 2, 3, 5] if n < 3 else [1, 2, 3])) for _ in range(n)]
    attributes: dict[str, Any] = {}
    if draw(st.booleans()):
        attributes["strides"] = [draw(sizes) for _ in range(n)]
    if draw(st.booleans()):
        attributes["dilations"] = [draw(sizes) for _ in range(n)]
    auto = draw(st.sampled_from([None, None, "SAME_UPPER", "SAME_LOWER", "VALID"]))
    if auto:
        attributes["auto_pad"] = auto
        # onnxruntime refuses dilations here.
        attributes.pop("dilations", None)
    elif draw(st.booleans()):
        attributes["pads"] = [draw(st.integers(0, 3)) for _ in range(2 * n)]
    known = draw(st.booleans())
    spatial: list[int | str] = [13 + d if known else f"S{d}" for d in range(n)]
    out, channels = draw(st.sampled_from([(32, 24), (24, 40), (64, 16)]))
    node = ("Conv", draw(st.sampled_from(["x w", "x w b"])), "y", attributes)
    return node, ["N", channels, *spatial], (out, channels, *kernel), draw(st.sampled_from([1, 2, 4, 8]))


@settings(max_examples=15, deadline=None)
@given(convolutions(), st.sampled_from(["weights", "activations"]), st.integers(0, 9))
def test_a_convolution_becomes_two(case: tuple[Any, list[int | str], tuple[int, ...], int], by: str, seed: int) -> None:
    node, shape, weight, rank = case
    w = Weights(seed)
    w.add("w", *weight)
    w.add("b", weight[0])
    feeds = [2, weight[1], *(13 + d for d in range(len(weight) - 2))]
    m = build([node], {"x": shape}, w)
    p = TruncateRank(rank=rank, by=by, min_size=100)
    truncated = check_pass(m, p, rtol=ANY_LOSS, input_shapes={"x": feeds}, seeds=1)
    factored = check_pass(truncated, FactorWeights(min_size=100), rewrites=1, input_shapes={"x": feeds}, seeds=1)
    assert ops(factored) == {"Conv": 2}
    assert total_macs(factored) < total_macs(truncated)
    assert cost.parameters(factored) < cost.parameters(truncated)


def test_a_convolution_is_split_where_it_errs_least() -> None:
    """Filters that are outer products need one channel each between 3 x 1 and 1 x 3, and more elsewhere."""
    rng = np.random.default_rng(0)
    for first, second in (("i a, o b", "oiab"), ("i b, o a", "oiab")):
        left, right = (rng.normal(size=(4, 32, 3)) for _ in range(2))
        w = np.einsum(f"r{first.split(', ')[0]}, r{first.split(', ')[1]} -> {second}".replace(" ", ""), left, right)
        noisy = (w + 1e-3 * rng.normal(size=w.shape)).astype(np.float32)
        m = build([("Conv", "x w", "y", {"pads": [1, 1, 1, 1]})], {"x": ["N", 32, 9, 9]}, {"w": noisy})
        truncated = check_pass(m, TruncateRank(rank=4, min_size=100), rewrites=1, rtol=ANY_LOSS)
        assert np.abs(weights(truncated)["w"] - w).max() < 1e-2
        factored = check_pass(truncated, FACTOR, rewrites=1)
        kernels = [tuple(n.attributes["kernel_shape"].as_ints()) for n in nodes(factored, "Conv")]
        assert kernels == ([(3, 1), (1, 3)] if first == "i a, o b" else [(1, 3), (3, 1)])


def test_convolutions_in_groups_stay() -> None:
    w = Weights()
    w.add("w", 64, 24, 3, 3)
    m = build([("Conv", "x w", "y", {"group": 2})], {"x": ["N", 48, 8, 8]}, w)
    ctx = context()
    check_pass(m, TruncateRank(min_size=100), rewrites=0, ctx=ctx)
    assert any("groups" in n for n in ctx.notes)
    check_pass(m, FACTOR, rewrites=0)


def test_a_weight_that_is_read_twice_is_written_as_two_once() -> None:
    text = [("MatMul", "x w", "h"), ("Relu", "h", "r"), ("Gemm", "r w", "y")]
    m = build(text, {"x": ["N", 64]}, {"w": np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32)})
    truncated = check_pass(m, LOW, rewrites=1, rtol=ANY_LOSS)
    factored = check_pass(truncated, FACTOR, rewrites=1)
    assert ops(factored) == {"MatMul": 2, "Gemm": 2, "Relu": 1} and len(weights(factored)) == 2


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ([("MatMul", "x w", "h"), ("Gemm", "h w", "y", {"transB": 1})], "disagree"),
        ([("MatMul", "x w", "h"), ("Add", "h w", "y")], "Add"),
        ([("Gather", "w i", "g"), ("MatMul", "x w", "h"), ("Add", "g h", "y")], "Gather"),
    ],
)
def test_weights_that_others_read_in_another_way_stay(text: list[Any], why: str) -> None:
    w = {"w": of_rank(4, 64, 64), "i": np.arange(64)}
    m = build(text, {"x": [64, 64]}, w)
    ctx = context()
    check_pass(m, LOW, rewrites=0, ctx=ctx)
    assert any(why in n for n in ctx.notes), ctx.notes
    check_pass(m, FACTOR, rewrites=0)


def test_weights_in_branches_become_two_there() -> None:
    text = """<ir_version: 10, opset_import: ["" : 25]>
    agraph (float[2,64] x, bool c, float[64,64] w) => (float[2,64] y)
    { y = If(c) <then_branch = g () => (float[2,64] a) { a = MatMul(x, w) },
                 else_branch = h () => (float[2,64] b) { t = MatMul(x, w) b = Neg(t) }> }"""
    m = ir.from_onnx_text(text)
    value = next(v for v in m.graph.inputs if v.name == "w")
    m.graph.inputs.remove(value)
    value.const_value = ir.Tensor(of_rank(4, 64, 64), name="w")
    m.graph.register_initializer(value)
    factored = check_pass(m, FACTOR, rewrites=1)
    assert ops(factored)["MatMul"] == 4


def three(seed: int = 0) -> ir.Model:
    """Layers whose spectra fall at very different speeds."""
    rng = np.random.default_rng(seed)
    w = {}
    for name, fall in (("u", 0.5), ("v", 0.97), ("w", 1.0)):
        q, r = (np.linalg.qr(rng.normal(size=(64, 64)))[0] for _ in range(2))
        w[name] = ((q * fall ** np.arange(64)) @ r).astype(np.float32)
    text = [("MatMul", "x u", "a"), ("Relu", "a", "b"), ("MatMul", "b v", "c"), ("Relu", "c", "d")]
    text.append(("MatMul", "d w", "y"))
    return load(build(text, {"x": ["N", 64]}, w))


@pytest.mark.parametrize("of", ["macs", "parameters", "bytes"])
@pytest.mark.parametrize("ratio", [0.2, 0.4, 0.6])
def test_a_budget_is_reached_and_spent_where_it_costs_least(of: str, ratio: float) -> None:
    m = three()
    truncated = check_pass(m, TruncateRank(ratio=ratio, of=of, min_size=100, align=4), rtol=ANY_LOSS)
    factored = check_pass(truncated, FactorWeights(min_size=100))
    count = {"macs": total_macs, "parameters": cost.parameters, "bytes": cost.weight_bytes}[of]
    gone = 1 - count(factored) / count(m)
    assert ratio <= gone < ratio + 0.05
    ranks = {n[0]: a.shape[1] for n, a in weights(factored).items() if "first" in n}
    assert ranks["u"] <= ranks.get("v", 32) <= ranks.get("w", 32)
    assert ratio > 0.3 or set(ranks) == {"u"}


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000), st.floats(0.05, 0.8))
def test_no_other_ranks_save_as_much_for_less(seed: int, ratio: float) -> None:
    """Against all combinations of three small layers: the greedy choice is within a step of the best."""
    rng = np.random.default_rng(seed)
    w = {n: (rng.normal(size=(16, 16)) * 0.8 ** np.arange(16)).astype(np.float32) for n in "uvw"}
    m = load(build([("MatMul", "x u", "a"), ("MatMul", "a v", "b"), ("MatMul", "b w", "y")], {"x": ["N", 16]}, w))
    p = TruncateRank(ratio=ratio, min_size=100, align=1)
    ctx = context()
    folder = ctx.scratch.dir / "test"
    folder.mkdir()
    curves = list(p._curves(m, candidates(m, 100, "", ctx), folder, ctx))
    wanted = ratio * total_macs(m)
    greedy = of_budget(curves, wanted, "macs", 1)
    each = [[None, *c.choices(1)] for c in curves]
    most = sum(max(x.saved("macs") for x in c if x) for c in each)
    if wanted > most:
        assert sum(x.saved("macs") for x in greedy) == pytest.approx(most)
        return
    assert sum(x.saved("macs") for x in greedy) >= wanted - 1e-6
    best = min(
        sum(x.loss for x in (a, b, c) if x)
        for a in each[0] for b in each[1] for c in each[2]
        if sum(x.saved("macs") for x in (a, b, c) if x) >= wanted
    )  # fmt: skip
    # A step of the hull goes from the whole weight to a rank below the break-even: it may be taken to its end.
    step = max(x.loss for c in each for x in c if x and x.rank == 7)
    assert sum(x.loss for x in greedy) <= best + step + 1e-9


def test_energy_and_keep() -> None:
    m = three()
    truncated = check_pass(m, TruncateRank(energy=0.999, min_size=100, align=1), rewrites=1, rtol=0.2, idempotent=False)
    before, after = (np.linalg.svd(weights(x)["u"], compute_uv=False) for x in (m, truncated))
    assert 0.999 <= (after**2).sum() / (before**2).sum() < 1
    assert (after > 1e-5).sum() == 5
    ctx = context()
    check_pass(m, TruncateRank(rank=8, keep="u;w;nobody", min_size=100), rewrites=1, rtol=ANY_LOSS, ctx=ctx)
    assert any("nobody" in n for n in ctx.notes)


def test_a_full_rank_or_an_impossible_budget_does_nothing_wrong() -> None:
    check_pass(three(), TruncateRank(rank=64, min_size=100), rewrites=0)
    check_pass(three(), TruncateRank(energy=1.0, keep="u", min_size=100), rewrites=0)
    ctx = context()
    check_pass(three(), TruncateRank(ratio=0.99, min_size=100), rewrites=3, rtol=ANY_LOSS, ctx=ctx)
    assert any("asked for 99%" in n for n in ctx.notes)


def test_with_inputs_the_outputs_keep_more() -> None:
    rng = np.random.default_rng(0)
    mix = rng.normal(size=(64, 64)) * 10.0 ** rng.uniform(-2, 1, 64)
    x = (rng.normal(size=(512, 64)) @ mix).astype(np.float32)
    w = {"w": rng.normal(size=(64, 96)).astype(np.float32)}
    m = load(build([("MatMul", "x w", "y")], {"x": ["N", 64]}, w))
    error = {}
    for by in ("weights", "activations"):
        low = check_pass(m, TruncateRank(rank=16, by=by, min_size=100), inputs={"x": x}, rtol=ANY_LOSS, rewrites=1)
        error[by] = float(np.square(run(low, {"x": x})["y"] - run(m, {"x": x})["y"]).mean())
        check_pass(low, FACTOR, rewrites=1)
    y = x.astype(np.float64) @ w["w"]
    best = np.square(np.linalg.svd(y, compute_uv=False)[16:]).sum() / y.size
    assert error["activations"] < 1.05 * best, "Eckart and Young: no other matrix of that rank does better"
    assert error["activations"] < 0.3 * error["weights"]


def test_with_inputs_a_convolution_errs_less() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(32, 24, 10, 10))
    x = (x + np.roll(x, 1, 2) + np.roll(x, 1, 3)) * 10.0 ** rng.uniform(-1.5, 0.5, (24, 1, 1))
    feeds = {"x": x.astype(np.float32)}
    w = Weights()
    w.add("w", 32, 24, 3, 3)
    m = load(build([("Conv", "x w", "y", {"pads": [1, 1, 1, 1]})], {"x": ["N", 24, 10, 10]}, w))
    error = {}
    for by in ("weights", "activations"):
        low = check_pass(m, TruncateRank(rank=8, by=by, min_size=100), inputs=feeds, rtol=ANY_LOSS, rewrites=1)
        error[by] = float(np.square(run(low, feeds)["y"] - run(m, feeds)["y"]).mean())
    assert error["activations"] < 0.8 * error["weights"]


def test_without_inputs_it_says_so() -> None:
    with pytest.raises(UsageError, match="--inputs"):
        TruncateRank(by="activations", min_size=100).run(three(), context())


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ("rank=0", "1 or more"), ("ratio=1", "less than 1"), ("energy=0", "above 0"), ("rank=4,energy=0.5", "only one"),
        ("of=time", "macs"), ("by=magic", "weights"), ("align=0", "1 or more"), ("ranks=3", "no option"),
    ],
)  # fmt: skip
def test_options_are_checked(options: str, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        find_pass(f"truncate-rank{{{options}}}")


def test_specs_name_them() -> None:
    assert find_pass("truncate-rank{rank=8,of=bytes}") == TruncateRank(rank=8, of="bytes")
    assert find_pass("factor-weights") == FactorWeights()


@pytest.mark.parametrize("dims", [(8, 30), (30, 8), (12, 12)])
def test_inputs_whose_products_are_too_many_are_weighed_by_their_squares(dims: tuple[int, int]) -> None:
    """A vector of squares says what a diagonal matrix of them does, without one (of 65,536 inputs: 17 GB)."""
    rng = np.random.default_rng(2)
    matrix, squares = rng.normal(size=dims).astype(np.float32), rng.uniform(0.1, 3, dims[1]).astype(np.float32)
    tails, basis = _spectrum(matrix, squares, 5)
    wanted, other = _spectrum(matrix, np.diag(squares), 5)
    np.testing.assert_allclose(tails, wanted, atol=1e-6)
    np.testing.assert_allclose(basis @ basis.T, other @ other.T, atol=1e-4)


def test_a_layer_of_very_many_inputs() -> None:
    w = Weights(0)
    w.add("w", 16, 1024, 3, 3)
    model = load(build([("Conv", "x w", "y")], {"x": [1, 1024, 4, 4]}, w))
    feeds = {"x": np.random.default_rng(0).normal(size=(1, 1024, 4, 4)).astype(np.float32)}
    assert TruncateRank(rank=4, by="activations").run(model, context("onnx", feeds)) == 1
    assert FactorWeights().run(model, context("onnx")) == 1
