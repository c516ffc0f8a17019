"""Gradients of matrix products, convolutions, pools and attention."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from gradientcheck import check
from hypothesis import assume, given, settings
from hypothesis import strategies as st

RNG = np.random.default_rng(1)


def normal(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ((2, 3), (3, 4)), ((5, 2, 3), (3, 4)), ((2, 3), (5, 3, 4)), ((2, 1, 2, 3), (3, 3, 2)), ((2, 2, 3), (2, 3, 1)),
        ((3,), (3,)), ((3,), (2, 3, 2)), ((2, 2, 3), (3,)),
    ],
)  # fmt: skip
def test_products_of_any_rank(a: tuple[int, ...], b: tuple[int, ...]) -> None:
    check("MatMul", {"a": normal(*a), "b": normal(*b)})


@pytest.mark.parametrize("turned", [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_gemm(turned: tuple[int, int]) -> None:
    a, b = ((3, 2) if turned[0] else (2, 3)), ((4, 3) if turned[1] else (3, 4))
    attributes = {"transA": turned[0], "transB": turned[1], "alpha": 0.5, "beta": 2.0}
    for bias in ((4,), (2, 1), ()):
        check("Gemm", {"a": normal(*a), "b": normal(*b), "c": normal(*bias)}, attributes=attributes)
    check("Gemm", {"a": normal(*a), "b": normal(*b)}, attributes=attributes)


@pytest.mark.parametrize(
    ("equation", "shapes"),
    [
        ("bij,bjk->bik", [(2, 3, 4), (2, 4, 5)]), ("ij,kj->k", [(2, 3), (4, 3)]), ("ij->ji", [(2, 3)]),
        ("ij,jk", [(2, 3), (3, 2)]),
        ("bhd,bkd,k->bh", [(2, 3, 2), (2, 2, 2), (2,)]),
    ],
)  # fmt: skip
def test_einsum(equation: str, shapes: list[tuple[int, ...]]) -> None:
    inputs = {chr(ord("a") + i): normal(*s) for i, s in enumerate(shapes)}
    check("Einsum", inputs, attributes={"equation": equation})


WINDOWS = st.fixed_dictionaries(
    {
        "kernel": st.lists(st.integers(1, 3), min_size=1, max_size=2), "size": st.integers(3, 6),
        "strides": st.lists(st.integers(1, 3), min_size=2, max_size=2),
        "dilations": st.lists(st.integers(1, 2), min_size=2, max_size=2),
        "pads": st.lists(st.integers(0, 2), min_size=4, max_size=4), "free": st.booleans(),
    }
)  # fmt: skip


def _attributes(windows: dict[str, Any]) -> dict[str, Any]:
    n = len(windows["kernel"])
    spans = [(k - 1) * d + 1 for k, d in zip(windows["kernel"], windows["dilations"], strict=False)]
    pads = windows["pads"][:n] + windows["pads"][2 : 2 + n]
    assume(all(windows["size"] + pads[i] + pads[n + i] >= spans[i] for i in range(n)))
    return {"strides": windows["strides"][:n], "dilations": windows["dilations"][:n], "pads": pads}


# onnx's reference is wrong about groups, so onnxruntime is its own witness there.


@settings(max_examples=20, deadline=None)
@given(windows=WINDOWS, group=st.sampled_from([1, 2, 4]), seed=st.integers(0, 99))
def test_convolutions(windows: dict[str, Any], group: int, seed: int) -> None:
    attributes, rng = _attributes(windows), np.random.default_rng(seed)
    spatial = [windows["size"]] * len(windows["kernel"])
    inputs = {"x": rng.normal(size=(2, 4, *spatial)), "w": rng.normal(size=(4, 4 // group, *windows["kernel"])),
              "b": rng.normal(size=4)}  # fmt: skip
    by = "both" if group == 1 else "onnxruntime"
    check("Conv", inputs, attributes={**attributes, "group": group}, free=(windows["free"],), fixed=["w"], by=by)


@settings(max_examples=10, deadline=None)
@given(windows=WINDOWS, group=st.sampled_from([1, 2]), seed=st.integers(0, 99))
def test_transposed_convolutions(windows: dict[str, Any], group: int, seed: int) -> None:
    attributes, rng = _attributes(windows), np.random.default_rng(seed)
    n = len(windows["kernel"])
    size = [3] * n
    whole = [(3 - 1) * attributes["strides"][i] + (windows["kernel"][i] - 1) * attributes["dilations"][i] + 1
             for i in range(n)]  # fmt: skip
    pads = attributes["pads"]
    assume(all(whole[i] - pads[i] - pads[n + i] >= 1 for i in range(n)))
    more = [seed % s for s in attributes["strides"]]
    inputs = {"x": rng.normal(size=(2, 4, *size)), "w": rng.normal(size=(4, 3, *windows["kernel"])),
              "b": rng.normal(size=3 * group)}  # fmt: skip
    attributes = {**attributes, "group": group, "output_padding": more}
    check("ConvTranspose", inputs, attributes=attributes, free=(windows["free"],), fixed=["w"], by="onnxruntime")


@pytest.mark.parametrize("auto", ["SAME_UPPER", "SAME_LOWER", "VALID"])
def test_padding_by_name(auto: str) -> None:
    inputs = {"x": normal(1, 2, 5, 6), "w": normal(3, 2, 3, 2)}
    check("Conv", inputs, attributes={"auto_pad": auto, "strides": [2, 2]}, free=(False,), by="onnxruntime")


POOLS = (
    {"kernel_shape": [2, 2], "strides": [2, 2]},
    {"kernel_shape": [3, 2], "strides": [2, 1], "pads": [1, 1, 1, 0]},
    {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1},
)


@pytest.mark.parametrize("attributes", POOLS)
def test_pools(attributes: dict[str, Any]) -> None:
    x, free = {"x": normal(2, 2, 6, 5)}, (False,) if "ceil_mode" in attributes else (False, True)
    check("MaxPool", x, attributes=attributes)
    for counted in (0, 1):
        check("AveragePool", x, attributes={**attributes, "count_include_pad": counted}, free=free)


def test_pools_over_everything() -> None:
    for op in ("GlobalAveragePool", "GlobalMaxPool"):
        check(op, {"x": normal(2, 2, 3, 2)})


def test_attention_by_its_definition() -> None:
    check("Attention", {"q": normal(1, 2, 3, 4), "k": normal(1, 2, 3, 4), "v": normal(1, 2, 3, 4)})
    inputs = {"q": normal(1, 3, 8), "k": normal(1, 3, 4), "v": normal(1, 3, 4), "m": normal(3, 3)}
    check("Attention", inputs, attributes={"q_num_heads": 2, "kv_num_heads": 1, "is_causal": 1}, free=(False,))
