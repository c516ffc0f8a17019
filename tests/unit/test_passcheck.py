"""The pass checker itself must catch a pass that breaks a promise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir
import pytest

from edgec.compiler import graph
from edgec.compiler.errors import ModelError
from edgec.compiler.passbase import Context, Pass
from passcheck import check_pass, ops

MODEL = """
<ir_version: 10, opset_import: ["" : 25]>
agraph (float[N,3] x) => (float[N,3] y) <float one = {1.0}> { t = Mul(x, one)  y = Relu(t) }
"""


@dataclass(frozen=True)
class Faulty(Pass):
    """A pass that does what `fault` says to the first Mul."""

    name: ClassVar[str] = "faulty"
    fault: str = "none"

    def run(self, model: ir.Model, ctx: Context) -> int:
        mul = next(graph.nodes(model, "Mul"), None)
        if mul is None or self.fault == "none":
            return 0
        if self.fault == "lies":
            return 1
        if self.fault == "hides":
            mul.op_type = "Div"
            return 0
        if self.fault == "wrong":
            mul.replace_input_with(1, graph.initializer(model.graph, np.float32([1.0001]), "c"))
            return 1
        if self.fault == "invalid":
            mul.op_type = "NoSuchOp"
            return 1
        if self.fault == "renames":
            model.graph.outputs[0].name = "z"
            return 1
        if self.fault == "again":
            mul.replace_input_with(1, graph.initializer(model.graph, np.float32([1]), "c"))
            return 1
        assert self.fault == "right"
        graph.replace_value(mul.outputs[0], mul.inputs[0])
        graph.remove([mul])
        return 1


def test_accepts_an_honest_pass() -> None:
    assert ops(check_pass(MODEL, Faulty("right"), rewrites=1)) == {"Relu": 1}
    assert ops(check_pass(MODEL, Faulty("none"), rewrites=0)) == {"Mul": 1, "Relu": 1}


@pytest.mark.parametrize("fault", ["lies", "hides", "wrong", "again"])
def test_catches(fault: str) -> None:
    with pytest.raises(AssertionError, match="faulty"):
        check_pass(MODEL, Faulty(fault))


@pytest.mark.parametrize("fault", ["invalid", "renames"])
def test_catches_an_invalid_model(fault: str) -> None:
    with pytest.raises(ModelError):
        check_pass(MODEL, Faulty(fault))
