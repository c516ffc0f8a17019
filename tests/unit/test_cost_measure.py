"""Measured times: every layer gets the time of its own nodes, whatever onnxruntime makes of them."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from edgec.compiler.cost.analyze import analyze
from edgec.compiler.cost.measure import Measured, _per_run, measure
from edgec.compiler.cost.polynomial import evaluate
from edgec.compiler.cost.records import Analysis
from edgec.compiler.errors import UsageError
from linearmodels import build
from passcheck import fingerprint, load

HEAD = '<ir_version: 10, opset_import: ["" : 25]>\n'


def measured(model: ir.Model, runs: int = 2) -> tuple[Analysis, Measured]:
    analysis = analyze(model)
    return analysis, measure(model, analysis, runs=runs, threads=1)


def test_the_layer_that_works_most_takes_most_of_the_time() -> None:
    weight = np.ones((1024, 1024), np.float32)
    nodes = [("Relu", "x", "a"), ("MatMul", "a w", "b"), ("Neg", "b", "y")]
    model = load(build(nodes, {"x": ("B", 1024)}, {"w": weight}))
    before = fingerprint(model)
    analysis, found = measured(model)
    relu, product, _ = found.layers
    assert relu is not None and product is not None and product > relu > 0
    assert [x.seconds for x in analysis.layers] == found.layers
    assert found.at == {"B": 1} and found.threads == 1 and found.runs == 2
    assert found.needed == sum(evaluate(x.flops, found.at) for x in analysis.layers) > 2 * 1024**2
    assert found.ops[1] == pytest.approx(2 * 1024**2 / product)
    assert found.achieved == pytest.approx(found.needed / found.optimised)
    assert found.seconds >= product and found.optimised > 0
    assert any("1 threads" in n for n in found.notes) and any("B = 1" in n for n in found.notes)
    assert fingerprint(model) == before


def test_sizes_that_are_given_are_those_that_it_runs_at() -> None:
    model = load(build([("Relu", "x", "y")], {"x": ("B", "T")}, {}))
    shapes = {"x": (3, 5)}
    found = measure(model, analyze(model, shapes=shapes), shapes=shapes, runs=1, threads=1)
    assert found.at == {"B": 3, "T": 5} and found.needed == 15
    inputs = {"x": np.zeros((2, 7), np.float32)}
    assert measure(model, analyze(model), inputs=inputs, runs=1, threads=1).needed == 14


def test_operators_without_a_kernel_get_the_time_of_their_pieces() -> None:
    """onnxruntime writes out Attention and HardSwish; the pieces are the layer's."""
    model = load(
        HEAD
        + """g (float[1,4,64,32] q) => (float[1,4,64,32] y) {
        a = Attention(q, q, q) b = HardSwish(a) c = Attention(b, b, b) y = HardSwish(c)
    }"""
    )
    _, found = measured(model)
    assert all(s is not None and s > 0 for s in found.layers)
    assert found.other == 0


def test_what_runs_inside_a_node_counts_once() -> None:
    model = load(
        HEAD
        + """g (float[512,512] x, bool c) => (float[512,512] y, float[512,512] z)
        <int64 n = {3}, bool go = {1}> {
        y = If(c) <then_branch = t () => (float[512,512] r) { r = MatMul(x, x) },
                   else_branch = f () => (float[512,512] s) { s = MatMul(x, x) }>
        z = Loop(n, go, x) <body = b (int64 i, bool on, float[512,512] s) => (bool on2, float[512,512] s2) {
            on2 = Identity(on) s2 = MatMul(s, s)
        }>
    }"""
    )
    analysis, found = measured(model)
    seconds = {(x.op, x.runs): s for x, s in zip(analysis.layers, found.layers, strict=True)}
    branches = [s for x, s in zip(analysis.layers, found.layers, strict=True) if x.op == "MatMul"]
    taken = [s for s in branches[:2] if s is not None]
    assert len(taken) == 1  # of the other one, nothing was seen
    loop, inside = seconds["Loop", 1], branches[2]
    assert loop is not None and inside is not None and inside > loop
    assert sum(s for s in found.layers if s is not None) + found.other <= 1.5 * found.seconds


def test_time_inside_is_taken_off_the_node_around_it() -> None:
    def event(name: str, ts: int, dur: int, cat: str = "Node") -> dict[str, object]:
        return {"cat": cat, "name": name, "ts": ts, "dur": dur}

    events = [
        event("model_run", 0, 100, "Session"),
        event("layer0_kernel_time", 1, 50),
        event("layer1_kernel_time", 2, 20),
        event("Mul_7_kernel_time", 30, 5),
        event("layer2.0_kernel_time", 60, 3),
        event("layer2.1_kernel_time", 64, 4),
        event("model_run", 200, 100, "Session"),
        event("layer0_kernel_time", 201, 9),
    ]
    first, second = _per_run(events)
    assert {k: round(v * 1e6) for k, v in first.items()} == {0: 25, 1: 20, None: 5, 2: 7}
    assert {k: round(v * 1e6) for k, v in second.items()} == {0: 9}


def test_an_analysis_of_another_model_is_refused() -> None:
    one = load(build([("Relu", "x", "y")], {"x": (2,)}, {}))
    two = load(build([("Relu", "x", "a"), ("Relu", "a", "y")], {"x": (2,)}, {}))
    with pytest.raises(UsageError, match="another"):
        measure(two, analyze(one), runs=1)
    with pytest.raises(UsageError, match="at least one run"):
        measure(one, analyze(one), runs=0)
