"""Static cost figures: formulas against brute force and hand counts, the same before and after equivalent rewrites."""

from __future__ import annotations

import itertools
import time
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from edgec.compiler import cost, disk
from edgec.compiler.cost.products import MACS
from edgec.compiler.rounding import insert_pair
from passcheck import load

HEAD = '<ir_version: 10, opset_import: ["" : 25, "edgec" : 1]>\n'


def model(text: str) -> ir.Model:
    return load(HEAD + text)


def one(op: str, inputs: dict[str, tuple[int, ...]], **attributes: object) -> ir.Model:
    """A model of one node whose inputs, all float, have these shapes."""
    node = helper.make_node(op, list(inputs), ["y"], **attributes)
    given_inputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in inputs.items()]
    graph = helper.make_graph([node], "g", given_inputs, [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)])
    return load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 25)], ir_version=10))


# Multiplications that a direct evaluation makes, counted by the loops of the definition and not by a formula.


def count_conv(x: tuple[int, ...], w: tuple[int, ...], group: int) -> int:
    n, _, height, width = x
    filters, channels, kh, kw = w
    steps = itertools.product(range(n), range(filters), range(height - kh + 1), range(width - kw + 1))
    return sum(channels * kh * kw for _ in steps)


@given(st.integers(1, 2), st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.integers(3, 5), st.integers(1, 3))
def test_convolution(n: int, group: int, per_in: int, per_out: int, size: int, kernel: int) -> None:
    x, w = (n, group * per_in, size, size), (group * per_out, per_in, kernel, kernel)
    assert cost.macs(one("Conv", {"x": x, "w": w}, group=group)) == count_conv(x, w, group)


def test_transposed_convolution_counts_what_the_convolution_that_it_transposes_counts() -> None:
    forward = one("Conv", {"x": (2, 6, 9, 9), "w": (4, 3, 3, 3)}, group=2, strides=[2, 2])
    back = one("ConvTranspose", {"x": (2, 4, 4, 4), "w": (4, 3, 3, 3)}, group=2, strides=[2, 2])
    assert cost.macs(forward) == cost.macs(back) == 2 * 4 * 4 * 4 * 3 * 3 * 3


@pytest.mark.parametrize(
    ("op", "inputs", "attributes", "expected"),
    [
        ("MatMul", {"a": (2, 3, 4, 5), "b": (5, 6)}, {}, 2 * 3 * 4 * 5 * 6),
        ("MatMul", {"a": (5,), "b": (2, 5, 6)}, {}, 2 * 5 * 6),
        ("Gemm", {"a": (5, 4), "b": (6, 5)}, {"transA": 1, "transB": 1}, 4 * 5 * 6),
        ("Gemm", {"a": (4, 5), "b": (5, 6), "c": (6,)}, {}, 4 * 5 * 6),
        ("Einsum", {"a": (2, 3, 4), "b": (2, 4, 5)}, {"equation": "bij, bjk -> bik"}, 2 * 3 * 4 * 5),
        ("Einsum", {"a": (7, 2, 3, 4), "b": (1, 2, 4, 5)}, {"equation": "...ij,...jk->...ik"}, 7 * 2 * 3 * 4 * 5),
        ("Einsum", {"a": (1, 3), "b": (6, 3)}, {"equation": "bi,bi->b"}, 6 * 3),
        ("Einsum", {"a": (3, 4)}, {"equation": "ij->ji"}, 0),
        ("Einsum", {"a": (2,), "b": (3,), "c": (4,)}, {"equation": "i,j,k->ijk"}, 2 * 24),
        ("LSTM", {"x": (7, 2, 5), "w": (1, 12, 5), "r": (1, 12, 3)}, {"hidden_size": 3}, 7 * 2 * 12 * (5 + 3)),
        (
            "GRU",
            {"x": (7, 2, 5), "w": (2, 9, 5), "r": (2, 9, 3)},
            {"hidden_size": 3, "direction": "bidirectional"},
            7 * 2 * 2 * 9 * (5 + 3),
        ),
        ("Relu", {"x": (3, 4)}, {}, 0),
        ("BatchNormalization", {"x": (1, 3, 4), "s": (3,), "b": (3,), "m": (3,), "v": (3,)}, {}, 0),
    ],
)
def test_formulas(op: str, inputs: dict[str, tuple[int, ...]], attributes: dict[str, object], expected: int) -> None:
    assert cost.macs(one(op, inputs, **attributes)) == expected


