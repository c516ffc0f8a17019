"""Integer operators of a model that came quantized, as float operators between rounding pairs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from ..compiler import graph as g
from ..compiler.passbase import Context, Pass
from ..compiler.quantization.lifting import lift
from ..compiler.rounding import pair_source, pairs


@dataclass(frozen=True)
class LiftIntegers(Pass):
    """Write MatMulInteger, ConvInteger, QLinearConv, QLinearMatMul and onnxruntime's own as what they stand for.

    Before:  `y = Mul(Cast(MatMulInteger(q, w, z)), Mul(s, t))`, q, s, z of a DynamicQuantizeLinear

    After:   `y = MatMul(DequantizeLinear(q, s, z), DequantizeLinear(w, t))`

    Weights stay the integers that they are. Backends know no other form: Core ML stores such weights, the onnxruntime
    target makes integer operators of it again. The pass counts as lossy, since rounding can be left out from here on,
    and sums are of floats; what it loses is about a millionth. Where the target finds no ranges as the model runs,
    activations that had them are no longer rounded, and a note says so.
    """

    name: ClassVar[str] = "lift-integers"
    lossy: ClassVar[bool] = True

    def run(self, model: ir.Model, ctx: Context) -> int:
        """See the class."""
        count = lift(model)
        dropped = 0
        if not ctx.target.dynamic:
            for last in list(pairs(model)):
                source = pair_source(last)
                dynamic = g.producer(last.inputs[0], "DynamicQuantizeLinear") is not None
                if dynamic and source is not None and g.can_replace(last.outputs[0], source):
                    g.replace_node(last, source)
                    dropped += 1
        if dropped:
            ctx.note(f"{dropped} activations are not rounded: {ctx.target.name} finds no ranges as the model runs")
        return count + dropped
