"""An analysis as CSV: a row per layer, numbers raw, polynomials as text."""

from __future__ import annotations

import csv
import io
from typing import Any

from ..cost import polynomial
from ..cost.records import Analysis, Layer, Shape
from ..dims import Dim

COLUMNS = (
    "name", "op", "path", "inputs", "outputs", "runs", "macs", "flops", "special", "int_ops", "read", "written",
    "parameters", "weight_bits", "zeros", "effective_macs", "bops", "unknown", "seconds",
)  # fmt: skip


def to_csv(analysis: Analysis) -> str:
    """The layers in the model's order. A path is joined by dots, a shape is `1x3xT`; what is not known is empty."""
    out = io.StringIO()
    sheet = csv.writer(out, lineterminator="\n")
    sheet.writerow(COLUMNS)
    for layer in analysis.layers:
        sheet.writerow(_cell(name, layer) for name in COLUMNS)
    return out.getvalue()


def _cell(name: str, layer: Layer) -> Any:
    value = getattr(layer, name)
    if name == "path":
        return ".".join(value)
    if name in ("inputs", "outputs"):
        return " ".join(map(_shape, value))
    return "" if value is None else value if isinstance(value, str | float) else polynomial.ascii(value)


def _shape(shape: Shape) -> str:
    def size(d: Dim | None) -> str:
        return "?" if d is None else polynomial.ascii(d).replace(" ", "")

    return "?" if shape is None else "x".join(map(size, shape)) or "scalar"
