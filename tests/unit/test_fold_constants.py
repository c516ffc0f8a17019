from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgec.compiler import graph, shapes
from edgec.passes.fold_constants import FoldConstants
from passcheck import check_pass, context, ops

HEAD = '<ir_version: 10, opset_import: ["" : 25]> agraph '


def model(nodes: list[onnx.NodeProto], tensors: dict[str, np.ndarray], x: list[int], y: list[int]) -> onnx.ModelProto:
    info = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("x", x), ("y", y))]
    constants = [numpy_helper.from_array(a, n) for n, a in tensors.items()]
    g = helper.make_graph(nodes, "g", info[:1], info[1:], constants)
    return helper.make_model(g, opset_imports=[helper.make_opsetid("", 25)], ir_version=10)


def test_chain_of_constants() -> None:
    body = """(float[2] x) => (float[2] y) <float[2] w = {4.0, 9.0}, float u = {3.0}>
        { a = Sqrt(w) b = Mul(a, u) c = Neg(b) d = Add(a, c) y = Mul(x, d) }"""
    m = check_pass(HEAD + body, FoldConstants(), rewrites=4)
    assert ops(m) == {"Mul": 1} and len(m.graph.initializers) == 1
    np.testing.assert_allclose(graph.const(m.graph[0].inputs[1]), [-4, -6])


def test_weight_is_transposed_once_and_not_doubled() -> None:
    w = np.arange(200 * 100, dtype=np.float32).reshape(200, 100)
    nodes = [helper.make_node("Transpose", ["w"], ["t"], perm=[1, 0]), helper.make_node("MatMul", ["x", "t"], ["y"])]
    m = check_pass(model(nodes, {"w": w}, [2, 100], [2, 200]), FoldConstants(), rewrites=1)
    assert ops(m) == {"MatMul": 1} and len(m.graph.initializers) == 1
    # Tied weights: somebody else reads it, too, so a transposed copy would be a second one.
    tied = [helper.make_node("MatMul", ["x", "w"], ["a"]), nodes[0], helper.make_node("MatMul", ["a", "t"], ["y"])]
    check_pass(model(tied, {"w": w}, [2, 200], [2, 200]), FoldConstants(), rewrites=0)


@pytest.mark.parametrize("ends", [(100, 200), (150, 200)], ids=["cut up", "overlapping"])
def test_gates_of_a_weight_are_put_in_another_order(ends: tuple[int, int]) -> None:
    """As torch.export writes an LSTM: parts of a weight, joined. Parts that overlap are more than the whole."""
    w = np.arange(200 * 400, dtype=np.float32).reshape(200, 400)
    numbers = {"w": w, "o": np.array([0]), "a": np.array([100]), "b": np.array([ends[0]]), "c": np.array([ends[1]])}
    nodes = [
        helper.make_node("Slice", ["w", "b", "c", "o"], ["late"]),
        helper.make_node("Slice", ["w", "o", "b", "o"], ["early"]),
        helper.make_node("Slice", ["w", "a", "c", "o"], ["part"]),
        helper.make_node("Concat", ["late", "early"], ["g"], axis=0),
        helper.make_node("Gemm", ["x", "g"], ["y"], transB=1),
    ]
    if ends[0] == 100:
        del nodes[2]
    else:
        nodes[3] = helper.make_node("Concat", ["late", "early", "part"], ["g"], axis=0)
    rows = 200 if ends[0] == 100 else 300
    source = model(nodes, numbers, [2, 400], [2, rows])
    m = check_pass(source, FoldConstants(), rewrites=3 if ends[0] == 100 else 0)
    assert (ops(m) == {"Gemm": 1}) == (ends[0] == 100)


def test_reshaped_weight_shares_its_bytes() -> None:
    w = np.arange(1 << 16, dtype=np.float32).reshape(256, 256)
    nodes = [helper.make_node("Reshape", ["w", "s"], ["r"]), helper.make_node("Mul", ["x", "r"], ["y"])]
    m = check_pass(model(nodes, {"w": w, "s": np.array([2, -1])}, [1, 1], [2, 1 << 15]), FoldConstants(), rewrites=1)
    assert ops(m) == {"Mul": 1} and len(m.graph.initializers) == 1


def test_spooled_weight_is_reshaped_where_it_lies() -> None:
    ctx = context()
    m = ir.from_onnx_text(
        HEAD + "(float[1,1] x) => (float[512,512] y) <int64[2] s = {512, 512}> { r = Reshape(x, s) y = Mul(x, r) }"
    )
    w = graph.initializer(m.graph, np.ones((256, 1024), np.float32), "w", ctx.scratch)
    m.graph[0].replace_input_with(0, w)
    shapes.infer(m)
    assert FoldConstants().run(m, ctx) == 1
    tensor = m.graph[0].inputs[1].const_value
    assert isinstance(tensor, ir.ExternalTensor) and isinstance(w.const_value, ir.ExternalTensor)
    assert all(getattr(tensor, n) == getattr(w.const_value, n) for n in ("path", "offset", "length"))


