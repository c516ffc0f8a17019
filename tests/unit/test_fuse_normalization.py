"""Layer, instance, group and root-mean-square normalisation in the spellings of exporters; and near misses."""

import numpy as np
import pytest

from edgec.passes.fuse_normalization import FuseNormalization
from passcheck import check_pass, context, ops


def floats(name: str, shape: tuple[int, ...], seed: int = 0) -> str:
    values = np.random.default_rng(seed).uniform(0.5, 1.5, shape).astype(np.float32).reshape(-1)
    return f"float{list(shape) if shape else ''} {name} = {{{', '.join(map(str, values))}}}"


def model(body: str, signature: str, out: str, axes: str = "-1", extra: str = "") -> str:
    count = axes.count(",") + 1
    constants = f"int64[{count}] axes = {{{axes}}}, float two = {{2}}, float half = {{0.5}}, float mhalf = {{-0.5}}, "
    constants += "float eps = {1e-5}, float one = {1}" + (f", {extra}" if extra else "")
    return f'<ir_version: 10, opset_import: ["" : 25]> m ({signature}) => ({out}) <{constants}> {{ {body} }}'


START = "mean = ReduceMean(x, axes) c = Sub(x, mean) "
SQUARED = {"pow": "s = Pow(c, two) ", "mul": "s = Mul(c, c) "}
ENDS = {
    "sqrt div": "v = ReduceMean(s, axes) e = Add(v, eps) d = Sqrt(e) n = Div(c, d) ",
    "eps first": "v = ReduceMean(s, axes) e = Add(eps, v) d = Sqrt(e) n = Div(c, d) ",
    "reciprocal": "v = ReduceMean(s, axes) e = Add(v, eps) d = Sqrt(e) i = Reciprocal(d) n = Mul(c, i) ",
    "one over": "v = ReduceMean(s, axes) e = Add(v, eps) d = Sqrt(e) i = Div(one, d) n = Mul(i, c) ",
    "pow half": "v = ReduceMean(s, axes) e = Add(v, eps) d = Pow(e, half) n = Div(c, d) ",
    "pow minus half": "v = ReduceMean(s, axes) e = Add(v, eps) i = Pow(e, mhalf) n = Mul(c, i) ",
}
SEQUENCE = ("float[2,5,8] x", "float[2,5,8] y")
WEIGHTS = floats("g", (8,)) + ", " + floats("b", (8,), 1)
AFFINE = "t = Mul(n, g) y = Add(t, b)"


@pytest.mark.parametrize("square", SQUARED.values(), ids=SQUARED)
@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
def test_layer_normalization(square: str, end: str) -> None:
    fused = check_pass(model(START + square + end + AFFINE, *SEQUENCE, extra=WEIGHTS), FuseNormalization(), rewrites=1)
    assert ops(fused) == {"LayerNormalization": 1}
    node = next(iter(fused.graph))
    assert len(node.inputs) == 3 and node.attributes["axis"].as_int() == -1
    assert node.attributes["epsilon"].as_float() == pytest.approx(1e-5)


CORE = START + SQUARED["mul"] + ENDS["sqrt div"]


def test_without_scale_and_bias() -> None:
    fused = check_pass(model(CORE + "y = Identity(n)", *SEQUENCE), FuseNormalization(), rewrites=1)
    assert ops(fused) == {"LayerNormalization": 1, "Identity": 1}


def test_over_the_last_two_axes() -> None:
    fused = check_pass(
        model(CORE + "y = Mul(n, g)", *SEQUENCE, "1,2", floats("g", (5, 8))), FuseNormalization(), rewrites=1
    )
    assert ops(fused) == {"LayerNormalization": 1}
    assert next(iter(fused.graph)).attributes["axis"].as_int() == -2


def test_symbolic_batch_and_length() -> None:
    text = model(CORE + AFFINE, "float[B,T,8] x", "float[B,T,8] y", extra=WEIGHTS)
    fused = check_pass(text, FuseNormalization(), rewrites=1, input_shapes={"x": (2, 5, 8)})
    assert ops(fused) == {"LayerNormalization": 1}


def test_the_spelling_of_batch_normalization() -> None:
    body = (
        START + SQUARED["mul"] + "v = ReduceMean(s, axes) e = Add(v, eps) d = Sqrt(e) i = Reciprocal(d) f = Mul(i, g) "
    )
    body += "p = Mul(x, f) q = Mul(mean, f) r = Sub(b, q) y = Add(p, r)"
    fused = check_pass(model(body, *SEQUENCE, extra=WEIGHTS), FuseNormalization(), rewrites=1)
    assert ops(fused) == {"LayerNormalization": 1}


def test_a_factor_on_one_side_only_is_no_normalization() -> None:
    body = (
        START + SQUARED["mul"] + "v = ReduceMean(s, axes) e = Add(v, eps) d = Sqrt(e) i = Reciprocal(d) f = Mul(i, g) "
    )
    body += "p = Mul(x, f) q = Mul(mean, i) r = Sub(b, q) y = Add(p, r)"
    check_pass(model(body, *SEQUENCE, extra=WEIGHTS), FuseNormalization(), rewrites=0)


PICTURE = ("float[2,6,4,5] x", "float[2,6,4,5] y")
CHANNELS = floats("g", (6, 1, 1)) + ", " + floats("b", (1, 6, 1, 1), 1)


