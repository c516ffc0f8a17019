"""Others' optimisers as passes: they run, what they do wrong is found, what is missing is said."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx
import onnx.numpy_helper
import onnx_ir as ir
import pytest

from edgec.compiler.errors import ModelError, UsageError
from edgec.compiler.manager import Manager, Options
from edgec.compiler.verify import outputs_of
from edgec.compiler.weights import Scratch
from edgec.passes.pack_weights import PackWeights
from edgec.passes.peers import Onnxscript, Onnxsim, Onnxslim, Peer
from edgec.passes.round_weights import RoundWeights
from passcheck import check_pass, context, load, ops

TEXT = """<ir_version: 10, opset_import: ["" : 25]>
agraph (float[2,512] x) => (float[2,512] y) <int64[2] s = {2, 512}, int64[2] t = {0, -1}>
{ a = Reshape(x, s) b = Reshape(a, t) c = MatMul(b, b) d = Identity(c) y = Relu(d) }"""
PEERS = [Onnxsim(), Onnxslim(), Onnxscript()]


def model() -> ir.Model:
    m = ir.from_onnx_text(TEXT)
    w = np.random.default_rng(0).normal(size=(512, 512)).astype(np.float32)
    value = ir.Value(name="w", shape=ir.Shape(w.shape), type=ir.TensorType(ir.DataType.FLOAT), const_value=ir.Tensor(w))
    m.graph.register_initializer(value)
    next(n for n in m.graph if n.op_type == "MatMul").replace_input_with(1, value)
    return load(m)


@dataclass(frozen=True)
class Liar(Peer):
    """A tool that changes what a model computes."""

    name: ClassVar[str] = "liar"
    how: str = "wrong"

    def optimise(self, proto: onnx.ModelProto) -> onnx.ModelProto:
        if self.how == "crashes":
            raise RuntimeError("core dumped")
        if self.how == "opset":
            proto.opset_import[0].version = 17
        if self.how == "unpacks":
            _unpack(proto.graph)
            return proto
        for node in proto.graph.node:
            node.op_type = node.op_type.replace("Relu", "Tanh")
        return proto


def _unpack(graph: onnx.GraphProto) -> None:
    """Fold the first DequantizeLinear, as constant folding does that doesn't look at sizes."""
    node = next(n for n in graph.node if n.op_type == "DequantizeLinear")
    q, scale = (onnx.numpy_helper.to_array(next(t for t in graph.initializer if t.name == i)) for i in node.input)
    graph.node.remove(node)
    graph.initializer.append(onnx.numpy_helper.from_array(q * scale, node.output[0]))


@pytest.mark.parametrize("peer", PEERS, ids=lambda p: p.name)
def test_a_tool_simplifies_the_model(peer: Peer) -> None:
    m = model()
    out = check_pass(m, peer, idempotent=False)
    assert sum(ops(out).values()) < sum(ops(m).values())
    assert out.opset_imports[""] == 25 and "Constant" not in ops(out)


@pytest.mark.parametrize("peer", [*PEERS, Liar("unpacks")], ids=lambda p: p.name)
def test_a_packed_weight_stays_packed_or_the_pass_is_undone(peer: Peer) -> None:
    """Folding an int8 weight to float32 changes no number, so the stored bytes are checked as well."""
    m = check_pass(check_pass(model(), RoundWeights(), rewrites=1, rtol=0.05), PackWeights(), rewrites=1, rtol=0)
    size = sum(v.const_value.nbytes for v in m.graph.initializers.values())  # type: ignore[union-attr]
    inputs = {"x": np.random.default_rng(1).normal(size=(2, 512)).astype(np.float32)}
    with Scratch() as scratch:
        ctx = context(inputs=inputs)
        ctx.scratch = scratch
        manager = Manager(ctx, Options(), outputs_of(m, inputs))
        out = manager.run(m, [peer])
        after = sum(v.const_value.nbytes for v in out.graph.initializers.values())  # type: ignore[union-attr]
        assert after <= size
        record = manager.records[0]
        assert record.status == "undone" if isinstance(peer, Liar) else record.status == "ok"
        assert record.status == "ok" or "stored weights grow" in record.why


def test_what_a_tool_breaks_is_undone_and_named() -> None:
    m, inputs = model(), {"x": np.ones((2, 512), np.float32)}
    with Scratch() as scratch:
        ctx = context(inputs=inputs)
        ctx.scratch = scratch
        manager = Manager(ctx, Options(), outputs_of(m, inputs))
        out = manager.run(m, [Liar()])
        assert ops(out)["Relu"] == 1
        assert manager.records[0].status == "undone" and "changed the function" in manager.records[0].why


@pytest.mark.parametrize(("how", "message"), [("crashes", "liar failed: RuntimeError: core dumped"), ("opset", "17")])
def test_a_tool_that_fails_is_an_error(how: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        Liar(how).run(model(), context())


@pytest.mark.parametrize("peer", PEERS, ids=lambda p: p.name)
def test_a_tool_that_is_not_installed_is_named(peer: Peer, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("onnxsim", "onnxslim", "onnxscript.optimizer"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UsageError, match=r"pip install 'edgec\[peers\]'"):
        peer.run(model(), context())


def test_unchanged_weights_are_the_same_tensors() -> None:
    m = model()
    tensor = m.graph.initializers["w"].const_value
    assert Onnxsim().run(m, context()) > 0
    assert any(v.const_value is tensor for v in m.graph.initializers.values())
