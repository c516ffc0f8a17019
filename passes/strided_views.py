"""Elements that are looked up one by one, at the positions where they are anyway: as_strided, with a free batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ..compiler import graph
from ..compiler.dims import Dim
from ..compiler.shape_values import ShapeValues

MOST = 1 << 24
"""Positions of one sample that are looked at."""


@dataclass(frozen=True)
class Positions:
    """`constant + Σ factor * i`, i counting from 0 to less than `count` along an axis of a rank (the last axis is -1).

    Attributes:
        counted: axis → (factor, count).
    """

    constant: np.ndarray
    counted: dict[int, tuple[int, Dim]]


def same_elements(values: ShapeValues, node: ir.Node) -> tuple[ir.Value, list[int]] | None:
    """What a Gather reads, and the shape in which it gives it back unchanged, its first axis -1; None if it does not.

    `Gather(Reshape(x, [-1]), row * 768 + [0, 1, …, 767])`, row = 0, 1, … for each of x, is x again.
    """
    flat = graph.producer(node.inputs[0], "Reshape")
    out = values.dims(node.outputs[0])
    if flat is None or flat.inputs[0] is None or not out or graph.attr(node, "axis", 0) != 0:
        return None
    x, dims = flat.inputs[0], values.dims(flat.inputs[0])
    rest = [n for n in out[1:] if isinstance(n, int)]
    row = int(np.prod(rest, dtype=np.int64))
    if not dims or len(rest) < len(out) - 1 or not 0 < row <= MOST or _product(dims[1:]) != row:
        return None
    found = positions(values, node.inputs[1])
    if found is None or found.counted != {-len(out): (row, dims[0])} or len(values.dims(flat.outputs[0]) or ()) != 1:
        return None
    own = np.arange(row).reshape([1, *rest])
    if any(n not in (1, m) for n, m in zip(reversed(found.constant.shape), reversed(own.shape), strict=False)):
        return None
    return (x, [-1, *rest]) if np.array_equal(np.broadcast_to(found.constant, own.shape), own) else None


def _product(dims: Sequence[Dim]) -> int | None:
    sizes = [n for n in dims if isinstance(n, int)]
    return int(np.prod(sizes, dtype=np.int64)) if len(sizes) == len(dims) else None


def positions(values: ShapeValues, value: ir.Value | None) -> Positions | None:
    """How integers are counted, where they are sums of constants and of ranges times constants."""
    array = graph.const(value) if value is not None and graph.is_const(value) else None
    if array is not None:
        return Positions(array, {}) if array.dtype.kind == "i" and array.size <= MOST else None
    node = value.producer() if value is not None else None
    if node is None or node.domain or value is None:
        return None
    if node.op_type == "Range":
        return _range(values, node)
    below = [positions(values, v) for v in node.inputs[: 2 if node.op_type in ("Add", "Mul") else 1]]
    first = below[0] if below else None
    if first is None or any(b is None for b in below):
        return None
    if node.op_type in ("Identity", "Cast"):
        return first if value.dtype in (ir.DataType.INT64, ir.DataType.INT32) else None
    if node.op_type == "Unsqueeze":
        return _spread(values, node, first)
    second = below[-1]
    assert second is not None
    if node.op_type == "Add" and not set(first.counted) & set(second.counted):
        return Positions(first.constant + second.constant, first.counted | second.counted)
    if node.op_type == "Mul":
        by, counted = (first, second) if not first.counted else (second, first)
        if by.counted or by.constant.size != 1:
            return None
        factor = int(by.constant.reshape(-1)[0])
        return Positions(
            counted.constant * factor, {a: (factor * times, n) for a, (times, n) in counted.counted.items()}
        )
    return None


def _range(values: ShapeValues, node: ir.Node) -> Positions | None:
    start, count, step = (values.elements(v) for v in node.inputs)
    if start is None or count is None or step is None or count.size != 1:
        return None
    if start.size != 1 or start.item() != 0 or step.size != 1 or step.item() != 1:
        return None
    return Positions(np.zeros(1, np.int64), {-1: (1, count.item())})


def _spread(values: ShapeValues, node: ir.Node, found: Positions) -> Positions | None:
    """The same, with axes of one element more."""
    out, axes = values.dims(node.outputs[0]), graph.ints(node.inputs[1])
    before = values.dims(node.inputs[0])
    if out is None or axes is None or before is None:
        return None
    new = {a % len(out) for a in axes}
    stay = [a - len(out) for a in range(len(out)) if a not in new]
    if found.constant.size != 1:
        return None
    counted = {stay[a + len(before)]: given for a, given in found.counted.items()}
    return Positions(found.constant.reshape(1), counted)
