"""An exact pass that a stranger might write: it negates a model's outputs twice."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from edgec import Context, Pass


@dataclass(frozen=True)
class NegateTwice(Pass):
    """Put two Neg nodes behind every floating-point output; `times` pairs of them.

    Before: y = f(x). After: y = Neg(Neg(f(x))).
    """

    name: ClassVar[str] = "negate-twice"
    times: int = 1

    def run(self, model: ir.Model, ctx: Context) -> int:
        """Returns the number of pairs; with times=0 says that there is nothing to do."""
        if self.times == 0:
            ctx.note("asked to do nothing")
        count = 0
        for _ in range(self.times):
            for index, value in enumerate(model.graph.outputs):
                if value.dtype != ir.DataType.FLOAT or value.producer() is None:
                    continue
                name, value.name = value.name, f"{value.name}_inner{count}"
                first = ir.node("Neg", [value])
                second = ir.node("Neg", first.outputs)
                first.outputs[0].name, second.outputs[0].name = f"{name}_neg{count}", name
                second.outputs[0].type, second.outputs[0].shape = value.type, value.shape
                model.graph.extend([first, second])
                model.graph.outputs[index] = second.outputs[0]
                count += 1
        return count


@dataclass(frozen=True)
class Scale(Pass):
    """A pass that lies: it calls itself exact and multiplies the first output by `factor`."""

    name: ClassVar[str] = "scale-output"
    factor: float = 2.0

    def run(self, model: ir.Model, ctx: Context) -> int:
        """Returns 1."""
        value = model.graph.outputs[0]
        name, value.name = value.name, f"{value.name}_unscaled"
        constant = ir.Value(name=f"{name}_factor", const_value=ir.tensor([self.factor], dtype=ir.DataType.FLOAT))
        constant.type, constant.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape([1])
        model.graph.register_initializer(constant)
        node = ir.node("Mul", [value, constant])
        node.outputs[0].name, node.outputs[0].type, node.outputs[0].shape = name, value.type, value.shape
        model.graph.append(node)
        model.graph.outputs[0] = node.outputs[0]
        return 1
