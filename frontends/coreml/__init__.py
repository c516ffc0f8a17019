"""Core ML packages as a source: lifts the ML Program in a `.mlpackage` to ONNX.

This is the half of edgec that proves a saved package: what is on disk is read back and run by onnxruntime. It shares no
code about operators with the Core ML backend; both read Apple's definitions for themselves.
"""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from ...formats.mlpackage import open_package
from .lifter import lift

__all__ = ["load"]


def load(source: Path | str) -> ir.Model:
    """The ONNX model (opset 25) of a `.mlpackage`, its weights mapped where they lie.

    Inputs and outputs have the package's feature names. A float16 operator becomes a float32 one followed by a rounding
    pair. Raises ModelError if the package is damaged or its program is not valid, UnsupportedOp if an operator can't be
    lifted.
    """
    return lift(open_package(source))
