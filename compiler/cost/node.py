"""One node as the formulas of costs see it: sizes, element types, attributes; what isn't known raises."""

from __future__ import annotations

from typing import Any, Protocol

import onnx_ir as ir

from .. import dims as d
from ..dims import Dim
from ..graph import attr, scalar, static_shape


class Unknown(Exception):
    """Why a cost can't be told: an unknown shape or operator, or work that depends on data."""


class Measures(Protocol):
    """What says how large values are: `Sizes`, or `Numbers` where polynomials are not wanted."""

    def dims(self, value: ir.Value | None) -> list[Dim] | None:
        """The dimensions of a value; None where they are not known."""

    def number(self, value: ir.Value | None) -> Dim | None:
        """The one integer that a value holds; None where it is not known."""


class Numbers:
    """Sizes that are numbers, and nothing else: what a static model needs, in no time."""

    def dims(self, value: ir.Value | None) -> list[Dim] | None:
        """The dimensions where all are numbers."""
        found = static_shape(value)
        return None if found is None else list(found)

    def number(self, value: ir.Value | None) -> Dim | None:
        """The one integer that a constant holds."""
        found = held(value)
        return None if found is None else int(found)


def held(value: ir.Value | None) -> float | None:
    """The number that a constant of one element holds, an initializer or a Constant node's; None for all else."""
    found = scalar(value)
    node = None if found is not None or value is None else value.producer()
    if node is None or node.domain:
        return found
    if node.op_type in ("Cast", "CastLike", "Identity"):
        return held(node.inputs[0])
    if node.op_type != "Constant":
        return None
    for name in ("value_float", "value_int"):
        if (number := attr(node, name)) is not None:
            return float(number)
    tensor = attr(node, "value")
    if tensor is None or tensor.size != 1 or tensor.dtype == ir.DataType.STRING:
        return None
    return float(tensor.numpy().reshape(()).astype("float64"))


class Op:
    """A node and the sizes of its values. Every method raises Unknown for what is not known."""

    __slots__ = ("counts", "inputs", "node", "outputs", "sizes")

    def __init__(self, node: ir.Node, sizes: Measures, counts: dict[ir.Value, Dim] | None = None) -> None:
        """With `counts`, elements are counted once for all nodes that share it."""
        self.node, self.sizes = node, sizes
        self.inputs, self.outputs = node.inputs, node.outputs
        self.counts = {} if counts is None else counts

    def attr(self, name: str, default: Any = None) -> Any:
        """An attribute's value, or the default."""
        return attr(self.node, name, default)

    def has(self, index: int) -> bool:
        """Whether the optional input at `index` is given."""
        return index < len(self.inputs) and self.inputs[index] is not None

    def shape(self, value: ir.Value | None) -> list[Dim]:
        """The dimensions of a value."""
        found = self.sizes.dims(value)
        if found is None:
            name = value.name if value is not None else ""
            raise Unknown(f"the shape of '{name}' is not known" if name else "an input is missing")
        return found

    def x(self, index: int = 0) -> list[Dim]:
        """The dimensions of an input."""
        if not self.has(index):
            raise Unknown(f"input {index} is missing")
        return self.shape(self.inputs[index])

    def y(self, index: int = 0) -> list[Dim]:
        """The dimensions of an output."""
        return self.shape(self.outputs[index])

    def count(self, value: ir.Value) -> Dim:
        """Elements of a value."""
        found = self.counts.get(value)
        if found is None:
            found = self.counts[value] = d.product(self.shape(value))
        return found

    def n_in(self, index: int = 0) -> Dim:
        """Elements of an input."""
        value = self.inputs[index] if index < len(self.inputs) else None
        if value is None:
            raise Unknown(f"input {index} is missing")
        return self.count(value)

    def n_out(self, index: int = 0) -> Dim:
        """Elements of an output."""
        return self.count(self.outputs[index])

    def number(self, index: int) -> Dim:
        """The one integer that an input holds."""
        found = self.sizes.number(self.inputs[index]) if self.has(index) else None
        if found is None:
            raise Unknown(f"what input {index} holds is known only by running it")
        return found


def times(*factors: Dim) -> Dim:
    """The product."""
    return d.product(factors)


def plus(*terms: Dim) -> Dim:
    """The sum."""
    total: Dim = 0
    for term in terms:
        total = d.add(total, term)
    return total


def exactly(a: Dim, b: Dim) -> Dim:
    """a / b, rounded towards zero. Raises Unknown for a division by zero."""
    found = d.div(a, b)
    if found is None:
        raise Unknown("a size is zero")
    return found
