"""Half precision: rounding pairs in the graph become float16 operators, and only there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from coremlpack import check, compile_package, parse

RNG = np.random.default_rng(3)


def rounded(name: str, out: str) -> str:
    """A rounding pair: Cast to float16 and back."""
    return f"{out}h = Cast<to=10>({name}) {out} = Cast<to=1>({out}h) "


CHAIN = (
    "g (float[1,4,9,8] x) => (float y) { "
    + rounded("x", "a") + "w = Cast<to=1>(wh) b = Conv(a, w) " + rounded("b", "c")
    + "d = Relu(c) e = Transpose<perm=[0,2,3,1]>(d) f = Softmax(e) " + rounded("f", "y") + "}"
)  # fmt: skip
WEIGHTS = {"wh": RNG.normal(size=(3, 4, 3, 3)).astype(np.float16)}


@pytest.mark.parametrize("target", ["ios15", "ios16", "ios17", "ios18"])
def test_pairs_become_float16_operators(target: str, tmp_path: Path) -> None:
    """A chain of pairs computes in float16 without a cast inside; casts remain at a float32 border only."""
    package = check(CHAIN, tmp_path / "a.mlpackage", target, WEIGHTS, tolerance=2e-3)
    assert package.ops["cast"] == 2
    for op in ("conv", "relu", "transpose", "softmax"):
        assert package.types(op) == {"FLOAT16"}, op


def test_float16_border_needs_no_casts(tmp_path: Path) -> None:
    package = check(CHAIN, tmp_path / "a.mlpackage", "ios16", WEIGHTS, tolerance=2e-3, io="fp16")
    assert "cast" not in package.ops
    assert {f"{name} '{v}': float32 is float16" for name, v in (("input", "x"), ("output", "y"))} == set(
        package.emitted.contract)  # fmt: skip


def test_float16_border_is_refused_politely_before_ios16(tmp_path: Path) -> None:
    package = check(CHAIN, tmp_path / "a.mlpackage", "ios15", WEIGHTS, tolerance=2e-3, io="fp16")
    assert package.emitted.contract == ["ios15 has no float16 inputs and outputs: they are float32"]


def test_without_a_pair_behind_it_an_operator_stays_in_float32(tmp_path: Path) -> None:
    """Exp's result is seen unrounded, so it is float32; Relu only selects, so it stays float16."""
    text = "g (float[4] x) => (float y, float z) { " + rounded("x", "a") + "y = Exp(a) r = Relu(a) z = Neg(r) }"
    package = check(text, tmp_path / "a.mlpackage", "ios17", tolerance=2e-3)
    assert package.types("exp") == {"FLOAT32"}
    assert package.types("relu") == {"FLOAT16"}


def test_a_constant_that_float16_cannot_hold_keeps_its_operator_in_float32(tmp_path: Path) -> None:
    for number, kind in ((1.5, "FLOAT16"), (1.0001, "FLOAT32"), (1e6, "FLOAT32")):
        text = "g (float[4] x) => (float y) { " + rounded("x", "a") + "b = Mul(a, k) " + rounded("b", "y") + "}"
        weights = {"k": np.array(number, np.float32)}
        package = check(text, tmp_path / f"{number}.mlpackage", "ios17", weights, tolerance=2e-3)
        assert package.types("mul") == {kind}, number


def test_rounding_really_happens(tmp_path: Path) -> None:
    """1 + 2⁻¹² in float16 is 1: the package shows the rounding, as the graph does."""
    text = "g (float[2] x) => (float y) { " + rounded("x", "a") + "b = Sub(a, one) " + rounded("b", "y") + "}"
    model = parse(text, {"one": np.array(1, np.float32)})
    feeds = {"x": np.array([1 + 2**-12, 1 + 2**-9], np.float32)}
    package = compile_package(model, tmp_path / "a.mlpackage", "ios17", feeds)
    np.testing.assert_array_equal(package.got["y"], [0, 2**-9])


def test_a_tiny_epsilon_is_clamped_and_said(tmp_path: Path) -> None:
    text = (
        "g (float[2,8] x) => (float y) { " + rounded("x", "a") + "s = Cast<to=1>(sh) "
        "b = LayerNormalization<epsilon=1e-12>(a, s) " + rounded("b", "y") + "}"
    )
    package = check(text, tmp_path / "a.mlpackage", "ios16", {"sh": np.ones(8, np.float16)}, tolerance=2e-3)
    assert package.types("layer_norm") == {"FLOAT16"}
    assert len(package.emitted.warnings) == 1 and "1e-12" in package.emitted.warnings[0]


@pytest.mark.parametrize(("target", "kind"), [("ios15", "FLOAT32"), ("ios16", "FLOAT32"), ("ios17", "FLOAT16")])
def test_recurrent_networks_are_float16_from_ios17_on(target: str, kind: str, tmp_path: Path) -> None:
    text = (
        "g (float[5,2,3] x) => (float y) { " + rounded("x", "a")
        + "w = Cast<to=1>(wh) r = Cast<to=1>(rh) b = LSTM<hidden_size=4>(a, w, r) " + rounded("b", "y") + "}"
    )  # fmt: skip
    weights = {k: RNG.normal(size=(1, 16, n)).astype(np.float16) for k, n in (("wh", 3), ("rh", 4))}
    package = check(text, tmp_path / "a.mlpackage", target, weights, tolerance=4e-3)
    assert package.types("lstm") == {kind}


def test_float16_weights_are_stored_as_float16(tmp_path: Path) -> None:
    weights = {"wh": RNG.normal(size=(64, 64)).astype(np.float16)}
    text = "g (float[2,64] x) => (float y) { " + rounded("x", "a") + "w = Cast<to=1>(wh) b = MatMul(a, w) " + rounded(
        "b", "y") + "}"  # fmt: skip
    check(text, tmp_path / "a.mlpackage", "ios15", weights, tolerance=2e-3)
    size = (tmp_path / "a.mlpackage/Data/com.apple.CoreML/weights/weight.bin").stat().st_size
    assert 64 * 64 * 2 <= size < 64 * 64 * 2 + 512
