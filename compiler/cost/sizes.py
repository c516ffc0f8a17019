"""The sizes of a model's values: numbers, or polynomials in the symbols of its free dimensions.

What shapes say that onnx inferred is only the last resort: it gives up on most of what is computed with symbols. So
each operator's own rule is asked first (the other `size_` modules), and small integer tensors are
followed element by element (`size_elements`), like passes do with `ShapeValues`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from .. import dims as d
from .. import graph
from ..dims import Dim, Poly
from ..shape_rules import MOST, Elements
from ..shape_values import ShapeValues
from . import (
    bounds,
    size_counts,
    size_elements,
    size_flow,
    size_moves,
    size_products,
    size_rules,
    size_views,
    size_windows,
)
from .size_rules import Sized
from .tidying import is_intricate, is_plain, tidy

STANDARD = frozenset({"", "ai.onnx"})
_KINDS = frozenset({ir.DataType.INT64, ir.DataType.INT32, ir.DataType.BOOL})
_NAMELESS = frozenset({"", "?", "None", "-1", "unk", "unknown"})
RULES = {
    **size_rules.RULES,
    **size_moves.RULES,
    **size_views.RULES,
    **size_counts.RULES,
    **size_windows.RULES,
    **size_products.RULES,
    **size_flow.RULES,
}
"""Standard operator → the dimensions of its outputs."""


class Sizes(ShapeValues):
    """The dimensions and small integer contents of every value of a model, sub-graphs included.

    Element types must have been inferred. A call of a local function is as large as the model declares: see `flatten`.

    Args:
        given: sizes of symbols that only a run can tell.

    Attributes:
        symbols: each free size that polynomials are in → where it is read off: {"T": "input 'ids', axis 1"}. Those that
            only a run can tell begin with '#', and are named after the value and axis.
        limits: the most that such a size can be, where that is known.
        why: values of unknown rank → the reason.
    """

    def __init__(self, model: ir.Model, given: Mapping[str, int] | None = None) -> None:
        self.given = given or {}
        self.found: dict[ir.Value, Elements] = {}
        self.symbols: dict[str, str] = {}
        self.limits: dict[str, Dim] = {}
        self.why: dict[ir.Value, str] = {}
        self._dims: dict[ir.Value, list[Dim] | None] = {}
        self._tidied: dict[Dim, Dim] = {}
        for value in model.graph.inputs:
            self._dims[value] = self._declared(value, trusted=True)
        self.visit(model.graph)

    # --- what is asked -----------------------------------------------------------------------------------------------

    def dims(self, value: ir.Value | None) -> list[Dim] | None:
        """The dimensions of a value, each a number or a polynomial in the symbols; None for an unknown rank."""
        if value is None:
            return None
        try:
            return self._dims[value]
        except KeyError:
            found = self._dims[value] = self._constant(value)
            return found

    def count(self, value: ir.Value | None) -> Dim | None:
        """The number of a value's elements, or None."""
        found = self.dims(value)
        return None if found is None else d.product(found)

    def nbytes(self, value: ir.Value | None) -> Dim | None:
        """The bytes of a value, packed types rounded up to whole bytes; None for an unknown rank or type."""
        count, dtype = self.count(value), None if value is None else value.dtype
        if count is None or dtype is None or dtype in (ir.DataType.STRING, ir.DataType.UNDEFINED):
            return None
        return bounds.ceil_div(d.mul(count, dtype.bitwidth), 8)

    def number(self, value: ir.Value | None) -> Dim | None:
        """The one integer that a value holds (a trip count, a `k`), or None."""
        found = self.elements(value)
        item = found.item() if found is not None and found.size == 1 else None
        return None if item is None or isinstance(item, bool) else item

    def tensor(self, value: ir.Value | None) -> ir.TensorProtocol | None:
        """The constant that a value holds, if it does."""
        if value is None:
            return None
        maker = value.producer()
        if maker is not None:
            held = maker.attributes.get("value") if maker.op_type == "Constant" else None
            return None if held is None else held.value
        return graph.const_tensor(value)

    # --- what rules tell ---------------------------------------------------------------------------------------------

    def counted(self, value: ir.Value, axis: int, why: str, limit: Dim | None = None) -> Dim:
        """A new symbol for a size that only a run can tell."""
        name = f"{bounds.COUNTED}{value.name}[{axis}]"
        self.symbols[name] = why
        if name in self.given:
            return self.given[name]
        if limit is not None:
            self.limits[name] = limit
        return d.atom(name)

    def set_dims(self, value: ir.Value, dims: Sequence[Dim] | None) -> None:
        """Say what the dimensions of a value are."""
        self._dims[value] = None if dims is None else list(dims)

    def set_elements(self, value: ir.Value, elements: Elements | None) -> None:
        """Say what a value holds; None: nothing is known (any more)."""
        if elements is None or elements.size > MOST:
            self.found.pop(value, None)
        else:
            self.found[value] = elements

    def visit(self, nodes: Iterable[ir.Node]) -> None:
        """Work out what the nodes return, in their order."""
        for node in nodes:
            results = self._ask(node)
            for i, out in enumerate(node.outputs):
                self._settle(node, out, results[i] if i < len(results) else None)
            if node.domain in STANDARD and self._is_followed(node):
                self._follow(node)

    # --- how it is worked out ----------------------------------------------------------------------------------------

    def _ask(self, node: ir.Node) -> Sequence[Sized]:
        rule = RULES.get(node.op_type) if node.domain in STANDARD else None
        return rule(self, node) or () if rule is not None else ()

    def _settle(self, node: ir.Node, out: ir.Value, result: Sized) -> None:
        """Take over a rule's result; what it left open is what the model declares, else a symbol of its own."""
        if result is None:
            declared = self._declared(out)
            result = None if declared is None else [*declared]
            if result is None:
                self.why.setdefault(out, f"{node.op_type} '{node.name}': nothing says how large its result is")
        elif None in result:
            shape = graph.shape(out) or ()
            hints = shape if len(shape) == len(result) else (None,) * len(result)
            pairs = enumerate(zip(result, hints, strict=True))
            result = [self._known(out, i, hint, node) if dim is None else dim for i, (dim, hint) in pairs]
        if result is not None:
            result = [dim if is_plain(dim) else self._short(out, i, dim) for i, dim in enumerate(result)]
        self._dims[out] = result  # type: ignore[assignment]

    def _short(self, value: ir.Value, axis: int, dim: Dim | None) -> Dim:
        assert dim is not None
        found = self._tidied.get(dim)
        if found is None:
            found = self._tidied[dim] = tidy(dim)
        if is_intricate(found):
            return self.counted(value, axis, f"too long to be written down: {value.name}, axis {axis}")
        return found

    def _known(self, value: ir.Value, axis: int, dim: int | str | None, node: ir.Node | None) -> Dim:
        if isinstance(dim, int) and dim >= 0:
            return dim
        if isinstance(dim, str) and dim in self.symbols:
            return d.atom(dim)
        who = f"{node.op_type} '{node.name}'" if node is not None else f"value '{value.name}'"
        return self.counted(value, axis, f"{who}, axis {axis}: decided while the model runs")

    def _declared(self, value: ir.Value, trusted: bool = False) -> list[Dim] | None:
        """What the model says. Names count where they are `trusted`, those of inputs, or are names of inputs."""
        shape = graph.shape(value)
        if shape is None:
            if trusted:
                self.why[value] = f"input '{value.name}' has no shape"
            return None
        found: list[Dim] = []
        for i, dim in enumerate(shape):
            if trusted and (not isinstance(dim, int) or dim < 0):
                name = dim if isinstance(dim, str) and dim not in _NAMELESS else f"{value.name}_{i}"
                self.symbols.setdefault(name, f"input '{value.name}', axis {i}")
                found.append(d.atom(name))
            else:
                found.append(self._known(value, i, dim, value.producer()))
        return found

    def _constant(self, value: ir.Value) -> list[Dim] | None:
        """The dimensions of a value that no node makes, or of one that is asked for too early."""
        if value.const_value is not None and value.is_initializer():
            return list(value.const_value.shape.numpy())
        return self._declared(value)

    def _is_followed(self, node: ir.Node) -> bool:
        return bool(node.outputs) and node.outputs[0].dtype in _KINDS and node.op_type in size_elements.RULES

    def _follow(self, node: ir.Node) -> None:
        results: Any = size_elements.RULES[node.op_type](self, node)
        for out, array in zip(node.outputs, results if isinstance(results, list) else [results], strict=False):
            if array is not None and array.size <= MOST and not all(map(is_plain, array.flat)):
                array = self._tidy(array)
            self.set_elements(out, array)

    def _tidy(self, array: Elements) -> Elements:
        """Halves put together; nothing is known of what is too intricate."""

        def one(x: Any) -> Any:
            found = tidy(x) if isinstance(x, Poly) else x
            return None if isinstance(found, Poly) and is_intricate(found) else found

        return np.asarray(np.frompyfunc(one, 1, 1)(array), dtype=object)
