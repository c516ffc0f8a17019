"""The algebra of views: whatever a chain of reshapes and transposes does, one layout does the same."""

import math

import numpy as np
import onnx
import onnx_ir as ir
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper
from onnx.reference import ReferenceEvaluator

from edgec.compiler import dims
from edgec.compiler import graph as g
from edgec.passes.layouts import arrange, axis, regroup, resolve, size_of
from edgec.passes.tracing import trace
from edgec.passes.view_steps import Step
from passcheck import load

BASE = (2, 12, 6)


def chain(draws: list[tuple[int, list[int]]], batch: int | str) -> tuple[onnx.ModelProto, list[int]]:
    """A model that splits or joins axes and permutes them, as the numbers say; and its output's shape."""
    shape, nodes, constants, name = list(BASE), [], [], "x"
    for i, (where, order) in enumerate(draws):
        at = where % len(shape)
        split = (
            next((d for d in (2, 3) if shape[at] % d == 0 and shape[at] > d), None) if at or batch == BASE[0] else None
        )
        if split and len(shape) < 6:
            shape[at : at + 1] = [split, shape[at] // split]
        elif at + 1 < len(shape) and (at or batch == BASE[0]):
            shape[at : at + 2] = [shape[at] * shape[at + 1]]
        target = [-1 if d == BASE[0] and j == 0 and batch != BASE[0] else d for j, d in enumerate(shape)]
        constants.append(helper.make_tensor(f"s{i}", onnx.TensorProto.INT64, [len(shape)], target))
        nodes.append(helper.make_node("Reshape", [name, f"s{i}"], [f"r{i}"]))
        perm = sorted(range(len(shape)), key=lambda j: (batch != BASE[0] and j > 0, order[j % len(order)], j))
        shape = [shape[j] for j in perm]
        nodes.append(helper.make_node("Transpose", [f"r{i}"], [f"t{i}"], perm=perm))
        name = f"t{i}"
    nodes.append(helper.make_node("Identity", [name], ["y"]))
    x = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [batch, *BASE[1:]])
    y = helper.make_tensor_value_info(
        "y", onnx.TensorProto.FLOAT, [batch if batch != BASE[0] else shape[0], *shape[1:]]
    )
    graph = helper.make_graph(nodes, "views", [x], [y], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 25)], ir_version=11), shape


def apply(steps: tuple[Step, ...], x: np.ndarray) -> np.ndarray:
    """What the nodes of these steps compute."""
    for step in steps:
        if step.op == "Transpose":
            x = x.transpose(step.what)
        else:
            x = x.reshape([x.shape[i] if size == 0 else size for i, size in enumerate(step.what)])
    return x


STEPS = st.lists(
    st.tuples(st.integers(0, 5), st.lists(st.integers(0, 9), min_size=6, max_size=6)), min_size=1, max_size=4
)


@settings(max_examples=80, deadline=None)
@given(draws=STEPS, batch=st.sampled_from([BASE[0], "N"]))
def test_one_layout_does_what_a_chain_does(draws: list[tuple[int, list[int]]], batch: int | str) -> None:
    proto, _ = chain(draws, batch)
    model = load(proto)
    x = np.arange(math.prod(BASE), dtype=np.float32).reshape(BASE)
    values = ReferenceEvaluator(proto).run(None, {"x": x}, intermediate=True)
    view = trace(model.graph.outputs[0])
    # Where one step splits what another had joined elsewhere, the trace starts below.
    assert view is not None and view.length >= 1 and view.scale == 1
    layout = arrange(view.axes, view.dims)
    assert layout is not None
    assert np.array_equal(apply(layout, values[view.base.name]), values["y"])


def test_regroup_splits_from_both_ends() -> None:
    dims = [axis("N"), axis(197), axis(768)]
    found = regroup(dims, ["N", 197, "unknown", 64])
    assert found is not None
    assert [size_of(d) for d in resolve(found)] == ["N", 197, 12, 64]
    assert [size_of(d) for d in resolve(dims)] == ["N", 197, 768]


def test_regroup_refuses_what_is_not_certain() -> None:
    assert regroup([axis("N"), axis("M")], ["A", "B"]) is None
    assert regroup([axis(6)], [4, 2]) is None
    assert regroup([axis(6)], [3]) is None


def test_axes_of_size_one_come_and_go() -> None:
    dims = [axis(1), axis(5), axis(1)]
    found = regroup(dims, [5])
    assert found is not None and arrange(dims, found) == (Step("Reshape", (5,), (5,)),)


def test_two_unknown_sizes_can_move_but_not_be_reshaped() -> None:
    n, t, d = axis("N"), axis("T"), axis(8)
    sizes = {name: dims.atom(name) for name in "NT"}
    swapped = Step("Transpose", (1, 0, 2), (sizes["T"], sizes["N"], 8))
    assert arrange([n, t, d], [t, n, d]) == (swapped,)
    joined_size = dims.mul(sizes["T"], sizes["N"])
    assert arrange([n, t, d], [[*t, *n], d]) == (swapped, Step("Reshape", (-1, 8), (joined_size, 8)))
    joined = [[*n, *t], d]
    assert arrange(joined, [n, t, d]) is None


def test_scales_are_collected_on_the_way() -> None:
    text = """<ir_version: 10, opset_import: ["" : 25]> m (float[2,6] x) => (float[2,2,3] y)
    <float a = {0.5}, float[1] b = {4}, int64[3] s = {2, 2, 3}> { p = Mul(a, x) q = Div(p, b) y = Reshape(q, s) }"""
    model = load(text)
    view = trace(model.graph.outputs[0])
    assert view is not None and view.base.name == "x" and view.scale == 0.125
    plain = trace(model.graph.outputs[0], scaled=False)
    assert plain is not None and plain.base.name == "q"
    assert isinstance(g.producer(plain.base), ir.Node)
