"""The sizes of a model's values: numbers, or polynomials in the symbols of its free dimensions."""

from __future__ import annotations

import onnx_ir as ir

from .. import dims as d
from ..dims import Dim, Poly
from ..shape_values import ShapeValues


class Sizes(ShapeValues):
    """The dimensions and small integer contents of every value of a model, sub-graphs included.

    Attributes:
        symbols: each free size that polynomials are in → where it is read off: {"T": "input 'ids', axis 1"}.
    """

    def __init__(self, model: ir.Model) -> None:
        self.model = model
        self.symbols: dict[str, str] = {}
        super().__init__(model)
        for value in model.graph.inputs:
            for i, dim in enumerate(self.dims(value) or ()):
                name = dim.symbol() if isinstance(dim, Poly) else None
                if name is not None:
                    self.symbols.setdefault(name, f"input '{value.name}', axis {i}")

    def dims(self, value: ir.Value | None) -> list[Dim] | None:
        """The dimensions of a value, each a number or a polynomial in the symbols; None for an unknown rank."""
        found = super().dims(value)
        if found is None or value is None:
            return None
        return [d.atom(f"{value.name}[{i}]") if _is_opaque(dim) else dim for i, dim in enumerate(found)]

    def count(self, value: ir.Value | None) -> Dim | None:
        """The number of a value's elements, or None."""
        found = self.dims(value)
        return None if found is None else d.product(found)

    def nbytes(self, value: ir.Value | None) -> Dim | None:
        """The bytes of a value, packed types rounded up to whole bytes; None for an unknown rank or type."""
        count = self.count(value)
        if count is None or value is None or value.dtype is None or value.dtype == ir.DataType.STRING:
            return None
        bits = d.mul(count, value.dtype.bitwidth)
        return bits // 8 if isinstance(bits, int) and not bits % 8 else d.div(d.add(bits, 7), 8)

    def number(self, value: ir.Value | None) -> Dim | None:
        """The one integer that a value holds (a trip count, a `k`), or None."""
        found = self.elements(value)
        item = found.item() if found is not None and found.size == 1 else None
        return None if item is None or isinstance(item, bool) else item


def _is_opaque(dim: Dim) -> bool:
    if not isinstance(dim, Poly):
        return False
    (monomial, _), *_ = dim.terms
    return len(monomial) == 1 and isinstance(monomial[0], tuple) and monomial[0][0] == "dim"
