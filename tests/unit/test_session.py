"""What onnxruntime gets to run: operators that it has no kernel for, written out where they stand."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest

from edgec.compiler import session, shapes
from edgec.compiler.errors import ModelError
from edgec.compiler.rounding import insert_pair

TEXT = """<ir_version: 10, opset_import: ["" : 25]>
g (float[1,2,5,4] q, float[1,2,6,4] k, float[1,2,6,4] v, float[1,1,5,6] mask) => (float[1,2,5,4] y, float[1,2,5,4] z)
<float[1,2,6,4] w = {WEIGHT}>
{
  a = Attention(q, k, v, mask)
  b = Attention<scale=0.5>(a, w, v)
  c = Neg(b)
  edgec_inlined_0 = CastLike(c, q)
  y = Attention(edgec_inlined_0, k, w)
  z = Relu(a)
}""".replace("WEIGHT", ",".join(f"{i / 20:.2f}" for i in range(48)))


def model() -> ir.Model:
    found = ir.from_proto(onnx.parser.parse_model(TEXT))
    shapes.infer(found)
    return found


def inputs() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    sizes = {"q": (1, 2, 5, 4), "k": (1, 2, 6, 4), "v": (1, 2, 6, 4), "mask": (1, 1, 5, 6)}
    return {n: rng.standard_normal(s).astype(np.float32) for n, s in sizes.items()}


def test_no_memory_is_not_called_a_fault_of_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Others of onnxruntime's errors are: they have no class in common."""
    runner = session.Session(model())

    def failing(error: Exception) -> None:
        def fail(*_: object) -> None:
            raise error

        monkeypatch.setattr(runner, "_session", SimpleNamespace(run=fail))
        runner.run(inputs())

    with pytest.raises(MemoryError):
        failing(MemoryError())
    with pytest.raises(ModelError, match="onnxruntime failed while running the model: no such kernel"):
        failing(ValueError("no such kernel\nat all"))


def test_an_operator_without_a_kernel_is_written_out_in_its_place() -> None:
    proto, _ = session._runnable(model())
    kinds = [n.op_type for n in proto.graph.node]
    assert not set(kinds) & set(session.NO_KERNEL)
    assert kinds.count("Softmax") == 3 and kinds[-1] == "Relu"
    assert kinds.index("Neg") > [i for i, k in enumerate(kinds) if k == "Softmax"][1]
    names = [o for n in proto.graph.node for o in n.output if o]
    assert len(names) == len(set(names))


def test_what_is_written_out_computes_what_onnxruntime_makes_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = session.Session(model()).run(inputs())
    monkeypatch.setattr(session, "write_out", lambda proto, ops: None)
    theirs = session.Session(model()).run(inputs())
    for name, array in theirs.items():
        np.testing.assert_allclose(ours[name], array, rtol=1e-6)


def test_rounding_that_is_left_out_does_not_hide_the_types() -> None:
    rounded = model()
    insert_pair(next(n for n in rounded.graph if n.op_type == "Neg").outputs[0])
    proto, _ = session._runnable(rounded, exact=True)
    assert not {n.op_type for n in proto.graph.node} & set(session.NO_KERNEL)
    exact = session.Session(rounded, exact=True).run(inputs())
    for name, array in session.Session(model()).run(inputs()).items():
        np.testing.assert_array_equal(exact[name], array)


def test_what_onnx_can_not_write_out_is_left_to_onnxruntime() -> None:
    """Where the type of an input is not known, and where an input is left out before one that isn't."""
    proto = onnx.parser.parse_model(TEXT.replace("CastLike(c, q)", "Attention(q, k, v, , k, v)"))
    session.write_out(proto)
    kinds = [n.op_type for n in proto.graph.node]
    assert (kinds.count("Attention"), kinds.count("Softmax")) == (3, 1)
