from __future__ import annotations

import pytest

from edgec.compiler import graph
from edgec.passes.fuse_pad import FusePad
from passcheck import check_pass, ops

HEAD = '<ir_version: 10, opset_import: ["" : 25]> agraph '
X = "(float[1,1,5,6] x)"
PAD = "int64[8] p = {0, 0, 1, 2, 0, 0, 2, 0}"
W = "float[1,1,3,3] w = {1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0}"

FUSED = {
    "conv": f"{X} => (float[1,1,6,6] y) <{W}, {PAD}> {{ a = Pad(x, p) y = Conv(a, w) }}",
    "conv with pads": f"{X} => (float[1,1,8,8] y) <{W}, {PAD}> {{ a = Pad(x, p) y = Conv<pads=[1,1,1,1]>(a, w) }}",
    "conv, axes": f"""{X} => (float[1,1,3,6] y) <{W}, int64[2] p = {{1, 1}}, float z = {{0.0}}, int64[1] ax = {{-1}}>
        {{ a = Pad(x, p, z, ax) y = Conv(a, w) }}""",
    "symbolic batch": f"(float[B,1,5,6] x) => (float[B,1,6,6] y) <{W}, {PAD}> {{ a = Pad(x, p) y = Conv(a, w) }}",
    "average": f"{X} => (float[1,1,6,6] y) <{PAD}> {{ a = Pad(x, p) y = AveragePool<kernel_shape=[3,3]>(a) }}",
    "average that counts": f"""{X} => (float[1,1,7,7] y) <{PAD}>
        {{ a = Pad(x, p) y = AveragePool<kernel_shape=[5,5], count_include_pad=1, pads=[1,1,2,2]>(a) }}""",
    "max over relu": f"""{X} => (float[1,1,6,6] y) <{PAD}>
        {{ r = Relu(x) a = Pad(r, p) y = MaxPool<kernel_shape=[3,3]>(a) }}""",
}

STAYS = {
    "conv with ones": f"""{X} => (float[1,1,6,6] y) <{W}, {PAD}, float o = {{1.0}}> {{ a = Pad(x, p, o) y = Conv(a,
        w) }}""",
    "conv, reflected": f"{X} => (float[1,1,6,6] y) <{W}, {PAD}> {{ a = Pad<mode=\"reflect\">(x, p) y = Conv(a, w) }}",
    "conv, channels": f"""(float[1,1,5,6] x) => (float[1,1,3,4] y)
        <float[1,2,3,3] w = {{{', '.join(['1.0'] * 18)}}}, int64[8] p = {{0, 1, 0, 0, 0, 0, 0, 0}}>
        {{ a = Pad(x, p) y = Conv(a, w) }}""",
    "conv, cropped": f"""{X} => (float[1,1,2,4] y) <{W}, int64[8] p = {{0, 0, -1, 0, 0, 0, 0, 0}}> {{ a = Pad(x, p)
        y = Conv(a, w) }}""",
    "average that doesn't count": f"""{X} => (float[1,1,8,8] y) <{PAD}>
        {{ a = Pad(x, p) y = AveragePool<kernel_shape=[3,3], pads=[1,1,1,1]>(a) }}""",
    "average, ceil": f"""{X} => (float[1,1,4,4] y) <{PAD}>
        {{ a = Pad(x, p) y = AveragePool<kernel_shape=[3,3], strides=[2,2], ceil_mode=1>(a) }}""",
    "max of any sign": f"{X} => (float[1,1,6,6] y) <{PAD}> {{ a = Pad(x, p) y = MaxPool<kernel_shape=[3,3]>(a) }}",
    "max, dilated": f"""{X} => (float[1,1,6,6] y) <{PAD}>
        {{ r = Relu(x) a = Pad(r, p) y = MaxPool<kernel_shape=[2,2], dilations=[2,2]>(a) }}""",
    "max, whole window": f"""{X} => (float[1,1,7,7] y) <{PAD}>
        {{ r = Relu(x) a = Pad(r, p) y = MaxPool<kernel_shape=[2,2]>(a) }}""",
    "average, whole window": f"""{X} => (float[1,1,7,7] y) <{PAD}> {{ a = Pad(x, p)
        y = AveragePool<kernel_shape=[2,2]>(a) }}""",
}


