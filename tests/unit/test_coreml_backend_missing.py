"""What can't be lowered is listed; a fault of the lowering itself is not passed off as coremltools' word."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from coremlpack import parse
from edgec.backends.coreml import BACKEND
from edgec.backends.coreml.call import Call
from edgec.backends.coreml.registry import Row, lowerings
from edgec.compiler import cli
from edgec.compiler.backend import EmitOptions
from edgec.compiler.errors import Missing
from edgec.compiler.targets import find_target

TWO = "g (float[2,3] x) => (float y, float z) { y = Relu(x) z = Neg(x) }"


def missing(model: ir.Model) -> list[Missing]:
    return list(BACKEND.check(model, find_target("ios18"), EmitOptions()))


def refused_by_coremltools(o: Call) -> Any:
    return o.builder.op("reshape", x=o.x(), shape=[5, 5])


def a_method_that_nothing_has(o: Call) -> Any:
    return o.x().no_such_method()


def a_key_that_nothing_has(o: Call) -> Any:
    return {}[o.node.op_type]


def test_what_coremltools_refuses_is_listed_with_its_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(lowerings(), "Relu", Row(refused_by_coremltools))
    monkeypatch.setitem(lowerings(), "Neg", Row(refused_by_coremltools))
    found = missing(parse(TWO))
    assert [m.op for m in found] == ["Relu", "Neg"]
    assert all(m.why.startswith("coremltools refuses it: ") and len(m.why) > 30 for m in found)


@pytest.mark.parametrize(
    ("fault", "kind"), [(a_method_that_nothing_has, AttributeError), (a_key_that_nothing_has, KeyError)]
)
def test_a_fault_of_a_lowering_stays_one(fault: Any, kind: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where it is of a type that coremltools raises, and inside a branch."""
    monkeypatch.setitem(lowerings(), "Relu", Row(fault))
    with pytest.raises(kind) as caught:
        missing(parse(TWO))
    assert [note.split("'")[0] for note in caught.value.__notes__] == ["while lowering Relu "]
    branches = "then_branch = t () => (float a) { a = Relu(x) }, else_branch = e () => (float b) { b = Neg(x) }"
    with pytest.raises(kind):
        missing(parse(f"g (float[2] x, bool[1] c) => (float y) {{ y = If<{branches}>(c) }}"))


def test_the_command_line_names_the_node_of_a_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "m.onnx"
    ir.save(parse(TWO), path)
    monkeypatch.setitem(lowerings(), "Relu", Row(a_method_that_nothing_has))
    assert cli.main([str(path), "-O0", "-q", "-o", str(tmp_path / "m.mlpackage")]) == 1
    said = capsys.readouterr().err
    assert said.startswith("edgec: internal error: AttributeError: ") and "while lowering Relu" in said
    assert "Traceback" not in said and not (tmp_path / "m.mlpackage").exists()
    assert cli.main([str(path), "-O0", "-q", "-v", "-o", str(tmp_path / "m.mlpackage")]) == 1
    assert "a_method_that_nothing_has" in capsys.readouterr().err


def test_constants_that_core_ml_can_not_hold_as_outputs() -> None:
    constants = {"c": np.array([1 << 40, 2]), "d": np.array([-(1 << 50)]), "s": np.array(["a"], object)}
    model = parse("g (float[2] x) => (float y) { y = Neg(x) }", constants)
    model.graph.outputs.extend(model.graph.initializers[name] for name in ("c", "d"))
    why = "does not fit into 32 bits, and Core ML has no wider integers"
    assert [(m.op, m.why) for m in missing(model)] == [
        ("output 'c'", f"the integer {1 << 40} {why}"), ("output 'd'", f"the integer {-(1 << 50)} {why}")]  # fmt: skip
    model.graph.outputs.append(model.graph.initializers["s"])
    assert [m.op for m in missing(model)] == ["initializer 's'"]