@pytest.mark.parametrize("body", [
    "(float[1] x) => (float[300,300] y) <int64[2] s = {300, 300}> { c = ConstantOfShape(s) y = Add(x, c) }",
    "(float[1] x) => (float[300,300] y) <float c = {1.0}, int64[2] s = {300, 300}> { e = Expand(c, s) y = Add(x, e) }",
    """(float[1] x) => (float[90000] y) <float[3] c = {1.0, 2.0, 3.0}, int64[1] r = {30000}> { t = Tile(c, r)
        y = Add(x, t) }""",
    """(int64[1] x) => (int64[90000] y) <int64 a = {0}, int64 b = {90000}, int64 c = {1}> { r = Range(a, b, c)
        y = Add(x, r) }""",
])  # fmt: skip
def test_big_results_are_not_made(body: str) -> None:
    check_pass(HEAD + body, FoldConstants(), rewrites=0)
    assert check_pass(HEAD + body, FoldConstants(limit=1 << 20), rewrites=1).graph.num_nodes() == 1


def test_a_small_part_of_a_big_result_is_folded_by_size() -> None:
    body = """(int64[1] x) => (int64[2] y) <int64[1] n = {7}, int64[1] s = {0}, int64[1] e = {2}>
        { a = ConstantOfShape<value=int64[1] {3}>(n) b = Slice(a, s, e) y = Add(x, b) }"""
    assert ops(check_pass(HEAD + body, FoldConstants(), rewrites=2)) == {"Add": 1}


@pytest.mark.parametrize("body", [
    """(float[2] x) => (float[2] y) <int8[2] w = {1, 2}, float s = {0.5}, int8 z = {0}>
        { d = DequantizeLinear(w, s, z) y = Mul(x, d) }""",
    """(float[2] x) => (float[2] y) <float[2] w = {1.0, 2.0}, float s = {0.5}, int8 z = {0}>
        { q = QuantizeLinear(w, s, z) d = DequantizeLinear(q, s, z) y = Mul(x, d) }""",
    "(float[2] x) => (float[2] y) <float[2] w = {1.3, 2.1}> { h = Cast<to=10>(w) f = Cast<to=1>(h) y = Mul(x, f) }",
])  # fmt: skip
def test_packed_and_rounded_weights_stay(body: str) -> None:
    check_pass(HEAD + body, FoldConstants(), rewrites=0)


def test_half_precision_weight_stays_short() -> None:
    w = np.ones((64, 64), np.float16)
    cast = helper.make_node("Cast", ["w"], ["f"], to=TensorProto.FLOAT)
    nodes = [cast, helper.make_node("MatMul", ["x", "f"], ["y"])]
    check_pass(model(nodes, {"w": w}, [2, 64], [2, 64]), FoldConstants(), rewrites=0)


def test_random_stays() -> None:
    body = "(float[2] x) => (float[2] y) <float[2] w = {4.0, 9.0}> { r = RandomNormalLike(w) y = Mul(x, r) }"
    assert FoldConstants().run(ir.from_onnx_text(HEAD + body), context()) == 0


def test_constant_output_becomes_an_identity() -> None:
    body = "(float[2] x) => (float[2] y, float[2] z) <float[2] w = {4.0, 9.0}> { a = Sqrt(w) z = Neg(a) y = Mul(x, a) }"
    m = check_pass(HEAD + body, FoldConstants(), rewrites=2)
    assert ops(m) == {"Identity": 1, "Mul": 1}


def test_inside_a_branch() -> None:
    body = """(bool c, float[2] x) => (float[2] y) <float[2] w = {4.0, 9.0}> {
        y = If (c) <then_branch = t () => (float[2] a) { b = Sqrt(w) a = Mul(x, b) },
                    else_branch = e () => (float[2] d) { d = Sqrt(w) }>
    }"""
    assert ops(check_pass(HEAD + body, FoldConstants(), rewrites=2)) == {"If": 1, "Mul": 1, "Identity": 1}


def test_operator_without_a_kernel_is_kept_and_noted() -> None:
    m = ir.from_onnx_text(HEAD + """(float[1,1,2,2] x) => (float[1,1,2,2] y)
        <float[1,1,2,2] w = {1.0, 2.0, 3.0, 4.0}, float[1,5] r = {0.0, 0.0, 0.0, 1.0, 1.0}, float u = {4.0}>
        { a = MaxRoiPool<pooled_shape=[2,2]>(w, r) s = Sqrt(u) b = Mul(x, s) y = Add(a, b) }""")
    shapes.infer(m)
    ctx = context()
    assert FoldConstants().run(m, ctx) == 1
    assert ops(m) == {"MaxRoiPool": 1, "Mul": 1, "Add": 1}
    assert any("MaxRoiPool" in note for note in ctx.notes)


def test_sequences_are_not_constants() -> None:
    body = """(float[2] x) => (float[2] y) <float[2] w = {4.0, 9.0}, int64 i = {0}>
        { s = SequenceConstruct(w, w) a = SequenceAt(s, i) y = Mul(x, a) }"""
    check_pass(HEAD + body, FoldConstants(), rewrites=0)
