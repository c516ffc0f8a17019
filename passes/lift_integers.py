"""Integer operators of a model that came quantized, as float operators between rounding pairs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from ..compiler.passbase import Context, Pass
from ..compiler.quantization.lifting import lift


@dataclass(frozen=True)
class LiftIntegers(Pass):
    """Write MatMulInteger, ConvInteger, QLinearConv and QLinearMatMul as what they stand for.

    Before:  `y = Mul(Cast(MatMulInteger(q, w, z)), Mul(s, t))`, q, s, z of a DynamicQuantizeLinear

    After:   `y = MatMul(DequantizeLinear(q, s, z), DequantizeLinear(w, t))`

    Weights stay the integers that they are. Backends know no other form: Core ML stores such weights, the onnxruntime
    target makes integer operators of it again where they are faster.
    """

    name: ClassVar[str] = "lift-integers"

    def run(self, model: ir.Model, ctx: Context) -> int:
        """See the class."""
        return lift(model)
