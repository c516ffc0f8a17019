from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgec.compiler import graph as g
from edgec.passes.flatten_linear import FlattenLinear
from edgec.passes.fuse_gemm import FuseGemm
from linearmodels import Node, Weights, build
from passcheck import check_pass, ops


def linear(w: Weights, name: str, data: str, k: int, n: int) -> list[Node]:
    """MatMul and Add; the result is `name`."""
    matmul = ("MatMul", f"{data} {w.add(f'w_{name}', k, n)}", f"m_{name}")
    return [matmul, ("Add", f"{w.add(f'b_{name}', n)} m_{name}", name)]


def norm(w: Weights, name: str, data: str, d: int) -> Node:
    return ("LayerNormalization", f"{data} {w.add(f's_{name}', d)} {w.add(f't_{name}', d)}", name, {"axis": 2})


def block(w: Weights, i: int, data: str, d: int = 8) -> list[Node]:
    """A transformer layer with 3-dimensional attention, as it is after the fusions: 15 nodes."""
    w[f"sizes_{i}"] = np.array([d] * 3)
    return [
        *linear(w, f"qkv{i}", data, d, 3 * d),
        ("Split", f"qkv{i} sizes_{i}", f"q{i} k{i} v{i}", {"axis": -1}),
        ("Attention", f"q{i} k{i} v{i}", f"h{i}", {"q_num_heads": 2, "kv_num_heads": 2}),
        *linear(w, f"o{i}", f"h{i}", d, d),
        ("Add", f"o{i} {data}", f"r{i}"),
        norm(w, f"n{i}", f"r{i}", d),
        *linear(w, f"f{i}", f"n{i}", d, 4 * d),
        ("Gelu", f"f{i}", f"e{i}"),
        *linear(w, f"d{i}", f"e{i}", 4 * d, d),
        ("Add", f"d{i} n{i}", f"s{i}"),
        norm(w, f"x{i}", f"s{i}", d),
    ]


@pytest.mark.parametrize("batch", [2, "B"])
@pytest.mark.parametrize("tokens", [5, "T"])
def test_transformer_has_13_nodes_a_layer(batch: int | str, tokens: int | str) -> None:
    w = Weights()
    layers, data = [], "x"
    for i in range(4):
        layers += block(w, i, data)
        data = f"x{i}"
    assert len(layers) == 60
    model = build([*layers, ("Identity", data, "y")], {"x": [batch, tokens, 8]}, w)
    flat = check_pass(model, FlattenLinear(), input_shapes={"x": [2, 5, 8]}, seeds=1)
    out = check_pass(flat, FuseGemm(), rewrites=16, input_shapes={"x": [2, 5, 8]}, seeds=1)
    count = ops(out)
    assert count["Gemm"] == 16 and count["MatMul"] == 0
    edges = 2  # where the whole enters and leaves
    computed = 3 if (batch, tokens) == ("B", "T") else 0
    assert sum(count.values()) == 13 * 4 + 1 + edges + computed
    assert count["Shape"] == (1 if computed else 0)


def test_two_linears_in_a_row_do_not_pay_for_two_reshapes() -> None:
    w = Weights()
    nodes = [*linear(w, "a", "x", 4, 6), ("Relu", "a", "r"), *linear(w, "y", "r", 6, 4)]
    check_pass(build(nodes, {"x": [2, 3, 4]}, w), FlattenLinear(), rewrites=0)


def test_three_do() -> None:
    w = Weights()
    nodes = [*linear(w, "a", "x", 4, 6), ("Relu", "a", "r"), *linear(w, "b", "r", 6, 4), *linear(w, "y", "b", 4, 5)]
    out = check_pass(build(nodes, {"x": [2, 3, 4]}, w), FlattenLinear(), rewrites=7)
    assert ops(out) == {"MatMul": 3, "Add": 3, "Relu": 1, "Reshape": 2}
    assert [v.name for v in out.graph.outputs] == ["y"]


