"""What runs, how often, what it reads and writes, and which module it came from."""

from __future__ import annotations

import itertools
import time

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from edgec.compiler import cost, dims
from edgec.compiler.cost import modules
from edgec.compiler.cost.analyze import analyze
from edgec.compiler.cost.polynomial import evaluate
from edgec.compiler.cost.records import Analysis, Layer
from edgec.compiler.errors import UsageError
from edgec.compiler.rounding import insert_pair
from passcheck import load

HEAD = '<ir_version: 10, opset_import: ["" : 25, "edgec" : 1]>\n'


def of(text: str) -> Analysis:
    return analyze(load(HEAD + text))


def layer(found: Analysis, op: str) -> Layer:
    (one,) = [x for x in found.layers if x.op == op]
    return one


# --- how often -------------------------------------------------------------------------------------------------------

LOOP = """agraph (float[4,4] x, int64 steps, float[steps_n] s) => (float[4,4] y)
    <int64 five = {5}, bool yes = {1}, int64 most = {9223372036854775807}> {
    sized = Size(s)
    y = Loop(COUNT, yes, x) <body = body (int64 i, bool c, float[4,4] v) => (bool k, float[4,4] u) {
        k = Identity(c)
        m = MatMul(v, v)
        u = Tanh(m)
    }>
}"""


def test_the_layers_of_a_loop_run_as_often_as_it_does() -> None:
    found = of(LOOP.replace("COUNT", "five"))
    assert (layer(found, "MatMul").runs, layer(found, "MatMul").macs) == (5, 5 * 64)
    assert found.totals.special == layer(found, "Tanh").special == 5 * 16
    assert layer(found, "Loop").macs == 0
    assert layer(found, "MatMul").read == 5 * 64  # both factors are one value
    assert layer(found, "MatMul").written == 5 * 64


def test_a_trip_count_that_is_a_size_is_a_symbol_s() -> None:
    found = of(LOOP.replace("COUNT", "sized"))
    assert found.totals.macs == dims.mul(dims.atom("steps_n"), 64)
    assert "steps_n" in found.symbols


@pytest.mark.parametrize("count", ["steps", "most"])
def test_a_trip_count_that_only_a_run_tells_is_a_symbol_of_its_own(count: str) -> None:
    found = of(LOOP.replace("COUNT", count))
    (symbol,) = [s for s in found.symbols if "trips" in s]
    assert evaluate(found.totals.macs, {symbol: 7}) == 7 * 64
    assert "Loop" in found.symbols[symbol]


def test_what_only_a_run_tells_can_be_given() -> None:
    model = load(HEAD + LOOP.replace("COUNT", "steps"))
    (symbol,) = [s for s in analyze(model).symbols if "trips" in s]
    found = analyze(model, shapes={symbol: (7,), "steps_n": 2})
    assert (found.totals.macs, found.symbols) == (7 * 64, {})
    assert analyze(model, shapes={symbol: 0}).totals.macs == 0
    with pytest.raises(UsageError, match="no such size"):
        analyze(model, shapes={"#trips[other]": 1})
    with pytest.raises(UsageError, match="one number"):
        analyze(model, shapes={symbol: (1, 2)})


def test_loops_in_loops_multiply_and_a_scan_runs_once_per_slice() -> None:
    found = of("""agraph (float[3,3] s, float[7,3] xs) => (float[3,3] e, float[7,3] ys)
        <int64 two = {2}, bool yes = {1}> {
        e, ys = Scan <num_scan_inputs = 1, body = body (float[3,3] a, float[3] b) => (float[3,3] c, float[3] d) {
            c = Loop(two, yes, a) <body = inner (int64 i, bool p, float[3,3] v) => (bool q, float[3,3] u) {
                q = Identity(p)
                u = MatMul(v, v)
            }>
            d = Exp(b)
        }> (s, xs)
    }""")
    assert layer(found, "MatMul").runs == 14
    assert found.totals.macs == 14 * 27
    assert found.totals.special == 7 * 3


