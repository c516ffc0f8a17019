"""Gives the logits of gates that have none a bias of zeros, so that masks can switch experts off by it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from ..compiler.graph import const_tensor, initializer, insert_before, producer, sole_user
from ..compiler.passbase import Context, Pass

VIEWS = ("Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze")


@dataclass(frozen=True)
class AddRouterBiases(Pass):
    """Add zeros to logits that go from a linear layer straight into a Softmax, or into the choice of the k largest.

    before:  g = Softmax(MatMul(x, w))          (w is float[20,4])
    after:   g = Softmax(Add(MatMul(x, w), 0))  (0 is float[4])

    To be followed by `mask-experts`; `remove-no-ops` takes the zeros away again where it masked nothing.
    """

    name: ClassVar[str] = "add-router-biases"
    prunes: ClassVar[bool] = True

    def run(self, model: ir.Model, ctx: Context) -> int:
        """Returns how many biases were added."""
        count = 0
        for node in list(model.graph):
            if node.op_type in ("Softmax", "TopK") and node.domain == "":
                source = _linear(node.inputs[0])
                weight = None if source is None else const_tensor(source.inputs[1])  # type: ignore[arg-type]
                if source is not None and weight is not None and len(weight.shape) == 2:
                    _biased(model.graph, source, int(weight.shape.numpy()[1]), weight.dtype)
                    count += 1
        return count


def _linear(value: ir.Value | None) -> ir.Node | None:
    """The MatMul whose result this is, seen through views that nobody else reads."""
    while (node := producer(value, *VIEWS)) is not None and value is not None and sole_user(value) is not None:
        value = node.inputs[0]
    found = producer(value, "MatMul")
    return found if value is not None and sole_user(value) is not None else None


def _biased(graph: ir.Graph, node: ir.Node, width: int, dtype: ir.DataType) -> None:
    out = node.outputs[0]
    user = sole_user(out)
    assert user is not None
    zeros = initializer(graph, np.zeros(width, dtype.numpy()), f"{out.name}_bias")
    index = next(i for i, v in enumerate(user.inputs) if v is out)
    user.replace_input_with(index, insert_before(user, "Add", [out, zeros], like=out).outputs[0])
