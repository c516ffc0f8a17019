"""Integer activations in Core ML packages: `quantize` and `dequantize`, in half precision, read back and compared."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import passcheck
from coremlpack import Package, compile_package, parse
from edgec.compiler.numerics import compare
from edgec.compiler.passbase import Context, Pass
from edgec.passes.pack_weights import PackWeights
from edgec.passes.quantize_activations import QuantizeActivations
from edgec.passes.round_activations import RoundActivations
from edgec.passes.round_weights import RoundWeights

RNG = np.random.default_rng(2)
NET = """g (float[2,8,9,9] x) => (float[2,5] y) { a = Conv<pads=[1,1,1,1]>(x, v) b = Relu(a) c = Conv(b, w)
    d = Add(c, s) e = Sigmoid(d) f = GlobalAveragePool(e) h = Flatten(f) y = MatMul(h, u) }"""
WEIGHTS = {
    "v": RNG.normal(size=(8, 8, 3, 3)) / 8, "w": RNG.normal(size=(16, 8, 3, 3)) / 8, "u": RNG.normal(size=(16, 5)) / 4,
    "s": RNG.normal(size=(1, 16, 1, 1)),
}  # fmt: skip
INPUTS = {"x": RNG.normal(size=(2, 8, 9, 9)).astype(np.float32)}
W8A8 = (RoundWeights(min_size=1), QuantizeActivations(), PackWeights(min_size=1))


def made(passes: tuple[Pass, ...], path: Path, target: str) -> Package:
    """The package of the net after these passes, which must compute what the net then does."""
    model = parse(NET, {n: a.astype(np.float32) for n, a in WEIGHTS.items()})
    before = passcheck.run(model, INPUTS)
    ctx = Context(passcheck.find_target(target), passcheck.Scratch(), INPUTS, True)
    for p in passes:
        assert p.run(model, ctx) > 0, (p.name, ctx.notes)
        passcheck.shapes.infer(model)
    package = compile_package(model, path, target, INPUTS)
    # A sum that is off in its last digit may flip a step of 256: nothing else is off.
    assert compare(package.expected, package.got)["y"].snr_db > 45
    assert compare(before, package.got)["y"].snr_db > 25
    return package


def inputs_of(package: Package, op: str) -> list[str]:
    """What kinds of operators make the first input of each operator of this name; "" for inputs of the model."""
    makers = {o.outputs[0].name: o.type for o in package.operations}
    first = [next(o.inputs[k] for k in ("x", "input") if k in o.inputs) for o in package.operations if o.type == op]
    return [makers.get(a.arguments[0].name, "") for a in first]


@pytest.mark.parametrize("target", ["ios17", "ios18", "ios26"])
def test_float32(target: str, tmp_path: Path) -> None:
    package = made(W8A8, tmp_path / "a.mlpackage", target)
    assert package.ops["quantize"] == package.ops["dequantize"] == 4  # x, b, c, h
    assert package.types("quantize") <= {"INT8", "UINT8"} and package.types("dequantize") == {"FLOAT32"}
    assert inputs_of(package, "conv") == ["dequantize"] * 2


@pytest.mark.parametrize("target", ["ios17", "ios18"])
@pytest.mark.parametrize("first", ["integers", "half"])
def test_half_precision(first: str, target: str, tmp_path: Path) -> None:
    """Nothing is cast between an operator and its integers, whichever pass ran first."""
    half = RoundActivations(min_snr=0)
    passes = (*W8A8, half) if first == "integers" else (W8A8[0], half, W8A8[1])
    package = made(passes, tmp_path / "a.mlpackage", target)
    assert package.ops["quantize"] == package.ops["dequantize"] == 4
    for op in ("conv", "dequantize", "relu", "sigmoid"):
        assert package.types(op) == {"FLOAT16"}, op
    assert inputs_of(package, "conv") == ["dequantize"] * 2
    assert inputs_of(package, "dequantize") == ["quantize"] * 4
    assert package.ops["cast"] <= 2, "at the float32 border only"


@pytest.mark.parametrize("target", ["ios15", "ios16"])
def test_older_targets_leave_it_out(target: str) -> None:
    model = parse(NET, {n: a.astype(np.float32) for n, a in WEIGHTS.items()})
    ctx = Context(passcheck.find_target(target), passcheck.Scratch(), INPUTS, True)
    assert QuantizeActivations().run(model, ctx) == 0 and "ios17" in ctx.notes[0]


def test_scales_too_small_for_half_precision(tmp_path: Path) -> None:
    """What float16 holds with few digits, or flushes to zero, stays float32: 255 steps of 1e-7."""
    text = "g (float[2,8] x) => (float[2,4] y) { a = Mul(x, k) b = MatMul(a, w) y = Div(b, k) }"
    model = parse(text, {"k": np.float32(2**-18), "w": RNG.normal(size=(8, 4)).astype(np.float32)})
    inputs = {"x": INPUTS["x"][:, :, 0, 0].copy()}
    ctx = Context(passcheck.find_target("ios18"), passcheck.Scratch(), inputs, True)
    assert QuantizeActivations().run(model, ctx) == 1
    RoundActivations(min_snr=0).run(model, ctx)
    passcheck.shapes.infer(model)
    package = compile_package(model, tmp_path / "a.mlpackage", "ios18", inputs)
    assert package.types("dequantize") == {"FLOAT32"}
    assert compare(package.expected, package.got)["y"].snr_db > 60


LINES = {
    "conv": "Conv<pads=[1,1,1,1]>({0}, v)", "depthwise": "Conv<pads=[1,1,1,1],group=8>({0}, d)", "relu": "Relu({0})",
    "sigmoid": "Sigmoid({0})", "add": "Add({0}, {1})", "mul": "Mul({0}, {1})",
    "pool": "MaxPool<kernel_shape=[3,3],pads=[1,1,1,1]>({0})", "turn": "Transpose<perm=[0,1,3,2]>({0})",
    "mean": "AveragePool<kernel_shape=[3,3],pads=[1,1,1,1]>({0})", "product": "MatMul({0}, m)",
    "both": "MatMul({0}, {1})", "clip": "Clip({0}, lo, hi)",
}  # fmt: skip
OPERANDS = {
    "v": RNG.normal(size=(8, 8, 3, 3)) / 8, "d": RNG.normal(size=(8, 1, 3, 3)) / 3, "m": RNG.normal(size=(9, 9)) / 3,
    "lo": np.array(-1.5), "hi": np.array(2.5),
}  # fmt: skip


@settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(st.lists(st.sampled_from(sorted(LINES)), min_size=1, max_size=8), st.booleans(), st.data())
def test_any_network(tmp_path_factory, steps, first, data):
    """What is written computes what was measured, whichever pass ran first."""
    body = ""
    for k, step in enumerate(steps):
        other = data.draw(st.integers(0, k), "the second operand")
        body += f"v{k + 1} = {LINES[step].format(f'v{k}', f'v{other}')} "
    weights = {n: a.astype(np.float32) for n, a in OPERANDS.items()}
    text = f"g (float[1,8,9,9] v0) => (float[1,8,9,9] y) {{ {body} y = Add(v{len(steps)}, v0) }}"
    model, feeds = parse(text, weights), {"v0": INPUTS["x"][:1]}
    ctx = Context(passcheck.find_target("ios17"), passcheck.Scratch(), feeds, True)
    passes: list[Pass] = [QuantizeActivations(min_snr=0), RoundActivations(min_snr=0)]
    for p in passes if first else passes[::-1]:
        p.run(model, ctx)
        passcheck.shapes.infer(model)
    package = compile_package(model, tmp_path_factory.mktemp("net") / "a.mlpackage", "ios17", feeds)
    linear = sum(step in ("conv", "depthwise", "product", "both") for step in steps)
    assert (package.ops.get("quantize", 0) > 0) == (linear > 0)
    assert package.ops.get("quantize", 0) == package.ops.get("dequantize", 0)
    difference = compare(package.expected, package.got)["y"]
    assert difference.mismatch is None and difference.snr_db > 30, difference
