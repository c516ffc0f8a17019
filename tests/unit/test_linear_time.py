"""Ten times the nodes take about ten times the time: in every pass of -O1, and in what runs between passes."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper

from edgec.compiler import pipelines, shapes
from edgec.compiler.passbase import Context
from edgec.compiler.probe import measure
from edgec.compiler.protos import bare_proto
from edgec.compiler.rounding import exactly, insert_pair
from edgec.compiler.targets import OPSET, find_target
from edgec.compiler.weights import Scratch

BLOCKS = 12
FACTOR = 10
RATIO = 40
"""Linear is 10, and up to twice that where a larger graph no longer fits the processor's caches; quadratic is 100."""
SLACK = 0.02
"""Seconds: below, a clock and a collector decide."""
WIDTH = 8
PASSES = pipelines.build(pipelines.pipeline("O1", find_target("ios"), "fp32"))
NAMES = list(dict.fromkeys(p.name for p in PASSES))


def busy(blocks: int) -> ir.Model:
    """`blocks` times what passes rewrite: constants in nodes, chains of views and casts, activations written out."""
    nodes: list[onnx.NodeProto] = []
    value = "x"
    rng = np.random.default_rng(0)

    def add(op: str, *inputs: str, **attributes: object) -> str:
        nodes.append(helper.make_node(op, inputs, [f"v{len(nodes)}"], name=f"n{len(nodes)}", **attributes))
        return f"v{len(nodes) - 1}"

    def constant(array: np.ndarray) -> str:
        return add("Constant", value=numpy_helper.from_array(array))

    for _ in range(blocks):
        weight = constant((rng.normal(size=(WIDTH, WIDTH)) / WIDTH).astype(np.float32))
        value = add("Add", add("MatMul", value, weight), constant(rng.normal(size=WIDTH).astype(np.float32)))
        value = add("Transpose", add("Transpose", value, perm=[1, 0]), perm=[1, 0])
        value = add("Reshape", value, add("Shape", value))
        value = add("Identity", add("Cast", add("Cast", value, to=1), to=1))
        value = add("Mul", value, add("Sigmoid", value))
        half = add("Mul", value, constant(np.array(0.5, np.float32)))
        scaled = add("Div", value, constant(np.array(np.sqrt(2), np.float32)))
        value = add("Mul", half, add("Add", add("Erf", scaled), constant(np.array(1, np.float32))))
        value = add("Add", add("Softmax", value), add("Softmax", value))
    ports = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [WIDTH, WIDTH]) for name in ("x", value)]
    graph = helper.make_graph(nodes, "busy", ports[:1], ports[1:])
    model: ir.Model = ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)]))
    return model


@cache
def seconds_by_pass(blocks: int) -> dict[str, float]:
    """Pass → the processor time of all its runs in -O1 for ios, the least of three."""
    best: dict[str, float] = {}
    for _ in range(3):
        model, found = busy(blocks), dict.fromkeys(NAMES, 0.0)
        with Scratch() as scratch:
            shapes.infer(model)
            for p in PASSES:
                start = time.process_time()
                rewrites = p.run(model, Context(find_target("ios"), scratch))
                found[p.name] += time.process_time() - start
                if rewrites:
                    shapes.infer(model)
        best = {name: min(t, best.get(name, t)) for name, t in found.items()}
    return best


@pytest.mark.parametrize("name", NAMES)
def test_a_pass_is_linear_in_the_nodes(name: str) -> None:
    few, many = (seconds_by_pass(n)[name] for n in (BLOCKS, FACTOR * BLOCKS))
    assert many < RATIO * few + SLACK, f"{many:.3f} s for {FACTOR} times what takes {few:.4f} s"


def rounded(blocks: int) -> ir.Model:
    model = busy(blocks)
    shapes.infer(model)
    for node in list(model.graph):
        if node.outputs[0].dtype == ir.DataType.FLOAT and node.op_type != "Constant":
            insert_pair(node.outputs[0])
    shapes.infer(model)
    return model


def probed(model: ir.Model) -> object:
    names = [o.name or "" for n in model.graph for o in n.outputs if o.dtype == ir.DataType.FLOAT]
    return measure(model, {"x": np.ones((WIDTH, WIDTH), np.float32)}, names)


STEPS: dict[str, Callable[[ir.Model], object]] = {
    "shapes.infer": shapes.infer,
    "bare_proto": bare_proto,
    "bare_proto, exact": lambda m: bare_proto(m, exact=exactly(m)),
    "probe.measure": probed,
}


@pytest.mark.parametrize("step", STEPS)
def test_a_step_between_passes_is_linear_in_the_nodes(step: str) -> None:
    def least(blocks: int) -> float:
        model, found = rounded(blocks), []
        for _ in range(3):
            start = time.process_time()
            STEPS[step](model)
            found.append(time.process_time() - start)
        return min(found)

    few, many = least(BLOCKS), least(FACTOR * BLOCKS)
    assert many < RATIO * few + SLACK, f"{many:.3f} s for {FACTOR} times what takes {few:.4f} s"
