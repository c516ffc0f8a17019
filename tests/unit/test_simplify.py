"""Chains of views and of casts."""

from __future__ import annotations

import math

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from edgec.compiler import graph
from edgec.passes.simplify_casts import SimplifyCasts, lossless
from edgec.passes.simplify_reshapes import SimplifyReshapes
from edgec.passes.simplify_transposes import SimplifyTransposes
from passcheck import check_pass, ops

HEAD = '<ir_version: 10, opset_import: ["" : 25]> agraph '
AXES = "int64[1] a0 = {0}, int64[1] a1 = {1}, int64[2] a12 = {1, 2}"


@pytest.mark.parametrize(("body", "left"), [
    ("""(float[2,12] x) => (float[6,4] y) <int64[1] z = {0}, int64[2] s = {6, 4}> { b = Unsqueeze(x, z)
        y = Reshape(b, s) }""",
     {"Reshape": 1}),
    (f"""(float[B,3] x) => (float[B,3] y) <{AXES}> {{ a = Unsqueeze(x, a12) b = Squeeze(a, a12) y = Sin(b) }}""",
        {"Sin": 1}),
    ("""(float[B,3,4] x) => (float[B,12] y) <int64[4] s = {0, 3, 2, 2}> { a = Reshape(x, s) y = Flatten(a) }""",
        {"Reshape": 1}),
    (f"""(float[B,C,4] x) => (float[B,1,C,4] y) <int64[3] s = {{0, 0, 4}}, {AXES}> {{ a = Reshape(x, s)
        y = Unsqueeze(a, a1) }}""",
     {"Reshape": 1}),
])  # fmt: skip
def test_reshapes_merge(body: str, left: dict[str, int]) -> None:
    shapes = {"x": [2, 12] if "[2,12]" in body else [2, 3] if "[B,3]" in body else [2, 3, 4]}
    assert ops(check_pass(HEAD + body, SimplifyReshapes(), rewrites=1, input_shapes=shapes)) == left


def test_reshape_that_others_read_is_kept_but_bypassed() -> None:
    body = """(float[2,6] x) => (float[12] y, float[3,4] z) <int64[1] s = {12}, int64[2] t = {3, 4}> {
        a = Reshape(x, s) y = Sin(a) z = Reshape(a, t) }"""
    m = check_pass(HEAD + body, SimplifyReshapes(), rewrites=1)
    assert ops(m) == {"Reshape": 2, "Sin": 1}
    assert all(n.inputs[0] is m.graph.inputs[0] for n in m.graph if n.op_type == "Reshape")


def test_two_symbols_that_move_are_left_alone() -> None:
    body = f"""(float[A,B] x) => (float[1,A,B,1] y) <int64[1] e = {{3}}, {AXES}> {{ a = Unsqueeze(x, a0)
        y = Unsqueeze(a, e) }}"""
    check_pass(HEAD + body, SimplifyReshapes(), rewrites=0, input_shapes={"x": [2, 3]})


@pytest.mark.parametrize(("body", "left"), [
    ("""(float[2,3,4] x) => (float[2,3,4] y) { a = Transpose<perm=[2,0,1]>(x) b = Transpose<perm=[1,2,0]>(a)
        y = Sin(b) }""",
     {"Sin": 1}),
    ("""(float[2,3,4] x) => (float[4,3,2] y) { a = Transpose<perm=[1,0,2]>(x) y = Transpose<perm=[2,0,1]>(a) }""",
        {"Transpose": 1}),
    ("(float[B,1,4] x) => (float[1,B,4] y) { y = Transpose<perm=[1,0,2]>(x) }", {"Reshape": 1}),
    ("(float[5,B,96] x) => (float[B,12,5,8] y) <int64[3] s = {5, -1, 8}, int64[4] t = {-1, 12, 5, 8}> "
     "{ a = Reshape(x, s) b = Transpose<perm=[1,0,2]>(a) y = Reshape(b, t) }", {"Reshape": 1, "Transpose": 1}),
    (f"(float[7,B,3,8] x) => (float[3,7,B,8] y) <{AXES}, int64[1] a3 = {{3}}> "
     "{ a = Unsqueeze(x, a0) b = Transpose<perm=[3,1,2,0,4]>(a) y = Squeeze(b, a3) }", {"Transpose": 1}),
])  # fmt: skip
def test_views_merge(body: str, left: dict[str, int]) -> None:
    name = body[body.index("[") + 1 : body.index("]")].split(",")
    m = check_pass(HEAD + body, SimplifyTransposes(), input_shapes={"x": [int(n) if n.isdigit() else 3 for n in name]})
    assert ops(m) == left


def test_transpose_that_others_read_is_kept() -> None:
    body = """(float[2,3] x) => (float[3,2] y, float[2,3] z) { a = Transpose<perm=[1,0]>(x) y = Sin(a)
        b = Transpose<perm=[1,0]>(a) z = Cos(b) }"""
    assert ops(check_pass(HEAD + body, SimplifyTransposes(), rewrites=1)) == {"Transpose": 1, "Sin": 1, "Cos": 1}


def test_reshape_across_a_transpose_stays() -> None:
    """[2,3] → [3,2] → [2,3] is another order of elements, not the identity."""
    body = "(float[2,3] x) => (float[2,3] y) <int64[2] s = {2, 3}> { a = Transpose<perm=[1,0]>(x) y = Reshape(a, s) }"
    assert ops(check_pass(HEAD + body, SimplifyTransposes(), rewrites=0)) == {"Transpose": 1, "Reshape": 1}


