"""quantize: the budget is kept, bits go where they are needed, and what it says is what it did."""

from __future__ import annotations

import contextlib
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from layercases import build

import edgec
from edgec.compiler.calibration.linear_layers import linear_layers
from edgec.compiler.calibration.statistics import moments
from edgec.compiler.cost import weight_bytes
from edgec.compiler.errors import UsageError
from edgec.compiler.graph import const
from edgec.compiler.guard.task import Task
from edgec.compiler.passbase import Context
from edgec.compiler.plugins import find_pass
from edgec.compiler.quantization import grids
from edgec.compiler.quantization.gridfit import GridSpec
from edgec.compiler.verify import Comparison, compare_outputs
from edgec.passes import weight_grid
from edgec.passes.bit_budget import Plan, Width
from edgec.passes.bit_search import Search
from edgec.passes.calibrated import held_back
from edgec.passes.measurements import Measurements
from edgec.passes.pack_weights import PackWeights
from edgec.passes.probe import Behind, Damage, Probe, Switches, alone, some_runs
from edgec.passes.quantize import Quantize
from edgec.passes.round_weights import RoundWeights
from edgec.passes.sensitivity import Fits, by_gradients, by_outputs
from passcheck import check_pass, context, run

WIDTH = 64
UNEQUAL = (1.0, 0.03, 0.3, 0.01, 0.1, 0.003)
SPECS = {b: GridSpec("table", b) for b in (2, 3, 4, 6)}
MIX = np.random.default_rng(3).normal(size=(8, WIDTH))


def branches(gains: Sequence[float], rank: int = 3) -> ir.Model:
    """A sum of products with matrices, each times its gain: so much do the outputs suffer from its errors."""
    dims = "N,5,64" if rank == 3 else "N,64"
    lines = [f"p{k} = MatMul(x, w{k}) q{k} = Mul(p{k}, g{k})" for k in range(len(gains))]
    names = ", ".join(f"q{k}" for k in range(len(gains)))
    rng = np.random.default_rng(0)
    weights = {f"w{k}": rng.normal(size=(WIDTH, WIDTH)) / 8 for k in range(len(gains))}
    scales = {f"g{k}": np.array([g]) for k, g in enumerate(gains)}
    return build(
        f"(float[{dims}] x) => (float[{dims}] y) {{ {' '.join(lines)} y = Sum({names}) }}", **weights, **scales
    )


def network() -> ir.Model:
    """Layers with biases."""
    text = f"""(float[N,{WIDTH}] x) => (float[N,{WIDTH}] y) {{
        p = Gemm(x, w0, b0) q = Relu(p) r = Gemm(q, w1, b1) s = Relu(r) y = Gemm(s, w2)
    }}"""
    rng = np.random.default_rng(1)
    weights = {f"w{k}": rng.normal(size=(WIDTH, WIDTH)) / 8 for k in range(3)}
    return build(text, **weights, b0=rng.normal(size=WIDTH), b1=rng.normal(size=WIDTH))


def samples(count: int, seed: int) -> np.ndarray:
    """Inputs with few common causes, whose mean is not 0."""
    rng = np.random.default_rng(seed)
    return ((rng.normal(size=(count, 8)) + 1) @ MIX + 0.2 * rng.normal(size=(count, WIDTH))).astype(np.float32)


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def damage(model: ir.Model, original: ir.Model, x: np.ndarray) -> Comparison:
    return compare_outputs(run(original, {"x": x}), run(model, {"x": x}))


def bits_of(model: ir.Model) -> dict[str, int]:
    """The bits of each weight that lies on a grid, which the array confirms."""
    found = {}
    for name, value in model.graph.initializers.items():
        grid = grids.read(value)
        if grid is not None:
            assert grid.indices(np.asarray(const(value))) is not None
            found[name] = grid.bits  # type: ignore[union-attr]
    return found


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
    for given in (False, True):
        x = samples(400, 0)
        ctx = Context(context("onnx").target, context("onnx").scratch, {"x": x}, given, runs=[{"x": x}])
        model = original.clone()
        Quantize(bits=3).run(model, ctx)
        found[given] = damage(model, original, test).snr_db
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


def measured(model: ir.Model, ctx: Context, jobs: int = 1) -> dict[str, list[float]]:
    """The noise of each weight at each width, by runs of the model."""
    fits = Fits(model, weight_grid.weights(model, 2048), SPECS, ctx, ctx.scratch, Measurements(), jobs)
    probe = Probe(model, some_runs(model, ctx))
    return {f.name: [w.noise for w in c] for f, c in zip(fits.found, by_outputs(fits, probe, ctx), strict=True)}


