"""Graphs whose nodes are out of order, share names, or can't be put in order at all."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import edgec
from edgec.compiler.verify import outputs_of
from edgec.frontends.onnx.order import settle

Node = helper.make_node


def model(nodes: list[onnx.NodeProto], inputs: str = "x", outputs: str = "y") -> onnx.ModelProto:
    kind = TensorProto.FLOAT
    ports = [[helper.make_tensor_value_info(n, kind, [2, 3]) for n in names.split()] for names in (inputs, outputs)]
    graph = helper.make_graph(nodes, "g", *ports)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def branches(condition: str, then: list[onnx.NodeProto], other: list[onnx.NodeProto]) -> onnx.NodeProto:
    out = [helper.make_tensor_value_info("out", TensorProto.FLOAT, [2, 3])]
    a, b = (helper.make_graph(nodes, n, [], out) for n, nodes in (("then", then), ("else", other)))
    return Node("If", [condition], ["y"], "if", then_branch=a, else_branch=b)


RING = [Node("Add", ["x", "c"], ["a"], "n1"), Node("Relu", ["a"], ["b"]), Node("Neg", ["b"], ["c"], "n3")]


@pytest.mark.parametrize(
    ("proto", "message"),
    [
        (
            model([*RING, Node("Relu", ["c"], ["y"])]),
            r"cycle.*node 'n1' \(Add\) reads from node 'n3' \(Neg\) reads fro",
        ),
        (model([Node("Add", ["x", "y"], ["y"], "me")]), r"cycle.*node 'me' \(Add\) reads from node 'me'"),
        (model([Node("Relu", ["nowhere"], ["y"], "r")]), r"node 'r' \(Relu\) reads 'nowhere', which nothing makes"),
        (model([Node("Relu", ["x"], ["a"]), Node("Neg", ["x"], ["a"], "n")]), r"'n' \(Neg\) makes 'a', which node 'a'"),
        (model([Node("Relu", ["x"], ["a"])]), "no node makes 'y', an output of the graph"),
        (model([Node("Relu", ["x"], ["y"])], "x x"), "two inputs are called 'x'"),
        (model([branches("x", [Node("Relu", ["z"], ["out"])], RING)]), r"node 'out' \(Relu\) reads 'z', wh|'if'"),
    ],
)
def test_what_is_wrong_is_named(proto: onnx.ModelProto, message: str, tmp_path: Path) -> None:
    onnx.save(proto, tmp_path / "m.onnx")
    with pytest.raises(edgec.ModelError, match=message) as found:
        edgec.load(tmp_path / "m.onnx")
    assert "m.onnx: " in str(found.value)


@pytest.mark.parametrize("seed", range(5))
def test_shuffled_nodes_compute_the_same(seed: int, tmp_path: Path) -> None:
    """A value that only a branch reads counts, too; and nodes may share a name."""
    nodes = [
        Node("Exp", ["x"], ["e"], "n"),
        Node("ReduceSum", ["e"], ["s"], "n", keepdims=0),
        Node("Cast", ["s"], ["c"], "n_2", to=TensorProto.BOOL),
        Node("Neg", ["e"], ["m"]),
        branches("c", [Node("Add", ["m", "x"], ["out"])], [Node("Relu", ["e"], ["out"])]),
    ]
    feeds = {"x": np.arange(6, dtype=np.float32).reshape(2, 3)}
    random.Random(seed).shuffle(nodes)
    onnx.save(model(nodes), tmp_path / "m.onnx")
    found = edgec.load(tmp_path / "m.onnx")
    assert len({n.name for n in found.graph}) == len(nodes)
    np.testing.assert_allclose(outputs_of(found, feeds)["y"], feeds["x"] - np.exp(feeds["x"]), rtol=1e-6)


def test_names_that_are_no_text(tmp_path: Path) -> None:
    data = model([Node("Relu", ["x"], ["middle"]), Node("Neg", ["middle"], ["y"])]).SerializeToString()
    (tmp_path / "m.onnx").write_bytes(data.replace(b"middle", b"mid\xffle"))
    with pytest.raises(edgec.ModelError, match=r"m.onnx: b'mid\\xffle' is no name"):
        edgec.load(tmp_path / "m.onnx")


def test_weights_behind_links_that_go_round(tmp_path: Path) -> None:
    proto = model([Node("Add", ["x", "w"], ["y"])])
    weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[2, 3], data_location=TensorProto.EXTERNAL)
    weight.external_data.add(key="location", value="w.bin")
    proto.graph.initializer.append(weight)
    onnx.save(proto, tmp_path / "m.onnx")
    (tmp_path / "w.bin").symlink_to("w.bin")
    with pytest.raises(edgec.ModelError, match=r"'w.bin' \(initializer 'w'\) can't be followed"):
        edgec.load(tmp_path / "m.onnx")


def test_what_is_in_order_stays_as_it_is() -> None:
    proto = model([Node("Relu", ["x"], ["a"]), Node("Clip", ["a", "", ""], ["y"])])
    before = proto.SerializeToString()
    settle(proto)
    assert proto.SerializeToString() == before