@st.composite
def chains(draw: st.DrawFn) -> onnx.ModelProto:
    """A random chain of Reshape, Transpose, Squeeze and Unsqueeze."""
    dims = draw(st.lists(st.sampled_from([1, 2, 3, 4, 6]), min_size=1, max_size=4))
    first, nodes, tensors, name = list(dims), [], [], "x"
    for i in range(draw(st.integers(1, 6))):
        out, op = f"v{i}", draw(st.sampled_from(["Reshape", "Transpose", "Unsqueeze", "Squeeze"]))
        if op == "Transpose":
            perm = draw(st.permutations(range(len(dims))))
            nodes.append(helper.make_node(op, [name], [out], perm=perm))
            dims = [dims[p] for p in perm]
        elif op == "Reshape":
            dims = draw(factorisations(math.prod(dims)))
            tensors.append(numpy_helper.from_array(np.array(dims, np.int64), f"c{i}"))
            nodes.append(helper.make_node(op, [name, f"c{i}"], [out]))
        else:
            ones = [j for j, n in enumerate(dims) if n == 1]
            if (op == "Squeeze" and (not ones or len(dims) == 1)) or (op == "Unsqueeze" and len(dims) > 5):
                continue
            axis = draw(st.sampled_from(ones)) if op == "Squeeze" else draw(st.integers(0, len(dims)))
            dims = [n for j, n in enumerate(dims) if j != axis] if op == "Squeeze" else [*dims[:axis], 1, *dims[axis:]]
            tensors.append(numpy_helper.from_array(np.array([axis], np.int64), f"c{i}"))
            nodes.append(helper.make_node(op, [name, f"c{i}"], [out]))
        name = out
    nodes.append(helper.make_node("Sin", [name], ["y"]))
    info = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("x", first), ("y", dims))]
    g = helper.make_graph(nodes, "g", info[:1], info[1:], tensors)
    return helper.make_model(g, opset_imports=[helper.make_opsetid("", 25)], ir_version=10)


@st.composite
def factorisations(draw: st.DrawFn, number: int) -> list[int]:
    dims = []
    while number > 1 and len(dims) < 4:
        dims.append(draw(st.sampled_from([n for n in range(1, number + 1) if number % n == 0])))
        number //= dims[-1]
    return [*dims, number]


@settings(max_examples=60, deadline=None)
@given(chains())
def test_any_chain_keeps_the_order_of_elements(proto: onnx.ModelProto) -> None:
    before = len(proto.graph.node)
    m = check_pass(proto, SimplifyTransposes(), seeds=1, idempotent=False)
    assert len(m.graph) <= before
    check_pass(proto, SimplifyReshapes(), seeds=1)


@pytest.mark.parametrize(("body", "left"), [
    ("(int32[2] x) => (float[2] y) { a = Cast<to=7>(x) y = Cast<to=1>(a) }", {"Cast": 1}),
    ("(int32[2] x) => (int32[2] y) { a = Cast<to=7>(x) b = Cast<to=6>(a) y = Neg(b) }", {"Neg": 1}),
    ("(float[2] x) => (float[2] y) { a = Cast<to=11>(x) b = Cast<to=1>(a) y = Neg(b) }", {"Neg": 1}),
    ("(bool[2] x) => (float[2] y) { a = Cast<to=6>(x) y = Cast<to=1>(a) }", {"Cast": 1}),
    ("""(float[2] x) => (float[2] y) { h = Cast<to=10>(x) f = Cast<to=1>(h) g = Cast<to=10>(f) y = Cast<to=1>(g)
        }""", {"Cast": 2}),
])  # fmt: skip
def test_casts_merge(body: str, left: dict[str, int]) -> None:
    assert ops(check_pass(HEAD + body, SimplifyCasts(), rewrites=1)) == left


@pytest.mark.parametrize("body", [
    "(float[2] x) => (float[2] y) { a = Cast<to=10>(x) y = Cast<to=1>(a) }",
    "(int64[2] x) => (int64[2] y) { a = Cast<to=6>(x) y = Cast<to=7>(a) }",
    "(int64[2] x) => (double[2] y) { a = Cast<to=1>(x) y = Cast<to=11>(a) }",
    "(float[2] x) => (float[2] y) { a = Cast<to=7>(x) y = Cast<to=1>(a) }",
    "(float[2] x) => (float[2] y) { a = Cast<to=9>(x) y = Cast<to=1>(a) }",
    "(int16[2] x) => (int8[2] y) { a = Cast<to=1>(x) y = Cast<to=3>(a) }",
])  # fmt: skip
def test_casts_that_lose_something_stay(body: str) -> None:
    check_pass(HEAD + body, SimplifyCasts(), rewrites=0)


INTEGERS = ["bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64"]
NUMPY = [*INTEGERS, "float16", "float32", "float64"]


@pytest.mark.parametrize("a", NUMPY)
@pytest.mark.parametrize("b", NUMPY)
def test_lossless_is_what_numpy_calls_safe(a: str, b: str) -> None:
    import onnx_ir as ir

    kinds = [ir.DataType.from_numpy(np.dtype(t)) for t in (a, b)]
    if (np.dtype(a).kind, b) in (("i", "float64"), ("u", "float64")) and a in ("int64", "uint64"):
        assert not lossless(*kinds)  # numpy allows it although 2^63 - 1 is rounded
    else:
        assert lossless(*kinds) == np.can_cast(a, b, "safe")


def test_attributes_of_new_nodes_are_lists_of_integers() -> None:
    body = "(float[2,3,4] x) => (float[4,3,2] y) { a = Transpose<perm=[1,0,2]>(x) y = Transpose<perm=[2,0,1]>(a) }"
    (node,) = check_pass(HEAD + body, SimplifyTransposes(), rewrites=1).graph
    assert graph.attr(node, "perm") == (2, 1, 0)
