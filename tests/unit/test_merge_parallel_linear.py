from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgec.compiler import graph as g
from edgec.passes.merge_parallel_linear import MergeParallelLinear
from linearmodels import Node, Weights, build
from passcheck import check_pass, ops


def parallel(w: Weights, biases: list[bool], sizes: list[int], k: int = 8) -> list[Node]:
    """`MatMul` and perhaps `Add` for each, of one input; outputs y0, y1, …"""
    nodes: list[Node] = []
    for i, (bias, n) in enumerate(zip(biases, sizes, strict=True)):
        nodes.append(("MatMul", f"x {w.add(f'w{i}', k, n)}", f"m{i}" if bias else f"y{i}"))
        if bias:
            nodes.append(("Add", f"{w.add(f'b{i}', n)} m{i}", f"y{i}"))
    return nodes


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    biases=st.lists(st.booleans(), min_size=1, max_size=4),
    sizes=st.lists(st.integers(1, 40), min_size=4, max_size=4),
    given_out=st.booleans(),
    seed=st.integers(0, 99),
)
def test_any_number_of_products(biases: list[bool], sizes: list[int], given_out: bool, seed: int) -> None:
    w = Weights(seed)
    n = len(biases)
    nodes, outputs = parallel(w, biases, sizes[:n]), [f"y{i}" for i in range(n)]
    if not given_out:
        nodes += [("Relu", y, f"r{i}") for i, y in enumerate(outputs)]
        outputs = [f"r{i}" for i in range(n)]
    merge = n + sum(biases) > 2 + any(biases)
    out = check_pass(
        build(nodes, {"x": ["B", 5, 8]}, w, outputs), MergeParallelLinear(), rewrites=n - 1 if merge else 0, seeds=1
    )
    count = ops(out)
    assert count["MatMul"] == (1 if merge else n)
    assert count["Split"] == int(merge)
    stored = sum(v.const_value.size for v in out.graph.initializers.values() if v.dtype.is_floating_point())
    zeros = sum(s for b, s in zip(biases, sizes, strict=False) if not b) if merge and any(biases) else 0
    assert stored == sum(a.size for a in w.values()) + zeros, "the parts are gone"


def test_gemms_of_one_input() -> None:
    w = Weights()
    nodes = [("Gemm", f"x {w.add(f'w{i}', 4, 3)} {w.add(f'b{i}', 4)}", f"y{i}", {"transB": 1}) for i in range(3)]
    out = check_pass(build(nodes, {"x": [2, 3]}, w, ["y0", "y1", "y2"]), MergeParallelLinear(), rewrites=2)
    assert ops(out) == {"Gemm": 1, "Split": 1}
    # Two would be as many nodes as before; one that is turned over is another matter.
    check_pass(build(nodes[:2], {"x": [2, 3]}, w, ["y0", "y1"]), MergeParallelLinear(), rewrites=0)
    nodes[2] = ("Gemm", f"x {w.add('v', 3, 4)} b2", "y2")
    check_pass(build(nodes, {"x": [2, 3]}, w, ["y0", "y1", "y2"]), MergeParallelLinear(), rewrites=0)


def test_two_products_of_a_matrix_stay() -> None:
    """Two heads of a detector are two Gemm, or one and a Split."""
    w = Weights()
    model = build(parallel(w, [True] * 2, [2, 4]), {"x": ["N", 8]}, w, ["y0", "y1"])
    check_pass(model, MergeParallelLinear(), rewrites=0)


def test_products_of_different_inputs_stay() -> None:
    w = Weights()
    nodes = parallel(w, [True] * 3, [4] * 3)
    nodes = [n if n[2] != "m1" else ("MatMul", "z w1", "m1") for n in nodes]
    model = build(nodes, {"x": [1, 5, 8], "z": [1, 5, 8]}, w, ["y0", "y1", "y2"])
    assert ops(check_pass(model, MergeParallelLinear(), rewrites=1)) == {"MatMul": 2, "Add": 2, "Split": 1}


def test_a_big_weight_that_is_used_twice_stays() -> None:
    w = Weights()
    nodes = parallel(w, [True] * 2, [40] * 2)
    nodes += [("MatMul", "z w1", "y2")]
    model = build(nodes, {"x": [1, 5, 8], "z": [2, 8]}, w, ["y0", "y1", "y2"])
    check_pass(model, MergeParallelLinear(), rewrites=0)


