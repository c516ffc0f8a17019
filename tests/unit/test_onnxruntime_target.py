"""`--target onnxruntime`: the file computes the model, holds its integers, and is what was measured to be faster."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from layercases import build

import edgec
from edgec.backends.onnx import BACKEND as ONNX
from edgec.backends.onnx.blocks import troublesome
from edgec.backends.onnxruntime import BACKEND, choice
from edgec.backends.onnxruntime.choice import choose
from edgec.backends.onnxruntime.integers import families, lowered
from edgec.backends.onnxruntime.pads import wide
from edgec.compiler import latency
from edgec.compiler.backend import EmitOptions
from edgec.compiler.graph import nodes
from edgec.compiler.quantization.lifting import lift
from edgec.compiler.session import Saved, Session
from edgec.compiler.targets import find_target
from edgec.frontends.onnx import load
from edgec.passes.pack_weights import PackWeights
from edgec.passes.quantize_activations import QuantizeActivations
from edgec.passes.round_weights import RoundWeights
from passcheck import context

RNG = np.random.default_rng(3)
TARGET = find_target("onnxruntime")
NET = """(float[N,3,12,12] x) => (float[N,10] y) {
    a = Conv<pads=[1,1,1,1]>(x, v) b = Relu(a) c = Conv(b, p) d = Relu(c)
    e = GlobalAveragePool(d) f = Flatten(e) h = MatMul(f, m) i = Relu(h) y = Gemm<transB=1>(i, w, k) }"""
WEIGHTS = {
    "v": RNG.normal(size=(24, 3, 3, 3)) / 5, "p": RNG.normal(size=(96, 24, 1, 1)) / 5,
    "m": RNG.normal(size=(96, 64)) / 10, "w": RNG.normal(size=(10, 64)) / 8, "k": RNG.normal(size=10),
}  # fmt: skip
INPUTS = {"x": RNG.normal(size=(4, 3, 12, 12)).astype(np.float32)}


def rounded(*passes: QuantizeActivations) -> ir.Model:
    """The network with weights of 8 bits, packed, and activations rounded by these passes."""
    model, ctx = build(NET, **WEIGHTS), context("onnxruntime", INPUTS)
    ctx.given = True
    for p in (RoundWeights(bits=8, by="nearest", min_snr=0, min_size=1), *passes, PackWeights(min_size=1)):
        assert p.run(model, ctx)
    return model


STATIC = QuantizeActivations(keep=("Gemm", "MatMul"), min_snr=0)
DYNAMIC = QuantizeActivations(calibrate="dynamic", min_snr=0)


def written(model: ir.Model, path: Path) -> Path:
    ONNX.emit(model, TARGET, path, EmitOptions())
    return path


def optimised(path: Path) -> Counter[str]:
    """The operators that onnxruntime runs, after its own optimisations."""
    options, out = ort.SessionOptions(), path.with_suffix(".optimised.onnx")
    options.optimized_model_filepath, options.log_severity_level = str(out), 4
    ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return Counter(n.op_type for n in onnx.load(out).graph.node)


def stored(path: Path) -> list[tuple[int, ...]]:
    """Integers of 8 bits, in any order."""
    tensors = [onnx.numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer if t.data_type in (2, 3)]
    return sorted(tuple(np.sort(t.astype(int).ravel())) for t in tensors if t.size > 100)


def test_packed_weights_are_unpacked_once(tmp_path: Path) -> None:
    """In float, no operator of the optimised graph reads integers; the numbers are the same bit for bit."""
    model = rounded()
    assert "DequantizeLinear" in optimised(written(model, tmp_path / "before.onnx"))
    form = lowered(model, ())
    path = written(form, tmp_path / "after.onnx")
    assert not {"DequantizeLinear", "MatMulNBits", "Cast", "Mul"} & set(optimised(path))
    np.testing.assert_array_equal(Session(model).run(INPUTS)["y"], Session(form).run(INPUTS)["y"])
    assert path.stat().st_size < 1.2 * (tmp_path / "before.onnx").stat().st_size


@pytest.mark.parametrize("bits", [2, 4])
@pytest.mark.parametrize("symmetric", [True, False])
def test_blocks_are_unpacked_once(bits: int, symmetric: bool, tmp_path: Path) -> None:
    """onnxruntime makes MatMulNBits of such a file otherwise, and can't run it where scales are float16."""
    model = build("(float[N,96] x) => (float[N,64] y) { y = MatMul(x, m) }", m=WEIGHTS["m"])
    ctx = context("onnxruntime")
    assert RoundWeights(bits=bits, block=32, symmetric=symmetric, by="nearest", min_snr=0).run(model, ctx)
    assert PackWeights().run(model, ctx)
    feeds = {"x": RNG.normal(size=(3, 96)).astype(np.float32)}
    wanted = Session(model).run(feeds)["y"]
    assert len(troublesome(model)) == 1
    for form, name in ((model, "any.onnx"), (lowered(model, ()), "form.onnx")):
        path = written(form, tmp_path / name)
        assert optimised(path) == {"MatMul": 1}
        np.testing.assert_allclose(Saved(path).run(feeds)["y"], wanted, rtol=1e-5, atol=1e-5)
    assert len(troublesome(model)) == 1, "the model itself stays as it is"