WRITTEN_OUT = """agraph (float[2,8,5,16] q, float[2,8,7,16] k, float[2,8,7,24] v) => (float[2,8,5,24] y)
    <float s = {0.25}> {
    kt = Transpose <perm: ints = [0, 1, 3, 2]> (k)
    scores = MatMul(q, kt)
    scaled = Mul(scores, s)
    weights = Softmax <axis = -1> (scaled)
    y = MatMul(weights, v)
}"""
FUSED = """agraph (float[2,8,5,16] q, float[2,8,7,16] k, float[2,8,7,24] v) => (float[2,8,5,24] y) {
    y = Attention(q, k, v)
}"""


def test_attention_costs_the_same_fused_and_written_out() -> None:
    assert cost.macs(model(FUSED)) == cost.macs(model(WRITTEN_OUT)) == 2 * 8 * 5 * 7 * (16 + 24)


def test_grouped_attention_of_rank_3_with_a_cache() -> None:
    found = model("""agraph (float[2,5,128] q, float[2,7,64] k, float[2,7,64] v, float[2,4,3,16] pk, float[2,4,3,16] pv)
        => (float[2,5,128] y, float[2,4,10,16] nk, float[2,4,10,16] nv) {
        y, nk, nv = Attention <q_num_heads = 8, kv_num_heads = 4> (q, k, v, , pk, pv)
    }""")
    assert cost.macs(found) == 2 * 8 * 5 * (7 + 3) * (16 + 16)


INTEGER = """agraph (uint8[4,5] a, float[1,3,8,8] x) => (int32[4,6] y, float[1,2,6,6] z)
    <int8[5,6] w, float scale = {0.1}, uint8 zero = {0}, int8[2,3,3,3] k, int8 kz = {0}> {
    y = MatMulInteger(a, w)
    q = QuantizeLinear(x, scale, zero)
    c = QLinearConv(q, scale, zero, k, scale, kz, scale, zero)
    z = DequantizeLinear(c, scale, zero)
}"""


def test_integer_products_count_and_so_do_their_weights() -> None:
    proto = onnx.parser.parse_model(HEAD + INTEGER)
    for name, dims in (("w", (5, 6)), ("k", (2, 3, 3, 3))):
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.ones(dims, np.int8), name))
        stale = next(v for v in proto.graph.value_info if v.name == name)
        proto.graph.value_info.remove(stale)
    found = load(proto)
    assert cost.macs(found) == 4 * 5 * 6 + 2 * 6 * 6 * 3 * 3 * 3
    assert cost.parameters(found) == 5 * 6 + 2 * 3 * 3 * 3


def test_a_symbolic_shape_makes_the_sum_unknown_only_where_it_matters() -> None:
    assert cost.macs(model("agraph (float[N,4] x, float[4,3] w) => (float[N,3] y) { y = MatMul(x, w) }")) is None
    assert cost.macs(model("agraph (float[N,4] x) => (float[N,4] y) { y = Relu(x) }")) == 0


def test_an_operator_of_an_unknown_domain_is_not_guessed() -> None:
    foreign = ir.node("Mystery", [ir.Value(name="x")], domain="com.example")
    found = ir.Model(ir.Graph(foreign.inputs, foreign.outputs, nodes=[foreign], opset_imports={"": 25}), ir_version=10)
    assert cost.macs(found) is None
    assert cost.op_counts(found) == {"com.example::Mystery": 1}


LOOP = """agraph (float[4,4] x, int64 steps) => (float[4,4] y) <int64 five = {5}, bool yes = {1}> {
    y = Loop(COUNT, yes, x) <body = body (int64 i, bool c, float[4,4] v) => (bool k, float[4,4] u) {
        k = Identity(c)
        u = MatMul(v, v)
    }>
}"""


def test_a_loop_multiplies_when_its_trip_count_is_known() -> None:
    assert cost.macs(model(LOOP.replace("COUNT", "five"))) == 5 * 4 * 4 * 4
    assert cost.macs(model(LOOP.replace("COUNT", "steps"))) is None
    assert cost.macs(model(LOOP.replace("COUNT", "steps").replace("MatMul", "Add"))) == 0


