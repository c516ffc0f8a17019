"""The guard: where damage arises is told by layers, and of a pass over the budget only what costs too much goes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir
import pytest

from edgec.compiler import graph
from edgec.compiler.errors import PassFailed
from edgec.compiler.guard import backoff
from edgec.compiler.guard.budget import judged, together
from edgec.compiler.guard.layers import Layer, changed_layers
from edgec.compiler.guard.parts import changed_units
from edgec.compiler.guard.task import Task
from edgec.compiler.manager import Manager, Options
from edgec.compiler.passbase import Context, Pass
from edgec.compiler.rounding import insert_integers
from edgec.compiler.verify import outputs_of
from passcheck import context, load

RNG = np.random.default_rng(3)
SIZE = 16
X = {"x": RNG.standard_normal((32, SIZE)).astype(np.float32)}


def chain(layers: int, sub: bool = False) -> ir.Model:
    """y = x w0 + b0, relu, … of layers with weights w0, w1 … and biases b0, b1 …"""
    ops, last = [], "x"
    for i in range(layers):
        ops.append(f"m{i} = MatMul({last}, w{i}) a{i} = Add(m{i}, b{i}) r{i} = Relu(a{i})")
        last = f"r{i}"
    end = "y = Identity({0})"
    if sub:
        end = (
            "t = Constant <value = bool {{1}}> () "
            "y = If (t) <then_branch = g1 () => (float[32,16] p) {{ p = Abs({0}) }}, "
            "else_branch = g2 () => (float[32,16] q) {{ q = Neg({0}) }}>"
        )
    names = ", ".join(f"float[{SIZE},{SIZE}] w{i}, float[{SIZE}] b{i}" for i in range(layers))
    m = ir.from_onnx_text(
        f"""<ir_version: 10, opset_import: ["" : 25]>
        net (float[32,{SIZE}] x{", " + names}) => (float[32,{SIZE}] y) {{ {" ".join(ops)} {end.format(last)} }}"""
    )
    for value in list(m.graph.inputs)[1:]:
        array = RNG.standard_normal(value.shape.numpy()) / math.sqrt(SIZE)  # type: ignore[union-attr]
        value.const_value = ir.Tensor(array.astype(np.float32), name=value.name)
        m.graph.inputs.remove(value)
        m.graph.register_initializer(value)
    return load(m)


def blurred(value: ir.Value, error: float) -> None:
    """Give a weight an error of that relative size."""
    array = value.const_value.numpy()  # type: ignore[union-attr]
    noise = np.random.default_rng(len(value.name or "")).standard_normal(array.shape)
    value.const_value = ir.Tensor((array + error * np.abs(array).mean() * noise).astype(np.float32), name=value.name)
    value.meta["edgec.grid"] = "stale"


@dataclass(frozen=True)
class Blur(Pass):
    """Weights get errors: those that `bad` names, separated by +, large ones, the others small ones."""

    name: ClassVar[str] = "blur"
    lossy: ClassVar[bool] = True
    bad: str = "w2"
    error: float = 1.0
    small: float = 1e-4

    def run(self, model: ir.Model, ctx: Context) -> int:
        bad = self.bad.split("+")
        for name, value in model.graph.initializers.items():
            if name.startswith(("w", *(f"b{b[1:]}" for b in bad))):
                blurred(value, self.error if name in bad else self.small)
        return len(model.graph.initializers)


@dataclass(frozen=True)
class Tied(Blur):
    """The same, all or nothing."""

    name: ClassVar[str] = "tied"
    tied: ClassVar[bool] = True


@dataclass(frozen=True)
class Scaled(Pass):
    """A matrix grows by three hundredths, a vector of scales by one."""

    name: ClassVar[str] = "scaled"
    lossy: ClassVar[bool] = True

    def run(self, model: ir.Model, ctx: Context) -> int:
        for name, factor in (("w0", 1.03), ("w9", 1.01)):
            value = model.graph.initializers[name]
            array = value.const_value.numpy() * np.float32(factor)  # type: ignore[union-attr]
            value.const_value = ir.Tensor(array, name=name)
        return 2


@dataclass(frozen=True)
class Coarse(Pass):
    """What layers read is rounded to steps; with a floor, in the first layers only, as much as keeps it."""

    name: ClassVar[str] = "coarse"
    lossy: ClassVar[bool] = True
    min_snr: float = 0.0

    def run(self, model: ir.Model, ctx: Context) -> int:
        before, count = outputs_of(model, X)["y"], 0
        for node in graph.nodes(model, "MatMul"):
            kept = model.clone()
            value = node.inputs[0]
            assert value is not None
            insert_integers(value, np.array(0.05, np.float32), np.array(0, np.int8), [node])
            error = outputs_of(model, X)["y"] - before
            if 10 * math.log10(np.square(before).sum() / np.square(error).sum()) < self.min_snr:
                model.graph = kept.graph
                break
            count += 1
        ctx.note(f"{count} layers")
        return count


@dataclass(frozen=True)
class Unspared(Coarse):
    """The same without a floor that could be raised, and with other nodes."""

    name: ClassVar[str] = "unspared"

    def run(self, model: ir.Model, ctx: Context) -> int:
        return Coarse(0.0).run(model, ctx)


def managed(m: ir.Model, p: Pass, task: Task | None = None, **budget: float | bool) -> tuple[ir.Model, Manager]:
    ctx = context(inputs=X)
    ctx.metric = task
    manager = Manager(ctx, Options(**budget), outputs_of(m, X))  # type: ignore[arg-type]
    return manager.run(m, [p]), manager


def tensors(m: ir.Model) -> dict[str, ir.TensorProtocol | None]:
    return {n: v.const_value for n, v in m.graph.initializers.items()}


# --- taking back -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("budget", [{"max_error": 0.01}, {"min_snr": 40.0}])
def test_only_the_tensor_that_costs_too_much_gets_its_numbers_back(budget: dict[str, float]) -> None:
    m = chain(5)
    before = tensors(m)
    out, manager = managed(m, Blur(), **budget)
    record, after = manager.records[0], tensors(out)
    assert record.status == "ok" and set(record.kept) == {"w2", "b2"}
    # The very tensors, and what was noted of them; all others stay changed.
    assert all(after[n] is before[n] for n in ("w2", "b2")) and "edgec.grid" not in out.graph.initializers["w2"].meta
    assert all(after[n] is not before[n] for n in ("w0", "w1", "w3", "w4"))
    assert record.loss is not None and record.loss.max_rel <= 0.01 and record.loss.snr_db >= 40
    why, what = record.retreat
    assert ("over --max-error 0.01" in why or "under --min-snr 40 dB" in why) and "'w2', 'b2'" in what
    assert "2 of 6 tensors keep" in what


def test_no_more_goes_back_than_must() -> None:
    """Three harmful weights of five; each alone is over the budget."""
    _, manager = managed(chain(5), Blur("w0+w2+w3", error=0.3), min_snr=40.0)
    assert {n for n in manager.records[0].kept if n[0] == "w"} == {"w0", "w2", "w3"}
    assert manager.records[0].loss.snr_db >= 40  # type: ignore[union-attr]


def test_the_cheapest_by_elements_goes_first() -> None:
    """Of two equally harmful tensors, giving back one suffices: the smaller one."""
    m = chain(3)
    small = graph.initializer(m.graph, np.ones(SIZE, np.float32), "w9")
    node = graph.insert_before(m.graph[-1], "Mul", [m.graph[-1].inputs[0], small])
    m.graph[-1].replace_input_with(0, node.outputs[0])
    _, manager = managed(load(m), Blur("w9+w2", error=0.03), max_error=0.04)
    assert manager.records[0].kept == ("w9",), manager.records[0].retreat


def test_where_the_large_is_too_much_the_small_may_stay() -> None:
    """The matrix costs less for its size than the scale, and yet too much."""
    m = chain(1)
    scale = graph.initializer(m.graph, np.ones(SIZE, np.float32), "w9")
    node = graph.insert_before(m.graph[-1], "Mul", [m.graph[-1].inputs[0], scale])
    m.graph[-1].replace_input_with(0, node.outputs[0])
    out, manager = managed(load(m), Scaled(), max_error=0.02)
    record = manager.records[0]
    assert record.status == "ok" and record.kept == ("w0",), record.why
    assert out.graph.initializers["w9"].const_value.numpy()[0] != 1  # type: ignore[union-attr]


@pytest.mark.parametrize("stretches", [32, 8])
def test_many_tensors_take_few_runs(monkeypatch: pytest.MonkeyPatch, stretches: int) -> None:
    runs = 0

    def counted(*arguments: object, **more: object) -> object:
        nonlocal runs
        runs += 1
        return together(*arguments, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(backoff, "together", counted)
    monkeypatch.setattr(backoff, "STRETCHES", stretches)
    monkeypatch.setattr(backoff, "RUNS", 3 * stretches)
    m = chain(40)
    _, manager = managed(m, Blur("w33", error=3.0, small=1e-6), max_error=0.01)
    record = manager.records[0]
    assert "w33" in record.kept and len(record.kept) <= 4 and runs <= backoff.RUNS + 1


def test_the_tasks_metric_is_a_budget() -> None:
    m = chain(4)
    wanted = outputs_of(m, X)["y"].argmax(1)
    task = Task.of(m, "accuracy", {**X, "labels": wanted}, 0.05)
    _, manager = managed(m.clone(), Blur(error=5.0), task)
    record = manager.records[0]
    assert record.retreat[0].startswith("over --max-drop 0.05: accuracy 1 → ") and "w2" in record.kept
    assert record.score is not None and record.score.ok and record.score.after > 0.95


def test_a_budget_is_held_against_all_runs() -> None:
    """A model of fixed batch sees one sample in a run: the first may not show what the proof, with all, will find."""
    first = {"x": np.zeros_like(X["x"])}
    for runs, kept in (((first,), set()), ((first, X, X), {"w0"})):
        m = chain(3)
        ctx = context(inputs=first)
        ctx.runs, ctx.original = runs, m.clone()
        manager = Manager(ctx, Options(min_snr=40.0), outputs_of(m, first))
        out = manager.run(m, [Blur("w0")])
        (record,) = manager.records
        assert record.status == "ok" and {n for n in record.kept if n[0] == "w"} == kept, record.why
        noise = np.square(outputs_of(out, X)["y"] - outputs_of(ctx.original, X)["y"]).sum()
        snr = 10 * math.log10(np.square(outputs_of(ctx.original, X)["y"]).sum() / noise)
        assert (snr >= 40) == bool(kept)


def test_runs_that_a_budget_is_held_against_fit_into_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    m, runs = chain(1), [X] * 9
    wanted = outputs_of(m, X)
    assert len(judged(m, runs, wanted)) == 4, "of 288 samples every second run, and the first is known"
    monkeypatch.setattr("edgec.compiler.guard.budget.HELD", 2 * wanted["y"].nbytes)
    assert len(judged(m, runs, wanted)) == 2
    monkeypatch.setattr("edgec.compiler.guard.budget.HELD", wanted["y"].nbytes - 1)
    assert judged(m, runs, wanted) == []


def test_a_metric_that_fails_behind_a_pass_is_over_the_budget() -> None:
    def finite(outputs: dict[str, np.ndarray], data: dict[str, np.ndarray]) -> float:
        return 1.0 if np.abs(outputs["y"]).max() < 1e3 else math.nan

    m = chain(4)
    task = Task.of(m, finite, X, 0.0)
    _, manager = managed(m.clone(), Blur("w1", error=1e6), task)
    assert "is nan" in manager.records[0].retreat[0] and "w1" in manager.records[0].kept


def test_what_hangs_together_is_taken_back_whole_and_says_so() -> None:
    m = chain(4)
    before = tensors(m)
    out, manager = managed(m, Tied(), max_error=0.01)
    record = manager.records[0]
    assert record.status == "undone" and "All of it is taken back: what it changes hangs together" in record.why
    assert all(tensors(out)[n] is before[n] for n in before)


def test_a_pass_that_spares_places_is_run_anew_with_a_higher_floor() -> None:
    out, manager = managed(chain(4), Coarse(), min_snr=36.0)
    record = manager.records[0]
    assert record.status == "ok" and record.loss.snr_db >= 36, record.why  # type: ignore[union-attr]
    assert "run anew as coarse{min_snr=" in record.retreat[1]
    assert len(record.notes) == 1 and record.notes[0] != "4 layers" and out.graph.num_nodes() > 13


def test_a_pass_that_changed_more_than_numbers_is_taken_back_whole() -> None:
    m = chain(2)
    nodes = m.graph.num_nodes()
    out, manager = managed(m, Unspared(), min_snr=100.0)
    assert manager.records[0].status == "undone" and out.graph.num_nodes() == nodes
    assert manager.records[0].notes == ["2 layers"]


def test_a_model_over_the_budget_before_is_no_fault_of_the_pass_alone() -> None:
    m = chain(3)
    ctx = context(inputs=X)
    manager = Manager(ctx, Options(max_error=0.01), outputs_of(m, X))
    blurred(m.graph.initializers["w0"], 1.0)
    manager.run(m, [Blur()])
    assert "the model was over the budget before" in manager.records[0].why


def test_strict_is_an_error_and_takes_nothing_back() -> None:
    with pytest.raises(PassFailed, match="over --max-error"):
        managed(chain(3), Blur(), max_error=0.01, strict=True)


def test_weights_belong_to_the_layer_that_reads_them() -> None:
    """A bias of an Add with its product's weight; one behind a Transpose, too; a shared one joins its layers."""
    before = chain(3)
    m = before.clone()
    turned = graph.insert_before(m.graph[0], "Transpose", [m.graph.initializers["w0"]], {"perm": [1, 0]})
    first = next(n for n in graph.nodes(m, "MatMul"))
    first.replace_input_with(1, turned.outputs[0])
    after = m.clone()
    for name in ("w0", "b0", "w1", "w2"):
        blurred(after.graph.initializers[name], 1.0)
    assert [u.names for u in changed_units(m, after)] == [("w0", "b0"), ("w1",), ("w2",)]
    shared = before.clone()
    next(n for n in list(graph.nodes(shared, "MatMul"))[1:]).replace_input_with(1, shared.graph.initializers["w0"])
    after = shared.clone()
    for name in ("w0", "b0", "b1"):
        blurred(after.graph.initializers[name], 1.0)
    assert [set(u.names) for u in changed_units(shared, after)] == [{"w0", "b0", "b1"}]