def given(x: np.ndarray) -> Context:
    plain = context("onnx")
    return Context(plain.target, plain.scratch, {"x": x}, True, runs=[{"x": x}])


@pytest.mark.parametrize("costly", [False, True])
def test_a_weight_alone_is_measured_as_by_the_whole_model(costly: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Biases that change with it included: once with all weights for inputs, once from where the weight is read."""
    model, ctx = network(), given(samples(40, 0))
    fits = Fits(model, weight_grid.weights(model, 2048), SPECS, ctx, ctx.scratch, Measurements(), 1)
    assert any(f.biases for f in fits.found)
    probe = Probe(model, some_runs(model, ctx))
    monkeypatch.setattr(probe, "costly", costly)
    ways = list(alone(probe, [(f.name, sorted(f.biases)) for f in fits.found]))
    assert sorted(i for i, _ in ways) == [0, 1, 2]
    for i, way in ways:
        assert isinstance(way, Behind if costly else Switches)
        for rounded in fits.found[i].rounded.values():
            name = fits.found[i].name
            assert way.damage(name, rounded) == probe.damage({name: rounded})


def test_several_cores_find_what_one_does() -> None:
    one, three = (measured(network(), given(samples(40, 0)), jobs) for jobs in (1, 3))
    assert list(one) == list(three)
    for name, noises in one.items():
        assert noises == pytest.approx(three[name], rel=1e-3)


def test_plans_are_compared_on_samples_that_say_nothing_of_how_to_round() -> None:
    """Others in their place change what the plan's weights are in the end, but not what was compared."""
    x, others = samples(40, 0), normal(40, WIDTH, seed=9)
    x[32:] += others[32:]  # the last fifth is held out
    other = np.concatenate([x[:32], 3 * x[32:]])
    compared, finished = [], []
    for each in (x, other):
        model, ctx = network(), given(each)
        weights = weight_grid.weights(model, 2048)
        assert np.array_equal(np.concatenate([r["x"] for r in held_back(model, weights, ctx)]), each[32:])
        fits = Fits(model, weights, {4: GridSpec("affine", 4)}, ctx, ctx.scratch, Measurements(), 1)
        plan = tuple(Width(4, f.nbytes[4], 0.0) for f in fits.found)
        compared.append({n: r.tensor.numpy().copy() for n, r in fits.rounded(plan).items()})
        finished.append({n: r.tensor.numpy().copy() for n, r in fits.finished(plan).items()})
    assert compared[0].keys() == finished[0].keys() == {"w0", "w1", "w2"}
    # The scales, and how much feedback pays, are those of 32 samples or of 40; w0 reads the samples as they are.
    assert not np.array_equal(finished[0]["w0"], finished[1]["w0"])
    assert np.array_equal(trial(x), trial(other))


def trial(x: np.ndarray) -> np.ndarray:
    """A layer's moments as they are known to what is compared."""
    model = network()
    layers = [layer for layer in linear_layers(model) if layer.weight.name == "w0"]
    (known,) = moments(model, layers, [{"x": x}])
    gram = known.trial().whole.gram
    assert gram is not None and not np.array_equal(gram, known.whole.gram)
    return gram


@pytest.mark.parametrize("scores", [False, True])
def test_gradients_tell_the_noise_that_runs_measure(scores: bool) -> None:
    """On outputs that are numbers, and on scores of classes; small enough for a second-order expansion."""
    model = branches(UNEQUAL, rank=2)
    ctx = given(normal(200, WIDTH))
    fits = Fits(model, weight_grid.weights(model, 2048), SPECS, ctx, ctx.scratch, Measurements(), 1)
    probe = Probe(model, some_runs(model, ctx), scores)
    told, found = by_gradients(fits, probe, ctx), by_outputs(fits, probe, ctx)
    for a, b in zip(told, found, strict=True):
        assert [w.bits for w in a] == [w.bits for w in b]
        for x, y in zip(a[1:-1], b[1:-1], strict=True):
            assert abs(10 * np.log10(x.noise / y.noise)) < 3


def test_by_fisher_gives_the_bits_that_by_output_gives() -> None:
    x = normal(200, WIDTH)
    found = {}
    for by in ("output", "fisher"):
        model = branches(UNEQUAL, rank=2)
        Quantize(bits=4, by=by).run(model, given(x))  # type: ignore[arg-type]
        found[by] = bits_of(model)
    assert max(abs(found["output"][n] - found["fisher"][n]) for n in found["output"]) <= 2
    assert found["fisher"]["w0"] > found["fisher"]["w5"]


def test_what_can_not_be_differentiated_is_measured_by_runs_and_it_says_so() -> None:
    body = "{ a = MatMul(x, w0) b = Reshape(a, square) y = Det(b) }"
    text = f"(float[N,64] x) => (float[N] y) <int64[3] square = {{-1, 8, 8}}> {body}"
    model, ctx = build(text, w0=normal(WIDTH, WIDTH)), given(normal(40, WIDTH))
    assert Quantize(bits=4, by="fisher").run(model, ctx) == 1
    assert any(n.startswith("by=output in place of fisher: ") and "Det" in n for n in ctx.notes)


class Stopped(Exception):
    """Somebody has pressed Ctrl-C."""


def test_an_interrupted_search_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x, wanted = samples(60, 0), network()
    Quantize(bits=3.5, jobs=1).run(wanted, given(x))
    ran = Counter[str]()
    for kind in (Switches, Behind):
        monkeypatch.setattr(kind, "damage", _counted(kind.damage, ran))
    plain = Probe.damage
    monkeypatch.setattr(Probe, "damage", lambda self, rounded: ran.update(["plan"]) or plain(self, rounded))
    for stop in (2, 4, 5, 8, 10_000):
        model, ctx = network(), given(x)
        left = iter(range(stop))

        def progress(*_: object, left: Iterator[int] = left) -> None:
            if next(left, None) is None:
                raise Stopped

        ctx.progress = progress
        with contextlib.suppress(Stopped):
            Quantize(bits=3.5, resume=str(tmp_path / "found"), jobs=1).run(model, ctx)
    assert bits_of(model) == bits_of(wanted)
    for name in bits_of(wanted):
        np.testing.assert_array_equal(const(model.graph.initializers[name]), const(wanted.graph.initializers[name]))
    assert all(ran[name] == 1 for name in ("w0", "w1", "w2")), ran
    before = ran.copy()
    # A look at another budget measures its own plans only.
    Quantize(bits=4.5, resume=str(tmp_path / "found"), jobs=1).run(network(), given(x))
    assert ran["w0"] + ran["w1"] + ran["w2"] == 3
    again, ctx = network(), given(x)
    between = ran["plan"]
    assert between > before["plan"]
    Quantize(bits=3.5, resume=str(tmp_path / "found"), jobs=1).run(again, ctx)
    assert ran["plan"] == between
    assert bits_of(again) == bits_of(wanted)


def _counted(damage: Callable[..., Damage], ran: Counter[str]) -> Callable[..., Damage]:
    def counted(self: object, name: str, rounded: object) -> Damage:
        ran[name] += 1
        return damage(self, name, rounded)

    return counted


def test_it_says_how_far_it_is() -> None:
    said: list[tuple[str, int, int]] = []
    ctx = given(samples(40, 0))
    ctx.progress = lambda *args: said.append(args)
    Quantize(bits=4).run(network(), ctx)
    assert [(k, n) for what, k, n in said if what == "rounding weights to all widths"] == [(1, 3), (2, 3), (3, 3)]
    assert [(k, n) for what, k, n in said if what == "measuring weights one by one"] == [(1, 3), (2, 3), (3, 3)]


def test_different_bits_that_measure_worse_than_the_same_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where noise does not add up as it is expected to, what is measured counts."""
    plain = Search._damage

    def worse(self: Search, plan: Plan, judge: bool = False) -> Damage:
        found = plain(self, plan, judge)
        return found if len({w.bits for w in plan}) == 1 else replace(found, noise=10.0)

    monkeypatch.setattr(Search, "_damage", worse)
    model, ctx = branches(UNEQUAL), context("onnx", {"x": normal(40, 5, WIDTH)})
    Quantize(bits=4).run(model, ctx)
    assert set(bits_of(model).values()) == {4}
    assert any("no more noise is measured than with different ones" in n for n in ctx.notes)


def test_the_same_bits_are_taken_where_they_keep_an_error_in_fewer_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where noise of different bits adds up to more than is expected."""
    plain = Search._damage

    def worse(self: Search, plan: Plan, judge: bool = False) -> Damage:
        found = plain(self, plan, judge)
        bits = {w.bits for w in plan}
        return found if len(bits) == 1 or min(bits) >= 6 else replace(found, snr=0.0)

    monkeypatch.setattr(Search, "_damage", worse)
    original, x = branches(UNEQUAL), normal(40, 5, WIDTH)
    model, ctx = original.clone(), context("onnx", {"x": x})
    Quantize(min_snr=18).run(model, ctx)
    assert set(bits_of(model).values()) == {4}
    assert damage(model, original, x).snr_db >= 18
    assert any("measured to need more bytes" in n for n in ctx.notes)


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
