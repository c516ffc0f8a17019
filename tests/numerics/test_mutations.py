"""The proof must catch a wrong lowering: a package is broken in one literal at a time, and each must be found out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from mutations import WEIGHTS, Mutation, apply, corrupt_weights, mutations, scale_blobs
from onnx import TensorProto, helper, numpy_helper

import edgec
from edgec.compiler import driver, proof
from edgec.compiler.errors import EdgecError
from edgec.compiler.records import Proof
from edgec.compiler.reference import Reference

RNG = np.random.default_rng(7)

# Literals that change nothing in what an operator computes: whether indices that are in range get checked.
HARMLESS = {"validate_indices"}


def weight(*shape: int) -> np.ndarray:
    return (RNG.standard_normal(shape) * 0.5).astype(np.float32)


def build() -> onnx.ModelProto:
    tensors = {
        "w": weight(6, 2, 3, 3),
        "b": weight(6),
        "g": weight(6) + 1,
        "gb": weight(6),
        "sq": weight(6, 6),
        "lo": np.float32(-0.5),
        "hi": np.float32(0.4),
        "idx": np.array([2, 0, 1], np.int64),
        "rows": np.array([1, 36, 6], np.int64),
        "parts": np.array([1, 2], np.int64),
        "pads": np.array([0, 0, 1, 0, 0, 0, 0, 2], np.int64),
        "starts": np.array([1, 0], np.int64),
        "ends": np.array([9, 5], np.int64),
        "axes": np.array([1, 2], np.int64),
        "steps": np.array([2, 1], np.int64),
        "last": np.array([2], np.int64),
    }
    n = helper.make_node
    nodes = [
        n("Conv", ["x", "w", "b"], ["c"], pads=[1, 0, 1, 2], strides=[2, 2], group=2),
        n("LeakyRelu", ["c"], ["a"], alpha=0.2),
        n("AveragePool", ["a"], ["ap"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        n("MaxPool", ["a"], ["mp"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        n("Sub", ["mp", "ap"], ["ps"]),
        n("Sub", ["a", "ps"], ["s"]),
        n("Clip", ["s", "lo", "hi"], ["k"]),
        n("Pad", ["k", "pads"], ["kp"]),
        n("Elu", ["kp"], ["z"], alpha=0.8),
        n("Transpose", ["k"], ["t"], perm=[0, 2, 3, 1]),
        n("Reshape", ["t", "rows"], ["r0"]),
        n("Slice", ["r0", "starts", "ends", "axes", "steps"], ["sl"]),
        n("Slice", ["r0", "starts", "ends", "axes"], ["sm"]),
        n("LayerNormalization", ["r0", "g", "gb"], ["ln"], epsilon=1e-5),
        n("MatMul", ["ln", "sq"], ["u"]),
        n("Gelu", ["u"], ["e"]),
        n("Gelu", ["u"], ["et"], approximate="tanh"),
        n("MatMul", ["e", "sq"], ["v"]),
        n("Softmax", ["v"], ["q"], axis=1),
        n("Gather", ["q", "idx"], ["ga"], axis=2),
        n("Split", ["ga", "parts"], ["p1", "p2"], axis=2),
        n("Concat", ["p2", "p1", "et"], ["y"], axis=2),
        n("ReduceMean", ["v", "last"], ["rm"], keepdims=0),
        n("ArgMax", ["v"], ["am"], axis=1, keepdims=0),
        n("CumSum", ["v", "axis1"], ["cs"], exclusive=1),
    ]
    tensors["axis1"] = np.array(1, np.int64)
    outputs = ["y", "z", "rm", "sl", "sm", "cs"]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4, 12, 12])],
        [helper.make_tensor_value_info(o, TensorProto.FLOAT, None) for o in outputs]
        + [helper.make_tensor_value_info("am", TensorProto.INT64, None)],
        [numpy_helper.from_array(np.asarray(a), k) for k, a in tensors.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


class Case:
    """A compiled model, and what is needed to prove a package against it again."""

    def __init__(self, folder: Path) -> None:
        onnx.save(build(), folder / "m.onnx")
        self.reference = Reference.of(driver.load(folder / "m.onnx"), None, "end")
        self.compiled = edgec.compile(folder / "m.onnx", level="O0", target="ios17", verify="end")
        self.emitted = self.compiled.emitted
        self.folder = folder

    def prove(self, package: Path) -> Proof:
        written = replace(self.emitted, path=package)
        return proof.prove(written, self.compiled.model, self.reference, None, None, driver.load)

    def caught(self, mutation: Mutation, name: str) -> bool:
        """Whether reading, checking or running the broken package shows that it is broken."""
        out = self.folder / f"{name}.mlpackage"
        apply(mutation, self.compiled.path, out)
        try:
            return not self.prove(out).ok
        except EdgecError:
            return True


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case(tmp_path_factory.mktemp("mutations"))


def test_the_package_itself_is_proven(case: Case) -> None:
    assert case.compiled.proof is not None and case.compiled.proof.ok
    assert case.prove(case.compiled.path).ok


def test_every_broken_literal_is_caught(case: Case) -> None:
    found = mutations(case.compiled.path)
    kinds = {(m.op, m.parameter) for m in found}
    for wanted in (
        ("conv", "pad"),
        ("gelu", "mode"),
        ("transpose", "perm"),
        ("softmax", "axis"),
        ("concat", "axis"),
        ("layer_norm", "epsilon"),
    ):
        assert wanted in kinds, f"no literal {wanted} to break; there are {sorted(kinds)}"
    survived = [m for i, m in enumerate(found) if m.parameter not in HARMLESS and not case.caught(m, f"m{i}")]
    assert len(found) > 50
    assert not survived, "not caught: " + "; ".join(map(str, survived))


def test_broken_weights_are_caught(case: Case) -> None:
    size = (case.compiled.path / "Data/com.apple.CoreML/weights/weight.bin").stat().st_size
    data = np.float32(3.0).tobytes() * 8
    out = case.folder / "weights.mlpackage"
    corrupt_weights(case.compiled.path, out, size - size % 64 - 64, data)
    assert not case.prove(out).ok


def test_a_scaled_table_of_packed_weights_is_caught(tmp_path: Path) -> None:
    tensors = {"a": weight(64, 64), "b": weight(64, 64)}
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["h"]),
        helper.make_node("Tanh", ["h"], ["t"]),
        helper.make_node("MatMul", ["t", "b"], ["y"]),
    ]
    ports = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [4, 64]) for n in "xy"]
    graph = helper.make_graph(
        nodes, "g", ports[:1], ports[1:], [numpy_helper.from_array(a, k) for k, a in tensors.items()]
    )
    path = tmp_path / "m.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9), path)
    reference = Reference.of(driver.load(path), None, "end")
    with edgec.compile(path, level="O2", target="ios17", verify="end") as compiled:
        tables = scale_blobs(compiled.path)
        assert len(tables) == 2
        for i, (offset, size) in enumerate(tables):
            scales = np.frombuffer((compiled.path / WEIGHTS).read_bytes(), np.float16, size // 2, offset)
            out = tmp_path / f"{i}.mlpackage"
            corrupt_weights(compiled.path, out, offset, (scales * np.float16(1.25)).tobytes())
            written = replace(compiled.emitted, path=out)
            assert not proof.prove(written, compiled.model, reference, None, None, driver.load).ok