def test_a_bias_of_another_shape_stays_behind() -> None:
    """A bias per row is not the product's: its Add stays, behind its part."""
    w = Weights()
    nodes = parallel(w, [True] * 3, [6] * 3)
    w.add("b1", 5, 1)
    out = check_pass(build(nodes, {"x": [5, 8]}, w, ["y0", "y1", "y2"]), MergeParallelLinear(), rewrites=2)
    assert ops(out) == {"MatMul": 1, "Add": 2, "Split": 1}


def test_varying_weights_stay() -> None:
    nodes = [("MatMul", f"x w{i}", f"y{i}") for i in range(3)]
    model = build(nodes, {"x": [5, 8], **{f"w{i}": [8, 4] for i in range(3)}}, {}, ["y0", "y1", "y2"])
    check_pass(model, MergeParallelLinear(), rewrites=0)


def test_each_part_is_read_where_it_was() -> None:
    w = Weights()
    nodes = [*parallel(w, [True] * 3, [4, 4, 6]), ("MatMul", "y0 y1t", "s"), ("MatMul", "s y2", "y")]
    nodes.insert(-2, ("Transpose", "y1", "y1t", {"perm": [0, 2, 1]}))
    out = check_pass(build(nodes, {"x": ["B", "T", 8]}, w), MergeParallelLinear(), rewrites=2)
    assert ops(out) == {"MatMul": 3, "Add": 1, "Split": 1, "Transpose": 1}
    split = next(g.nodes(out, "Split"))
    assert g.shape(split.inputs[0])[-1] == 14
    assert np.array_equal(g.const(split.inputs[1]), [4, 4, 6])


def packed(
    w: Weights, i: int, k: int, n: int, *, axis: int = 1, zero: bool = False, single: bool = False
) -> list[Node]:
    """An int8 weight [k, n] and its dequantisation, named `d{i}`."""
    rng = np.random.default_rng(i)
    w[f"q{i}"] = rng.integers(-127, 128, (k, n), dtype=np.int8)
    count = 1 if single else (k, n)[axis]
    w[f"s{i}"] = rng.uniform(0.001, 0.1, () if single else count).astype(np.float32)
    names = [f"q{i}", f"s{i}"]
    if zero:
        w[f"z{i}"] = rng.integers(-9, 9, () if single else count).astype(np.int8)
        names.append(f"z{i}")
    return [("DequantizeLinear", " ".join(names), f"d{i}", {"axis": axis})]


@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("single", [(), (1,), (0, 1, 2)], ids=["scale per column", "one single scale", "single scales"])
def test_packed_weights_stay_packed(zero: bool, single: tuple[int, ...]) -> None:
    w, nodes = Weights(), []
    for i, n in enumerate((8, 4, 6)):
        nodes += packed(w, i, 16, n, zero=zero, single=i in single)
        nodes += [("MatMul", f"x d{i}", f"m{i}"), ("Add", f"{w.add(f'b{i}', n)} m{i}", f"y{i}")]
    m = build(nodes, {"x": ["B", 5, 16]}, w, ["y0", "y1", "y2"])
    out = check_pass(m, MergeParallelLinear(), rewrites=2, rtol=1e-6)
    assert ops(out) == {"DequantizeLinear": 1, "MatMul": 1, "Add": 1, "Split": 1}
    matrices = [(v.dtype, g.shape(v)) for v in out.graph.initializers.values() if g.rank(v) == 2]
    assert matrices == [(ir.DataType.INT8, (16, 18))], "the parts are gone, and nothing is dense"


@pytest.mark.parametrize("fault", ["rows", "zero", "shared", "dense"])
def test_packed_weights_that_do_not_fit_together_stay_apart(fault: str) -> None:
    w, nodes = Weights(), []
    for i in range(3):
        odd = i == 1
        nodes += packed(w, i, 128, 128, axis=0 if odd and fault == "rows" else 1, zero=odd and fault == "zero")
        weight = w.add("dense", 128, 128) if odd and fault == "dense" else f"d{i}"
        nodes.append(("MatMul", f"x {weight}", f"y{i}"))
    outputs = ["y0", "y1", "y2"]
    if fault == "shared":
        nodes.append(("MatMul", "x2 d1", "y3"))
        outputs.append("y3")
    elif fault == "dense":
        nodes = [n for n in nodes if n[2] != "d1"]
        del w["q1"], w["s1"]
    inputs = {"x": [2, 3, 128], "x2": [2, 3, 128]} if fault == "shared" else {"x": [2, 3, 128]}
    check_pass(build(nodes, inputs, w, outputs), MergeParallelLinear(), rewrites=0)