@pytest.mark.parametrize("unsigned", [False, True])
def test_products_of_integers(unsigned: bool, tmp_path: Path) -> None:
    """Ranges found in every run: onnxruntime makes one kernel of it, which computes what the pairs say."""
    model = rounded(DYNAMIC)
    assert list(families(model)) == ["dynamic"]
    path = written(lowered(model, ["dynamic"], unsigned), tmp_path / "m.onnx")
    found = optimised(path)
    assert found["DynamicQuantizeMatMul"] + found["MatMulIntegerToFloat"] == 2
    exact, wanted = Session(model, exact=True).run(INPUTS)["y"], Session(model).run(INPUTS)["y"]
    got = Saved(path).run(INPUTS)["y"]
    assert np.abs(wanted - exact).max() > 1e-3, "rounding shows"
    if unsigned:  # With a sign, kernels may cut off sums.
        np.testing.assert_allclose(got, wanted, atol=2e-5 * np.abs(wanted).max())
    else:
        assert np.square(got - wanted).sum() < 1e-3 * np.square(wanted).sum()


@pytest.mark.parametrize("unsigned", [False, True])
@pytest.mark.parametrize("chosen", [("conv",), ("pointwise",), ("conv", "pointwise")])
def test_convolutions_of_integers(chosen: tuple[str, ...], unsigned: bool, tmp_path: Path) -> None:
    model = rounded(STATIC)
    assert list(families(model)) == ["conv", "pointwise"]
    form = lowered(model, chosen, unsigned)
    path = written(form, tmp_path / "m.onnx")
    assert optimised(path)["QLinearConv"] == len(chosen)
    wanted, got = Session(form).run(INPUTS)["y"], Saved(path).run(INPUTS)["y"]
    # A level of the last rounding at most where sums end between two.
    assert np.square(got - wanted).sum() < 1e-3 * np.square(wanted).sum()


def test_rounding_that_no_kernel_needs_is_left_out() -> None:
    model = rounded(STATIC, DYNAMIC)
    form = lowered(model, ())
    assert not list(nodes(form, "QuantizeLinear", "DynamicQuantizeLinear"))
    np.testing.assert_array_equal(Session(form).run(INPUTS)["y"], Session(model, exact=True).run(INPUTS)["y"])


def test_rounding_that_came_with_the_model_stays() -> None:
    model = rounded(STATIC)
    for node in nodes(model, "DequantizeLinear"):
        node.outputs[0].meta.clear()
    assert not list(families(model))
    assert Counter(n.op_type for n in lowered(model, ()).graph)["QuantizeLinear"] == 3


def fake(monkeypatch: pytest.MonkeyPatch, speed: float) -> None:
    """Times as if whatever holds integer operators took `speed` times as long."""

    def seconds(sessions: list[Saved], _: object) -> list[float]:
        return [speed if trial(s) else 1.0 for s in sessions]

    seen: dict[int, bool] = {}
    plain = Saved.__init__

    def init(self: Saved, path: Path, *, threads: int = 0) -> None:
        plain(self, path, threads=threads)
        kinds = {n.op_type for n in onnx.load(path).graph.node}
        seen[id(self)] = bool(kinds & {"MatMulInteger", "QuantizeLinear"})

    def trial(s: Saved) -> bool:
        return seen[id(s)]

    monkeypatch.setattr(Saved, "__init__", init)
    monkeypatch.setattr(choice, "least", seconds)


