"""Graphs inside others lose channels as the rest does; what they return, and are given, keeps its shape."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from channelcheck import Case, check_removal
from hypothesis import given, settings
from hypothesis import strategies as st

import passcheck
from edgec.compiler.graph import nodes
from edgec.passes.mask_channels import MaskChannels
from edgec.passes.remove_channels import RemoveChannels

LINEAR = """
    h{k} = MatMul({x}, w{k})
    r{k} = Relu(h{k})
    {y} = MatMul(r{k}, v{k})
"""


def weights(*shapes: tuple[str, int, int]) -> list[onnx.TensorProto]:
    rng = np.random.default_rng(0)
    return [onnx.numpy_helper.from_array(rng.normal(size=(a, b)).astype("f"), name) for name, a, b in shapes]


def branches(own: bool) -> ir.Model:
    """A hidden layer before an If and one in each branch; their weights lie outside, or inside."""
    proto = onnx.parser.parse_model(f"""
        <ir_version: 10, opset_import: ["" : 25]> g (bool c, float[3,6] x) => (float[3,5] y) {{
            p = MatMul(x, u)
            y = If (c) <
                then_branch = a () => (float[3,5] t) {{ {LINEAR.format(k=1, x="p", y="t")} }},
                else_branch = b () => (float[3,5] e) {{ {LINEAR.format(k=2, x="p", y="e")} }}
            >
        }}""")  # fmt: skip
    made = weights(("u", 6, 12), ("w1", 12, 16), ("v1", 16, 5), ("w2", 12, 10), ("v2", 10, 5))
    inner = {a.name: a.g for a in proto.graph.node[1].attribute}
    for t in made:
        place = proto.graph if not own or t.name == "u" else inner["then_branch" if t.name[1] == "1" else "else_branch"]
        place.initializer.append(t)
    return passcheck.load(proto)


def loop() -> ir.Model:
    """A hidden layer inside a Loop, whose state is carried on; the weight that makes the state lies outside."""
    proto = onnx.parser.parse_model(f"""
        <ir_version: 10, opset_import: ["" : 25]> g (int64 n, float[3,6] x) => (float[3,7] y) {{
            z = MatMul(x, u)
            q = MatMul(x, s)
            m = Loop (n, , z) <
                body = b (int64 i, bool more, float[3,8] state) => (bool again, float[3,8] next) {{
                    again = Identity(more)
                    {LINEAR.format(k=1, x="state", y="o")}
                    d = MatMul(q, k)
                    e = Add(o, d)
                    next = Tanh(e)
                }}
            >
            y = MatMul(m, l)
        }}""")  # fmt: skip
    proto.graph.initializer.extend(
        weights(("u", 6, 8), ("w1", 8, 16), ("v1", 16, 8), ("s", 6, 12), ("k", 12, 8), ("l", 8, 7))
    )
    return passcheck.load(proto)


def feeds(model: ir.Model, which: object) -> dict[str, np.ndarray]:
    x = np.random.default_rng(1).normal(size=(3, 6)).astype("f")
    return {"x": x, model.graph.inputs[0].name: np.array(which)}


@pytest.mark.parametrize("own", [False, True], ids=["outside", "inside"])
@settings(max_examples=15, deadline=None, derandomize=True)
@given(ratio=st.floats(0.1, 0.9), seed=st.integers(0, 100))
def test_branches(own: bool, ratio: float, seed: int) -> None:
    """12 channels that both branches read, 16 and 10 of their own."""
    case = Case.of(branches(own))
    assert len(case.units) == 12 + 16 + 10
    for which in (True, False):
        check_removal(case, case.dead(ratio, seed), feeds(case.model, which))


@settings(max_examples=15, deadline=None, derandomize=True)
@given(ratio=st.floats(0.1, 0.9), seed=st.integers(0, 100))
def test_loops(ratio: float, seed: int) -> None:
    """16 channels inside, and 12 that are made outside; the 8 of the state stay."""
    case = Case.of(loop())
    assert len(case.units) == 16 + 12
    for trips in (0, 1, 3):
        check_removal(case, case.dead(ratio, seed), feeds(case.model, trips))


@pytest.mark.parametrize(
    "build", [lambda: branches(False), lambda: branches(True), loop], ids=["outside", "inside", "loop"]
)
def test_as_passes(build) -> None:
    model, ctx = build(), passcheck.context("onnx")
    assert MaskChannels(ratio=0.5, of="channels", align=1).run(model, ctx) > 0
    after = passcheck.check_pass(model, RemoveChannels(), inputs=feeds(model, True if len(model.graph) < 3 else 2))
    hidden = {n.inputs[1].name: n.inputs[1].shape.numpy() for n in nodes(after, "MatMul")}
    assert hidden["w1"][1] == 8 == hidden["v1"][0]


def test_what_leaves_a_body_keeps_its_shape() -> None:
    """The sum of both branches' results is what their last layers make: these keep all."""
    case = Case.of(branches(False))
    kept = [h.grid.ids for h in case.coupling.holds[case.model.graph.initializers["v1"]] if h.grid.axes == (1,)]
    assert kept and not case.found.of[np.concatenate(kept)].any()
