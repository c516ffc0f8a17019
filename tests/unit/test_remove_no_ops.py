from __future__ import annotations

import pytest

from edgec.passes.remove_no_ops import RemoveNoOps
from passcheck import check_pass, ops

HEAD = '<ir_version: 10, opset_import: ["" : 25]> agraph '
I64 = 9223372036854775807

GONE = {
    "add 0": "(float[2,3] x) => (float[2,3] y) <float z = {0.0}> { a = Add(x, z) y = Sin(a) }",
    "0 add": "(float[2,3] x) => (float[2,3] y) <float[1,1] z = {0.0}> { a = Add(z, x) y = Sin(a) }",
    "sub 0": "(float[2,3] x) => (float[2,3] y) <float[3] z = {0.0, 0.0, 0.0}> { a = Sub(x, z) y = Sin(a) }",
    "mul 1": "(float[B,3] x) => (float[B,3] y) <float z = {1.0}> { a = Mul(x, z) y = Sin(a) }",
    "div 1": "(float[B,3] x) => (float[B,3] y) <float[1] z = {1.0}> { a = Div(x, z) y = Sin(a) }",
    "pow 1": "(float[2,3] x) => (float[2,3] y) <int64 z = {1}> { a = Pow(x, z) y = Sin(a) }",
    "dropout": "(float[2,3] x) => (float[2,3] y) { a, m = Dropout(x) y = Sin(a) }",
    "dropout not training": """(float[2,3] x) => (float[2,3] y) <float r = {0.5}, bool t = {0}>
        { a = Dropout(x, r, t) y = Sin(a) }""",
    "reshape": "(float[2,3] x) => (float[2,3] y) <int64[2] s = {-1, 3}> { a = Reshape(x, s) y = Sin(a) }",
    "symbolic reshape": "(float[B,3] x) => (float[B,3] y) <int64[2] s = {0, 3}> { a = Reshape(x, s) y = Sin(a) }",
    "flatten": "(float[B,3] x) => (float[B,3] y) { a = Flatten<axis=1>(x) y = Sin(a) }",
    "expand": "(float[2,3] x) => (float[2,3] y) <int64[2] s = {2, 1}> { a = Expand(x, s) y = Sin(a) }",
    "tile": "(float[2,3] x) => (float[2,3] y) <int64[2] s = {1, 1}> { a = Tile(x, s) y = Sin(a) }",
    "transpose": "(float[B,3] x) => (float[B,3] y) { a = Transpose<perm=[0,1]>(x) y = Sin(a) }",
    "cast": "(float[B,3] x) => (float[B,3] y) { a = Cast<to=1>(x) y = Sin(a) }",
    "pad": "(float[2,3] x) => (float[2,3] y) <int64[4] p = {0, 0, 0, 0}> { a = Pad(x, p) y = Sin(a) }",
    "slice": f"""(float[B,3] x) => (float[B,3] y) <int64[2] s = {{0, -3}}, int64[2] e = {{{I64}, 7}},
        int64[2] ax = {{0, 1}}>
        {{ a = Slice(x, s, e, ax) y = Sin(a) }}""",
    "concat of one": "(float[B,3] x) => (float[B,3] y) { a = Concat<axis=1>(x) y = Sin(a) }",
    "max of one": "(float[B,3] x) => (float[B,3] y) { a = Max(x) y = Sin(a) }",
    "split and concat": """(float[2,4] x) => (float[2,4] y) { a, b = Split<axis=1, num_outputs=2>(x)
        c = Concat<axis=-1>(a, b) y = Sin(c) }""",
    "split in one": "(float[2,4] x) => (float[2,4] y) { a = Split<axis=1, num_outputs=1>(x) y = Sin(a) }",
    "clip without bounds": "(float[2,4] x) => (float[2,4] y) { a = Clip(x) y = Sin(a) }",
    "relu of sigmoid": "(float[2,4] x) => (float[2,4] y) { a = Sigmoid(x) b = Relu(a) y = Sin(b) }",
    "relu of pooled relu": """(float[1,1,4,4] x) => (float[1,1,2,2] y)
        { a = Relu(x) b = MaxPool<kernel_shape=[2,2], strides=[2,2]>(a) c = Relu(b) y = Sin(c) }""",
    "relu of clip": """(float[2,4] x) => (float[2,4] y) <float l = {0.0}, float h = {6.0}>
        { a = Clip(x, l, h) b = Relu(a) y = Sin(b) }""",
    "clip of sigmoid": """(float[2,4] x) => (float[2,4] y) <float l = {0.0}, float h = {1.0}>
        { a = Sigmoid(x) b = Clip(a, l, h) y = Sin(b) }""",
    "neg neg": "(float[2,4] x) => (float[2,4] y) { a = Neg(x) b = Neg(a) y = Sin(b) }",
    "floor floor": "(float[2,4] x) => (float[2,4] y) { a = Floor(x) b = Floor(a) y = Sin(b) }",
    "where true": """(float[2,4] x, float[4] u) => (float[2,4] y) <bool[1] c = {1}>
        { a = Where(c, x, u) y = Sin(a) }""",
    "where of the same": "(float[2,4] x, bool[4] c) => (float[2,4] y) { a = Where(c, x, x) y = Sin(a) }",
    "resize by 1": """(float[1,1,4,4] x) => (float[1,1,4,4] y) <float[4] s = {1.0, 1.0, 1.0, 1.0}>
        { a = Resize<mode="cubic">(x, , s) y = Sin(a) }""",
    "reduce over ones": """(float[B,1,4] x) => (float[B,1,4] y) <int64[1] ax = {1}>
        { a = ReduceMean(x, ax) y = Sin(a) }""",
    "global pool of one pixel": "(float[B,3,1,1] x) => (float[B,3,1,1] y) { a = GlobalAveragePool(x) y = Sin(a) }",
    "pool of single pixels": """(float[1,3,4,4] x) => (float[1,3,4,4] y)
        { a = AveragePool<kernel_shape=[1,1]>(x) y = Sin(a) }""",
    "identity": "(float[2,4] x) => (float[2,4] y) { a = Identity(x) y = Sin(a) }",
}

