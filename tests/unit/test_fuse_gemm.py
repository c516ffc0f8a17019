from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto

from edgec.compiler import graph as g
from edgec.passes.fuse_gemm import FuseGemm
from linearmodels import Weights, build
from passcheck import check_pass, ops


@pytest.mark.parametrize("dims", [(), (1,), (5,), (1, 5), (4, 1), (4, 5)])
@pytest.mark.parametrize("left", [True, False])
def test_matmul_and_add(dims: tuple[int, ...], left: bool) -> None:
    w = Weights()
    bias = w.add("b", *dims)
    nodes = [("MatMul", f"x {w.add('w', 3, 5)}", "m"), ("Add", f"{bias} m" if left else f"m {bias}", "y")]
    assert ops(check_pass(build(nodes, {"x": [4, 3]}, w), FuseGemm(), rewrites=1)) == {"Gemm": 1}


def test_symbolic_batch_takes_a_bias_per_column_only() -> None:
    w = Weights()
    nodes = [("MatMul", f"x {w.add('w', 3, 5)}", "m"), ("Add", f"m {w.add('b', 5)}", "y")]
    assert ops(check_pass(build(nodes, {"x": ["N", 3]}, w), FuseGemm(), rewrites=1)) == {"Gemm": 1}
    nodes[1] = ("Add", f"m {w.add('c', 4, 5)}", "y")
    check_pass(build(nodes, {"x": ["N", 3]}, w), FuseGemm(), rewrites=0, input_shapes={"x": [4, 3]})


@pytest.mark.parametrize("dims", [(2, 1, 5), (1, 1, 5), (7, 5)])
def test_bias_that_broadcasts_the_product_stays(dims: tuple[int, ...]) -> None:
    w = Weights()
    nodes = [("MatMul", f"x {w.add('w', 3, 5)}", "m"), ("Add", f"m {w.add('b', *dims)}", "y")]
    check_pass(build(nodes, {"x": [1, 3]}, w), FuseGemm(), rewrites=0)


def test_batched_product_stays() -> None:
    w = Weights()
    nodes = [("MatMul", f"x {w.add('w', 3, 5)}", "m"), ("Add", f"m {w.add('b', 5)}", "y")]
    check_pass(build(nodes, {"x": [2, 4, 3]}, w), FuseGemm(), rewrites=0)


def test_product_that_is_read_twice_or_given_out_stays() -> None:
    w = Weights()
    nodes = [("MatMul", f"x {w.add('w', 3, 5)}", "m"), ("Add", f"m {w.add('b', 5)}", "y")]
    check_pass(build(nodes, {"x": [4, 3]}, w, outputs=["m", "y"]), FuseGemm(), rewrites=0)
    check_pass(build([*nodes[:1], ("Add", "m m", "y")], {"x": [4, 3]}, {"w": w["w"]}), FuseGemm(), rewrites=0)


def test_residual_is_no_bias() -> None:
    w = Weights()
    nodes = [("MatMul", f"x {w.add('w', 3, 3)}", "m"), ("Add", "m x", "y")]
    check_pass(build(nodes, {"x": [4, 3]}, w), FuseGemm(), rewrites=0)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    op=st.sampled_from(["MatMul", "Gemm", "Gemm with bias"]),
    turned=st.tuples(st.booleans(), st.booleans()),
    trans=st.tuples(st.integers(0, 1), st.integers(0, 1)),
    alpha=st.sampled_from([1.0, 0.25]),
    add=st.booleans(),
)
def test_transposes_and_bias(
    op: str, turned: tuple[bool, bool], trans: tuple[int, int], alpha: float, add: bool
) -> None:
    w = Weights(1)
    if op == "MatMul":
        trans = (0, 0)
    # A Transpose in front and transA each turn the operand over.
    dims = [(4, 3) if turned[0] == bool(trans[0]) else (3, 4), (3, 5) if turned[1] == bool(trans[1]) else (5, 3)]
    w.add("w", *dims[1])
    nodes = [("Transpose", f"{v}", f"{v}t", {"perm": [1, 0]}) for v, t in zip("xz", turned, strict=True) if t]
    names = " ".join(f"{v}t" if t else v for v, t in zip("xz", turned, strict=True))
    if not turned[1]:
        names = names.replace("z", "w")
    bias = w.add("c", 5) if op == "Gemm with bias" else ""
    attributes = {} if op == "MatMul" else {"transA": trans[0], "transB": trans[1], "alpha": alpha, "beta": 2.0}
    out = "m" if add else "y"
    nodes.append((op.split()[0], f"{names} {bias}", out, attributes))
    if add:
        nodes.append(("Add", f"m {w.add('b', 5)}", "y"))
    inputs = {"x": dims[0], **({"z": dims[1]} if turned[1] else {})}
    model = check_pass(build(nodes, inputs, w), FuseGemm(), seeds=1)
    count = ops(model)
    assert count["Transpose"] == 0
    # With two varying operands an Add is no bias; a Gemm's own bias leaves no place for another one.
    assert count["Add"] == int(add and (op == "Gemm with bias" or turned[1]))