def test_the_faster_form_is_taken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    model = rounded(STATIC, DYNAMIC)
    for speed, expected in ((0.5, True), (0.99, False), (2.0, False)):
        with monkeypatch.context() as patched:
            fake(patched, speed)
            found = choose(model, INPUTS, written, cut=30)
        integer = {"MatMulInteger", "QuantizeLinear"} & {n.op_type for n in found.model.graph}
        assert bool(integer) == expected
        assert any(("times as fast" if expected else "no faster") in note for note in found.notes)


def test_sums_that_are_cut_off_are_no_gain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Faster integer kernels are refused where they lose more than the rounding itself, by more than allowed."""
    model = rounded(DYNAMIC)
    fake(monkeypatch, 0.5)
    assert choose(model, INPUTS, written, cut=-60).model.graph.num_nodes() == lowered(model, ()).graph.num_nodes()


def test_wide_margins_are_made_before(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    text = "(float[N,4,64,1] x) => (float[N,8,a,b] y) { y = Conv<pads=[20,0,20,0]>(x, w) }"
    model = build(text, w=RNG.normal(size=(8, 4, 41, 1)))
    feeds = {"x": RNG.normal(size=(1, 4, 64, 1)).astype(np.float32)}
    assert len(wide(model)) == 1
    form = lowered(model, (), padded=True)
    assert [n.op_type for n in form.graph] == ["Pad", "Conv"]
    np.testing.assert_allclose(Session(form).run(feeds)["y"], Session(model).run(feeds)["y"], rtol=1e-5, atol=1e-5)
    assert optimised(written(form, tmp_path / "m.onnx"))["Pad"] == 1, "onnxruntime doesn't move them back"
    for faster, expected in ((0.5, ["Pad", "Conv"]), (1.0, ["Conv"])):
        times = iter([[1.0, faster], [faster, 1.0]])
        monkeypatch.setattr(choice, "least", lambda *_, times=times: next(times))
        assert [n.op_type for n in choose(model, feeds, written).model.graph] == expected


def test_from_end_to_end(tmp_path: Path) -> None:
    """Compiled, proven, timed; said what was chosen; the integers are those of --target onnx."""
    source = tmp_path / "m.onnx"
    onnx.save(ir.to_proto(build(NET, **WEIGHTS)), source)
    shapes = {"x": [4, 3, 12, 12]}
    with edgec.compile(source, target="onnxruntime", inputs=INPUTS, shapes=shapes) as c:
        path = c.save(tmp_path / "out.onnx")
        assert c.proof is not None and c.proof.ok and c.proof.exact is not None
        assert c.report.latency is not None
        assert any("integers" in line for line in c.report.contract)
        assert {n.domain for n in onnx.load(path).graph.node} <= {"", "edgec"}
    with edgec.compile(source, target="onnx", inputs=INPUTS, shapes=shapes) as c:
        other = c.save(tmp_path / "any.onnx")
    turned = [tuple(np.sort(np.array(t) - 128)) for t in stored(path)]
    assert all(t in stored(path) or t in turned for t in stored(other)) and stored(other)


def test_slower_files_are_warned_of(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    source = tmp_path / "m.onnx"
    onnx.save(ir.to_proto(build(NET, **WEIGHTS)), source)
    times = [[1.0, 1.5]]
    monkeypatch.setattr(latency, "_in_turn", lambda *_: [[t] for t in times[0]])
    with edgec.compile(source, level="O1", target="onnxruntime", shapes={"x": [4, 3, 12, 12]}) as c:
        assert [w for w in c.report.warnings if "slower than the original here, 1.50 times" in w]


def test_nothing_is_timed_unless_wanted() -> None:
    model = rounded(DYNAMIC)
    found = choose(model, None, written)
    assert [n.op_type for n in found.model.graph].count("MatMulInteger") == 2
    products = "2 matrix products with ranges found in every run"
    assert found.notes == [f"{products} in 8-bit integers, as rounded: nothing was timed"]


def test_dry_run_and_lists() -> None:
    assert BACKEND.check(rounded(), TARGET, EmitOptions()) == []
    assert TARGET.dynamic and TARGET.suffix == ".onnx"


def test_what_is_read_back_can_be_compiled_again(tmp_path: Path) -> None:
    """The form is ONNX that edgec reads: integers come back as stored weights."""
    path = written(lowered(rounded(DYNAMIC), ["dynamic"]), tmp_path / "m.onnx")
    with edgec.compile(path, target="ios17", shapes={"x": [4, 3, 12, 12]}, precision="fp32") as c:
        assert c.proof is not None and c.proof.ok
        back = c.save(tmp_path / "m.mlpackage")
    with edgec.compile(back, level="O0", target="onnx", verify="off") as c:
        again = c.save(tmp_path / "again.onnx")
    assert all(t in stored(again) for t in stored(path)) and stored(path)
    assert load(again).graph.num_nodes()


@pytest.mark.parametrize(("bits", "symmetric"), [(4, True), (4, False), (8, True), (8, False)])
def test_products_with_weights_in_blocks(bits: int, symmetric: bool, tmp_path: Path) -> None:
    """MatMulNBits computes what the blocks say, but for its own rounding; what is read back is the same model."""
    model = build("(float[N,80] x) => (float[N,64] y) { y = MatMul(x, m) }", m=RNG.normal(size=(80, 64)) / 9)
    assert RoundWeights(bits=bits, block=32, symmetric=symmetric, by="nearest", min_snr=0).run(
        model, context("onnxruntime")
    )
    assert PackWeights().run(model, context("onnxruntime"))
    assert list(families(model)) == ["nbits"]
    form = lowered(model, ["nbits"])
    path = written(form, tmp_path / "m.onnx")
    assert optimised(path) == {"MatMulNBits": 1}
    feeds = {"x": RNG.normal(size=(3, 80)).astype(np.float32)}
    wanted, got = Session(model).run(feeds)["y"], Saved(path).run(feeds)["y"]
    assert 1e-8 < np.square(got - wanted).sum() / np.square(wanted).sum() < 2e-4
    back = load(path)
    assert lift(back) == 1 and {n.domain for n in back.graph} == {""}
    np.testing.assert_allclose(Session(back).run(feeds)["y"], wanted, rtol=1e-5, atol=1e-5)


def test_blocks_are_taken_where_they_are_faster(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Their kernels round activations: not where the user limits the error."""
    model = build("(float[N,96] x) => (float[N,64] y) { y = MatMul(x, m) }", m=WEIGHTS["m"])
    assert RoundWeights(bits=4, block=32, by="nearest", min_snr=0).run(model, context("onnxruntime"))
    assert PackWeights().run(model, context("onnxruntime"))
    feeds = {"x": RNG.normal(size=(1, 96)).astype(np.float32)}
    for faster, cut, expected in ((0.5, choice.CUT, 1), (0.5, choice.NONE, 0), (1.0, choice.CUT, 0)):
        turns = iter([[1.0, faster], [faster, 1.0]] * 2)
        monkeypatch.setattr(choice, "least", lambda *_, turns=turns: next(turns))
        form = choose(model, feeds, written, cut).model
        assert sum(n.op_type == "MatMulNBits" for n in form.graph) == expected


def test_models_that_came_with_blocks_reach_core_ml(tmp_path: Path) -> None:
    """A MatMulNBits of a file becomes a weight of Core ML in blocks of 4 bits."""
    model = build("(float[2,96] x) => (float[2,64] y) { y = MatMul(x, m) }", m=WEIGHTS["m"])
    assert RoundWeights(bits=4, block=32, by="nearest", min_snr=0).run(model, context("onnxruntime"))
    assert PackWeights().run(model, context("onnxruntime"))
    path = written(lowered(model, ["nbits"]), tmp_path / "m.onnx")
    with edgec.compile(path, target="ios18", precision="fp32") as c:
        assert c.proof is not None and c.proof.ok
        assert c.report.after.weight_bytes < 96 * 64 * 0.7
