"""The three passes that look at the graph as a whole: dead code, common subexpressions, one spelling."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from onnx_ir.passes.common import NameFixPass

from edgec.compiler import graph
from edgec.compiler.session import Session
from edgec.passes.canonicalize import Canonicalize
from edgec.passes.merge_common_subexpressions import MergeCommonSubexpressions
from edgec.passes.remove_dead_code import RemoveDeadCode
from passcheck import check_pass, context, ops

HEAD = '<ir_version: 10, opset_import: ["" : 25]> agraph '


def parse(body: str) -> ir.Model:
    """Constants not yet lifted; every node and value has its name already."""
    model = ir.from_onnx_text(HEAD + body)
    NameFixPass()(model)
    return model


def test_dead_chain_goes_with_its_weights() -> None:
    body = """(float[2] x) => (float[2] y) <float[2] w = {1.0, 2.0}, float u = {3.0}>
        { y = Sin(x) a = Mul(x, w) b = Cos(a) c = Neg(b) }"""
    model = check_pass(HEAD + body, RemoveDeadCode(), rewrites=5)  # three nodes, two initializers
    assert ops(model) == {"Sin": 1} and not model.graph.initializers


def test_unread_optional_outputs_go() -> None:
    body = """(float[2,4] x) => (float[2,4] y) <float[4] s = {1.0, 1.0, 1.0, 1.0}>
        { a, mean, rest = LayerNormalization(x, s) y, mask = Dropout(a) }"""
    model = check_pass(HEAD + body, RemoveDeadCode(), rewrites=3)
    assert [len(n.outputs) for n in model.graph] == [1, 1]


def test_required_outputs_stay() -> None:
    body = """(float[2,4] x) => (float[2,2] y) <int64[1] k = {2}> { y, i = TopK(x, k) }"""
    assert len(check_pass(HEAD + body, RemoveDeadCode(), rewrites=0).graph[0].outputs) == 2
    body = "(float[2,4] x) => (float[2,2] y) { y, z = Split<axis=1, num_outputs=2>(x) }"
    assert len(check_pass(HEAD + body, RemoveDeadCode(), rewrites=0).graph[0].outputs) == 2


def test_dead_if_lets_go_of_what_its_branches_read() -> None:
    body = """(bool c, float[2] x) => (float[2] y) {
        y = Sin(x)
        a = Cos(x)
        b = If (c) <then_branch = t () => (float[2] u) { u = Neg(a) }, else_branch = e () => (float[2] v) {
        v = Abs(a) }>
    }"""
    assert ops(check_pass(HEAD + body, RemoveDeadCode(), rewrites=2)) == {"Sin": 1}


def test_dead_nodes_inside_a_branch() -> None:
    body = """(bool c, float[2] x) => (float[2] y) {
        y = If (c) <then_branch = t () => (float[2] u) { w = Exp(x) u = Neg(x) },
                    else_branch = e () => (float[2] v) { v = Abs(x) }>
    }"""
    assert ops(check_pass(HEAD + body, RemoveDeadCode(), rewrites=1)) == {"If": 1, "Neg": 1, "Abs": 1}


def test_uncalled_function_goes() -> None:
    text = """<ir_version: 10, opset_import: ["" : 25, "edgec" : 1]>
        agraph (float[2] x) => (float[2] y) { y = edgec.used(x) }
        <domain: "edgec", opset_import: ["" : 25]> used (a) => (b) { b = Sin(a) }
        <domain: "edgec", opset_import: ["" : 25]> unused (a) => (b) { b = Cos(a) }"""
    assert [f.name for f in check_pass(text, RemoveDeadCode(), rewrites=1).functions.values()] == ["used"]


def test_equal_nodes_are_computed_once() -> None:
    body = """(float[2,3] x) => (float[2,3] y) {
        a = Elu<alpha=0.5>(x) b = Elu<alpha=0.5>(x) c = Add(a, x) d = Add(x, b) y = Mul(c, d) }"""
    assert ops(check_pass(HEAD + body, MergeCommonSubexpressions(), rewrites=2)) == {"Elu": 1, "Add": 1, "Mul": 1}


@pytest.mark.parametrize("pair", [
    "a = Elu<alpha=0.5>(x) b = Elu<alpha=0.25>(x)",
    "a = Sub(x, u) b = Sub(u, x)",
    "a = Sin(x) b = Sin(u)",
    "a = RandomUniformLike<seed=1.0>(x) b = RandomUniformLike<seed=1.0>(x)",
])  # fmt: skip
def test_different_nodes_stay(pair: str) -> None:
    body = HEAD + "(float[2,3] x, float[2,3] u) => (float[2,3] y) { " + pair + " y = Add(a, b) }"
    model = ir.from_onnx_text(body)
    assert MergeCommonSubexpressions().run(model, context()) == 0


def test_equal_outputs_keep_both_names() -> None:
    body = "(float[2] x) => (float[2] y, float[2] z) { y = Sin(x) z = Sin(x) }"
    check_pass(HEAD + body, MergeCommonSubexpressions(), rewrites=0)
    body = "(float[2] x) => (float[2] y, float[2] z) { a = Sin(x) z = Cos(a) y = Sin(x) }"
    assert ops(check_pass(HEAD + body, MergeCommonSubexpressions(), rewrites=1)) == {"Sin": 1, "Cos": 1}


def test_branches_share_with_what_is_around_them_but_not_with_each_other() -> None:
    body = """(bool c, float[2] x) => (float[2] y) {
        s = Sin(x)
        i = If (c) <then_branch = t () => (float[2] u) { a = Sin(x) b = Cos(x) u = Add(a, b) },
                    else_branch = e () => (float[2] v) { d = Cos(x) v = Neg(d) }>
        f = Cos(x) g = Add(f, s) y = Add(g, i)
    }"""
    model = check_pass(HEAD + body, MergeCommonSubexpressions(), rewrites=1)
    assert ops(model) == {"Sin": 1, "Cos": 3, "Add": 3, "If": 1, "Neg": 1}


def test_equal_constants_are_kept_once() -> None:
    big = np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32)
    near = big.copy()
    near[40, 40] += 1e-3  # same sample of bytes, another content
    names = ["x", "a", "b", "y"]
    nodes = [helper.make_node("MatMul", [names[i], f"w{i}"], [names[i + 1]]) for i in range(3)]
    tensors = [onnx.numpy_helper.from_array(a, f"w{i}") for i, a in enumerate([big, near, big.copy()])]
    info = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [2, 64]) for n in "xy"]
    g = helper.make_graph(nodes, "g", info[:1], info[1:], tensors)
    proto = helper.make_model(g, opset_imports=[helper.make_opsetid("", 25)], ir_version=10)
    model = check_pass(proto, MergeCommonSubexpressions(), rewrites=1)
    assert len(model.graph.initializers) == 2


def test_zero_and_minus_zero_are_two_constants() -> None:
    body = """(float[2] x) => (float[2] y) <float p = {0.0}, float n = {-0.0}> { a = Div(x, p) b = Div(x, n)
        y = Max(a, b) }"""
    assert MergeCommonSubexpressions().run(ir.from_onnx_text(HEAD + body), context()) == 0


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_merging_and_clearing_any_graph_keeps_its_function(data: st.DataObject) -> None:
    values, lines = ["x", "u"], []
    for i in range(data.draw(st.integers(1, 12))):
        op = data.draw(st.sampled_from(["Sin", "Neg", "Add", "Sub", "Mul", "Max"]))
        args = [data.draw(st.sampled_from(values)) for _ in range(1 if op in ("Sin", "Neg") else 2)]
        values.append(f"v{i}")
        lines.append(f"v{i} = {op}({', '.join(args)})")
    body = "(float[3] x, float[3] u) => (float[3] y) { " + " ".join(lines) + f" y = Add({values[-1]}, u) }}"
    model = check_pass(check_pass(HEAD + body, MergeCommonSubexpressions()), RemoveDeadCode())
    keys = {(n.op_type, tuple(v.name for v in n.inputs if v)) for n in model.graph}
    assert len(keys) == len(model.graph)


CONSTANTS = ["value_float=2.0", "value_floats=[2.0, 3.0]", "value=float {2.0}", "value=float[2] {2.0, 3.0}"]


@pytest.mark.parametrize("form", CONSTANTS)
def test_constants_become_initializers(form: str) -> None:
    model = parse(f"(float[2] x) => (float[2] y) {{ c = Constant<{form}>() y = Mul(x, c) }}")
    feed = {"x": np.array([5, 7], np.float32)}
    before = Session(model).run(feed)["y"]
    assert Canonicalize().run(model, context()) == 1
    assert ops(model) == {"Mul": 1} and graph.is_const(model.graph[0].inputs[1])
    np.testing.assert_array_equal(Session(model).run(feed)["y"], before)


def test_constant_output_stays_a_constant() -> None:
    model = parse(
        "(float[1] x) => (float[1] y, float[1] c) { c = Constant<value_floats=[2.0]>() y = Mul(x, c) }"
    )
    assert Canonicalize().run(model, context()) == 1
    assert ops(model) == {"Constant": 1, "Mul": 1}
    assert Session(model).run({"x": np.ones(1, np.float32)})["c"] == 2
    assert Canonicalize().run(model, context()) == 0


def test_constants_of_branches_go_to_the_main_graph_under_names_of_their_own() -> None:
    body = """(bool c, float[2] x) => (float[2] y) {
        y = If (c) <then_branch = t () => (float[2] u) { k = Constant<value_float=2.0>() u = Mul(x, k) },
                    else_branch = e () => (float[2] v) { k = Constant<value_float=3.0>() v = Mul(x, k) }>
    }"""
    model = ir.from_onnx_text(HEAD + body)
    assert Canonicalize().run(model, context()) >= 2
    assert ops(model) == {"If": 1, "Mul": 2} and len(model.graph.initializers) == 2
    for c, factor in ((True, 2), (False, 3)):
        assert Session(model).run({"c": np.array(c), "x": np.ones(2, np.float32)})["y"].tolist() == [factor] * 2


@pytest.mark.parametrize(("node", "attribute", "value"), [
    ("Softmax(x)", "axis", 2), ("Softmax<axis=-2>(x)", "axis", 1), ("LogSoftmax<axis=-3>(x)", "axis", 0),
    ("Transpose(x)", "perm", (2, 1, 0)), ("Concat<axis=-1>(x, x)", "axis", 2), ("Flatten<axis=-1>(x)", "axis", 2),
    ("ArgMax<axis=-1>(x)", "axis", 2),
])  # fmt: skip
def test_axes_are_spelt_out(node: str, attribute: str, value: object) -> None:
    kind = "int64" if node.startswith("ArgMax") else "float"
    shapes = {"Transpose": "4,3,2", "Concat": "2,3,8", "Flatten": "6,4", "ArgMax": "2,3,1"}
    dims = shapes.get(node.replace("<", "(").split("(")[0], "2,3,4")
    model = check_pass(HEAD + f"(float[2,3,4] x) => ({kind}[{dims}] y) {{ y = {node} }}", Canonicalize(), rewrites=1)
    assert graph.attr(model.graph[0], attribute) == value


@pytest.mark.parametrize(("body", "axes"), [
    ("(float[2,3] x) => (float[2,1,3,1] y) <int64[2] a = {-1, 1}> { y = Unsqueeze(x, a) }", [3, 1]),
    ("(float[2,1,1] x) => (float[2] y) { y = Squeeze(x) }", [1, 2]),
    ("(float[2,3] x) => (float[1,1] y) { y = ReduceSum(x) }", [0, 1]),
    ("(float[2,3] x) => (float[2,1] y) <int64[1] a = {-1}> { y = ReduceMax(x, a) }", [1]),
])  # fmt: skip
def test_axes_inputs_are_spelt_out(body: str, axes: list[int]) -> None:
    model = check_pass(HEAD + body, Canonicalize(), rewrites=1)
    assert graph.ints(model.graph[0].inputs[1]) == axes


def test_slice_axes() -> None:
    body = "(float[2,3] x) => (float[1,2] y) <int64[2] s = {1, 0}, int64[2] e = {2, 2}> { y = Slice(x, s, e) }"
    assert graph.ints(check_pass(HEAD + body, Canonicalize(), rewrites=1).graph[0].inputs[3]) == [0, 1]


def test_squeeze_of_unknown_sizes_stays() -> None:
    model = check_pass(
        HEAD + "(float[A,3] x) => (float[B] y) { y = Squeeze(x) }",
        Canonicalize(), rewrites=0, input_shapes={"x": [1, 3]},
    )
    assert len(model.graph[0].inputs) == 1


def test_operators_with_a_simpler_name() -> None:
    body = "(float[2] x, int64[2] u) => (float[2] y) { a = CastLike(u, x) y = Sum(x, a) }"
    assert ops(check_pass(HEAD + body, Canonicalize(), rewrites=2)) == {"Cast": 1, "Add": 1}


@pytest.mark.parametrize(("condition", "op"), [(1, "Neg"), (0, "Abs")])
def test_constant_condition(condition: int, op: str) -> None:
    body = f"""(float[2] x) => (float[2] y) <bool c = {{{condition}}}> {{
        s = Sin(x)
        a = If (c) <then_branch = t () => (float[2] u) {{ k = Cos(s) u = Neg(k) }},
                    else_branch = e () => (float[2] v) {{ k = Exp(s) v = Abs(k) }}>
        y = Add(a, s)
    }}"""
    found = ops(check_pass(HEAD + body, Canonicalize()))
    assert found[op] == 1 and found["If"] == 0 and len(found) == 4


def test_constant_condition_whose_branch_hands_on_an_outer_value() -> None:
    body = """(float[2] x) => (float[2] y) <bool c = {1}> {
        y = If (c) <then_branch = t () => (float[2] u) { u = Identity(x) },
                    else_branch = e () => (float[2] v) { v = Abs(x) }>
    }"""
    model = parse(body)
    assert Canonicalize().run(model, context()) == 1
    assert ops(model) == {"Identity": 1}


def test_foreign_functions_are_inlined_and_ours_stay() -> None:
    text = """<ir_version: 10, opset_import: ["" : 25, "edgec" : 1, "pkg.torch" : 1]>
        agraph (float[2] x) => (float[2] y) { a = edgec.ours(x) y = pkg.torch.theirs(a) }
        <domain: "edgec", opset_import: ["" : 25]> ours (a) => (b) { b = Sin(a) }
        <domain: "pkg.torch", opset_import: ["" : 25]> theirs (a) => (b) { b = Cos(a) }"""
    model = check_pass(text, Canonicalize())
    assert ops(model) == {"edgec::ours": 1, "Cos": 1} and set(model.opset_imports) == {"", "edgec"}


def test_other_names_of_the_standard_domain() -> None:
    text = '<ir_version: 10, opset_import: ["" : 25]> agraph (float[2] x) => (float[2] y) { y = Sin(x) }'
    model = ir.from_onnx_text(text)
    model.graph[0].domain = "ai.onnx"
    assert Canonicalize().run(model, context()) == 1 and model.graph[0].domain == ""