# --- layers ----------------------------------------------------------------------------------------------------------


def weights(m: ir.Model) -> dict[str, np.ndarray]:
    return {n: v.const_value.numpy().astype(np.float64) for n, v in m.graph.initializers.items()}  # type: ignore[union-attr]


def products(w: dict[str, np.ndarray], layers: int, see: Callable[[np.ndarray], np.ndarray] = lambda a: a) -> list:
    """What each MatMul reads and gives."""
    found, x = [], X["x"].astype(np.float64)
    for i in range(layers):
        found.append((x, see(x) @ w[f"w{i}"]))
        x = np.maximum(found[-1][1] + w[f"b{i}"], 0)
    return found


def decibels(signal: np.ndarray, got: np.ndarray) -> float:
    return float(10 * np.log10(np.square(signal).sum() / np.square(got - signal).sum()))


@pytest.mark.parametrize("sub", [False, True])
def test_own_and_inherited_errors_of_layers(sub: bool) -> None:
    before = chain(4, sub)
    after = before.clone()
    for name in ("w1", "w3"):
        blurred(after.graph.initializers[name], 0.1)
    old, new = weights(before), weights(after)
    found = changed_layers(before, after, X)
    assert [x.op for x in found] == ["MatMul", "MatMul"]
    exact, made = products(old, 4), products(new, 4)
    for layer, i in zip(found, (1, 3), strict=True):
        assert layer.snr_db == pytest.approx(decibels(exact[i][1], made[i][1]), abs=0.01)
        assert layer.own_db == pytest.approx(decibels(exact[i][1], exact[i][0] @ new[f"w{i}"]), abs=0.01)
    assert found[0].own == pytest.approx(1.0, abs=1e-3) and 0.2 < found[1].own < 0.9
    # Looking changes neither.
    assert {n: v.const_value for n, v in after.graph.initializers.items()}.keys() == new.keys()
    assert all(np.array_equal(a, b) for a, b in zip(weights(before).values(), old.values(), strict=True))