@pytest.mark.parametrize("body", FUSED.values(), ids=FUSED)
def test_fused(body: str) -> None:
    m = check_pass(HEAD + body, FusePad(), rewrites=1)
    assert "Pad" not in ops(m)


@pytest.mark.parametrize("body", STAYS.values(), ids=STAYS)
def test_stays(body: str) -> None:
    assert "Pad" in ops(check_pass(HEAD + body, FusePad(), rewrites=0))


def test_max_pool_takes_minus_infinity() -> None:
    body = f"""{X} => (float[1,1,6,6] y) <{PAD}, float m = {{1.0}}> {{ a = Pad(x, p, m)
        y = MaxPool<kernel_shape=[3,3]>(a) }}"""
    import numpy as np
    import onnx
    from onnx import numpy_helper

    proto = onnx.parser.parse_model(HEAD + body)
    for t in proto.graph.initializer:
        if t.name == "m":
            t.CopyFrom(numpy_helper.from_array(np.array(-np.inf, np.float32), "m"))
    assert ops(check_pass(proto, FusePad(), rewrites=1)) == {"MaxPool": 1}


def test_pad_that_others_read_stays_for_them() -> None:
    body = f"{X} => (float[1,1,6,6] y, float[1,1,8,8] z) <{W}, {PAD}> {{ a = Pad(x, p) y = Conv(a, w) z = Sin(a) }}"
    assert ops(check_pass(HEAD + body, FusePad(), rewrites=1)) == {"Pad": 1, "Conv": 1, "Sin": 1}


@pytest.mark.parametrize("mode", ["SAME_UPPER", "SAME_LOWER", "VALID"])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("op", ["Conv", "MaxPool", "AveragePool"])
def test_auto_pad_is_written_out(mode: str, stride: int, op: str) -> None:
    sizes = [(n - 4) // stride + 1 if mode == "VALID" else -(-n // stride) for n in (9, 10)]
    weight = ", ".join(["0.5"] * 16)
    second = ", w" if op == "Conv" else ""
    body = f"""(float[1,1,9,10] x) => (float[1,1,{sizes[0]},{sizes[1]}] y) <float[1,1,4,4] w = {{{weight}}}>
        {{ y = {op}<auto_pad="{mode}", kernel_shape=[4,4], strides=[{stride},{stride}]>(x{second}) }}"""
    (node,) = check_pass(HEAD + body, FusePad(), rewrites=1).graph
    assert "auto_pad" not in node.attributes and len(graph.attr(node, "pads")) == 4


def test_same_with_stride_1_needs_no_size() -> None:
    body = f"(float[1,1,H,V] x) => (float[1,1,H,V] y) <{W}> {{ y = Conv<auto_pad=\"SAME_UPPER\">(x, w) }}"
    (node,) = check_pass(HEAD + body, FusePad(), rewrites=1, input_shapes={"x": [1, 1, 5, 6]}).graph
    assert graph.attr(node, "pads") == (1, 1, 1, 1)


def test_same_with_stride_2_and_free_size_is_kept_and_noted() -> None:
    body = f"""(float[1,1,H,V] x) => (float[1,1,A,C] y) <{W}> {{ y = Conv<auto_pad="SAME_UPPER", strides=[2,2]>(x, w)
        }}"""
    from passcheck import context

    ctx = context()
    check_pass(HEAD + body, FusePad(), rewrites=0, input_shapes={"x": [1, 1, 5, 6]}, ctx=ctx)
    assert any("--shape" in note for note in ctx.notes)
