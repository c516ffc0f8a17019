"""Whether a pruned model is faster is measured and said; a model that lost nothing is not timed."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from rich.console import Console

from edgec.compiler import driver, figures, latency
from edgec.compiler.records import Latency, Report
from edgec.compiler.report import to_json
from edgec.compiler.report_terminal import print_summary

HALF = ("mask-channels{ratio=0.75}", "remove-channels")


@pytest.fixture
def network(tmp_path: Path) -> Path:
    """Two wide layers, so that three quarters of the work are seen on any clock."""
    rng = np.random.default_rng(0)
    shapes = {"w": (1024, 1024, 3), "v": (64, 1024, 3)}
    weights = [numpy_helper.from_array(rng.normal(0, 0.02, s).astype(np.float32), n) for n, s in shapes.items()]
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"]), helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "v"], ["y"]),
    ]  # fmt: skip
    ports = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("x", [1, 1024, 32]), ("y", None))]
    graph = helper.make_graph(nodes, "wide", ports[:1], ports[1:], weights)
    path = tmp_path / "wide.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def test_a_pruned_model_is_timed(network: Path) -> None:
    with driver.compile(network, level="O0", target="onnx", extra_passes=HALF) as compiled:
        found = compiled.report.latency
        assert found is not None and found.runs >= latency.LEAST
        assert 0 < found.after < found.before
        assert "latency" in compiled.report.seconds
        document = to_json(compiled.report)["latency"]
        assert document == {"before": found.before, "after": found.after, "runs": found.runs, "threads": 1}


@pytest.mark.parametrize("options", [{"latency": False}, {"verify": "off"}, {"extra_passes": ("remove-channels",)}])
def test_nothing_is_timed_where_nothing_was_removed_or_asked_for(network: Path, options: dict[str, object]) -> None:
    with driver.compile(network, **{"level": "O0", "target": "onnx", "extra_passes": HALF} | options) as compiled:
        assert compiled.report.latency is None
        assert "latency" not in compiled.report.seconds


def test_a_slower_model_is_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    for after, warnings in ((0.0119, 0), (0.0122, 0), (0.0157, 1)):
        report = Report(latency=None)
        monkeypatch.setattr(latency, "compared", lambda *_, after=after, **__: Latency(0.012, after, 5))
        latency.time_change(report, None, None, "pruning", {})  # type: ignore[arg-type]
        assert len(report.warnings) == warnings
        assert all("slower" in w and "1.31 times" in w for w in report.warnings)


def test_the_summary_says_how_fast(network: Path) -> None:
    report, out = Report(latency=Latency(0.0232, 0.0127, 9)), io.StringIO()
    print_summary(report, Console(file=out, width=100))
    assert "23 ms" in out.getvalue() and "13 ms" in out.getvalue() and "1.83× faster in onnxruntime" in out.getvalue()


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        (1.0, 1.0, "as fast"),
        (1.0, 0.99, "as fast"),
        (2.0, 1.0, "2.00× faster"),
        (1.0, 1.31, "1.31× slower"),
        (1.0, 1.05, "5% slower"),
    ],
)
def test_speed_in_words(before: float, after: float, words: str) -> None:
    assert figures.speed(before, after) == words