def test_rounding_of_what_a_layer_reads_is_its_own() -> None:
    before = chain(2)
    after = before.clone()
    for node in list(graph.nodes(after, "MatMul")):
        value = node.inputs[0]
        assert value is not None
        insert_integers(value, np.array(0.1, np.float32), np.array(0, np.int8), [node])
    found = changed_layers(before, load(after), X)

    def stepped(a: np.ndarray) -> np.ndarray:
        return np.clip(np.round(a / 0.1), -128, 127) * 0.1

    exact, made = products(weights(before), 2), products(weights(before), 2, stepped)
    for layer, i in zip(found, range(2), strict=True):
        assert layer.snr_db == pytest.approx(decibels(exact[i][1], made[i][1]), abs=0.05)
        assert layer.own_db == pytest.approx(
            decibels(exact[i][1], stepped(exact[i][0]) @ weights(before)[f"w{i}"]), abs=0.05
        )


def test_equal_models_have_no_changed_layers_and_equal_numbers_no_error() -> None:
    before = chain(2)
    assert changed_layers(before, before.clone(), X) == []
    after = before.clone()
    blurred(after.graph.initializers["w1"], 0.0)
    assert [(x.snr_db, x.own_db, x.own) for x in changed_layers(before, after, X)] == [(math.inf, math.inf, 0.0)]


