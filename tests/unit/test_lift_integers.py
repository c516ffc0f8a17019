"""Integer operators become float ones between rounding pairs: the same results, the same integers."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import helper, numpy_helper
from onnxruntime import quantization

import edgec
from edgec.compiler.graph import nodes
from edgec.compiler.quantization.lifting import lift
from edgec.compiler.rounding import pair_source, strip_rounding
from edgec.compiler.session import Session
from edgec.frontends.onnx import load
from edgec.passes.lift_integers import LiftIntegers
from passcheck import context

RNG = np.random.default_rng(5)
X = RNG.normal(size=(1, 3, 16, 16)).astype(np.float32)


class Reader(quantization.CalibrationDataReader):
    def __init__(self) -> None:
        self.left = [{"x": RNG.normal(size=X.shape).astype(np.float32)} for _ in range(6)]

    def get_next(self) -> dict[str, np.ndarray] | None:
        return self.left.pop() if self.left else None


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two convolutions, a sum, a product, a sigmoid, a concatenation, pools, a MatMul and a Gemm."""
    shapes = {"v": (16, 3, 3, 3), "w": (16, 16, 3, 3), "m": (32, 24), "g": (10, 24)}
    weights = [numpy_helper.from_array(RNG.normal(0, 0.2, s).astype(np.float32), n) for n, s in shapes.items()]
    weights += [numpy_helper.from_array(RNG.normal(size=n).astype(np.float32), k) for k, n in (("b", 16), ("c", 10))]
    made = [
        ("Conv", ["x", "v"], "a", {"pads": [1, 1, 1, 1]}), ("Relu", ["a"], "r", {}),
        ("Conv", ["r", "w", "b"], "d", {"pads": [1, 1, 1, 1]}), ("Add", ["r", "d"], "e", {}),
        ("Sigmoid", ["e"], "f", {}), ("Mul", ["e", "f"], "h", {}), ("LeakyRelu", ["h"], "l", {"alpha": 0.2}),
        ("AveragePool", ["l"], "p", {"kernel_shape": [2, 2]}), ("Concat", ["p", "p"], "q", {"axis": 1}),
        ("GlobalAveragePool", ["q"], "s", {}), ("Flatten", ["s"], "t", {}), ("MatMul", ["t", "m"], "u", {}),
        ("Gemm", ["u", "g", "c"], "y", {"transB": 1}),
    ]  # fmt: skip
    chain = [helper.make_node(op, i, [o], **a) for op, i, o, a in made]
    ports = [helper.make_tensor_value_info(n, 1, s) for n, s in (("x", X.shape), ("y", (1, 10)))]
    graph = helper.make_graph(chain, "net", ports[:1], ports[1:], weights)
    path = tmp_path_factory.mktemp("lift") / "float.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def quantized(source: Path, kind: str) -> Path:
    """What onnxruntime.quantization makes of it."""
    path = source.with_name(f"{kind}.onnx")
    if kind.startswith("dynamic"):
        quantization.quantize_dynamic(source, path, per_channel=kind.endswith("channel"))
    else:
        form = quantization.QuantFormat.QOperator if "operators" in kind else quantization.QuantFormat.QDQ
        quantization.quantize_static(source, path, Reader(), quant_format=form, per_channel=kind.endswith("channel"))
    return path


KINDS = ("dynamic", "dynamic per channel", "operators", "operators per channel", "pairs", "pairs per channel")
INTEGER = ("MatMulInteger", "ConvInteger", "QLinearConv", "QLinearMatMul")


def integers(path: Path) -> list[tuple[int, ...]]:
    """Constants of 8 bits and over 100 elements, their elements in order, zero points taken for 128 where unsigned."""
    tensors = [numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer if t.data_type in (2, 3)]
    return sorted(tuple(np.sort(t.astype(int).ravel())) for t in tensors if t.size > 100)


