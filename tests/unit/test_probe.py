"""Measurements inside a model equal what numpy computes from the values themselves."""

from __future__ import annotations

import numpy as np
import pytest

from edgec.compiler import probe
from edgec.compiler.probe import Spread, measure
from passcheck import fingerprint, load

TEXT = """<ir_version: 10, opset_import: ["" : 25]>
agraph (float[4,8] x) => (float[4,8] y) <float k = {-3.0}, float zero = {0.0}>
{ a = Mul(x, k) r = Relu(x) l = Log(r) s = Sub(x, x) y = Add(a, s) }"""


@pytest.mark.parametrize("small", [0, 20, 1 << 12], ids=["reduced", "too big", "whole"])
@pytest.mark.parametrize("room", [40, 1 << 22], ids=["little room", "room"])
def test_ranges_least_and_spreads(small: int, room: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "SMALL", small)
    monkeypatch.setattr(probe, "MOST", room)
    m = load(TEXT)
    before = fingerprint(m)
    x = np.random.default_rng(0).normal(size=(4, 8)).astype(np.float32)
    questions = [Spread("x", (1,), True), Spread("x", (1,), False)]
    found = measure(m, {"x": x}, ["x", "a", "l", "s"], ["r", "s"], questions)
    assert fingerprint(m) == before, "the model itself stays as it was"
    np.testing.assert_array_equal(found.outputs["y"], x * -3)
    assert (found.ranges["a"].low, found.ranges["a"].high) == ((x * -3).min(), (x * -3).max())
    assert found.ranges["a"].peak == np.abs(x * 3).max()
    positive = np.log(x[x > 0])
    assert found.ranges["l"].low == np.float32(positive.min()), "log(0) = -inf is left out"
    assert found.ranges["s"].peak == 0
    assert found.least["r"] == x[x > 0].min() and found.least["s"] > 1e38
    np.testing.assert_allclose(found.spreads[questions[0]], x.var(1).min(), rtol=1e-5)
    np.testing.assert_allclose(found.spreads[questions[1]], (x**2).mean(1).min(), rtol=1e-5)


@pytest.mark.parametrize("small", [0, 1 << 12], ids=["reduced", "whole"])
def test_not_a_number_is_not_hidden(small: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "SMALL", small)
    m = load(TEXT)
    found = measure(m, {"x": np.full((4, 8), np.nan, np.float32)}, ["a"])
    assert not found.ranges["a"].peak <= 1e38