STAYS = {
    "add 0 that widens": "(float[3] x) => (float[2,3] y) <float[2,1] z = {0.0, 0.0}> { y = Add(x, z) }",
    "mul 1 that widens": """(float[1,3] x) => (float[2,3] y) <float[2,3] z = {1.0,1.0,1.0,1.0,1.0,1.0}> { y = Mul(x,
        z) }""",
    "1 div x": "(float[2,3] x) => (float[2,3] y) <float z = {1.0}> { y = Div(z, x) }",
    "0 sub x": "(float[2,3] x) => (float[2,3] y) <float z = {0.0}> { y = Sub(z, x) }",
    "dropout whose mask is read": "(float[2,3] x) => (float[2,3] y, bool[2,3] m) { y, m = Dropout(x) }",
    "reshape of a symbol": "(float[B,C] x) => (float[D,3] y) <int64[2] s = {-1, 3}> { y = Reshape(x, s) }",
    "slice of a part": """(float[2,3] x) => (float[2,2] y) <int64[1] s = {0}, int64[1] e = {2}, int64[1] ax = {1}>
        { y = Slice(x, s, e, ax) }""",
    "slice backwards": f"""(float[2,3] x) => (float[2,3] y)
        <int64[1] s = {{-1}}, int64[1] e = {{-{I64}}}, int64[1] ax = {{1}}, int64[1] st = {{-1}}>
        {{ y = Slice(x, s, e, ax, st) }}""",
    "slice up to a number": """(float[B,3] x) => (float[C,3] y) <int64[1] s = {0}, int64[1] e = {2}, int64[1] ax = {0}>
        { y = Slice(x, s, e, ax) }""",
    "concat in another order": """(float[2,4] x) => (float[2,4] y)
        { a, b = Split<axis=1, num_outputs=2>(x) y = Concat<axis=1>(b, a) }""",
    "concat along another axis": """(float[2,4] x) => (float[4,2] y)
        { a, b = Split<axis=1, num_outputs=2>(x) y = Concat<axis=0>(a, b) }""",
    "relu of leaky relu": "(float[2,4] x) => (float[2,4] y) { a = LeakyRelu(x) y = Relu(a) }",
    "relu of clip below 0": """(float[2,4] x) => (float[2,4] y) <float l = {-1.0}, float h = {6.0}>
        { a = Clip(x, l, h) y = Relu(a) }""",
    "clip that cuts a sigmoid": """(float[2,4] x) => (float[2,4] y) <float h = {0.5}>
        { a = Sigmoid(x) y = Clip(a, , h) }""",
    "reciprocal twice": "(float[2,4] x) => (float[2,4] y) { a = Reciprocal(x) y = Reciprocal(a) }",
    "reduce without the axis": """(float[B,1,4] x) => (float[B,4] y) <int64[1] ax = {1}>
        { y = ReduceMean<keepdims=0>(x, ax) }""",
    "input to output": "(float[2,4] x) => (float[2,4] y) { y = Identity(x) }",
    "rounding pair": "(float[2,4] x) => (float[2,4] y) { a = Cast<to=10>(x) y = Cast<to=1>(a) }",
    "pool with strides": """(float[1,3,4,4] x) => (float[1,3,2,2] y) { y = MaxPool<kernel_shape=[1,1],
        strides=[2,2]>(x) }""",
    "log of exp": "(float[2,4] x) => (float[2,4] y) { a = Exp(x) y = Log(a) }",
}


