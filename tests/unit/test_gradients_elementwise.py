"""Gradients of operators that work element by element, of reductions and of normalisations."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from gradientcheck import check
from hypothesis import given, settings
from hypothesis import strategies as st

from edgec.compiler.gradients.rules.activation import DERIVATIVES

RNG = np.random.default_rng(0)


def normal(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape)


def positive(*shape: int) -> np.ndarray:
    return RNG.uniform(0.3, 2, size=shape)


def inside(*shape: int) -> np.ndarray:
    return RNG.uniform(-0.9, 0.9, size=shape)


DOMAINS: dict[str, Any] = {
    "Acosh": lambda *s: positive(*s) + 1, "Acos": inside, "Asin": inside, "Atanh": inside, "Log": positive,
    "Sqrt": positive, "Reciprocal": positive,
}  # fmt: skip
# onnx's reference calculates Erf in single precision, and its Celu takes no doubles; onnxruntime lacks Swish.
BY = {"Celu": "onnxruntime", "Erf": "onnxruntime", "Gelu": "onnxruntime", "Swish": "reference"}


@pytest.mark.parametrize("op", sorted(DERIVATIVES))
def test_functions_of_one_element(op: str) -> None:
    x = DOMAINS[op](3, 4) if op in DOMAINS else 2 * normal(3, 4)
    check(op, {"x": x}, by=BY.get(op, "both"))


@pytest.mark.parametrize(
    ("op", "attributes"),
    [
        ("Gelu", {"approximate": "tanh"}), ("Elu", {"alpha": 0.5}), ("LeakyRelu", {"alpha": 0.3}),
        ("HardSigmoid", {"alpha": 0.3, "beta": 0.4}), ("Selu", {"alpha": 1.1, "gamma": 0.9}),
        ("Shrink", {"lambd": 0.2, "bias": 0.1}), ("ThresholdedRelu", {"alpha": 0.4}),
    ],
)  # fmt: skip
def test_their_attributes(op: str, attributes: dict[str, Any]) -> None:
    check(op, {"x": 2 * normal(3, 4)}, attributes=attributes)


def test_factor_of_swish() -> None:
    check("Swish", {"x": normal(3, 4)}, attributes={"alpha": 1.7}, by="reference")


SHAPES = st.lists(st.integers(1, 3), max_size=3)


@settings(max_examples=15, deadline=None)
@given(
    op=st.sampled_from(["Add", "Div", "Max", "Min", "Mul", "Pow", "Sub", "Sum", "Where"]),
    shape=SHAPES, cuts=st.lists(st.integers(0, 3), min_size=2, max_size=2),
    flat=st.lists(st.booleans(), min_size=6, max_size=6), seed=st.integers(0, 99), free=st.booleans(),
)  # fmt: skip
def test_broadcasting_is_summed(
    op: str, shape: list[int], cuts: list[int], flat: list[bool], seed: int, free: bool
) -> None:
    """Two inputs of any shapes that fit: leading axes left out, axes of length 1."""
    rng = np.random.default_rng(seed)
    shapes = [[1 if flat[3 * k + i] else n for i, n in enumerate(shape)][cut:] for k, cut in enumerate(cuts)]
    a, b = (rng.uniform(0.4, 2, size=s) for s in shapes)
    inputs = {"c": rng.random(shape) > 0.5, "a": a, "b": b} if op == "Where" else {"a": a, "b": b}
    check(op, inputs, free=(free,))


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0, 3.0])
def test_constant_powers(power: float) -> None:
    check("Pow", {"a": positive(2, 3), "b": np.array(power)}, consts=["b"])


def test_a_square_at_zero_has_a_slope() -> None:
    for consts in ([], ["b"]):
        check("Pow", {"a": np.array([-1.5, 0.0, 2.0]), "b": np.array(2.0)}, wrt=["a"], consts=consts)


def test_operators_of_several_inputs() -> None:
    check("Max", {"a": normal(3), "b": normal(2, 3), "c": normal(2, 1)})
    check("Sum", {"a": normal(3), "b": normal(2, 3), "c": normal(2, 1)})
    check("Mean", {"a": normal(2, 3), "b": normal(3)}, by="onnxruntime")
    check("PRelu", {"x": normal(2, 3, 4), "s": normal(3, 1)})
    check("Mod", {"x": 3 * positive(3, 4), "n": np.array(0.7)}, wrt=["x"], attributes={"fmod": 1})


def test_bounds_get_what_lies_beyond_them() -> None:
    check("Clip", {"x": normal(3, 4), "lo": np.array(-0.5), "hi": np.array(0.5)})
    check("Clip", {"x": normal(3, 4), "_": normal(), "hi": np.array(0.5)})


def test_casts_and_copies() -> None:
    check("Cast", {"x": normal(3)}, attributes={"to": 1}, by="onnxruntime")
    for op in ("Dropout", "Identity", "Neg"):
        check(op, {"x": normal(3)})


REDUCTIONS = (
    "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum",
    "ReduceSumSquare",
)  # fmt: skip


@pytest.mark.parametrize("op", REDUCTIONS)
@pytest.mark.parametrize("keep", [0, 1])
def test_reductions(op: str, keep: int) -> None:
    for axes in ([1], [0, -1]):
        inputs = {"x": positive(2, 3, 4), "a": np.array(axes)}
        check(op, inputs, consts=["a"], attributes={"keepdims": keep})
    check(op, {"x": positive(2, 3)}, attributes={"keepdims": keep})


def test_reductions_over_nothing() -> None:
    inputs = {"x": positive(2, 3), "a": np.zeros(0, np.int64)}
    check("ReduceSum", inputs, consts=["a"], attributes={"noop_with_empty_axes": 1}, by="onnxruntime")


def test_softmax_and_running_sums() -> None:
    for axis in (-1, 0, 1):
        check("Softmax", {"x": normal(2, 3, 4)}, attributes={"axis": axis})
        check("LogSoftmax", {"x": normal(2, 3, 4)}, attributes={"axis": axis})
    for attributes in ({}, {"exclusive": 1}, {"reverse": 1}):
        check("CumSum", {"x": normal(2, 4), "a": np.array(1)}, attributes=attributes)


def test_normalisations() -> None:
    batch = {"x": normal(2, 3, 2), "s": normal(3), "b": normal(3), "m": normal(3), "v": positive(3)}
    check("BatchNormalization", batch, attributes={"epsilon": 1e-3})
    check("LayerNormalization", {"x": normal(2, 3, 4), "s": normal(4), "b": normal(4)})
    check("LayerNormalization", {"x": normal(2, 3, 4), "s": normal(3, 4)}, attributes={"axis": 1})
    check("RMSNormalization", {"x": normal(2, 3, 4), "s": normal(4)})
    check("InstanceNormalization", {"x": normal(2, 3, 4), "s": normal(3), "b": normal(3)})
    check("LpNormalization", {"x": normal(2, 4)})


def test_normalisations_that_the_reference_can_not_do() -> None:
    group = {"x": normal(2, 4, 3), "s": normal(4), "b": normal(4)}
    check("GroupNormalization", group, attributes={"num_groups": 2}, by="onnxruntime")
    check("LpNormalization", {"x": normal(2, 4)}, attributes={"p": 1, "axis": 0}, by="onnxruntime")
    check("LRN", {"x": normal(2, 6, 2, 2)}, attributes={"size": 3, "alpha": 0.5}, by="onnxruntime")
