"""Tied weights are stored once: an embedding that is read by rows, and transposed as the last matrix."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import edgec


@pytest.mark.parametrize(("level", "bits"), [("O1", 32), ("O2", 8)])
def test_an_embedding_that_is_also_the_last_matrix_is_stored_once(level: str, bits: int, tmp_path: Path) -> None:
    table = np.random.default_rng(0).standard_normal((500, 64)).astype(np.float32)
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["e"]),
        helper.make_node("Tanh", ["e"], ["h"]),
        helper.make_node("Transpose", ["table"], ["t"], perm=[1, 0]),
        helper.make_node("MatMul", ["h", "t"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, [1, 7])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 7, 500])],
        [numpy_helper.from_array(table, "table")],
    )
    path = tmp_path / "m.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    with edgec.compile(path, level=level, target="ios18", verify="end") as compiled:
        assert compiled.proof is not None and compiled.proof.ok
        weights = compiled.path / "Data/com.apple.CoreML/weights/weight.bin"
        assert weights.stat().st_size < 1.2 * table.size * bits / 8
