"""Makes one Cast of a chain of casts that loses nothing on the way."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from ..compiler import graph
from ..compiler.passbase import Context, Pass


@dataclass(frozen=True)
class SimplifyCasts(Pass):
    """Merge two casts into one if the first one is lossless, and drop both if they lead back.

    before:  a = Cast<to=INT64>(x); y = Cast<to=FLOAT>(a)      (x is int32)
    after:   y = Cast<to=FLOAT>(x)

    A cast to a shorter type rounds or wraps on purpose: `Cast<to=FLOAT16>` followed by `Cast<to=FLOAT>` stays.
    """

    name: ClassVar[str] = "simplify-casts"

    def run(self, model: ir.Model, ctx: Context) -> int:
        return sum(_merge(node) for node in graph.nodes(model, "Cast"))


_T = ir.DataType
_DIGITS: dict[ir.DataType, tuple[str, int, int]] = {
    _T.BOOL: ("int", 0, 1),
    _T.UINT4: ("int", 0, 4), _T.UINT8: ("int", 0, 8), _T.UINT16: ("int", 0, 16), _T.UINT32: ("int", 0, 32),
    _T.UINT64: ("int", 0, 64),
    _T.INT4: ("int", 1, 3), _T.INT8: ("int", 1, 7), _T.INT16: ("int", 1, 15), _T.INT32: ("int", 1, 31),
    _T.INT64: ("int", 1, 63),
    _T.FLOAT16: ("float", 5, 11), _T.BFLOAT16: ("float", 8, 8), _T.FLOAT: ("float", 8, 24),
    _T.DOUBLE: ("float", 11, 53),
}  # fmt: skip
"""Integers: whether signed, and bits of magnitude. Floats (IEEE 754, bfloat16): bits of exponent and of significand."""


def lossless(a: ir.DataType | None, b: ir.DataType | None) -> bool:
    """Whether every number of type `a` has its own of type `b`, and a cast finds it."""
    if a == b and a is not None:
        return True
    if a not in _DIGITS or b not in _DIGITS or b == _T.BOOL or a is None or b is None:
        return False
    (kind_a, *size_a), (kind_b, *size_b) = _DIGITS[a], _DIGITS[b]
    if kind_a == kind_b:
        return size_a[0] <= size_b[0] and size_a[1] <= size_b[1]
    # float16 ends at 65504: an integer of up to 11 bits is below that.
    return kind_a == "int" and size_a[1] <= size_b[1]


def _merge(node: ir.Node) -> int:
    first = graph.producer(node.inputs[0], "Cast")
    if first is None:
        return 0
    source, middle, out = first.inputs[0], first.outputs[0], node.outputs[0]
    if source is None or source.dtype not in _DIGITS or not lossless(source.dtype, middle.dtype) or out.dtype is None:
        return 0
    # A float too big for an integer has no defined value, an integer wraps: the direct cast must be of the same kind.
    same_kind = _DIGITS[source.dtype][0] == _DIGITS[middle.dtype or source.dtype][0]
    if not same_kind and not lossless(source.dtype, out.dtype) and out.dtype not in _FLOATS:
        return 0
    if source.dtype == out.dtype and graph.can_replace(out, source):
        graph.replace_node(node, source)
        return 1
    graph.rewire(node, 0, source)
    return 1


_FLOATS = frozenset({_T.FLOAT16, _T.BFLOAT16, _T.FLOAT, _T.DOUBLE})