def test_transpose_that_others_read_stays() -> None:
    w = Weights()
    nodes = [("Transpose", "x", "t", {"perm": [1, 0]}), ("MatMul", f"t {w.add('w', 3, 4)}", "m")]
    nodes += [("Add", "m t", "y")]
    check_pass(build(nodes, {"x": [3, 4]}, {"w": np.ones((3, 3), np.float32)}), FuseGemm(), rewrites=0)


def test_integers_stay() -> None:
    w = {"w": np.ones((3, 5), np.int32), "b": np.ones(5, np.int32)}
    nodes = [("MatMul", "x w", "m"), ("Add", "m b", "y")]
    check_pass(build(nodes, {"x": [4, 3]}, w, dtype=TensorProto.INT32), FuseGemm(), rewrites=0)


def test_output_keeps_its_name_and_weights_their_tensors() -> None:
    w = Weights()
    nodes = [("MatMul", f"x {w.add('w', 3, 5)}", "m"), ("Add", f"m {w.add('b', 5)}", "y")]
    out = check_pass(build(nodes, {"x": [4, 3]}, w), FuseGemm(), rewrites=1)
    gemm = next(g.nodes(out, "Gemm"))
    assert [v.name for v in gemm.inputs] == ["x", "w", "b"]
    assert gemm.outputs[0].name == "y"


def test_quantised_weight() -> None:
    w = Weights()
    w["q"], w["s"] = np.ones((3, 5), np.int8), np.float32(0.1)
    nodes = [("DequantizeLinear", "q s", "w"), ("MatMul", "x w", "m"), ("Add", f"m {w.add('b', 5)}", "y")]
    assert ops(check_pass(build(nodes, {"x": [4, 3]}, w), FuseGemm(), rewrites=1)) == {"DequantizeLinear": 1, "Gemm": 1}


@pytest.mark.parametrize(
    ("dims", "bias"), [([2, 3, 5], (5,)), ([2, 3, 5], (1, 1, 5)), ([6, 5, 1], (5, 1)), ([3, 10], ())]
)
def test_keras_adds_the_bias_behind_a_reshape(dims: list[int], bias: tuple[int, ...]) -> None:
    w = Weights()
    w["rows"], w["back"] = np.array([-1, 4]), np.array(dims)
    nodes = [("Reshape", "x rows", "r"), ("MatMul", f"r {w.add('w', 4, 5)}", "m"), ("Reshape", "m back", "t")]
    nodes += [("Add", f"{w.add('b', *bias)} t", "y")]
    out = check_pass(build(nodes, {"x": [2, 3, 4]}, w), FuseGemm(), rewrites=1)
    assert ops(out) == {"Reshape": 2, "Gemm": 1}


@pytest.mark.parametrize(
    ("dims", "bias"), [([2, 3, 5], (3, 1)), ([5, 6], (6,)), ([5, 6], (5, 1)), ([1, 6, 5], (2, 1, 1))]
)
def test_a_bias_behind_a_reshape_that_mixes_columns_stays(dims: list[int], bias: tuple[int, ...]) -> None:
    w = Weights()
    w["back"] = np.array(dims)
    nodes = [("MatMul", f"x {w.add('w', 4, 5)}", "m"), ("Reshape", "m back", "t")]
    nodes += [("Add", f"{w.add('b', *bias)} t", "y")]
    check_pass(build(nodes, {"x": [6, 4]}, w), FuseGemm(), rewrites=0)