def test_reshapes_that_are_there_are_used() -> None:
    w = Weights()
    w["heads"], w["tokens"] = np.array([2, 3, 2, 3]), np.array([2, 3, 4])
    nodes = [("Reshape", "x tokens", "t"), *linear(w, "a", "t", 4, 6), ("Reshape", "a heads", "y")]
    out = check_pass(build(nodes, {"x": [6, 4]}, w), FlattenLinear(), rewrites=2)
    assert ops(out) == {"MatMul": 1, "Add": 1, "Reshape": 1}


def test_a_reshape_that_copies_dimensions_needs_them() -> None:
    w = Weights()
    w["heads"], w["tokens"] = np.array([0, 0, 2, 3]), np.array([2, 3, 4])
    nodes = [("Reshape", "x tokens", "t"), *linear(w, "a", "t", 4, 6), ("Reshape", "a heads", "y")]
    out = check_pass(build(nodes, {"x": [6, 4]}, w), FlattenLinear())
    assert ops(out)["Reshape"] in (2, 3)


def test_the_edge_is_where_few_values_cross() -> None:
    """Three embeddings are added up outside, so that one value is reshaped and not three."""
    w = Weights()
    nodes = [
        ("Add", "x z", "p"),
        ("Add", "p u", "e"),
        norm(w, "n", "e", 4),
        *linear(w, "a", "n", 4, 6),
        ("Gelu", "a", "r"),
        *linear(w, "b", "r", 6, 4),
        ("Add", "b n", "s"),
        *linear(w, "y", "s", 4, 5),
    ]
    model = build(nodes, {v: ["B", 3, 4] for v in "xzu"}, w)
    out = check_pass(model, FlattenLinear(), input_shapes={v: [2, 3, 4] for v in "xzu"})
    assert ops(out)["Reshape"] == 2
    assert g.rank(next(n for n in g.nodes(out, "Add")).outputs[0]) == 3


def test_constants_of_every_shape() -> None:
    w = Weights()
    shapes = [(), (1, 1, 1), (4,), (1, 4), (1, 1, 4), (2, 3, 1), (2, 3, 4)]
    nodes = [*linear(w, "a", "x", 4, 6), *linear(w, "b", "a", 6, 4)]
    value = "b"
    for i, dims in enumerate(shapes):
        nodes.append((("Add", "Mul")[i % 2], f"{value} {w.add(f'c{i}', *dims)}", f"v{i}"))
        value = f"v{i}"
    nodes += [*linear(w, "c", value, 4, 4), *linear(w, "y", "c", 4, 4)]
    out = check_pass(build(nodes, {"x": [2, 3, 4]}, w), FlattenLinear(), rewrites=15)
    assert ops(out)["Reshape"] == 2


def test_what_mixes_tokens_is_an_edge() -> None:
    """A softmax over tokens, a constant per token, a LayerNormalization over two axes."""
    for node in [
        ("Softmax", "b", "c", {"axis": 1}),
        ("Mul", "b per_token", "c"),
        ("LayerNormalization", "b two_axes", "c", {"axis": 1}),
        ("CumSum", "b one", "c"),
    ]:
        w = Weights()
        w["one"] = np.array(1)
        w.add("per_token", 3, 1), w.add("two_axes", 3, 4)
        layers = [*linear(w, "a", "x", 4, 6), *linear(w, "d", "a", 6, 4), *linear(w, "b", "d", 4, 4), node]
        layers += [*linear(w, "e", "c", 4, 6), *linear(w, "f", "e", 6, 4), *linear(w, "y", "f", 4, 4)]
        out = check_pass(build(layers, {"x": [2, 3, 4]}, w), FlattenLinear(), rewrites=12, seeds=1)
        assert ops(out)["Reshape"] == 4, node[0]