BRANCHES = """agraph (bool c, float[N,4] x) => (float[N,4] y) <bool yes = {1}, bool no = {0}> {
    y = If(CONDITION) <then_branch = a () => (float[N,4] p) { p = Tanh(x) },
                       else_branch = b () => (float[N,4] r) { z = Exp(x) g = Mul(z, x) r = Add(g, x) }>
}"""


def test_the_costlier_branch_runs_and_the_other_never() -> None:
    found = of(BRANCHES.replace("CONDITION", "c"))
    assert layer(found, "Tanh").runs == 0
    assert layer(found, "Exp").runs == 1
    assert found.totals.flops == dims.mul(dims.atom("N"), 8)
    assert found.totals.special == dims.mul(dims.atom("N"), 4)


@pytest.mark.parametrize(("condition", "op"), [("yes", "Tanh"), ("no", "Exp")])
def test_a_constant_condition_chooses(condition: str, op: str) -> None:
    found = of(BRANCHES.replace("CONDITION", condition))
    assert [x.op for x in found.layers if x.special != 0] == [op]


def test_branches_that_cross_are_said_so() -> None:
    found = of("""agraph (bool c, float[N,4] x, float[4,4] w) => (float[N,M] y) {
        y = If(c) <then_branch = a () => (float[N,M] p) { t = Transpose(x) q = MatMul(x, t) p = Identity(q) },
                   else_branch = b () => (float[N,M] r) { r = MatMul(x, w) }>
    }""")
    assert len(found.warnings) == 1
    assert "free dimensions" in found.warnings[0]


def test_functions_count_as_what_they_call_with_the_sizes_of_each_call() -> None:
    proto = onnx.parser.parse_model(
        HEAD
        + """agraph (float[2,N] x, float[5,4] z) => (float[2,2] y, float[5,5] w) {
            y = edgec.Outer(x)
            w = edgec.Outer(z)
        }
        <domain: "edgec", opset_import: ["" : 25, "edgec" : 1]>
        Outer (v) => (g) { h = edgec.Gram(v) g = Tanh(h) }
        <domain: "edgec", opset_import: ["" : 25]>
        Gram (v) => (g) { t = Transpose(v) g = MatMul(v, t) }"""
    )
    found = analyze(ir.from_proto(proto))
    assert found.totals.macs == dims.add(dims.mul(dims.atom("N"), 4), 100)
    assert found.totals.special == 4 + 25
    assert sorted(x.op for x in found.layers) == ["MatMul", "MatMul", "Tanh", "Tanh", "Transpose", "Transpose"]
    assert found.unknown == []


def test_constants_are_computed_when_loading_and_what_nobody_reads_is_not_computed() -> None:
    found = of(
        """agraph (float[2,4] x) => (float[2,4] y) <float[4,4] w = {WEIGHTS}> {
        t = Transpose(w)
        twice = MatMul(w, t)
        dead = Exp(x)
        y = MatMul(x, twice)
    }""".replace("WEIGHTS", ",".join(["1.0"] * 16))
    )
    assert [x.runs for x in found.layers] == [0, 0, 0, 1]
    assert found.totals.macs == cost.macs(load(HEAD + DEAD)) == 32
    assert found.totals.special == 0
    # The product reads what it is computed from when loading: one 4×4 matrix.
    assert found.layers[-1].read == 4 * (8 + 16)


DEAD = """agraph (float[2,4] x, float[4,4] w) => (float[2,4] y) { dead = MatMul(w, w)  y = MatMul(x, w) }"""


def test_the_arithmetic_of_sizes_costs_nothing() -> None:
    found = of("""agraph (float[N,6] x) => (float[M,2] y) <int64[1] two = {2}, int64[1] minus = {-1}, int64 six = {6}> {
        s = Shape(x)
        n = Mul(s, s)
        target = Concat <axis = 0> (minus, two)
        y = Reshape(x, target)
    }""")
    assert found.totals.int_ops == 0
    assert found.totals.read == found.totals.written == 0