def test_channels_first_layer_normalization_goes_between_transposes() -> None:
    fused = check_pass(model(CORE + AFFINE, *PICTURE, "1", CHANNELS), FuseNormalization(), rewrites=1)
    assert [n.op_type for n in fused.graph] == ["Transpose", "LayerNormalization", "Transpose"]


@pytest.mark.parametrize("axes", ["2,3", "-1,-2"])
def test_instance_normalization(axes: str) -> None:
    fused = check_pass(model(CORE + AFFINE, *PICTURE, axes, CHANNELS), FuseNormalization(), rewrites=1)
    assert ops(fused) == {"InstanceNormalization": 1}


RMS = {
    "div": "s = Pow(x, two) v = ReduceMean(s, axes) e = Add(v, eps) d = Sqrt(e) n = Div(x, d) y = Mul(n, g)",
    "t5": "s = Mul(x, x) v = ReduceMean(s, axes) e = Add(v, eps) d = Sqrt(e) i = Div(one, d) n = Mul(x, i) "
    "y = Mul(g, n)",
    "llama": "s = Pow(x, two) v = ReduceMean(s, axes) e = Add(v, eps) d = Sqrt(e) i = Reciprocal(d) n = Mul(x, i) "
    "y = Mul(g, n)",
    "pow": "s = Pow(x, two) v = ReduceMean(s, axes) e = Add(v, eps) i = Pow(e, mhalf) n = Mul(i, x) y = Mul(g, n)",
}


@pytest.mark.parametrize("body", RMS.values(), ids=RMS)
def test_rms_normalization(body: str) -> None:
    fused = check_pass(model(body, *SEQUENCE, extra=WEIGHTS), FuseNormalization(), rewrites=1)
    assert ops(fused) == {"RMSNormalization": 1}


GROUPS = "int64[3] cut = {0, 3, -1}, int64[5] cut5 = {2, 3, 2, 4, 5}, int64[4] whole = {2, 6, 4, 5}, "
GROUPS += (
    "float[3] ones = {1, 1, 1}, float[3] zeros = {0, 0, 0}, " + floats("g3", (3,), 2) + ", " + floats("b3", (3,), 3)
)
GROUPED = {
    "torch": "r = Reshape(x, cut) i = InstanceNormalization(r, ones, zeros) n = Reshape(i, whole) ",
    "scaled groups": "r = Reshape(x, cut) i = InstanceNormalization(r, g3, b3) n = Reshape(i, whole) ",
}


@pytest.mark.parametrize("name", ["torch", "scaled groups"])
def test_group_normalization(name: str) -> None:
    text = model(GROUPED[name] + AFFINE, *PICTURE, extra=f"{CHANNELS}, {GROUPS}")
    fused = check_pass(text, FuseNormalization(), rewrites=1)
    assert ops(fused) == {"GroupNormalization": 1}
    assert next(iter(fused.graph)).attributes["num_groups"].as_int() == 3


@pytest.mark.parametrize(("cut", "axes"), [("cut", "2"), ("cut5", "2,3,4")])
def test_group_normalization_written_out(cut: str, axes: str) -> None:
    core = "mean = ReduceMean(r, axes) c = Sub(r, mean) s = Mul(c, c) " + ENDS["sqrt div"].replace("n =", "i =")
    text = model(
        f"r = Reshape(x, {cut}) {core} n = Reshape(i, whole) {AFFINE}", *PICTURE, axes, f"{CHANNELS}, {GROUPS}"
    )
    assert ops(check_pass(text, FuseNormalization(), rewrites=2)) == {"GroupNormalization": 1}


def test_groups_across_the_batch_are_left() -> None:
    extra = f"{CHANNELS}, {GROUPS}, int64[3] mixed = {{4, 3, 20}}"
    text = model(GROUPED["torch"].replace("cut", "mixed") + AFFINE, *PICTURE, extra=extra)
    check_pass(text, FuseNormalization(), rewrites=0)


def test_other_readers_are_noted() -> None:
    ctx = context()
    text = model(CORE + "z = Relu(d) q = ReduceMax(z) y = Add(n, q)", *SEQUENCE)
    check_pass(text, FuseNormalization(), rewrites=0, ctx=ctx)
    assert any("looks like LayerNormalization" in n and "also read by Relu" in n for n in ctx.notes), ctx.notes


def test_mean_and_variance_over_different_axes() -> None:
    """That is no layer normalisation, but still a root mean square of what is centred."""
    body = START + "s = Mul(c, c) v = ReduceMean(s, other) e = Add(v, eps) d = Sqrt(e) y = Div(c, d)"
    fused = check_pass(model(body, *SEQUENCE, extra="int64[1] other = {1}"), FuseNormalization(), rewrites=1)
    assert ops(fused) == {"ReduceMean": 1, "Sub": 1, "Transpose": 2, "RMSNormalization": 1}


def test_a_scale_along_other_axes_stays() -> None:
    text = model(CORE + "y = Mul(n, g)", *SEQUENCE, extra=floats("g", (5, 1)))
    assert ops(check_pass(text, FuseNormalization(), rewrites=1)) == {"LayerNormalization": 1, "Mul": 1}


def test_normalized_axes_of_unknown_size_are_left() -> None:
    ctx = context()
    text = model(CORE + "y = Identity(n)", "float[2,5,D] x", "float[2,5,D] y")
    check_pass(text, FuseNormalization(), rewrites=0, ctx=ctx, input_shapes={"x": (2, 5, 8)})
    assert "not of fixed size" in ctx.notes[0]
