"""A table that is stored again, transposed, for a product, is stored once: by merge-common-subexpressions."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from edgec.compiler.channels import sharing
from edgec.compiler.passbase import Context
from edgec.compiler.plugins import find_pass
from edgec.compiler.session import Session
from edgec.compiler.targets import find_target
from edgec.compiler.weights import Scratch
from edgec.passes import tied_tables

WORDS, WIDTH = 60, 24


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tied_tables, "LEAST", 1)
    monkeypatch.setattr(tied_tables, "BLOCK", 100)


def language_model(change: str = "") -> ir.Model:
    """Words are looked up in a table, and told by products with it, stored anew as the exporter does."""
    rng = np.random.default_rng(0)
    table = rng.standard_normal((WORDS, WIDTH)).astype(np.float32)
    head = table.T.copy()
    if change == "element":
        head[WIDTH // 2, WORDS // 2] += 1
    if change == "zero":  # equal as a number, not as bits
        table[3, 4], head[4, 3] = 0.0, -0.0
    weights = [
        ir.Value(name=n, const_value=ir.tensor(a), shape=ir.Shape(a.shape), type=ir.TensorType(ir.DataType.FLOAT))
        for n, a in (("table", table), ("head", head))
    ]
    ids = ir.val("ids", ir.DataType.INT64, [2, 5])
    looked = ir.node("Gather", [weights[0], ids])
    act = ir.node("Tanh", [looked.outputs[0]])
    told = ir.node("MatMul", [act.outputs[0], weights[1]])
    nodes, outputs = [looked, act, told], [told.outputs[0]]
    if change == "read":
        nodes.append(ir.node("Neg", [weights[1]]))
        outputs.append(nodes[-1].outputs[0])
    for k, v in enumerate(outputs):
        v.name, v.type = f"y{k}", ir.TensorType(ir.DataType.FLOAT)
    outputs[0].shape = ir.Shape([2, 5, WORDS])
    if change == "read":
        outputs[1].shape = ir.Shape([WIDTH, WORDS])
    graph = ir.Graph([ids], outputs, nodes=nodes, initializers=weights, opset_imports={"": 25}, name="g")
    return ir.Model(graph, ir_version=13)


def merged(model: ir.Model) -> int:
    with Scratch() as scratch:
        return find_pass("merge-common-subexpressions").run(model, Context(find_target("onnx"), scratch))


def test_a_head_reads_the_table_transposed() -> None:
    model, feeds = language_model(), {"ids": np.arange(10).reshape(2, 5)}
    before = Session(model).run(feeds)["y0"]
    assert merged(model) == 1
    assert list(model.graph.initializers) == ["table"]
    assert [n.op_type for n in model.graph] == ["Gather", "Tanh", "Transpose", "MatMul"]
    np.testing.assert_array_equal(Session(model).run(feeds)["y0"], before)
    assert merged(model) == 0


@pytest.mark.parametrize("change", ["element", "zero", "read"])
def test_nothing_else_is_tied(change: str) -> None:
    model = language_model(change)
    assert merged(model) == 0 and set(model.graph.initializers) == {"table", "head"}


def test_both_halves_are_pruned_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharing, "MOST", 1)  # what is smaller is a coincidence to it
    model = language_model()
    merged(model)
    with Scratch() as scratch:
        ctx = Context(find_target("onnx"), scratch)
        assert find_pass("mask-channels{ratio=0.5,of=channels,align=1}").run(model, ctx)
        find_pass("remove-channels").run(model, ctx)
        left = [v.const_value for v in model.graph.initializers.values() if v.const_value is not None]
        assert [tuple(t.shape) for t in left if t.dtype == ir.DataType.FLOAT] == [(WORDS, WIDTH // 2)]
