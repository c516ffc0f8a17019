"""Synthetic models for the linearity measurements: chains of many small nodes, and few nodes with heavy weights.

python -m benchmarks.models chain 10000 OUT.onnx      # nodes
python -m benchmarks.models heavy 1.5 OUT.onnx        # gigabytes of float32 weights
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET = 17
CHAIN_WIDTH = 16
HEAVY_WIDTH = 2048
HEAVY_LAYER_GB = HEAVY_WIDTH**2 * 4 / 1e9


def chain(count: int) -> onnx.ModelProto:
    """`count` nodes that nothing can fold: matrix product, tanh, product with the input, sigmoid, and again."""
    rng = np.random.default_rng(0)
    nodes: list[onnx.NodeProto] = []
    weights: list[onnx.TensorProto] = []
    value = "x"
    for index in range(count):
        inputs = [value]
        if index % 4 == 0:
            scale = 1 / np.sqrt(CHAIN_WIDTH)
            weights.append(_weight(f"w{index}", rng.normal(0, scale, (CHAIN_WIDTH, CHAIN_WIDTH))))
            inputs.append(f"w{index}")
        elif index % 4 == 2:
            inputs.append("x")
        kind = ("MatMul", "Tanh", "Mul", "Sigmoid")[index % 4]
        nodes.append(helper.make_node(kind, inputs, [f"v{index}"], name=f"n{index}"))
        value = f"v{index}"
    return _model(nodes, weights, CHAIN_WIDTH, value)


def heavy(gigabytes: float) -> onnx.ModelProto:
    """Layers of a 2048x2048 matrix product and tanh, until the weights have that size (at least one)."""
    rng = np.random.default_rng(0)
    nodes: list[onnx.NodeProto] = []
    weights: list[onnx.TensorProto] = []
    value = "x"
    for index in range(max(1, round(gigabytes / HEAVY_LAYER_GB))):
        matrix = rng.standard_normal((HEAVY_WIDTH, HEAVY_WIDTH), np.float32) / np.float32(np.sqrt(HEAVY_WIDTH))
        weights.append(_weight(f"w{index}", matrix))
        nodes.append(helper.make_node("MatMul", [value, f"w{index}"], [f"m{index}"], name=f"matmul{index}"))
        nodes.append(helper.make_node("Tanh", [f"m{index}"], [f"t{index}"], name=f"tanh{index}"))
        value = f"t{index}"
    return _model(nodes, weights, HEAVY_WIDTH, value)


def _weight(name: str, array: np.ndarray) -> onnx.TensorProto:
    return numpy_helper.from_array(array.astype(np.float32), name)


def _model(nodes: list[onnx.NodeProto], weights: list[onnx.TensorProto], width: int, output: str) -> onnx.ModelProto:
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, width]) for name in ("x", output)]
    graph = helper.make_graph(nodes, "benchmark", ports[:1], ports[1:], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8)


def main(kind: str, size: str, out: str) -> None:
    model = chain(int(size)) if kind == "chain" else heavy(float(size))
    Path(out).write_bytes(model.SerializeToString())


if __name__ == "__main__":
    main(*sys.argv[1:])
