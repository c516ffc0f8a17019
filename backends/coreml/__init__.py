"""The Core ML backend: an ONNX model becomes an .mlpackage that iOS 15 … 18 and 26 can read, on any machine.

A row of a table for each ONNX operator (`ops_*.py`, filled in `registry.py`) says how it is written in MIL, through
coremltools' builder, which checks every operator's signature against the opset of the target.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import onnx_ir as ir

from ...compiler.backend import EmitOptions, Emitted
from ...compiler.errors import Missing
from ...compiler.targets import Target


class CoreML:
    """Lowers a model to an .mlpackage."""

    def check(self, model: ir.Model, target: Target, options: EmitOptions) -> Sequence[Missing]:
        """Everything in `model` that `target` can't express; builds the whole program, without weights."""
        from .lower import Lowering

        lowering = Lowering(model, target, options)
        lowering.run()
        return lowering.missing

    def emit(self, model: ir.Model, target: Target, path: Path, options: EmitOptions) -> Emitted:
        """Write the package. Raises UnsupportedOp with all that is missing, OSError when it can't be written."""
        from .lower import build
        from .package import write

        lowering = build(model, target, options)
        try:
            values = write(lowering, target, path)
        except BaseException:
            # Nothing half-written may stay, not even after Ctrl-C.
            shutil.rmtree(path, ignore_errors=True)
            raise
        border = lowering.interface
        return Emitted(path, border.inputs, border.outputs, border.contract, lowering.builder.warnings, values)


BACKEND = CoreML()
