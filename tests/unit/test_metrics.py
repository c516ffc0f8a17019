"""Metrics: what each counts, worked out by hand; what is wrong with data and functions is said in one message."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from edgec.compiler.errors import EdgecError, ModelError, UsageError
from edgec.compiler.guard import function as functions
from edgec.compiler.guard.metrics import METRICS, find_metric
from edgec.compiler.guard.spool import Spool
from edgec.compiler.guard.task import Task, with_data
from passcheck import load

RNG = np.random.default_rng(0)
NET = """<ir_version: 10, opset_import: ["" : 25]>
    net (float[{batch},4] x) => (float[{batch},3] scores) <float[4,3] w = {{{w}}}> {{ scores = MatMul(x, w) }}"""


def net(batch: str = "N", factor: float = 1.0) -> ir.Model:
    """The first three of four inputs, times a factor, as scores of three classes."""
    return load(NET.format(batch=batch, w=", ".join(str(factor * x) for x in np.eye(4, 3).reshape(-1))))


def score(metric: str, *runs: tuple[dict[str, np.ndarray], dict[str, np.ndarray]]) -> float:
    scorer = find_metric(metric).start({})
    for outputs, data in runs:
        scorer.add(outputs, data)
    return scorer.result()


def test_accuracy_counts_winners_over_all_runs() -> None:
    a = {"y": np.array([[0.1, 0.9], [0.8, 0.2]], np.float32)}, {"labels": np.array([1, 1])}
    b = {"y": np.array([[0.3, 0.7]], np.float32)}, {"labels": np.array([1])}
    assert score("accuracy", a, b) == 2 / 3


def test_accuracy_of_every_place_leaves_negative_labels_out() -> None:
    scores = np.array([[[5, 0, 0], [0, 5, 0], [0, 0, 5], [5, 0, 0]]], np.float32)
    labels = {"labels": np.array([[0, 1, 1, -100]])}
    assert score("accuracy", ({"tokens": scores}, labels)) == 2 / 3
    assert score("accuracy", ({"tokens": np.moveaxis(scores, -1, 1)}, labels)) == 2 / 3


def test_top5_agrees_with_sorting_and_ties_go_to_the_first() -> None:
    scores, labels = RNG.integers(0, 6, (200, 9)).astype(np.float32), RNG.integers(0, 9, 200)
    first_five = np.argsort(-scores, axis=-1, kind="stable")[:, :5]
    expected = float((first_five == labels[:, None]).any(-1).mean())
    assert 0.3 < expected < 0.8
    assert score("top5", ({"y": scores}, {"labels": labels})) == expected
    assert score("top5", ({"y": np.full((4, 9), np.nan, np.float32)}, {"labels": np.arange(4)})) == 0


def test_iou_is_the_mean_over_the_classes_that_occur() -> None:
    winners, labels = np.array([[0, 0, 1, 1]]), np.array([[0, 1, 1, 1]])
    scores = np.moveaxis(np.eye(5, dtype=np.float32)[winners], -1, 1)
    assert score("iou", ({"y": scores}, {"labels": labels})) == pytest.approx((1 / 2 + 2 / 3) / 2)


@pytest.mark.parametrize(("metric", "expected"), [("mse", (1 + 9) / 4), ("mae", 1.0)])
def test_errors_are_means_over_all_elements_and_smaller_is_better(metric: str, expected: float) -> None:
    outputs = {"y": np.array([[1.0], [2.0], [3.0], [7.0]], np.float32)}
    found = find_metric(metric)
    assert score(metric, (outputs, {"labels": np.array([1, 3, 3, 4])})) == expected
    assert not found.larger_is_better and found.lost(1.0, 3.0) == 2.0


def test_output_and_labels_can_be_chosen() -> None:
    outputs = {"a": np.eye(2, dtype=np.float32), "b": np.eye(2, dtype=np.float32)[::-1]}
    data = {"labels": np.array([1, 0]), "right": np.array([0, 1])}
    assert score("accuracy{output=b}", (outputs, data)) == 1
    assert score("accuracy{labels=right}", (outputs, data)) == 1
    assert score("accuracy", (outputs, data)) == 0


@pytest.mark.parametrize(
    ("metric", "outputs", "labels", "message"),
    [
        ("accuracy", {"y": np.zeros((2, 3), np.float32)}, np.array([0, 3]), "holds 3, but there are 3 classes"),
        ("accuracy", {"y": np.zeros((2, 3), np.float32)}, np.array([0.0, 1.0]), "classes must be whole numbers"),
        ("accuracy", {"y": np.zeros(2, np.float32)}, np.array([0, 1]), "none of them holds scores of classes"),
        ("accuracy{output=z}", {"y": np.eye(2, dtype=np.float32)}, np.array([0, 1]), "'z' is none of the model's: y"),
        ("mse", {"y": np.zeros((2, 3), np.float32)}, np.zeros(5), "none of them is of that shape"),
        ("mse", {"y": np.zeros(2, np.float32)}, np.array(["a", "b"]), "numbers are needed"),
    ],
)
def test_labels_that_do_not_fit_are_refused(
    metric: str, outputs: dict[str, np.ndarray], labels: np.ndarray, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        score(metric, (outputs, {"labels": labels}))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("acuracy", "unknown metric 'acuracy'; there are accuracy, top5"),
        ("accuracy{k=5}", "has no option 'k'; its options: output, labels"),
        ("agreement{labels=y}", "needs no labels"),
        ("no_such_module:f", "can't load 'no_such_module:f'"),
        ("./no_such.py:f", "no such file"),
        ("math:nothing", "math has no 'nothing'"),
        ("math:pi", "is no function, but float"),
    ],
)
def test_a_metric_that_there_is_not_is_refused(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        find_metric(text)


def test_every_metric_is_documented() -> None:
    text = (Path(__file__).parents[2] / "docs" / "guard.md").read_text()
    assert [n for n in METRICS if f"`{n}`" not in text] == []


# --- tasks -----------------------------------------------------------------------------------------------------------


def samples(count: int = 150) -> dict[str, np.ndarray]:
    x = RNG.standard_normal((count, 4)).astype(np.float32)
    return {"x": x, "labels": x[:, :3].argmax(1)}


@pytest.mark.parametrize("batch", ["N", "1", "5"])
def test_a_task_is_measured_run_by_run(batch: str) -> None:
    data = samples()
    task = Task.of(net(batch), "accuracy", data)
    assert (task.name, task.original, task.samples) == ("accuracy", 1.0, 150)
    # With the signs turned, the winner is the smallest: never the right one.
    assert task.measure(net(batch, -1.0)) == 0 and task.drop(0.0) == 1


def test_agreement_needs_no_labels() -> None:
    data = {"x": samples()["x"]}
    task = Task.of(net(), "agreement", data)
    assert task.original == 1 and task.measure(net(factor=2.0)) == 1 and task.measure(net(factor=-1.0)) == 0


@pytest.mark.parametrize("spool", [1 << 28, 1 << 10])
def test_a_function_sees_all_outputs_and_all_data(spool: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(functions, "SPOOL", spool)
    data = samples() | {"weights": np.arange(3.0)}

    def error(outputs: dict[str, np.ndarray], given: dict[str, np.ndarray]) -> float:
        assert set(given) == {"x", "labels", "weights"} and given["weights"].shape == (3,)
        assert outputs["scores"].shape == (150, 3)
        return float(np.abs(outputs["scores"] - given["x"][:, :3]).sum())

    error.smaller_is_better = True  # type: ignore[attr-defined]
    task = Task.of(net("1"), error, data)
    assert task.original == 0 and not task.metric.larger_is_better
    assert task.drop(task.measure(net("1", 0.0))) == pytest.approx(np.abs(data["x"][:, :3]).sum())


def test_a_function_may_be_named_by_file(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def first(outputs, data):\n    return outputs['scores'][0, 0]\n")
    data = samples(3)
    assert Task.of(net(), f"{tmp_path}/mine.py:first", data).original == data["x"][0, 0]


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda o, d: math.nan, "is nan: no number"),
        (lambda o, d: o["nothing"], "failed: KeyError: 'nothing'"),
        (lambda o, d: None, "failed: TypeError"),
    ],
)
def test_a_function_that_fails_is_named(function: object, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        Task.of(net(), function, samples())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": np.zeros(149, int)}, r"'labels' has shape \[149\]: it must have a row for each of the 150 samples"),
        ({"labels": None}, "needs an array 'labels' in the data; it holds nothing but the inputs"),
        ({"labels": None, "classes": np.zeros(150)}, "what it holds besides the inputs: classes"),
        ({"x": None}, "no array 'x'; the model's inputs: x"),
        ({"x": np.zeros((150, 5), np.float32)}, r"shape \[150, 5\], the model's input is"),
    ],
)
@pytest.mark.parametrize("batch", ["N", "1"])
def test_data_that_does_not_fit_is_refused(change: dict[str, np.ndarray | None], message: str, batch: str) -> None:
    data = {n: a for n, a in (samples() | change).items() if a is not None}
    with pytest.raises(UsageError, match=message):
        Task.of(net(batch), "accuracy", data)


def test_a_limit_must_be_one() -> None:
    for limit, message in ((1.0, "one percent is 0.01"), (-0.1, "0 or more"), (math.nan, "0 or more")):
        with pytest.raises(UsageError, match=message):
            Task.of(net(), "accuracy", samples(), limit)
    assert Task.of(net(), "mse", {"x": samples(5)["x"], "labels": np.zeros((5, 3))}, 7.0).max_drop == 7


def test_what_is_wanted_must_be_whole() -> None:
    assert Task.wanted(net(), None, samples(), None) is None
    for metric, data, limit, message in (("accuracy", None, None, "--data"), (None, samples(), 0.1, "--metric")):
        with pytest.raises(UsageError, match=message):
            Task.wanted(net(), metric, data, limit)


def test_data_stands_in_for_inputs_and_inputs_for_data(tmp_path: Path) -> None:
    data = samples(8) | {"more": np.zeros(2)}
    np.savez(tmp_path / "d.npz", **data)  # type: ignore[arg-type]
    inputs, found = with_data(net(), None, tmp_path / "d.npz")
    assert isinstance(inputs, dict) and set(inputs) == {"x"} and found is not None and set(found) == set(data)
    own = {"x": data["x"][:2]}
    assert with_data(net(), own, tmp_path / "d.npz")[0] is own
    assert with_data(net(), own, None) == (own, own)
    (tmp_path / "e.npz").write_text("no archive")
    for name, message in (("e.npz", "is no .npz"), ("f.npz", "can't read")):
        with pytest.raises(EdgecError, match=message):
            with_data(net(), None, tmp_path / name)


# --- spools ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("moved", [(), (0,), (0, 2), (3,)])
@pytest.mark.parametrize("dtype", [np.float32, bool])
def test_a_spool_gives_back_what_was_put_in(moved: tuple[int, ...], dtype: type) -> None:
    runs = [(RNG.standard_normal((n, 2, 3)) > 0).astype(dtype) for n in (4, 1, 0, 5)]
    spool = Spool()
    for i, array in enumerate(runs):
        spool.add(array)
        if i in moved:
            spool.to_disk()
    assert np.array_equal(spool.whole(), np.concatenate(runs)) and spool.whole().dtype == dtype
    spool.close()


@pytest.mark.parametrize("moved", [False, True])
def test_runs_of_other_sizes_stay_apart(moved: bool) -> None:
    runs = [np.full((2, n), n, np.float32) for n in (3, 3, 5)]
    spool = Spool()
    for i, array in enumerate(runs):
        spool.add(array)
        if moved and i == 1:
            spool.to_disk()
    found = spool.whole()
    assert found.dtype == object and all(np.array_equal(a, b) for a, b in zip(found, runs, strict=True))
    spool.close()


def test_scalars_become_a_row() -> None:
    spool = Spool()
    for x in (1.0, 2.0):
        spool.add(np.array(x))
        spool.to_disk()
    assert spool.whole().tolist() == [1.0, 2.0]