# --- bytes -----------------------------------------------------------------------------------------------------------


def test_bytes_read_and_written() -> None:
    found = of(
        """agraph (float[2,6] x, int64[3] rows) => (float[6,3] y, float[3,6] g) <int64[2] shape = {3, 4}> {
        r = Reshape(x, shape)
        t = Transpose(r)
        z = Relu(t)
        y0 = Transpose <perm = [0, 1]> (z)
        pad = Concat <axis = 0> (y0, y0)
        h = Identity(x)
        y = Slice(pad, START, END)
        g = Gather(h, rows)
    }""".replace("START", "rows").replace("END", "rows")
    )
    assert layer(found, "Reshape").read == layer(found, "Identity").written == 0
    assert (layer(found, "Relu").read, layer(found, "Relu").written) == (48, 48)
    assert (layer(found, "Concat").read, layer(found, "Concat").written) == (48, 96)
    # Three rows of six are picked from x, and three indices of eight bytes are read.
    assert (layer(found, "Gather").read, layer(found, "Gather").written) == (3 * 6 * 4 + 24, 72)


def test_a_packed_weight_is_read_as_it_is_stored() -> None:
    proto = onnx.parser.parse_model(
        HEAD
        + """agraph (float[1,64] x) => (float[1,8] y) <int4[64,8] q, float[8] s> {
            w = DequantizeLinear <axis = 1> (q, s)
            y = MatMul(x, w)
        }"""
    )
    for stale in list(proto.graph.value_info):
        proto.graph.value_info.remove(stale)
    proto.graph.initializer.append(helper.make_tensor("q", TensorProto.INT4, [64, 8], np.ones(512, np.int8)))
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.ones(8, np.float32), "s"))
    found = analyze(load(proto))
    assert layer(found, "MatMul").read == 64 * 4 + 256 + 32
    assert layer(found, "MatMul").macs == 512
    assert layer(found, "DequantizeLinear").flops == layer(found, "DequantizeLinear").read == 0


def test_a_rounded_value_is_moved_in_the_type_that_it_is_rounded_to() -> None:
    model = load(HEAD + "agraph (float[2,3] x) => (float[2,3] y) { a = Relu(x) b = Exp(a) y = Abs(b) }")
    insert_pair(model.graph[0].outputs[0])
    found = analyze(model)
    assert layer(found, "Relu").written == layer(found, "Exp").read == 12
    assert layer(found, "Exp").written == 24
    assert all(x.read == x.written == x.flops == 0 for x in found.layers if x.op == "Cast")


# --- modules ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("/Constant", ()),
        ("/layer1/layer1.0/conv1/Conv", ("layer1", "0", "conv1")),
        ("/encoder/layer/layer.11/attention/self/MatMul_1", ("encoder", "layer", "11", "attention", "self")),
        ("StatefulPartitionedCall/model/dense_2/MatMul", ("model", "dense_2")),
        ("model/block__17/conv/Conv2D__5", ("model", "block", "conv")),
    ],
)
def test_paths_in_names(name: str, path: tuple[str, ...]) -> None:
    assert modules.written(ir.node("Relu", [ir.Value(name="x")], name=name)) == path


def test_paths_in_torch_s_metadata_come_before_names() -> None:
    node = ir.node("Relu", [ir.Value(name="x")], name="/a/b/Relu")
    node.metadata_props[modules.SCOPES] = "['', 'blocks', 'blocks.0', 'blocks.0.attn', 'matmul_3']"
    assert modules.written(node) == ("blocks", "0", "attn")
    node.metadata_props[modules.SCOPES] = "['', 'view_3']"
    assert modules.written(node) == ()