def test_a_value_inside_that_is_given_out_keeps_its_shape() -> None:
    w = Weights()
    nodes = [*linear(w, "a", "x", 4, 6), *linear(w, "b", "a", 6, 4), *linear(w, "c", "b", 4, 4)]
    nodes += linear(w, "y", "c", 4, 4)
    out = check_pass(build(nodes, {"x": [2, 3, 4]}, w, outputs=["b", "y"]), FlattenLinear(), rewrites=8)
    assert ops(out)["Reshape"] == 3
    assert [(v.name, g.shape(v)) for v in out.graph.outputs] == [("b", (2, 3, 4)), ("y", (2, 3, 4))]


def test_dimensions_that_depend_on_data() -> None:
    w = Weights()
    w["zero"] = np.array([0])
    nodes = [("NonZero", "x", "i"), ("Cast", "i", "f", {"to": 1}), ("Unsqueeze", "f zero", "u")]
    nodes += [("Transpose", "u", "t", {"perm": [0, 2, 1]}), *linear(w, "a", "t", 2, 6), *linear(w, "b", "a", 6, 4)]
    nodes += linear(w, "y", "b", 4, 4)
    check_pass(build(nodes, {"x": [4, 4]}, w), FlattenLinear(), seeds=1)


STEPS = ["linear"] * 9 + ["norm", "gelu", "residual", "scale", "softmax", "mix", "split", "second", "heads"]


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    steps=st.lists(st.sampled_from(STEPS), min_size=7, max_size=14),
    outputs=st.sets(st.integers(0, 13), max_size=2),
    batch=st.sampled_from([1, 2, "B"]),
    tokens=st.sampled_from([3, "T"]),
)
def test_any_network(steps: list[str], outputs: set[int], batch: int | str, tokens: int | str) -> None:
    """Whatever the network, the function stays and there are never more nodes, once products are Gemm."""
    w = Weights()
    w["half"], w["two"], w["back"] = np.array([2, 2]), np.array([0, 0, 2, 2]), np.array([0, 0, 4])
    nodes: list[Node] = []
    values = ["x"]
    for i, step in enumerate(steps):
        old, new = values[-1], f"v{i}"
        match step:
            case "linear":
                nodes += linear(w, new, old, 4, 4)
            case "norm":
                nodes.append(norm(w, new, old, 4))
            case "gelu":
                nodes.append(("Gelu", old, new))
            case "residual":
                nodes.append(("Add", f"{old} {values[i // 2]}", new))
            case "scale":
                nodes.append(("Mul", f"{old} {w.add(f'c{i}', *[1, 1, 4][i % 3 :])}", new))
            case "softmax":
                nodes.append(("Softmax", old, new))
            case "mix":
                nodes.append(("Softmax", old, new, {"axis": 1}))
            case "split":
                nodes.append(("Split", f"{old} half", f"a{i} b{i}", {"axis": 2}))
                nodes.append(("Concat", f"b{i} a{i}", new, {"axis": 2}))
            case "second":
                nodes.append(("Add", f"z {old}", new))
            case "heads":
                nodes += [("Reshape", f"{old} two", f"r{i}"), ("Reshape", f"r{i} back", new)]
        values.append(new)
    names = dict.fromkeys([values[-1], *(values[i + 1] for i in sorted(outputs) if i < len(steps))])
    dims = {v: [batch, tokens, 4] for v in "xz"}
    run = {v: [2 if batch == "B" else batch, 3, 4] for v in "xz"}
    model = build(nodes, dims, w, list(names))
    plain = check_pass(model, FuseGemm(), seeds=1, input_shapes=run)
    flat = check_pass(model, FlattenLinear(), seeds=1, input_shapes=run)
    fused = check_pass(flat, FuseGemm(), seeds=1, input_shapes=run)
    more = sum(ops(fused).values()) - sum(ops(plain).values())
    assert more < 0 if "Gemm" in ops(fused) else more == 0
