"""The text form of a model: deterministic, independent of names, and diffs that show what changed and nothing else.

To accept a changed text form: `EDGEC_UPDATE_GOLDEN=1 python -m pytest tests/unit/test_text.py`, then read the diff.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from edgec.compiler.graph import insert_before
from edgec.compiler.text import diff, to_text
from passcheck import load

GOLDEN = Path(__file__).parents[1] / "golden"

EVERYTHING = """<ir_version: 10, opset_import: ["" : 25, "edgec" : 1]>
everything (float[N,3,8,8] image, bool flag, int64 steps) => (float[N,4] "class scores", float[2,2] state)
<float half = {0.5}, float[3] mean = {0.1, -0.25, 1e-7}, bool yes = {1}, int64[2] flat = {0, -1},
 float[2,2] eye = {1, 0, 0, 1}> {
    centred = Sub(image, mean_map)
    soft = edgec.Swish <alpha = 1.5> (centred)
    conv = Conv <pads = [1, 1, 1, 1], strides = [2, 2], auto_pad = "NOTSET"> (soft, kernel)
    again = Conv <pads = [1, 1, 1, 1]> (conv, square)
    third = Conv <pads = [1, 1, 1, 1]> (again, square)
    bounded = Clip(third, , half)
    rows = Reshape(bounded, flat)
    "class scores" = MatMul(rows, head)
    chosen = If (flag) <
        then_branch = yes_branch () => (float[2,2] a) { a = Add(eye, eye) },
        else_branch = no_branch () => (float[2,2] b) { c = Identity(eye) b = Neg(c) }>
    state = Loop (steps, yes, chosen) <body = body (int64 i, bool go, float[2,2] v) => (bool on, float[2,2] w) {
        on = Identity(go)
        w = MatMul(v, v)
    }>
}
<domain: "edgec", opset_import: ["" : 25]>
Swish <alpha: float = 1.0> (x) => (y) {
    a = Constant <value_float: float = @alpha> ()
    z = Mul(x, a)
    s = Sigmoid(z)
    y = Mul(x, s)
}"""


def everything() -> ir.Model:
    proto = onnx.parser.parse_model(EVERYTHING.replace('"class scores"', "class_scores"))
    rng = np.random.default_rng(0)
    weights = {"mean_map": (1, 3, 8, 8), "kernel": (5, 3, 3, 3), "square": (5, 5, 3, 3), "head": (80, 4)}
    for name, dims in weights.items():
        proto.graph.initializer.append(numpy_helper.from_array(rng.standard_normal(dims).astype(np.float32), name))
    model = load(proto)
    next(o for o in model.graph.outputs if o.name == "class_scores").name = "class scores"
    return model


def chain(count: int, name: str = "v") -> ir.Model:
    nodes = [helper.make_node("Relu" if i % 3 else "Neg", [f"{name}{i}"], [f"{name}{i + 1}"]) for i in range(count)]
    info = [helper.make_tensor_value_info(n, 1, [2]) for n in (f"{name}0", f"{name}{count}")]
    graph = helper.make_graph(nodes, "chain", info[:1], info[1:])
    graph.input[0].name, graph.output[0].name = "in", "out"
    graph.node[0].input[0], graph.node[-1].output[0] = "in", "out"
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 25)]))


def test_golden() -> None:
    found = to_text(everything(), hashes=True)
    path = GOLDEN / "everything.txt"
    if os.environ.get("EDGEC_UPDATE_GOLDEN"):
        path.write_text(found)
    assert found == path.read_text()


def test_the_same_model_under_other_names_gives_the_same_text() -> None:
    assert to_text(chain(20, "v")) == to_text(chain(20, "something_else_"))


def test_names_are_there_when_asked_for() -> None:
    model = everything()
    node = next(n for n in model.graph if n.op_type == "Conv")
    node.name = "backbone/conv_1"
    assert "backbone/conv_1" in to_text(model, names=True)
    assert "backbone/conv_1" not in to_text(model)


def test_hashes_tell_weights_of_one_shape_apart_and_are_read_only_on_demand() -> None:
    class Unreadable(ir.Tensor):
        def tobytes(self) -> bytes:
            raise AssertionError("the weight was read")

    model = chain(2)
    for big in (np.zeros(100_000, np.float32), np.ones(100_000, np.float32)):
        model.graph.register_initializer(ir.Value(name=f"w{big[0]}", const_value=Unreadable(big)))
    assert to_text(model).count("unused f32[100000]\n") == 2
    assert to_text(model, hashes=None).count("unused f32[100000]\n") == 2
    for value in model.graph.initializers.values():
        value.const_value = ir.Tensor(value.const_value.numpy())  # type: ignore[union-attr]
    digests = {line for line in to_text(model, hashes=True).splitlines() if "unused" in line}
    assert len(digests) == 2


def test_equal_texts_have_no_diff() -> None:
    text = to_text(everything())
    assert diff(text, text) == ""


def test_a_diff_shows_the_inserted_node_and_its_reader_and_not_the_shifted_numbers() -> None:
    model = chain(30)
    before = to_text(model)
    reader = list(model.graph)[10]
    source = reader.inputs[0]
    assert source is not None
    reader.replace_input_with(0, insert_before(reader, "Abs", [source], like=source).outputs[0])
    assert diff(before, to_text(model), context=1).splitlines() == [
        "   %9 = Neg(%8)",
        "-  %10 = Relu(%9)",
        "+  %10 = Abs(%9)",
        "+  %11 = Relu(%10)",
        "   %12 = Relu(%11)",
    ]


def test_a_diff_shows_a_reader_that_now_reads_another_value() -> None:
    text = """<ir_version: 10, opset_import: ["" : 25]>
    g (float[2] x) => (float[2] y) { a = Neg(x) b = Neg(x) y = Add(a, A) }"""
    one, other = (to_text(load(text.replace("A)", f"{n})"))) for n in "ab")
    changed = [line for line in diff(one, other).splitlines() if line[0] in "+-"]
    assert changed == ["-  %y: f32[2] = Add(%0, %0)", "+  %y: f32[2] = Add(%0, %1)"]


def applied(a: str, changes: str) -> list[str]:
    """The lines of `a` after `changes` (with full context) were made to it."""
    return [line[1:] for line in changes.splitlines() if line[0] in "+ "] if changes else a.splitlines()


@given(st.lists(st.integers(0, 5), max_size=12), st.lists(st.integers(0, 5), max_size=12))
def test_applying_a_diff_to_the_old_text_gives_the_new_one(a: list[int], b: list[int]) -> None:
    ops = ["Relu", "Neg", "Abs", "Exp", "Sin", "Cos"]

    def text(path: list[int]) -> str:
        lines = [f"  %{i} = {ops[k]}({'%x' if i == 0 else f'%{i - 1}'})" for i, k in enumerate(path)]
        return "\n".join(["graph g(%x) {", *lines, "}"]) + "\n"

    old, new = text(a), text(b)
    assert applied(old, diff(old, new, context=1000)) == new.splitlines()


def test_time_is_linear_in_nodes_for_text_and_diff() -> None:
    def seconds(count: int) -> float:
        a, b = chain(count), chain(count)
        reader = list(b.graph)[count // 2]
        source = reader.inputs[0]
        assert source is not None
        reader.replace_input_with(0, insert_before(reader, "Abs", [source]).outputs[0])
        start = time.process_time()
        changed = diff(to_text(a), to_text(b))
        assert sum(line[0] in "+-" for line in changed.splitlines()) == 3
        return time.process_time() - start

    few, many = (min(seconds(n) for _ in range(3)) for n in (1_600, 16_000))
    assert many < 50 * max(few, 0.01)
