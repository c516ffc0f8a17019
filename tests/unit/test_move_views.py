"""Views that move: across row-wise operators, and transposes that sink to where they meet."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from edgec.compiler import graph, shapes
from edgec.passes.remove_no_ops import RemoveNoOps
from edgec.passes.simplify_transposes import SimplifyTransposes
from passcheck import check_pass, load, ops

HEAD = '<ir_version: 10, opset_import: ["" : 25]> agraph '
SEQUENCE_FIRST = "(float[B,5,4] x) => (float[B,5,3] y)"


def weights(*dims: int) -> str:
    values = np.random.default_rng(sum(dims)).normal(size=dims).round(2).reshape(-1)
    return f"float[{','.join(map(str, dims))}] w = {{{', '.join(map(str, values))}}}"


def test_transposes_around_a_linear_layer_cancel() -> None:
    body = f"""{SEQUENCE_FIRST} <{weights(4, 3)}, float[3] b = {{1.0, 2.0, 3.0}}> {{
        t = Transpose<perm=[1,0,2]>(x) m = MatMul(t, w) a = Add(b, m) r = Relu(a) y = Transpose<perm=[1,0,2]>(r) }}"""
    m = check_pass(HEAD + body, SimplifyTransposes(), input_shapes={"x": [2, 5, 4]})
    assert ops(m) == {"MatMul": 1, "Add": 1, "Relu": 1}


def test_transposes_around_a_flattened_gemm_become_reshapes() -> None:
    body = f"""{SEQUENCE_FIRST} <{weights(3, 4)}, int64[2] s = {{-1, 4}}, int64[3] back = {{5, -1, 3}}> {{
        t = Transpose<perm=[1,0,2]>(x) f = Reshape(t, s) g = Gemm<transB=1>(f, w) u = Reshape(g, back)
        y = Transpose<perm=[1,0,2]>(u) }}"""
    m = check_pass(HEAD + body, SimplifyTransposes(), input_shapes={"x": [2, 5, 4]})
    assert ops(m) == {"Reshape": 2, "Gemm": 1}


@pytest.mark.parametrize("row", [
    "r = Softmax<axis=-1>(t)", "r = LogSoftmax(t)", "r = Gelu(t)", "r = Mul(t, c)", "r = Div(c, t)", "r = PRelu(t, c)",
    "r = LayerNormalization(t, c, c)", "r = Clip(t, , h)",
])  # fmt: skip
def test_row_wise_operators(row: str) -> None:
    body = f"""(float[2,5,4] x) => (float[2,5,4] y) <float[4] c = {{1.0, 2.0, 3.0, 4.0}}, float h = {{0.5}}> {{
        t = Transpose<perm=[1,0,2]>(x) {row} y = Transpose<perm=[1,0,2]>(r) }}"""
    assert sum(ops(check_pass(HEAD + body, SimplifyTransposes())).values()) == 1


@pytest.mark.parametrize("row", [
    "r = CumSum(t, zero)",  # not row-wise, and unknown to the tables
    "r = LayerNormalization<axis=1>(t, s)",  # over two axes
    "r = Add(t, p)",  # a constant that differs from row to row, as big as the tensor
    "r = MatMul(p, t)",
])  # fmt: skip
def test_other_operators_keep_their_transposes(row: str) -> None:
    big = ", ".join(f"{i / 7:.3f}" for i in range(5 * 2 * 4))
    p = "float[5,2,4] p" if "Add" in row else "float[5,4,2] p"
    one = ", ".join(["1.0"] * 8)
    body = f"""(float[2,5,4] x) => (float y) <{p} = {{{big}}}, float[2,4] s = {{{one}}}, int64 zero = {{0}}> {{
        t = Transpose<perm=[1,0,2]>(x) {row} u = Transpose<perm=[1,2,0]>(r) z = Sin(u)
        y = ReduceSum<keepdims=0>(z) }}"""
    assert ops(check_pass(HEAD + body, SimplifyTransposes()))["Transpose"] >= 1


def test_value_that_others_read_too_keeps_its_layout() -> None:
    body = f"""(float[2,5,4] x) => (float[2,5,3] y, float[5,2,3] z) <{weights(4, 3)}> {{
        t = Transpose<perm=[1,0,2]>(x) m = MatMul(t, w) z = Sin(m) y = Transpose<perm=[1,0,2]>(m) }}"""
    check_pass(HEAD + body, SimplifyTransposes(), rewrites=0)


SINKS = {
    "concat": ("a = Concat<axis=1>(t, v) y = Sin(a)", "2,4,3,10", {"Concat": 1, "Transpose": 1, "Sin": 1}),
    "add": ("a = Add(t, v) y = Sin(a)", "2,4,3,5", {"Add": 1, "Transpose": 1, "Sin": 1}),
    "softmax between": ("a = Softmax<axis=1>(t) y = Transpose<perm=[0,2,3,1]>(a)", "2,3,5,4", {"Softmax": 1}),
    "mean of pixels": ("a = ReduceMean<keepdims=0>(t, hw) y = Sin(a)", "2,4", {"ReduceMean": 1, "Sin": 1}),
    "mean, kept": ("a = ReduceMean(t, hw) y = Transpose<perm=[0,2,3,1]>(a)", "2,1,1,4", {"ReduceMean": 1}),
    "slice and pad": ("a = Slice(t, one, two, one) b = Pad(a, pads) y = Transpose<perm=[0,2,3,1]>(b)", "2,6,5,1",
                      {"Slice": 1, "Pad": 1}),
    "argmax": ("a = ArgMax<axis=1, keepdims=0>(t) y = Cast<to=1>(a)", "2,3,5", {"ArgMax": 1, "Cast": 1}),
    "bias": ("a = Add(t, bias) b = Relu(a) y = Transpose<perm=[0,2,3,1]>(b)", "2,3,5,4", {"Add": 1, "Relu": 1}),
}  # fmt: skip


@pytest.mark.parametrize(("body", "dims", "left"), SINKS.values(), ids=SINKS)
def test_transposes_sink(body: str, dims: str, left: dict[str, int]) -> None:
    """x and u are NHWC; t and v, their transposes, NCHW."""
    second = "v = Transpose<perm=[0,3,1,2]>(u)" if "v)" in body else ""
    text = f"""(float[2,3,5,4] x, float[2,3,5,4] u) => (float[{dims.replace('2,4,3,10', '2,8,3,5')}] y)
        <int64[2] hw = {{2, 3}}, int64[1] one = {{1}}, int64[1] two = {{2}}, int64[8] pads = {{0,0,1,0,0,0,2,0}},
         float[4,1,1] bias = {{1.0, 2.0, 3.0, 4.0}}> {{
        t = Transpose<perm=[0,3,1,2]>(x) {second} {body} }}"""
    m = check_pass(HEAD + text, SimplifyTransposes())
    assert ops(m) == left


def test_a_transpose_that_meets_nothing_stays_where_it_is() -> None:
    body = "(float[2,3,4] x) => (float[2,4,3] y) { t = Transpose<perm=[0,2,1]>(x) a = Softmax<axis=1>(t) y = Sin(a) }"
    check_pass(HEAD + body, SimplifyTransposes(), rewrites=0)


def test_concat_of_different_layouts_stays() -> None:
    body = """(float[2,3,3] x, float[2,3,3] u) => (float[2,6,3] y) {
        a = Transpose<perm=[0,2,1]>(x) b = Transpose<perm=[1,0,2]>(u) c = Transpose<perm=[1,0,2]>(b)
        d = Sin(c) y = Concat<axis=1>(a, d) }"""
    assert ops(check_pass(HEAD + body, SimplifyTransposes()))["Transpose"] == 1


@st.composite
def networks(draw: st.DrawFn) -> onnx.ModelProto:
    """A random chain of views and row-wise operators on [2, 3, 4], widths 4 and 6."""
    dims, name, nodes, tensors = [2, 3, 4], "x", [], []

    def constant(array: np.ndarray) -> str:
        tensors.append(numpy_helper.from_array(array, f"c{len(tensors)}"))
        return f"c{len(tensors) - 1}"

    for i in range(draw(st.integers(2, 9))):
        out, op = f"v{i}", draw(st.sampled_from(["Transpose", "Reshape", "MatMul", "Add", "Sigmoid", "Softmax"]))
        if op == "Transpose":
            perm = draw(st.permutations(range(len(dims))))
            nodes.append(helper.make_node(op, [name], [out], perm=perm))
            dims = [dims[p] for p in perm]
        elif op == "Reshape":
            split = [2, dims[0] // 2, *dims[1:]] if dims[0] % 2 == 0 and len(dims) < 5 else dims
            dims = draw(st.sampled_from([[dims[0] * dims[1], *dims[2:]] if len(dims) > 2 else dims, split]))
            nodes.append(helper.make_node(op, [name, constant(np.array(dims))], [out]))
        elif op == "MatMul":
            width = draw(st.sampled_from([4, 6]))
            value = np.linspace(-1, 1, dims[-1] * width, dtype=np.float32).reshape(dims[-1], width)
            nodes.append(helper.make_node(op, [name, constant(value)], [out]))
            dims = [*dims[:-1], width]
        elif op == "Add":
            nodes.append(helper.make_node(op, [constant(np.arange(dims[-1], dtype=np.float32)), name], [out]))
        else:
            nodes.append(helper.make_node(op, [name], [out]))
        name = out
    nodes.append(helper.make_node("Sin", [name], ["y"]))
    info = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("x", [2, 3, 4]), ("y", dims))]
    g = helper.make_graph(nodes, "g", info[:1], info[1:], tensors)
    return helper.make_model(g, opset_imports=[helper.make_opsetid("", 25)], ir_version=10)


@settings(max_examples=80, deadline=None)
@given(networks())
def test_any_chain_computes_the_same_with_fewer_nodes(proto: onnx.ModelProto) -> None:
    m = check_pass(proto, SimplifyTransposes(), seeds=1, idempotent=False)
    assert len(m.graph) <= len(proto.graph.node)


def test_nested_concats_and_slices_merge() -> None:
    body = """(float[2,3] x, float[2,3] u) => (float[2,2] y)
        <int64[1] z = {0}, int64[1] a = {1}, int64[1] e = {2}, int64[1] f = {5}> {
        c = Concat<axis=0>(x, u) d = Concat<axis=-2>(c, x) s = Slice(d, a, f, z) t = Slice(s, a, f, a) y = Slice(t,
        z, e, z) }"""
    m = check_pass(HEAD + body, RemoveNoOps(), rewrites=2)
    assert ops(m) == {"Concat": 1, "Slice": 2}


def test_empty_parts_of_a_concat_go() -> None:
    body = """(float[2,3] x) => (float[2,6] y) <int64[1] z = {0}, int64[1] a = {1}> {
        e = Slice(x, z, z, a) y = Concat<axis=1>(x, e, x) }"""
    m = check_pass(HEAD + body, RemoveNoOps(), rewrites=1)
    assert len(next(n for n in m.graph if n.op_type == "Concat").inputs) == 2


def test_inference_names_sizes_again() -> None:
    text = HEAD + """(float[5,B,96] x, int64[1,T] ids) => (float[D,5,96] y) <int64[3] s = {5, -1, 8},
        int64[3] t = {5, -1, 96},
        int64 zero = {0}, int64 one = {1}, int64[1] full = {0}, int64[1] end = {9223372036854775807}> {
        a = Reshape(x, s) b = Reshape(a, t) c = Slice(b, full, end, full) y = Transpose<perm=[1,0,2]>(c)
        l = Shape<start=1>(ids) k = Squeeze(l) r = Range(zero, k, one) }"""
    m = load(text)
    shapes.infer(m)
    named = {n.op_type: graph.shape(n.outputs[0]) for n in m.graph}
    assert named["Slice"] == (5, "B", 96) and named["Transpose"] == ("B", 5, 96) and named["Range"] == ("T",)