@pytest.mark.parametrize("kind", KINDS[:4])
def test_the_same_results(kind: str, source: Path) -> None:
    path = quantized(source, kind)
    model = load(path)
    before = Counter(n.op_type for n in model.graph)
    assert set(before) & set(INTEGER)
    wanted = Session(model).run({"x": X})["y"]
    count = lift(model)
    after = {n.op_type for n in model.graph}
    assert count >= 4 and not after & set(INTEGER)
    assert not [n for n in model.graph if n.domain] and "com.microsoft" not in model.graph.opset_imports
    got = Session(model).run({"x": X})["y"]
    # Sums of floats: where one ends between two levels, the next rounding may take the other. And where a processor has
    # no instruction for them (VNNI), onnxruntime's sums of integers with a sign are cut off, in a few columns here.
    assert np.square(got - wanted).sum() < 1e-2 * np.square(wanted).sum()
    assert np.median(np.abs(got - wanted)) < 1e-5 * np.abs(wanted).max()
    assert lift(model) == 0
    real = Session(load(source)).run({"x": X})["y"]
    exact = Session(strip_rounding(model)).run({"x": X})["y"]
    assert np.square(got - real).sum() > 1e-6 * np.square(real).sum()
    if kind.startswith("dynamic"):
        assert np.square(exact - real).sum() < 0.01 * np.square(real).sum(), "what is left is rounding of weights"


def test_near_misses_stay(source: Path) -> None:
    """A sum that something else reads, and weights that are computed, are left as they are."""
    model = load(quantized(source, "dynamic"))
    first = next(n for n in model.graph if n.op_type == "MatMulInteger")
    model.graph.outputs.append(first.outputs[0])
    before = sum(n.op_type == "MatMulInteger" for n in model.graph)
    lift(model)
    assert sum(n.op_type == "MatMulInteger" for n in model.graph) == 1 < before


def test_targets_without_ranges_in_every_run_do_not_round(source: Path) -> None:
    model, ctx = load(quantized(source, "dynamic")), context("ios17", {"x": X})
    assert LiftIntegers().run(model, ctx)
    assert not list(nodes(model, "DynamicQuantizeLinear"))
    assert any("not rounded" in note for note in ctx.notes)
    other, ctx = load(quantized(source, "dynamic")), context("onnxruntime", {"x": X})
    LiftIntegers().run(other, ctx)
    dynamic = [n for n in nodes(other, "DequantizeLinear") if pair_source(n) is not None]
    assert len(dynamic) == 4 and not ctx.notes


@pytest.mark.parametrize("target", ["onnx", "onnxruntime", "ios17"])
@pytest.mark.parametrize("kind", KINDS)
def test_integers_are_kept_all_the_way(kind: str, target: str, source: Path, tmp_path: Path) -> None:
    """Models that came quantized: equal integers on disk, the same function."""
    path = quantized(source, kind)
    with edgec.compile(path, target=target, precision="fp32", latency=False) as c:
        assert c.proof is not None and c.proof.ok
        assert not [r.why for r in c.report.passes if r.status == "undone"]
        out = c.save(tmp_path / f"out{'.mlpackage' if target == 'ios17' else '.onnx'}")
    if target == "ios17":
        with edgec.compile(out, level="O0", target="onnx", verify="off") as c:
            out = c.save(tmp_path / "back.onnx")
    found = integers(out)
    turned = [tuple(v - 128 for v in t) for t in found] + [tuple(v + 128 for v in t) for t in found]
    assert len(integers(path)) >= 4
    assert all(t in found or t in turned for t in integers(path))
    if target != "ios17":
        assert out.stat().st_size < path.stat().st_size + 6_000
        session = ort.InferenceSession(str(out), providers=["CPUExecutionProvider"])
        wanted = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, {"x": X})[0]
        got = session.run(None, {"x": X})[0]
        assert np.square(got - wanted).sum() < 0.01 * np.square(wanted).sum()