def test_a_scan_runs_once_per_slice() -> None:
    found = model("""agraph (float[3,3] s, float[7,3] xs) => (float[3,3] e, float[7,3] ys) {
        e, ys = Scan <num_scan_inputs = 1, body = body (float[3,3] a, float[3] b) => (float[3,3] c, float[3] d) {
            c = MatMul(a, a)
            d = MatMul(a, b)
        }> (s, xs)
    }""")
    assert cost.macs(found) == 7 * (27 + 9)


def test_of_two_branches_the_costlier_one_counts_and_all_nodes_do() -> None:
    found = model("""agraph (bool c, float[4,4] x) => (float[4,4] y) {
        y = If(c) <then_branch = a () => (float[4,4] p) { q = MatMul(x, x) p = MatMul(q, x) },
                   else_branch = b () => (float[4,4] r) { r = MatMul(x, x) }>
    }""")
    assert cost.macs(found) == 2 * 64
    assert cost.op_counts(found) == {"MatMul": 3, "If": 1}


CALLS = """agraph (float[2,3] x, float[5,4] z) => (float[2,2] y, float[5,5] w) {
    a = edgec.Gram(x)
    y = Relu(a)
    w = edgec.Gram(z)
}
<domain: "edgec", opset_import: ["" : 25]>
Gram (v) => (g) { t = Transpose(v) g = MatMul(v, t) }"""


def test_a_local_function_counts_as_its_body_at_each_call_with_that_call_s_shapes() -> None:
    found = ir.from_proto(onnx.parser.parse_model(HEAD + CALLS))
    assert cost.op_counts(found) == {"MatMul": 2, "Transpose": 2, "Relu": 1}
    assert cost.macs(found) == 2 * 3 * 2 + 5 * 4 * 5


DECODER = """agraph (float[1,4] x) => (float[1,8] y) <uint8[4,8] i, float[256] t> {
    w = edgec.LookupWeight(i, t)
    y = MatMul(x, w)
}
<domain: "edgec", opset_import: ["" : 25]>
LookupWeight (i, t) => (w) { j = Cast <to = 6> (i) w = Gather(t, j) }"""


def with_weights(text: str, **weights: np.ndarray) -> ir.Model:
    proto = onnx.parser.parse_model(HEAD + text)
    for name, array in weights.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
        for stale in [v for v in proto.graph.value_info if v.name == name]:
            proto.graph.value_info.remove(stale)
    return load(proto)


def test_a_stored_form_changes_bytes_but_neither_parameters_nor_nodes() -> None:
    plain = "agraph (float[1,4] x) => (float[1,8] y) <float[4,8] w> { y = MatMul(x, w) }"
    packed = """agraph (float[1,4] x) => (float[1,8] y) <int8[4,8] q, float16[8] s> {
        f = Cast <to = 1> (s)  w = DequantizeLinear <axis = 1> (q, f)  y = MatMul(x, w)
    }"""
    dense = with_weights(plain, w=np.ones((4, 8), np.float32))
    int8 = with_weights(packed, q=np.ones((4, 8), np.int8), s=np.ones(8, np.float16))
    table = with_weights(DECODER, i=np.ones((4, 8), np.uint8), t=np.ones(256, np.float32))
    found = [cost.stats(m) for m in (dense, int8, table)]
    assert [s.parameters for s in found] == [32, 32, 32]
    assert [s.nodes for s in found] == [1, 1, 1]
    assert [s.weight_bytes for s in found] == [128, 32 + 16, 32 + 1024]
    assert [s.macs for s in found] == [32, 32, 32]


def test_rounding_pairs_are_no_operators() -> None:
    found = model("agraph (float[2,3] x) => (float[2,3] y) { a = Relu(x) b = Neg(a) y = Add(a, b) }")
    insert_pair(found.graph[0].outputs[0])
    assert len(found.graph) == 5
    assert cost.op_counts(found) == {"Add": 1, "Neg": 1, "Relu": 1}


def test_a_cast_whose_half_precision_value_is_used_is_an_operator() -> None:
    found = model("agraph (float[3] x) => (float[3] y, float16[3] h) { h = Cast <to = 10> (x) y = Cast <to = 1> (h) }")
    assert cost.op_counts(found)["Cast"] >= 1


