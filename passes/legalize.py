"""Rewrites operators that the target's core set lacks into ones that it has, still in ONNX, so still runnable."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from ..compiler.passbase import Context, Pass


@dataclass(frozen=True)
class Legalize(Pass):
    """Expand operators."""

    name: ClassVar[str] = "legalize"

    def run(self, model: ir.Model, ctx: Context) -> int:
        """Nothing yet."""
        return 0
