"""Transposes of rows that cancel across what works by rows."""

import numpy as np
import pytest

from edgec.passes.simplify_transposes import SimplifyTransposes
from passcheck import check_pass


def floats(name: str, *shape: int) -> str:
    values = np.random.default_rng(len(name)).standard_normal(shape).astype(np.float32).reshape(-1)
    return f"float[{','.join(map(str, shape))}] {name} = {{{', '.join(map(str, values))}}}"


CONSTANTS = ", ".join(
    [floats("w", 6, 8), floats("bias", 8), floats("v", 8, 6), floats("g", 6), floats("column", 5, 1, 1)]
)
CONSTANTS += ", int64[2] rows = {-1, 6}, int64[3] back = {5, -1, 8}, int64[3] turned = {2, 5, 8}"


def model(body: str, x: str = "2,5,6", y: str = "2,5,8") -> str:
    return f'<ir_version: 10, opset_import: ["" : 25]> m (float[{x}] x) => (float[{y}] y) <{CONSTANTS}> {{ {body} }}'


SWAP = "<perm = [1,0,2]>"
GONE = [
    (f"a = Transpose{SWAP}(x) b = MatMul(a, w) c = Add(b, bias) y = Transpose{SWAP}(c)", ["MatMul", "Add"]),
    (
        f"a = Transpose{SWAP}(x) b = LayerNormalization(a, g) c = MatMul(b, w) d = Gelu(c) y = Transpose{SWAP}(d)",
        ["LayerNormalization", "MatMul", "Gelu"],
    ),
    (
        f"a = Transpose{SWAP}(x) r = Reshape(a, rows) b = Gemm(r, w, bias) c = Reshape(b, back) y = Transpose{SWAP}(c)",
        ["Reshape", "Gemm", "Reshape"],
    ),
]


@pytest.mark.parametrize(("x", "y"), [("2,5,6", "2,5,8"), ("N,5,6", "N,5,8")])
@pytest.mark.parametrize(("body", "left"), GONE)
def test_pairs_cancel(body: str, left: list[str], x: str, y: str) -> None:
    moved = check_pass(model(body, x, y), SimplifyTransposes(), rewrites=1, input_shapes={"x": (2, 5, 6)})
    assert [n.op_type for n in moved.graph] == left


LEFT = {
    "another reader": f"a = Transpose{SWAP}(x) b = MatMul(a, w) z = Transpose{SWAP}(b) m = ReduceMax(b) y = Add(z, m)",
    "by column": f"a = Transpose{SWAP}(x) b = Add(a, column) c = MatMul(b, w) y = Transpose{SWAP}(c)",
    "across rows": f"a = Transpose{SWAP}(x) b = MatMul(a, w) c = Softmax<axis = 0>(b) y = Transpose{SWAP}(c)",
    "nothing to gain": f"a = Transpose{SWAP}(x) b = MatMul(a, w) y = Reshape(b, turned)",
}


@pytest.mark.parametrize("body", LEFT.values(), ids=LEFT)
def test_what_is_left(body: str) -> None:
    check_pass(model(body), SimplifyTransposes(), rewrites=0)
