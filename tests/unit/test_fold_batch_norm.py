from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto

from edgec.compiler import graph as g
from edgec.passes.fold_batch_norm import FoldBatchNorm
from linearmodels import Weights, build
from passcheck import check_pass, context, load, ops

PROPERTY = settings(max_examples=30, deadline=None, derandomize=True)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("group", [1, 2, 4])
def test_behind_conv(bias: bool, group: int) -> None:
    w = Weights()
    operands = f"x {w.add('w', 8, 4 // group, 3, 3)} {w.add('b', 8) if bias else ''}"
    model = build(
        [
            ("Conv", operands, "c", {"pads": [1, 1, 1, 1], "group": group}),
            ("BatchNormalization", f"c {w.norm('n', 8)}", "y", {"epsilon": 1e-3}),
        ],
        {"x": [2, 4, 7, 7]},
        w,
    )
    out = check_pass(model, FoldBatchNorm(), rewrites=1)
    assert ops(out) == {"Conv": 1}
    assert len(out.graph.initializers) == 2, "what was folded is gone"


@PROPERTY
@given(
    group=st.sampled_from([1, 2, 3]),
    transposed=st.booleans(),
    bias=st.booleans(),
    spatial=st.integers(1, 3),
    stride=st.integers(1, 2),
    pad=st.integers(0, 1),
    seed=st.integers(0, 99),
)
def test_behind_any_convolution(
    group: int, transposed: bool, bias: bool, spatial: int, stride: int, pad: int, seed: int
) -> None:
    w = Weights(seed)
    dims = (6, 12 // group) if transposed else (12, 6 // group)
    operands = f"x {w.add('w', *dims, *[3] * spatial)} {w.add('b', 12) if bias else ''}"
    attributes = {"group": group, "strides": [stride] * spatial, "pads": [pad] * 2 * spatial}
    model = build(
        [
            ("ConvTranspose" if transposed else "Conv", operands, "c", attributes),
            ("BatchNormalization", f"c {w.norm('n', 12)}", "y"),
        ],
        {"x": ["N", 6, *[5] * spatial]},
        w,
    )
    assert "BatchNormalization" not in ops(check_pass(model, FoldBatchNorm(), rewrites=1, seeds=1))


@PROPERTY
@given(group=st.sampled_from([1, 2]), bias=st.booleans(), stride=st.integers(1, 2), seed=st.integers(0, 99))
def test_before_conv_without_padding(group: int, bias: bool, stride: int, seed: int) -> None:
    w = Weights(seed)
    operands = f"n {w.add('w', 6, 4 // group, 3, 2)} {w.add('b', 6) if bias else ''}"
    model = build(
        [
            ("BatchNormalization", f"x {w.norm('n', 4)}", "n"),
            ("Conv", operands, "y", {"group": group, "strides": [stride, stride]}),
        ],
        {"x": [2, 4, 6, 6]},
        w,
    )
    assert ops(check_pass(model, FoldBatchNorm(), rewrites=1, seeds=1)) == {"Conv": 1}


@pytest.mark.parametrize("attributes", [{"pads": [0, 1, 0, 0]}, {"auto_pad": "SAME_UPPER"}])
def test_before_conv_with_padding_stays_and_is_noted(attributes: dict[str, object]) -> None:
    w = Weights()
    model = build(
        [
            ("BatchNormalization", f"x {w.norm('n', 4)}", "n"),
            ("Conv", f"n {w.add('w', 6, 4, 3, 3)}", "y", attributes),
        ],
        {"x": [2, 4, 6, 6]},
        w,
    )
    ctx = context()
    check_pass(model, FoldBatchNorm(), rewrites=0, ctx=ctx)
    assert any("Conv_y" in note and "pads" in note for note in ctx.notes)


def test_before_padded_conv_without_a_shift_goes() -> None:
    w = Weights()
    nodes = [
        ("BatchNormalization", f"x {w.norm('n', 4)}", "n"),
        ("Conv", f"n {w.add('w', 6, 4, 3, 3)}", "y", {"pads": [1, 1, 1, 1]}),
    ]
    w["n_bias"] = w["n_mean"] = np.zeros(4, np.float32)
    assert ops(check_pass(build(nodes, {"x": [2, 4, 6, 6]}, w), FoldBatchNorm(), rewrites=1)) == {"Conv": 1}


@pytest.mark.parametrize("transposed", [0, 1])
@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_gemm_with_alpha_and_beta(transposed: int, before: bool, bias: bool) -> None:
    w = Weights()
    gemm = {"transB": transposed, "alpha": 0.5, "beta": 2.0}
    operands = f"{w.add('w', *((5, 3) if transposed else (3, 5)))} {w.add('b', 1, 5) if bias else ''}"
    nodes = (
        [("BatchNormalization", f"x {w.norm('n', 3)}", "n"), ("Gemm", f"n {operands}", "y", gemm)]
        if before
        else [("Gemm", f"x {operands}", "c", gemm), ("BatchNormalization", f"c {w.norm('n', 5)}", "y")]
    )
    assert ops(check_pass(build(nodes, {"x": [4, 3]}, w), FoldBatchNorm(), rewrites=1)) == {"Gemm": 1}


def test_matmul_gets_an_add_or_uses_the_one_it_has() -> None:
    w = Weights()
    matmul = ("MatMul", f"x {w.add('w', 3, 5)}", "c")
    norm = w.norm("n", 5)
    bare = build([matmul, ("BatchNormalization", f"c {norm}", "y")], {"x": [4, 3]}, w)
    assert ops(check_pass(bare, FoldBatchNorm(), rewrites=1)) == {"MatMul": 1, "Add": 1}
    nodes = [matmul, ("Add", f"{w.add('b', 5)} c", "a"), ("BatchNormalization", f"a {norm}", "y")]
    assert ops(check_pass(build(nodes, {"x": [4, 3]}, w), FoldBatchNorm(), rewrites=1)) == {"MatMul": 1, "Add": 1}


def test_matmul_of_rank_3_has_other_channels() -> None:
    w = Weights()
    nodes = [("MatMul", f"x {w.add('w', 3, 5)}", "c"), ("BatchNormalization", f"c {w.norm('n', 5)}", "y")]
    check_pass(build(nodes, {"x": [2, 5, 3]}, w), FoldBatchNorm(), rewrites=0)


def test_constant_on_the_left_of_matmul() -> None:
    w = Weights()
    nodes = [("MatMul", f"{w.add('w', 5, 4)} x", "c"), ("BatchNormalization", f"c {w.norm('n', 5)}", "y")]
    assert ops(check_pass(build(nodes, {"x": [2, 4, 3]}, w), FoldBatchNorm(), rewrites=1)) == {"MatMul": 1, "Add": 1}


def test_two_batch_norms_become_one() -> None:
    w = Weights()
    nodes = [
        ("BatchNormalization", f"x {w.norm('n', 4)}", "a"),
        ("BatchNormalization", f"a {w.norm('m', 4)}", "b"),
        ("Relu", "b", "y"),
    ]
    out = check_pass(build(nodes, {"x": [2, 4, 6, 6]}, w), FoldBatchNorm(), rewrites=1)
    assert ops(out) == {"BatchNormalization": 1, "Relu": 1}


def test_before_several_convs_goes_into_all_or_none() -> None:
    w = Weights()
    nodes = [
        ("BatchNormalization", f"x {w.norm('n', 4)}", "n"),
        ("Conv", f"n {w.add('v', 6, 4, 1, 1)}", "a"),
        ("Conv", f"n {w.add('w', 6, 4, 1, 1)}", "b", {"pads": [0, 0, 0, 0]}),
        ("Add", "a b", "y"),
    ]
    assert ops(check_pass(build(nodes, {"x": [2, 4, 6, 6]}, w), FoldBatchNorm(), rewrites=1))["Conv"] == 2
    nodes[-1:] = [("Add", "a b", "c"), ("ReduceSum", "n", "r", {"keepdims": 1}), ("Add", "c r", "y")]
    check_pass(build(nodes, {"x": [2, 4, 6, 6]}, w), FoldBatchNorm(), rewrites=0)


def test_conv_result_that_is_read_elsewhere_keeps_its_weights() -> None:
    w = Weights()
    nodes = [
        ("Conv", f"x {w.add('w', 4, 4, 1, 1)}", "c"),
        ("BatchNormalization", f"c {w.norm('n', 4)}", "n"),
        ("Add", "c n", "y"),
    ]
    check_pass(build(nodes, {"x": [2, 4, 6, 6]}, w), FoldBatchNorm(), rewrites=0)
    check_pass(build(nodes[:2], {"x": [2, 4, 6, 6]}, w, outputs=["c", "n"]), FoldBatchNorm(), rewrites=0)


def test_big_weight_with_two_users_is_noted() -> None:
    w = Weights()
    nodes = [
        ("Conv", f"x {w.add('w', 16, 16, 3, 3)}", "c"),
        ("BatchNormalization", f"c {w.norm('n', 16)}", "n"),
        ("Conv", "x w", "d"),
        ("Add", "d n", "y"),
    ]
    ctx = context()
    check_pass(build(nodes, {"x": [1, 16, 6, 6]}, w), FoldBatchNorm(), rewrites=0, ctx=ctx)
    assert any("other users" in note for note in ctx.notes)


def test_degenerate_variance_is_noted() -> None:
    w = Weights()
    nodes = [("Conv", f"x {w.add('w', 4, 4, 1, 1)}", "c"), ("BatchNormalization", f"c {w.norm('n', 4)}", "y")]
    w["n_var"] = np.array([1, -1, 1, 1], np.float32)
    ctx = context()
    # The outputs are NaN, so there is nothing to compare.
    assert FoldBatchNorm().run(load(build(nodes, {"x": [1, 4, 5, 5]}, w)), ctx) == 0
    assert any("BatchNormalization_y" in note and "variance" in note for note in ctx.notes)


def test_statistics_from_the_batch_are_not_constant() -> None:
    w = Weights()
    nodes = [
        ("Conv", f"x {w.add('w', 4, 4, 1, 1)}", "c"),
        ("BatchNormalization", f"c {w.norm('n', 4)}", "y m v", {"training_mode": 1}),
    ]
    check_pass(build(nodes, {"x": [2, 4, 5, 5]}, w), FoldBatchNorm(), rewrites=0)


def test_float64_keeps_its_precision() -> None:
    w = Weights(dtype=np.float64)
    nodes = [("Gemm", f"x {w.add('w', 3, 4)}", "c"), ("BatchNormalization", f"c {w.norm('n', 4)}", "y")]
    out = check_pass(build(nodes, {"x": [5, 3]}, w, dtype=TensorProto.DOUBLE), FoldBatchNorm(), rewrites=1, rtol=1e-10)
    assert g.const(out.graph.node(0).inputs[1]).dtype == np.float64
