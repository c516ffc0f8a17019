"""Writes the model in the form that onnxruntime's CPU provider runs fastest.

Passes have rounded weights, and activations where that may pay; what is rounded is only turned into integers where that
is measured to be faster. See docs/onnxruntime.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import onnx_ir as ir

from ...compiler.backend import EmitOptions, Emitted
from ...compiler.errors import Missing
from ...compiler.quantization.lifting import lift
from ...compiler.targets import Target
from ..onnx import BACKEND as ONNX
from .choice import CUT, NONE, choose


class OnnxruntimeBackend:
    """ONNX for one runtime."""

    def check(self, model: ir.Model, target: Target, options: EmitOptions) -> Sequence[Missing]:
        """What ONNX at the wanted opset lacks."""
        return ONNX.check(model, target, options)

    def emit(self, model: ir.Model, target: Target, path: Path, options: EmitOptions) -> Emitted:
        """Choose the form, by timing on `options.inputs`, and write it. Raises as the ONNX backend does."""


        def write(form: ir.Model, where: Path) -> Emitted:
            tidy(form)
            return ONNX.emit(form, target, where, options)

        choice = choose(model, options.inputs, write, NONE if options.budget else CUT)
        emitted = write(choice.model, path)
        emitted.as_users_do, emitted.lift = True, lift
        emitted.contract += choice.notes
        return emitted


def tidy(model: ir.Model) -> None:
    """Drop the constants and functions that nothing reads any more."""
    for name, value in list(model.graph.initializers.items()):
        if not value.uses() and not value.is_graph_output():
            del model.graph.initializers[name]
    called = {(n.domain, n.op_type) for n in model.graph.all_nodes()}
    for key in list(model.functions):
        if key[:2] not in called:
            del model.functions[key]


BACKEND = OnnxruntimeBackend()