def test_shared_weights_count_once_and_scalars_are_no_parameters() -> None:
    found = with_weights(
        """agraph (float[1,4] x) => (float[1,4] y) <float[4,4] w, float half = {0.5}> {
        t = Transpose(w) a = MatMul(x, w) b = MatMul(a, t) y = Mul(b, half)
    }""",
        w=np.ones((4, 4), np.float32),
    )
    assert cost.parameters(found) == 16
    assert cost.weight_bytes(found) == 64 + 4


def test_bytes_that_are_cast_to_float_are_weights_and_shapes_are_not() -> None:
    found = with_weights(
        """agraph (float[1,4] x) => (float[2,2] y) <int8[4,4] w, int64[2] s> {
        f = Cast <to = 1> (w) a = MatMul(x, f) y = Reshape(a, s)
    }""",
        w=np.ones((4, 4), np.int8),
        s=np.array([2, 2]),
    )
    assert cost.parameters(found) == 16


def test_four_bit_weights_take_half_a_byte() -> None:
    found = model("agraph (float[2] x) => (float[2] y) { y = Relu(x) }")
    array = np.ones((6, 2), np.int8)
    tensor = ir.Tensor(array, dtype=ir.DataType.INT4, name="w")
    found.graph.register_initializer(ir.Value(name="w", const_value=tensor))
    assert cost.weight_bytes(found) == 6


def test_external_data_counts_into_the_file_without_being_read(tmp_path: Path) -> None:
    weights = {n: np.full((50, 20), i, np.float32) for i, n in enumerate(("a", "b"))}
    text = (
        "agraph (float[1,50] x) => (float[1,20] y) <float[50,20] a, float[50,20] b> { m = Add(a, b) y = MatMul(x, m) }"
    )
    found = with_weights(text, **weights)
    onnx.save(ir.to_proto(found), tmp_path / "m.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    (tmp_path / "stranger.bin").write_bytes(b"x" * 999)
    assert disk.external_files(tmp_path / "m.onnx") == {"w.bin"}
    expected = sum((tmp_path / n).stat().st_size for n in ("m.onnx", "w.bin"))
    assert cost.stats(found, tmp_path / "m.onnx").file_bytes == expected
    # Of a sparse file of a terabyte only the size is asked for.
    with (tmp_path / "w.bin").open("r+b") as f:
        f.truncate(1 << 40)
    assert disk.size(tmp_path / "m.onnx") > 1 << 40


def test_a_package_is_all_its_files_and_what_is_no_model_has_a_size_too(tmp_path: Path) -> None:
    (tmp_path / "p" / "deep").mkdir(parents=True)
    (tmp_path / "p" / "a").write_bytes(b"12345")
    (tmp_path / "p" / "deep" / "b").write_bytes(b"123")
    (tmp_path / "broken.onnx").write_bytes(b"\xff\xff\xff")
    assert disk.size(tmp_path / "p") == 8
    assert disk.size(tmp_path / "broken.onnx") == 3
    assert disk.size(tmp_path / "nothing") == 0


def test_every_standard_operator_that_is_made_of_products_has_a_formula() -> None:
    """An operator whose own definition, as a function of others, multiplies and adds must be in the table."""
    missing = set()
    for schema in onnx.defs.get_all_schemas_with_history():
        if schema.domain or schema.since_version > 25 or not schema.has_function:
            continue
        if {n.op_type for n in schema.function_body.node} & set(MACS) and schema.name not in MACS:
            missing.add(schema.name)
    assert not missing


def test_ten_thousand_nodes_take_less_than_a_second() -> None:
    names = [f"v{i}" for i in range(10_001)]
    nodes = [helper.make_node("MatMul", [a, a], [b]) for a, b in itertools.pairwise(names)]
    square = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "g",
        [square("v0", 1, [2, 2])],
        [square(names[-1], 1, [2, 2])],
        value_info=[square(n, 1, [2, 2]) for n in names],
    )
    found = ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 25)]))
    taken = []
    for _ in range(3):
        start = time.process_time()
        assert cost.stats(found).macs == 80_000
        taken.append(time.process_time() - start)
    assert min(taken) < 1
