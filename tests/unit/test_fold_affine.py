from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto

from edgec.compiler import graph as g
from edgec.passes.fold_affine import FoldAffine
from linearmodels import Node, Weights, build
from passcheck import check_pass, context, ops

PROPERTY = settings(max_examples=30, deadline=None, derandomize=True)


def chain(w: Weights, names: list[str], channels: tuple[int, ...], start: str, end: str) -> list[Node]:
    """Constant operations in a line; `rMul` has its constant on the left, `vMul` has one number per channel."""
    nodes: list[Node] = []
    value = start
    for i, name in enumerate(names):
        dims = channels if "v" in name else ()
        low = 0.5 if name.endswith(("Div", "Mul")) else None
        c = w.add(f"{start}_{i}", *dims, low=low, high=2.0)
        out = end if i == len(names) - 1 else f"{start}_t{i}"
        nodes.append((name.lstrip("rv"), f"{c} {value}" if "r" in name else f"{value} {c}", out))
        value = out
    return nodes


OPS = ["Mul", "Add", "Sub", "Div", "vMul", "vAdd", "vSub", "vDiv", "rMul", "rAdd", "rSub", "rvMul", "rvAdd", "rvSub"]
CHAINS = st.lists(st.sampled_from(OPS), min_size=1, max_size=4)


