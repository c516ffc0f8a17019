"""Core ML packages as a source: lifts the ML Program in a `.mlpackage` to ONNX.

This is the half of edgec that proves a saved package: what is on disk is read back and run by onnxruntime. It shares no
code about operators with the Core ML backend; both read Apple's definitions for themselves.
"""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from ...compiler import shapes
from ...compiler.errors import ModelError
from ...formats.mlpackage import open_package
from .check import check
from .lifter import lift

__all__ = ["check", "load"]

_SHOWN = 20


def load(source: Path | str) -> ir.Model:
    """The ONNX model (opset 25) of a `.mlpackage`, its weights mapped where they lie.

    Inputs and outputs have the package's feature names. A float16 operator becomes a float32 one followed by a rounding
    pair. Shapes are inferred. Raises ModelError if the package is damaged or its program is not valid, UnsupportedOp if
    an operator can't be lifted.
    """
    package = open_package(source)
    _refuse(package.path, check(package))
    lifted = lift(package)
    try:
        shapes.infer(lifted.model)
    except ModelError as e:
        raise ModelError(f"{package.path}: {e}") from e
    _refuse(package.path, lifted.disagreements())
    return lifted.model


def _refuse(path: Path, problems: list[str]) -> None:
    if problems:
        shown = [f"  - {p}" for p in problems[:_SHOWN]]
        more = [f"  and {len(problems) - _SHOWN} more"] if problems[_SHOWN:] else []
        raise ModelError("\n".join([f"{path} does not hold a valid program:", *shown, *more]))