@pytest.mark.parametrize("body", GONE.values(), ids=GONE)
def test_gone(body: str) -> None:
    model = check_pass(HEAD + body, RemoveNoOps(), rewrites=1)
    assert ops(model)["Sin"] == 1
    left = set(ops(model)) - {"Sin", "Sigmoid", "Relu", "MaxPool", "Clip", "Floor"}
    assert not left


@pytest.mark.parametrize("body", STAYS.values(), ids=STAYS)
def test_stays(body: str) -> None:
    check_pass(HEAD + body, RemoveNoOps(), rewrites=0)


def test_output_keeps_its_name_and_other_users() -> None:
    model = check_pass(
        HEAD + "(float[2] x) => (float[2] y, float[2] z) { a = Sin(x) y = Identity(a) z = Cos(a) }",
        RemoveNoOps(), rewrites=1,
    )  # fmt: skip
    assert ops(model) == {"Sin": 1, "Cos": 1}


def test_input_that_reaches_an_output_becomes_an_identity() -> None:
    model = check_pass(HEAD + """(float[2] x) => (float[2] y) <float z = {0.0}> { y = Add(x, z) }""", RemoveNoOps(),
        rewrites=1)
    assert ops(model) == {"Identity": 1}


def test_two_outputs_of_one_value() -> None:
    body = "(float[2] x) => (float[2] y, float[2] z) { y = Sin(x) z = Identity(y) }"
    assert ops(check_pass(HEAD + body, RemoveNoOps(), rewrites=0)) == {"Sin": 1, "Identity": 1}


def test_inside_a_branch() -> None:
    body = """(bool c, float[2] x) => (float[2] y) <float z = {0.0}> {
        y = If (c) <then_branch = t () => (float[2] a) { b = Add(x, z) a = Sin(b) },
                    else_branch = e () => (float[2] d) { d = Cos(x) }>
    }"""
    assert ops(check_pass(HEAD + body, RemoveNoOps(), rewrites=1)) == {"If": 1, "Sin": 1, "Cos": 1}
