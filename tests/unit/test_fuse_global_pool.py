"""Pooling over whole pictures, and what only looks like it."""

import pytest

from edgec.compiler import graph as g
from edgec.passes.fuse_global_pool import FuseGlobalPool
from passcheck import check_pass, ops

CONSTANTS = "int64[2] axes = {2, 3}, int64[2] last = {-1, -2}, int64[2] first = {1, 2}, int64[2] flat = {-1, 6}, "
CONSTANTS += "int64[4] four = {0, 6, 1, 1}, int64[2] other = {3, 4}"


def model(body: str, out: str, x: str = "float[2,6,4,5]") -> str:
    return f'<ir_version: 10, opset_import: ["" : 25]> m ({x} x) => (float[{out}] y) <{CONSTANTS}> {{ {body} }}'


KEPT, FLAT = "2,6,1,1", "2,6"
FORMS = [
    ("y = ReduceMean(x, axes)", KEPT, "GlobalAveragePool"),
    ("y = ReduceMean(x, last)", KEPT, "GlobalAveragePool"),
    ("y = ReduceMax<keepdims = 1>(x, axes)", KEPT, "GlobalMaxPool"),
    ("y = AveragePool<kernel_shape = [4,5]>(x)", KEPT, "GlobalAveragePool"),
    ("y = AveragePool<kernel_shape = [4,5], strides = [2,2], ceil_mode = 1>(x)", KEPT, "GlobalAveragePool"),
    ("y = MaxPool<kernel_shape = [4,5], auto_pad = \"VALID\">(x)", KEPT, "GlobalMaxPool"),
    ("a = GlobalAveragePool(x) y = Flatten(a)", FLAT, "ReduceMean"),
    ("a = GlobalAveragePool(x) y = Squeeze(a, axes)", FLAT, "ReduceMean"),
    ("a = ReduceMean(x, axes) y = Reshape(a, flat)", FLAT, "ReduceMean"),
    ("a = MaxPool<kernel_shape = [4,5]>(x) y = Flatten(a)", FLAT, "ReduceMax"),
    ("a = ReduceMean<keepdims = 0>(x, axes) y = Unsqueeze(a, axes)", KEPT, "GlobalAveragePool"),
    ("a = ReduceMax<keepdims = 0>(x, axes) y = Reshape(a, four)", KEPT, "GlobalMaxPool"),
]  # fmt: skip


@pytest.mark.parametrize(("body", "out", "op_type"), FORMS)
def test_forms(body: str, out: str, op_type: str) -> None:
    fused = check_pass(model(body, out), FuseGlobalPool(), rewrites=1)
    assert ops(fused) == {op_type: 1}
    assert g.attr(next(iter(fused.graph)), "keepdims", 1) == (0 if out == FLAT else 1)


@pytest.mark.parametrize(
    "body", ["a = GlobalAveragePool(x) y = Flatten(a)", "a = ReduceMean(x, axes) y = Reshape(a, flat)"]
)
def test_symbolic_batch_and_size(body: str) -> None:
    fused = check_pass(
        model(body, "N,6", "float[N,6,H,W]"), FuseGlobalPool(), rewrites=1, input_shapes={"x": (3, 6, 4, 5)}
    )
    assert ops(fused) == {"ReduceMean": 1}


LEFT = [
    ("y = GlobalAveragePool(x)", KEPT),
    ("y = ReduceMean<keepdims = 0>(x, axes)", FLAT),
    ("y = ReduceMean(x, first)", "2,1,1,5"),
    ("y = AveragePool<kernel_shape = [2,5]>(x)", "2,6,3,1"),
    ("y = AveragePool<kernel_shape = [4,5], pads = [1,1,1,1]>(x)", "2,6,3,3"),
    ("y = AveragePool<kernel_shape = [4,5], auto_pad = \"SAME_UPPER\">(x)", "2,6,4,5"),
    ("y = MaxPool<kernel_shape = [2,2], dilations = [3,4]>(x)", KEPT),
    ("a = GlobalAveragePool(x) y = Reshape(a, other)", "3,4"),
    ("a = GlobalAveragePool(x) b = Flatten(a) c = Mul(a, a) d = Flatten(c) y = Add(b, d)", FLAT),
]  # fmt: skip


@pytest.mark.parametrize(("body", "out"), LEFT)
def test_what_is_left(body: str, out: str) -> None:
    check_pass(model(body, out), FuseGlobalPool(), rewrites=0)


def test_the_places_of_maxima_that_are_wanted_keep_the_pool() -> None:
    text = model("y, i = MaxPool<kernel_shape = [4,5]>(x)", KEPT).replace("] y) <", "] y, int64[2,6,1,1] i) <")
    check_pass(text, FuseGlobalPool(), rewrites=0)


def test_sequences_of_vectors_are_left() -> None:
    text = model("y = ReduceMean(x, two)", "2,6,1", "float[2,6,4]").replace("<int64", "<int64[1] two = {2}, int64", 1)
    check_pass(text, FuseGlobalPool(), rewrites=0)
