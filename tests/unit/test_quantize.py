"""quantize: the budget is kept, bits go where they are needed, and what it says is what it did."""

from __future__ import annotations

import re

import numpy as np
import pytest
from layercases import build
from mixedbits import UNEQUAL, WIDTH, bits_of, branches, damage, given, network, normal, samples

import edgec
from edgec.compiler.cost import weight_bytes
from edgec.compiler.errors import UsageError
from edgec.compiler.guard.task import Task
from edgec.compiler.passbase import Context
from edgec.compiler.plugins import find_pass
from edgec.compiler.quantization import grids
from edgec.compiler.quantization.gridfit import GridSpec
from edgec.compiler.weights import Scratch
from edgec.passes.measurements import Measurements
from edgec.passes.pack_weights import PackWeights, smallest
from edgec.passes.quantize import Quantize
from edgec.passes.round_weights import RoundWeights
from edgec.passes.sensitivity import Fits
from edgec.passes.weight_grid import weights
from passcheck import check_pass, context, run


@pytest.mark.parametrize("kilobytes", [9, 12, 20])
def test_the_stored_model_is_no_larger_than_asked_and_not_much_smaller(kilobytes: int) -> None:
    model = check_pass(branches(UNEQUAL), Quantize(size=f"{kilobytes}kB"), target="onnx", rtol=1)
    PackWeights().run(model, context("onnx"))
    assert 0.93 * 1e3 * kilobytes < weight_bytes(model) <= 1e3 * kilobytes


@pytest.mark.parametrize("budget", [{"min_snr": 20.0}, {"min_snr": 38.0}, {"max_error": 0.01}])
def test_an_error_is_kept_with_few_bytes(budget: dict[str, float]) -> None:
    original, x = branches(UNEQUAL), normal(16, 5, WIDTH)
    ctx = context("onnx", {"x": x})
    model = check_pass(original, Quantize(**budget), ctx=ctx, inputs={"x": x}, rtol=1)  # type: ignore[arg-type]
    found = damage(model, original, x)
    if "min_snr" in budget:
        assert budget["min_snr"] <= found.snr_db < budget["min_snr"] + 6
    else:
        assert budget["max_error"] / 3 < found.max_rel <= budget["max_error"]


def test_bits_go_where_the_outputs_need_them() -> None:
    original, x = branches(UNEQUAL), normal(40, 5, WIDTH)
    mixed, same = original.clone(), original.clone()
    ctx = context("onnx", {"x": x})
    assert Quantize(bits=4).run(mixed, ctx) == len(UNEQUAL)
    RoundWeights(bits=4).run(same, context("onnx", {"x": x}))
    bits = bits_of(mixed)
    assert bits["w0"] > bits["w1"] >= bits["w5"], bits
    test = normal(40, 5, WIDTH, seed=1)
    assert damage(mixed, original, test).snr_db > damage(same, original, test).snr_db + 6
    sizes = []
    for model in (mixed, same):
        PackWeights().run(model, context("onnx"))
        sizes.append(weight_bytes(model))
    assert sizes[0] <= sizes[1]


def test_what_is_expected_is_measured() -> None:
    ctx = context("onnx", {"x": normal(40, 5, WIDTH)})
    Quantize(bits=4).run(branches(UNEQUAL), ctx)
    (said,) = (n for n in ctx.notes if n.startswith("outputs:"))
    expected, measured = (float(d) for d in re.findall(r"([0-9.]+) dB (?:expected|measured)", said))
    assert abs(expected - measured) < 1, said
    for name in (f"w{k}" for k in range(len(UNEQUAL))):
        assert any(n.startswith(f"'{name}': ") for n in ctx.notes)


def test_weights_alike_get_the_same_bits() -> None:
    model = check_pass(branches((1.0,) * 4), Quantize(bits=4), target="onnx", rtol=1)
    assert set(bits_of(model).values()) == {4}


