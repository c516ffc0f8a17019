"""quantize: what a weight costs is measured alike in every way, and the search goes on where it was."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from layercases import build
from mixedbits import UNEQUAL, WIDTH, bits_of, branches, damage, given, network, normal, samples

from edgec.compiler.calibration.linear_layers import linear_layers
from edgec.compiler.calibration.statistics import moments
from edgec.compiler.graph import const
from edgec.compiler.passbase import Context
from edgec.compiler.quantization.gridfit import GridSpec
from edgec.passes import weight_grid
from edgec.passes.bit_budget import Plan, Width
from edgec.passes.bit_search import Search
from edgec.passes.calibrated import held_back
from edgec.passes.measurements import Measurements
from edgec.passes.probe import Behind, Damage, Probe, Switches, alone, some_runs
from edgec.passes.quantize import Quantize
from edgec.passes.sensitivity import Fits, by_gradients, by_outputs
from passcheck import context

SPECS = {b: GridSpec("table", b) for b in (2, 3, 4, 6)}


def measured(model: ir.Model, ctx: Context, jobs: int = 1) -> dict[str, list[float]]:
    """The noise of each weight at each width, by runs of the model."""
    fits = Fits(model, weight_grid.weights(model, 2048), SPECS, ctx, ctx.scratch, Measurements(), jobs)
    probe = Probe(model, some_runs(model, ctx))
    return {f.name: [w.noise for w in c] for f, c in zip(fits.found, by_outputs(fits, probe, ctx), strict=True)}


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
    Quantize(bits=5.5, resume=str(tmp_path / "found"), jobs=1).run(network(), given(x))
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