def test_a_convolution_is_where_its_weight_is_though_noted_under_the_norm_that_was_folded_into_it() -> None:
    text = """agraph (float[1,1,4,4] x) => (float[1,1,4,4] y) <float[1,1,1,1] w = {2.0}> { y = Conv(x, w) }"""
    model = load(HEAD + text)
    (node,) = model.graph
    node.metadata_props[modules.SCOPES] = "['', 'stem', 'stem.1', 'getitem']"
    assert analyze(model).layers[0].path == ("stem", "1")
    next(iter(model.graph.initializers.values())).name = "stem.0.weight"
    assert analyze(model).layers[0].path == ("stem", "0")


def test_the_name_of_a_value_is_no_module() -> None:
    model = load(HEAD + "agraph (float[2] x) => (float[2] y) { conv = Relu(x) y = Neg(conv) }")
    for node, name in zip(model.graph, ("conv/Relu", "last/Neg"), strict=True):
        node.name = name
    model.graph[1].outputs[0].name = "last.Neg"
    assert [x.path for x in analyze(model).layers] == [(), ()]


def test_a_node_without_a_path_is_where_its_neighbours_are() -> None:
    model = load(HEAD + "agraph (float[2] x) => (float[2] y) { a = Relu(x) b = Neg(a) c = Exp(b) y = Abs(c) }")
    for node, name in zip(model.graph, ("/net/block/0/Relu", "Neg", "/net/block/1/Exp", "/net/head/Abs"), strict=True):
        node.name = name
    found = [x.path for x in analyze(model).layers]
    assert found == [("net", "block", "0"), ("net", "block"), ("net", "block", "1"), ("net", "head")]


def test_a_weight_s_name_tells_the_module() -> None:
    text = """agraph (float[1,4] x) => (float[1,4] y) <float[4,4] w = {W}> { y = MatMul(x, w) }"""
    model = load(HEAD + text.replace("W}", ",".join(["1.0"] * 16) + "}"))
    next(iter(model.graph.initializers.values())).name = "encoder.0.fc.weight"
    assert analyze(model).layers[0].path == ("encoder", "0", "fc")


# --- speed -----------------------------------------------------------------------------------------------------------


def long_chain(size: list[int | str], count: int) -> ir.Model:
    """A chain of so many nodes with edges that reach back, of three operators."""
    names = [f"v{i}" for i in range(count + 1)]
    nodes = []
    for i, (a, b) in enumerate(itertools.pairwise(names)):
        back = names[max(0, i - 5)]
        op, inputs = (("MatMul", [a, a]), ("Relu", [a]), ("Add", [a, back]))[i % 3]
        nodes.append(helper.make_node(op, inputs, [b], name=f"/block{i // 10}/{op}_{i}"))
    ports = [helper.make_tensor_value_info(n, TensorProto.FLOAT, size) for n in (names[0], names[-1])]
    graph = helper.make_graph(nodes, "g", ports[:1], ports[1:])
    return load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 25)], ir_version=10))


def test_a_long_chain_of_what_hands_numbers_on_is_followed_to_its_start() -> None:
    names = [f"v{i}" for i in range(3_001)]
    nodes = [helper.make_node("Relu", [a], [b]) for a, b in itertools.pairwise(names)]
    nodes.append(helper.make_node("MatMul", [names[-1], names[-1]], ["y"]))
    ports = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [4, 4]) for n in (names[0], "y")]
    graph = helper.make_graph(nodes, "g", ports[:1], ports[1:])
    model = load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 25)], ir_version=10))
    insert_pair(model.graph[0].outputs[0])
    found = analyze(model)
    assert found.totals.bops == 64 * 16 * 16
    assert found.layers[-2].written == 32


def test_counting_is_linear_in_nodes() -> None:
    """How long 10,000 nodes take is benchmarked, it depends on the machine; that they take no square is tested."""
    spent = []
    for count in (1_000, 8_000):
        model = long_chain(["N", "N"], count)
        tries = []
        for _ in range(3):
            start = time.process_time()
            found = analyze(model)
            tries.append(time.process_time() - start)
        spent.append(min(tries))
        assert found.totals.macs == dims.mul(dims.product([dims.atom("N")] * 3), -(-count // 3))
    assert spent[1] < 16 * spent[0]