@pytest.mark.parametrize("target", ["ios18", "ios17", "onnx"])
@pytest.mark.parametrize("share", [0.9, 0.02])
def test_a_masked_weight_counts_as_it_is_stored(target: str, share: float) -> None:
    """As it is, too: with most of it zero, rounding saves less than a weight without zeros would tell."""
    rng = np.random.default_rng(0)
    w = rng.normal(size=(64, 96)) * (rng.random((64, 96)) > share)
    model = build("(float[N,64] x) => (float[N,96] y) { y = MatMul(x, w) }", w=w.astype(np.float32))
    grids.write(model.graph.initializers["w"], grids.Sparse())
    ctx = context(target)
    with Scratch() as spool:
        found = Fits(model, weights(model, 1), {8: GridSpec()}, ctx, spool, Measurements()).found
    if (target, share) == ("ios17", 0.9):
        assert not found, "zeros as bits and a tenth in float16 are less than a byte for each, and no form has both"
        return
    half = 2 if ctx.target.float16 else 1
    form = smallest(w.astype(np.float32), grids.Sparse(), [1], ctx.target)
    stored = w.size // 8 + np.count_nonzero(w) * 4 // half
    assert (form is not None) == (share == 0.9) or target == "onnx"
    assert found[0].plain.nbytes == min(stored, w.size * 4 // half)


def test_scores_of_classes_are_compared_after_a_softmax() -> None:
    """A weight that adds the same to all scores costs no class anything."""
    text = """(float[N,64] x) => (float[N,64] y) <int64[1] axes = {1}> {
        p = MatMul(x, w0) q = MatMul(x, w1) m = ReduceMean<keepdims=1>(q, axes) n = Mul(m, g) y = Add(p, n)
    }"""
    original = build(text, w0=normal(WIDTH, WIDTH) / 4, w1=normal(WIDTH, WIDTH, seed=1), g=np.array([50.0]))
    found = {}
    for scores in (None, False):
        model, ctx = original.clone(), context("onnx", {"x": normal(30, WIDTH)})
        Quantize(bits=4.3, scores=scores).run(model, ctx)
        found[scores] = bits_of(model)
        assert any("probabilities of 'y'" in n for n in ctx.notes) == (scores is None)
    assert found[None]["w0"] > 4 > found[None]["w1"]
    assert found[False]["w0"] < 4 < found[False]["w1"]


def test_given_samples_make_it_better_on_others() -> None:
    original, test = network(), samples(400, 1)
    found = {}
    for real in (False, True):
        x = samples(400, 0)
        ctx = Context(context("onnx").target, context("onnx").scratch, {"x": x}, real, runs=[{"x": x}])
        model = original.clone()
        Quantize(bits=3).run(model, ctx)
        found[real] = damage(model, original, test).snr_db
    assert found[True] > found[False] + 3


def test_over_the_budget_of_the_whole_it_backs_off_and_says_so() -> None:
    original, x = branches(UNEQUAL), normal(40, 5, WIDTH)
    model, ctx = original.clone(), context("onnx", {"x": x})
    ctx.min_snr = 40.0
    Quantize(bits=2).run(model, ctx)
    assert 40 < damage(model, original, x).snr_db < 47
    assert any("--max-drop allow" in n for n in ctx.notes)


def test_a_compiled_model_keeps_the_users_budget() -> None:
    original, x = branches(UNEQUAL), normal(16, 5, WIDTH)
    compiled = {}
    for budget in (20.0, 38.0):
        options = {"passes": "quantize,pack-weights", "precision": "fp32", "min_snr": budget, "latency": False}
        with edgec.compile(original.clone(), target="onnx", inputs={"x": x}, **options) as found:  # type: ignore[arg-type]
            assert all(p.status != "undone" for p in found.report.passes)
            assert found.report.proof is not None
            assert found.report.proof.loss is not None
            assert budget <= found.report.proof.loss.snr_db < budget + 7
            compiled[budget] = weight_bytes(found.model)
    assert compiled[20.0] < 0.7 * compiled[38.0]


def test_round_weights_leaves_out_what_breaks_the_budget_of_the_whole() -> None:
    original, x = branches((1.0, *(0.001,) * 8)), normal(40, 5, WIDTH)
    model, ctx = original.clone(), context("onnx", {"x": x})
    ctx.min_snr = 60.0
    assert RoundWeights().run(model, ctx) == 8
    assert "w0" not in bits_of(model)
    assert damage(model, original, x).snr_db > 60
    assert any(n.startswith("not rounded: 'w0'") for n in ctx.notes)


def test_what_the_target_does_not_store_is_not_chosen() -> None:
    ctx = context("ios16")
    model = check_pass(branches(UNEQUAL), Quantize(bits=4), ctx=ctx, rtol=1)
    assert set(bits_of(model).values()) <= {2, 4, 6, 8}
    assert any(n.startswith("no weight gets 3 bits: ") for n in ctx.notes)


@pytest.mark.parametrize(
    "options, target, why",
    [
        ({"bits": 4}, "ios15", "no weight gets 2 bits: "),
        ({"size": "3kB"}, "onnx", "nothing is rounded: with the fewest bits"),
        ({"bits": 1.5}, "onnx", "nothing is rounded: with the fewest bits"),
        ({"bits": 4, "min_size": 10_000}, "onnx", "no weight of 10000 elements"),
    ],
)
def test_where_nothing_can_be_done_nothing_is_and_it_says_why(options: dict[str, float], target: str, why: str) -> None:
    ctx = context(target)
    check_pass(branches(UNEQUAL), Quantize(**options), rewrites=0, ctx=ctx)  # type: ignore[arg-type]
    assert any(n.startswith(why) for n in ctx.notes), ctx.notes


def test_a_budget_that_all_weights_fit_leaves_them_as_they_are() -> None:
    check_pass(branches(UNEQUAL), Quantize(size="1MB"), target="onnx", rewrites=0)


@pytest.mark.parametrize(
    "options, why",
    [
        ("size=2MB,bits=4", "one of them is the budget"), ("size=2TB", "say 2.5MB"), ("bits=40", "from 1 to 16"),
        ("choices=9", "from 1 to 8"), ("max_error=0", "larger than 0"),
    ],
)  # fmt: skip
def test_budgets_that_are_none_are_refused(options: str, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        find_pass(f"quantize{{{options}}}")


def test_a_metric_is_a_budget() -> None:
    """Classes that the same layer without rounding gives: the fewer points may be lost, the more bits."""
    text = "(float[N,64] x) => (float[N,16] y) { a = Gemm(x, w0) b = Relu(a) y = Gemm(b, w1) }"
    original = build(text, w0=normal(WIDTH, 256) / 8, w1=normal(256, 16, seed=1) / 16)
    x, other = normal(400, WIDTH), normal(400, WIDTH, seed=5)
    labels = run(original, {"x": other})["y"].argmax(-1)
    sizes = {}
    for drop in (0.01, 0.1):
        model, ctx = original.clone(), given(x)
        ctx.metric = Task.of(original, "accuracy", {"x": other, "labels": labels})
        Quantize(drop=drop).run(model, ctx)
        right = (run(model, {"x": other})["y"].argmax(-1) == labels).mean()
        assert 1 - drop <= right < 1 - drop / 10
        PackWeights().run(model, context("onnx"))
        sizes[drop] = weight_bytes(model)
    assert sizes[0.1] < 0.85 * sizes[0.01]


def test_a_metric_must_be_there_to_be_a_budget() -> None:
    with pytest.raises(UsageError, match="give --metric"):
        Quantize(drop=0.01).run(branches(UNEQUAL), context("onnx"))


def test_unasked_it_rounds_nothing_by_synthesised_inputs() -> None:
    ctx = context("onnx", {"x": normal(8, 5, WIDTH)})
    assert Quantize(asked=True).run(branches(UNEQUAL), ctx) == 0
    assert any("--inputs" in n for n in ctx.notes)
    ctx.min_snr = 20.0
    assert Quantize(asked=True).run(branches(UNEQUAL), ctx)


def test_its_spec_makes_it_again() -> None:
    made = Quantize(bits=3.5, choices=(2, 4, 8))
    assert made.spec == "quantize{bits=3.5,choices=2+4+8}"
    assert find_pass(made.spec) == made