def test_a_layer_of_inherited_error_only_owns_nothing_and_a_broken_one_all() -> None:
    assert Layer("a", "Conv", 20.0, math.inf).own == 0
    assert Layer("a", "Conv", 20.0, 20.0).own == 1 == Layer("a", "Conv", 20.0, 10.0).own
    assert Layer("a", "Conv", -math.inf, -math.inf).own == 1
    assert Layer("a", "Conv", 20.0, 30.0).own == pytest.approx(0.1)


def test_layers_are_told_when_asked_for() -> None:
    def layers(p: Pass, **options: bool) -> Sequence[Layer] | None:
        return managed(chain(3), p, **options)[1].records[0].layers

    assert layers(Blur()) is None
    found = layers(Blur(), layers=True)
    # The bias of the last layer is changed as well.
    assert found is not None and [x.op for x in found] == ["MatMul", "MatMul", "MatMul", "Add"]


def test_looking_at_layers_is_left_out_where_it_would_take_long(monkeypatch: pytest.MonkeyPatch) -> None:
    from edgec.compiler import manager

    monkeypatch.setattr(manager, "LONG", 0.0)
    record = managed(chain(3), Blur(), layers=True)[1].records[0]
    assert record.layers is None and record.status == "ok"
    assert record.notes == ["layers are not looked at: it would take more than 0 s"]