@PROPERTY
@given(
    before=CHAINS,
    behind=CHAINS,
    group=st.sampled_from([1, 2]),
    transposed=st.booleans(),
    bias=st.booleans(),
    pad=st.integers(0, 1),
    stride=st.integers(1, 2),
    seed=st.integers(0, 99),
)
def test_around_any_convolution(
    before: list[str],
    behind: list[str],
    group: int,
    transposed: bool,
    bias: bool,
    pad: int,
    stride: int,
    seed: int,
) -> None:
    w = Weights(seed)
    dims = (4, 6 // group) if transposed else (6, 4 // group)
    operands = f"a {w.add('w', *dims, 3, 3)} {w.add('b', 6) if bias else ''}"
    attributes = {"group": group, "strides": [stride] * 2, "pads": [pad] * 4}
    nodes = [
        *chain(w, before, (4, 1, 1), "x", "a"),
        ("ConvTranspose" if transposed else "Conv", operands, "c", attributes),
        *chain(w, behind, (1, 6, 1, 1), "c", "y"),
    ]
    out = check_pass(build(nodes, {"x": ["N", 4, 6, 5]}, w), FoldAffine(), seeds=1)
    assert not g.sole_user(next(g.nodes(out, "Conv", "ConvTranspose")).outputs[0]), "all behind it goes into it"
    if not pad and not transposed:
        assert ops(out) == {"Conv": 1}
    else:
        assert sum(ops(out).values()) <= 3, "at most a Mul and an Add stay in front"


@PROPERTY
@given(
    before=CHAINS,
    behind=CHAINS,
    bias=st.booleans(),
    attributes=st.fixed_dictionaries(
        {"transB": st.integers(0, 1), "alpha": st.sampled_from([1.0, 0.5]), "beta": st.sampled_from([1.0, 3.0])}
    ),
    seed=st.integers(0, 99),
)
def test_around_any_gemm(
    before: list[str], behind: list[str], bias: bool, attributes: dict[str, float], seed: int
) -> None:
    w = Weights(seed)
    dims = (5, 3) if attributes["transB"] else (3, 5)
    nodes = [
        *chain(w, before, (3,), "x", "a"),
        ("Gemm", f"a {w.add('w', *dims)} {w.add('b', 5) if bias else ''}", "c", attributes),
        *chain(w, behind, (5,), "c", "y"),
    ]
    assert ops(check_pass(build(nodes, {"x": ["N", 3]}, w), FoldAffine(), seeds=1)) == {"Gemm": 1}


@PROPERTY
@given(before=CHAINS, behind=CHAINS, left=st.booleans(), bias=st.booleans(), seed=st.integers(0, 99))
def test_around_any_matmul(before: list[str], behind: list[str], left: bool, bias: bool, seed: int) -> None:
    """Everything goes into a MatMul and the Add of its bias; without one, what is in front may keep two nodes."""
    w = Weights(seed)
    nodes = [
        *chain(w, before, (4, 1) if left else (4,), "x", "a"),
        ("MatMul", f"{w.add('w', 5, 4)} a" if left else f"a {w.add('w', 4, 5)}", "c"),
        *([("Add", f"c {w.add('b', *((5, 1) if left else (5,)))}", "d")] if bias else []),
        *chain(w, behind, (5, 1) if left else (5,), "d" if bias else "c", "y"),
    ]
    out = check_pass(build(nodes, {"x": [2, 4, 3] if left else [2, 3, 4]}, w), FoldAffine(), seeds=1)
    count = ops(out)
    if bias:
        assert count == {"MatMul": 1, "Add": 1}
    assert count["MatMul"] == 1 and sum(count.values()) <= 4


@PROPERTY
@given(
    op=st.sampled_from(["BatchNormalization", "InstanceNormalization", "LayerNormalization"]),
    behind=CHAINS,
    seed=st.integers(0, 99),
)
def test_behind_a_normalization(op: str, behind: list[str], seed: int) -> None:
    w = Weights(seed)
    last = op == "LayerNormalization"
    operands = w.norm("n", 4) if op == "BatchNormalization" else f"{w.add('s', 4)} {w.add('b', 4)}"
    nodes = [(op, f"x {operands}", "c"), *chain(w, behind, (4,) if last else (4, 1), "c", "y")]
    out = check_pass(build(nodes, {"x": [2, 5, 4] if last else [2, 4, 5]}, w), FoldAffine(), seeds=1)
    assert ops(out) == {op: 1}


def test_behind_group_normalization() -> None:
    """The standard has no shape inference for it: the output's shape is declared."""
    w = Weights()
    nodes = [("GroupNormalization", f"x {w.add('s', 4)} {w.add('b', 4)}", "c", {"num_groups": 2})]
    nodes += [("Mul", f"c {w.add('m', 4, 1)}", "y")]
    out = check_pass(build(nodes, {"x": [2, 4, 5]}, w, {"y": [2, 4, 5]}), FoldAffine(), rewrites=1)
    assert ops(out) == {"GroupNormalization": 1}


def test_rms_normalization_takes_a_scale_and_no_shift() -> None:
    w = Weights()
    nodes = [("RMSNormalization", f"x {w.add('s', 4)}", "c"), ("Mul", f"c {w.add('m', 4)}", "d")]
    nodes += [("Add", f"d {w.add('a', 4)}", "y")]
    out = check_pass(build(nodes, {"x": [2, 5, 4]}, w), FoldAffine(), rewrites=1)
    assert ops(out) == {"RMSNormalization": 1, "Add": 1}


def test_layer_norm_without_bias_gets_one() -> None:
    w = Weights()
    nodes = [("LayerNormalization", f"x {w.add('s', 4)}", "c"), ("Add", f"c {w.add('a', 4)}", "y")]
    assert ops(check_pass(build(nodes, {"x": [2, 5, 4]}, w), FoldAffine(), rewrites=1)) == {"LayerNormalization": 1}


def test_layer_norm_over_two_axes_stays() -> None:
    w = Weights()
    nodes = [("LayerNormalization", f"x {w.add('s', 5, 4)}", "c", {"axis": 1}), ("Mul", f"c {w.add('a', 4)}", "y")]
    check_pass(build(nodes, {"x": [2, 5, 4]}, w), FoldAffine(), rewrites=0)


def test_caffe2_densenet_block() -> None:
    """BatchNormalization, then a scale and a shift of their own: the norm takes both and stays one node."""
    w = Weights()
    nodes = [
        ("BatchNormalization", f"x {w.norm('n', 4)}", "n"),
        ("Mul", f"n {w.add('s', 4, 1, 1)}", "m"),
        ("Add", f"m {w.add('t', 4, 1, 1)}", "a"),
        ("Relu", "a", "y"),
    ]
    out = check_pass(build(nodes, {"x": [1, 4, 6, 6]}, w), FoldAffine(), rewrites=2)
    assert ops(out) == {"BatchNormalization": 1, "Relu": 1}


@pytest.mark.parametrize(
    ("names", "left"),
    [
        (["Mul", "Mul", "Div"], {"Mul": 1}),
        (["Add", "Sub", "vAdd"], {"Add": 1}),
        (["Mul", "Add"], {"Mul": 1, "Add": 1}),
        (["Add", "Mul"], {"Add": 1, "Mul": 1}),
        (["Div", "vSub", "vDiv"], {"Mul": 1, "Add": 1}),
        (["Add", "Mul", "Add", "Mul"], {"Mul": 1, "Add": 1}),
        (["rSub", "Mul", "rSub"], {"Mul": 1, "Add": 1}),
    ],
)
def test_chains_without_a_neighbour(names: list[str], left: dict[str, int]) -> None:
    w = Weights(3)
    nodes = [*chain(w, names, (4, 1, 1), "x", "e"), ("Exp", "e", "y")]
    out = check_pass(build(nodes, {"x": [1, 4, 3, 3]}, w), FoldAffine(), rewrites=len(names) - sum(left.values()))
    assert ops(out) == {**left, "Exp": 1}


def test_constants_that_would_make_a_bigger_one_stay_apart() -> None:
    w = Weights()
    nodes = [("Add", f"x {w.add('a', 50, 1)}", "b"), ("Add", f"b {w.add('c', 1, 50)}", "y")]
    check_pass(build(nodes, {"x": [50, 50]}, w), FoldAffine(), rewrites=0)


def test_rounding_by_a_big_number_is_kept() -> None:
    """`x + 2^23 - 2^23` rounds to an integer."""
    w = Weights()
    w["big"], w["minus"] = np.float32(2**23), np.float32(2**23)
    nodes = [("Add", "x big", "b"), ("Sub", "b minus", "y")]
    ctx = context()
    check_pass(build(nodes, {"x": [50]}, w), FoldAffine(), rewrites=0, ctx=ctx)
    assert any("Sub_y" in note and "cancel" in note for note in ctx.notes)


def test_a_far_shift_before_a_convolution_is_kept() -> None:
    """Timestamps minus their mean: folded, the small difference would drown."""
    w = Weights()
    w["mean"] = np.float32(1e6)
    nodes = [("Sub", "x mean", "b"), ("Conv", f"b {w.add('w', 2, 3, 1)}", "y")]
    inputs = {"x": (1e6 + np.random.default_rng(0).uniform(-1, 1, (1, 3, 8))).astype(np.float32)}
    ctx = context()
    check_pass(build(nodes, {"x": [1, 3, 8]}, w), FoldAffine(), rewrites=0, inputs=inputs, ctx=ctx)
    assert any("Conv_y" in note and "precision" in note for note in ctx.notes)


@pytest.mark.parametrize("dims", [(3, 1), (1, 2, 1, 1, 1), (2, 1, 1, 1), (1, 1, 5)])
def test_constants_of_other_shapes_stay(dims: tuple[int, ...]) -> None:
    w = Weights()
    nodes = [("Conv", f"x {w.add('w', 2, 3, 1, 1)}", "c"), ("Mul", f"c {w.add('m', *dims)}", "y")]
    check_pass(build(nodes, {"x": [1, 3, 3, 5]}, w), FoldAffine(), rewrites=0)


def test_one_output_channel_that_is_broadcast_stays() -> None:
    w = Weights()
    nodes = [("Conv", f"x {w.add('w', 1, 3, 1, 1)}", "c"), ("Mul", f"c {w.add('m', 4, 1, 1)}", "y")]
    check_pass(build(nodes, {"x": [1, 3, 3, 5]}, w), FoldAffine(), rewrites=0)


def test_a_value_that_is_read_elsewhere_stays() -> None:
    w = Weights()
    w["two"] = np.float32(2)
    nodes = [("Conv", f"x {w.add('w', 2, 3, 1, 1)}", "c"), ("Mul", "c two", "m"), ("Add", "m c", "y")]
    check_pass(build(nodes, {"x": [1, 3, 3, 5]}, w), FoldAffine(), rewrites=0)
    check_pass(build(nodes[:2], {"x": [1, 3, 3, 5]}, w, outputs=["c", "m"]), FoldAffine(), rewrites=0)


def test_integers_and_infinities_stay() -> None:
    w = Weights()
    w["inf"] = np.float32(np.inf)
    nodes = [("Conv", f"x {w.add('w', 2, 3, 1, 1)}", "c"), ("Mul", "c inf", "m"), ("Sign", "m", "y")]
    check_pass(build(nodes, {"x": [1, 3, 3, 5]}, w), FoldAffine(), rewrites=0)
    check_pass(
        """<ir_version: 10, opset_import: ["" : 25]>
        g (int32[3] x) => (int32[3] y) <int32 a = {2}> { b = Mul(x, a) c = Mul(b, a) y = Div(c, a) }""",
        FoldAffine(),
        rewrites=0,
    )


def test_a_weight_behind_dequantize_linear_stays() -> None:
    w = Weights()
    w["q"], w["scale"], w["two"] = np.ones((2, 3, 1, 1), np.int8), np.float32(0.1), np.float32(2)
    nodes = [("DequantizeLinear", "q scale", "w"), ("Conv", "x w", "c"), ("Mul", "c two", "y")]
    check_pass(build(nodes, {"x": [1, 3, 3, 5]}, w), FoldAffine(), rewrites=0)


def test_inside_a_branch() -> None:
    """The Mul in the branch reads the Conv outside: it must not move across."""
    out = check_pass(
        """<ir_version: 10, opset_import: ["" : 25]>
        g (bool[1] c, float[1,1,4] x) => (float[1,1,4] y) <float[1,1,1] w = {2.0}, float k = {3.0}> {
            v = Conv(x, w)
            y = If (c) <
                then_branch = t () => (float[1,1,4] a) { b = Mul(v, k) a = Mul(b, k) },
                else_branch = e () => (float[1,1,4] d) { p = Mul(x, k) d = Conv(p, w) }
            >
        }""",
        FoldAffine(),
        rewrites=2,
    )
    assert ops(out) == {"Conv": 2, "Mul": 1, "If": 1}


@pytest.mark.parametrize(
    ("view", "operand", "dims", "const"),
    [
        ("Transpose", {"perm": [0, 3, 1, 2]}, None, (6, 1, 1)),  # ConvNeXt's layer scale
        ("Transpose", {"perm": [0, 3, 1, 2]}, None, ()),
        ("Reshape", {}, [2, 15, 6], (6,)),
        ("Reshape", {}, [30, 2, 3], (1, 1, 1)),
        ("Reshape", {}, [-1, 6], (1, 6)),
        ("Unsqueeze", {}, [1], (6,)),
    ],
)
def test_behind_a_view(view: str, operand: dict[str, object], dims: list[int] | None, const: tuple[int, ...]) -> None:
    w = Weights()
    if dims:
        w["dims"] = np.array(dims)
    nodes = [("MatMul", f"x {w.add('w', 4, 6)}", "m"), ("Add", f"m {w.add('b', 6)}", "a")]
    nodes += [(view, "a dims" if dims else "a", "v", operand), ("Mul", f"v {w.add('s', *const)}", "c")]
    nodes += [("Sub", f"{w.add('t', *const)} c", "y")]
    out = check_pass(build(nodes, {"x": [2, 3, 5, 4]}, w), FoldAffine(), rewrites=2)
    assert ops(out) == {"MatMul": 1, "Add": 1, view: 1}


@pytest.mark.parametrize(
    ("view", "operand", "dims", "const"),
    [
        ("Transpose", {"perm": [0, 3, 1, 2]}, None, (5,)),
        ("Reshape", {}, [2, 3, 5, 2, 3], (3,)),
        ("Reshape", {}, [6, 3, 10], (6, 1, 1)),  # as many rows as channels, by chance
        ("Reshape", {}, [2, 6, 15], (6, 1)),
    ],
)
def test_behind_a_view_that_mixes_channels(
    view: str, operand: dict[str, object], dims: list[int] | None, const: tuple[int, ...]
) -> None:
    w = Weights()
    if dims:
        w["dims"] = np.array(dims)
    nodes = [("MatMul", f"x {w.add('w', 4, 6)}", "m"), (view, "m dims" if dims else "m", "v", operand)]
    nodes += [("Mul", f"v {w.add('s', *const)}", "y")]
    check_pass(build(nodes, {"x": [2, 3, 5, 4]}, w), FoldAffine(), rewrites=0)


def test_scale_and_shift_before_padding_leave_the_shift() -> None:
    """PP-OCR's learnable affine block before a padded depthwise convolution."""
    w = Weights()
    nodes = [
        ("Mul", f"{w.add('s', low=0.5)} x", "m"),
        ("Add", f"m {w.add('t')}", "a"),
        ("Conv", f"a {w.add('w', 4, 1, 3, 3)} {w.add('b', 4)}", "y", {"pads": [1, 1, 1, 1], "group": 4}),
    ]
    out = check_pass(build(nodes, {"x": [1, 4, 6, 6]}, w), FoldAffine(), rewrites=1)
    assert ops(out) == {"Add": 1, "Conv": 1}
    w["s"] = np.float32(0)
    check_pass(build(nodes, {"x": [1, 4, 6, 6]}, w), FoldAffine(), rewrites=0)


@pytest.mark.parametrize("factor", [1e38, 1e-38])
def test_a_factor_that_leaves_the_range_of_the_type_stays_and_is_noted(factor: float) -> None:
    w = Weights()
    w["k"] = np.float32(factor)
    w.add("w", 2, 3, 1, 1, low=20.0, high=30.0)
    w["w"] *= np.float32(1 if factor > 1 else 1e-3)
    nodes = [("Conv", "x w", "c"), ("Mul", "c k", "m"), ("Sign", "m", "y")]
    ctx = context()
    check_pass(build(nodes, {"x": [1, 3, 3, 5]}, w), FoldAffine(), rewrites=0, ctx=ctx)
    assert any("Conv_c" in note and "range" in note for note in ctx.notes)


def test_a_small_weight_with_two_users_is_copied_for_one() -> None:
    w = Weights()
    nodes = [("Conv", f"x {w.add('w', 2, 3, 1, 1)}", "c"), ("Mul", f"c {w.add('s', 2, 1, 1)}", "m")]
    nodes += [("Conv", "x w", "d"), ("Add", "d m", "y")]
    out = check_pass(build(nodes, {"x": [1, 3, 3, 5]}, w), FoldAffine(), rewrites=1)
    assert ops(out) == {"Conv": 2, "Add": 1}


def test_half_precision_weights_stay_half() -> None:
    w = Weights(dtype=np.float16)
    nodes = [("MatMul", f"x {w.add('w', 4, 5)}", "c"), ("Mul", f"c {w.add('s', 5, low=0.5)}", "y")]
    model = build(nodes, {"x": [2, 4]}, w, dtype=TensorProto.FLOAT16)
    out = check_pass(model, FoldAffine(), rewrites=1, rtol=2e-3)
    assert g.const(next(g.nodes(out, "MatMul")).inputs[1]).dtype == np.float16


@pytest.mark.parametrize("names", [["vMul"], ["vAdd"], ["vMul", "Add"], ["Mul", "vAdd"]])
def test_constants_that_make_the_channels_stay_before_an_operator(names: list[str]) -> None:
    """A grey picture times three colours: the operator needs three channels."""
    w = Weights()
    nodes = [*chain(w, names, (3, 1, 1), "x", "a"), ("Conv", f"a {w.add('w', 2, 3, 1, 1)}", "y", {"pads": [1] * 4})]
    check_pass(build(nodes, {"x": [1, 1, 3, 5]}, w), FoldAffine(), rewrites=0)
    w = Weights()
    nodes = [*chain(w, [n for n in names if "v" in n], (3,), "x", "a"), ("MatMul", f"a {w.add('w', 3, 2)}", "y")]
    check_pass(build(nodes, {"x": [4, "N"]}, w), FoldAffine(), rewrites=0, input_shapes={"x": [4, 1]})
