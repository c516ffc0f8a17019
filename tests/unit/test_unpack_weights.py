"""Packed weights are written out exactly where a target has no store for them, and nowhere else."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgec.compiler.passbase import Context
from edgec.compiler.targets import find_target
from edgec.compiler.weights import Scratch
from edgec.passes.unpack_weights import UnpackWeights
from passcheck import check_pass

RNG = np.random.default_rng(0)


def packed(scale: np.ndarray, zero: np.ndarray | None, **attributes: int) -> onnx.ModelProto:
    weights = {"q": RNG.integers(-128, 128, (12, 8)).astype(np.int8), "s": scale.astype(np.float32)}
    if zero is not None:
        weights["z"] = zero.astype(np.int8)
    nodes = [
        helper.make_node("DequantizeLinear", list(weights), ["w"], **attributes),
        helper.make_node("MatMul", ["x", "w"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [3, 12])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [3, 8])],
        [numpy_helper.from_array(a, n) for n, a in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 25)], ir_version=11)


CASES: list[tuple[np.ndarray, np.ndarray | None, dict[str, Any]]] = [
    (np.array(0.03), None, {}),
    (np.array(0.03), np.array(7), {}),
    (RNG.random(8), RNG.integers(-9, 9, 8), {"axis": 1}),
    (RNG.random(12), None, {"axis": 0}),
    (RNG.random(12), None, {"axis": -2}),
    (RNG.random((3, 8)), RNG.integers(-9, 9, (3, 8)), {"axis": 0, "block_size": 4}),
]


@pytest.mark.parametrize(("scale", "zero", "attributes"), CASES)
def test_equal_to_what_the_standard_says(scale: np.ndarray, zero: np.ndarray | None, attributes: Any) -> None:
    with Scratch() as scratch:
        context = Context(find_target("ios15"), scratch)
        model = check_pass(packed(scale, zero, **attributes), UnpackWeights(), rewrites=1, ctx=context)
        assert [n.op_type for n in model.graph] == ["MatMul"]


def test_a_target_that_stores_them_keeps_them_packed() -> None:
    with Scratch() as scratch:
        context = Context(find_target("ios16"), scratch)
        check_pass(packed(np.array(0.03), None), UnpackWeights(), rewrites=0, ctx=context)


def test_bfloat16_constants_are_widened_for_core_ml() -> None:
    wide = RNG.standard_normal((12, 8)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("Cast", ["b"], ["w"], to=TensorProto.FLOAT), helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [3, 12])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [3, 8])],
        [helper.make_tensor("b", TensorProto.BFLOAT16, wide.shape, wide.ravel().tolist())],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 25)], ir_version=11)
    with Scratch() as scratch:
        found = check_pass(model, UnpackWeights(), rewrites=1, ctx=Context(find_target("ios18"), scratch))
        assert [n.op_type for n in found.graph] == ["MatMul"]
        check_pass(model, UnpackWeights(), rewrites=0, ctx=Context(find_target("onnx"), scratch))
