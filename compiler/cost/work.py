"""What a row of the cost tables is made of: how much work, and the sentence that docs/cost.md says of it.

In these sentences x is the number of elements of the first input, y of the first output, and r the number of rows:
slices that are reduced or normalised together.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import onnx_ir as ir

from .. import dims as d
from ..dims import Dim
from .node import Op, Unknown, exactly, times


class Work(NamedTuple):
    """Operations of one run: floating-point ones, transcendental functions, operations on integers."""

    flops: Dim = 0
    special: Dim = 0
    int_ops: Dim = 0


@dataclass(frozen=True)
class Row:
    """What an operator costs.

    Attributes:
        says: the cost in words and formulas, for the documentation; for an open row why there is none.
        rule: the node and its MACs → its work; None for an operator whose work can't be told from sizes.
    """

    says: str
    rule: Callable[[Op, Dim], Work] | None


def moves(says: str = "moves or relabels data: nothing") -> Row:
    """An operator that computes nothing."""
    return Row(says, lambda op, macs: Work())


def open_(why: str) -> Row:
    """An operator whose work depends on more than sizes: counted as nothing, listed as unknown."""
    return Row(why, None)


def each(flops: int, special: int = 0) -> Row:
    """So much for each element of the first output."""
    parts = [f"{flops} y" if flops > 1 else "y"] * (flops > 0) + ["y special"] * (special == 1)
    parts += [f"{special} y special"] * (special > 1)
    return Row(" + ".join(parts), lambda op, macs: per(op, op.n_out(), flops, special))


def per(op: Op, count: Dim, flops: int, special: int = 0) -> Work:
    """So much for each of `count` elements."""
    return typed(op, d.mul(count, flops), d.mul(count, special))


def typed(op: Op, flops: Dim, special: Dim = 0) -> Work:
    """The work, of which all are operations on integers where the operator's data are integers or truth values."""
    return Work(flops, special) if is_float(op) else Work(0, 0, d.add(flops, special))


def is_float(op: Op) -> bool:
    """Whether the operator computes with floating-point (or complex) numbers: going by what it reads first."""
    value = op.inputs[0] if op.has(0) else op.outputs[0]
    kind = None if value is None else value.dtype
    found = None if kind is None else _FLOATS[int(kind)]
    if found is None:
        why = "depends on what they hold" if kind == ir.DataType.STRING else "is not known"
        raise Unknown(f"work on elements of the type of '{value.name if value is not None else ''}' {why}")
    return found


_FLOATS: dict[int, bool | None] = {
    int(kind): kind.is_floating_point() or kind in (ir.DataType.COMPLEX64, ir.DataType.COMPLEX128)
    for kind in ir.DataType
} | {int(kind): None for kind in (ir.DataType.STRING, ir.DataType.UNDEFINED)}


def rows(dims: list[Dim], axis: int) -> Dim:
    """How many slices along `axis` there are."""
    return d.product([size for i, size in enumerate(dims) if i != axis % len(dims)])


def less(a: Dim, b: Dim) -> Dim:
    """a - b"""
    return d.sub(a, b)


def log2_ceiling(size: Dim) -> int:
    """The smallest k with 2^k ≥ size. Raises Unknown where the size is no number."""
    if not isinstance(size, int):
        raise Unknown("the length of the transform is a free dimension")
    return max(size - 1, 0).bit_length()


def product_of(values: list[int] | tuple[int, ...] | None) -> int:
    """The product of an attribute's integers."""
    found = times(*(values or ()))
    assert isinstance(found, int)
    return found


__all__ = [
    "Row", "Work", "each", "exactly", "is_float", "less", "log2_ceiling", "moves", "open_", "per", "product_of", "rows",
    "typed",
]  # fmt: skip
