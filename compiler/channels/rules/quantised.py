"""Integers that stand for numbers: quantised activations, and products of integers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_ir as ir

from ...graph import attr, const, const_tensor
from ..flow import Step, rule
from ..grids import Grid


@rule("DynamicQuantizeLinear")
def _dynamic(s: Step) -> None:
    """The range always holds zero, so that slices of zeros say nothing about it; others do, and stay."""
    for g in s.label(0):
        for a in g.axes:
            if not g.zero:
                s.veto(0, a)
    s.emit(s.keep(zero=False))


@rule("MatMulInteger")
def _matmul(s: Step) -> None:
    """A product of x and a weight of integers, of which a slice of zeros is one only where its zero point is 0."""
    weight, x = s.value(1), s.dims(0)
    fill = None if weight is None else _fill(s, weight, s.value(3), 1)
    if weight is None or const_tensor(weight) is None or len(s.dims(1)) != 2 or fill is None:
        raise LookupError("its weight, or its zero point, is computed")
    held = s.const(1)
    assert held is not None
    for i in (2, 3):
        s.const(i)
    last = len(x) - 1
    into = s.ids_at(0, last)
    if into is not None:
        s.coupling.hold(held, into, [0])
    if s.value(3) is not None and s.dims(3) and s.dims(3)[0] != 1:
        s.coupling.hold(s.node.inputs[3], s.coupling.held(held, 1), [0], masked=False)  # type: ignore[arg-type]
    s.emit([*s.keep(but=[last], zero=False), Grid(s.coupling.held(held, 1), (last,), True)])
    _to_zero_point(s, held, fill)


@rule("ConvInteger")
def _conv(s: Step) -> None:
    """As Conv, of one group. What pads x is its zero point."""
    weight = s.value(1)
    fill = None if weight is None else _fill(s, weight, s.value(3), 0)
    if weight is None or const_tensor(weight) is None or attr(s.node, "group", 1) != 1 or fill is None:
        raise LookupError("its weight is computed or in groups, or its zero point is computed")
    held = s.const(1)
    assert held is not None
    for i in (2, 3):
        s.const(i)
    into = s.ids_at(0, 1)
    if into is not None:
        s.coupling.hold(held, into, [1])
    s.emit([*s.carry(0, {0: 0}, zero=False), Grid(s.coupling.held(held, 0), (1,), True)])
    _to_zero_point(s, held, fill)


def _fill(s: Step, weight: ir.Value, point: ir.Value | None, axis: int) -> np.ndarray | None:
    """The zero point of a weight of integers, as it broadcasts to the weight; None where it is computed."""
    rank = len(weight.shape or ())
    if point is None:
        return np.zeros([1] * rank, np.int8)
    array = const(point)
    if array is None:
        return None
    if array.ndim == rank and array.size > 1:
        blocks = [n != 1 and n != m for n, m in zip(array.shape, s.flow.dims(weight), strict=True)]
        return None if any(blocks) and array.any() else array if not any(blocks) else np.zeros([1] * rank, np.int8)
    return array.reshape([array.size if a == axis % max(rank, 1) else 1 for a in range(rank)])


def _to_zero_point(s: Step, weight: ir.Value, fill: np.ndarray) -> None:
    """Masked slices of integers become what stands for zero."""
    if fill.any():
        s.coupling.holds[weight] = [replace(h, fill=fill) for h in s.coupling.holds.get(weight, ())]


def _plain(point: ir.Value | None) -> bool:
    """Whether a zero point is 0 throughout."""
    if point is None:
        return True
    array = const(point)
    return array is not None and not array.any()


@rule("QuantizeLinear", "DequantizeLinear")
def _affine(s: Step) -> None:
    """Element by element, with a scale for all or one per slice of an axis. Zero is the zero point among integers."""
    data = s.value(0)
    if data is not None and const_tensor(data) is not None:
        return _weight(s)
    dims = s.dims(0)
    axis = attr(s.node, "axis", 1) % max(len(dims), 1)
    wide = s.dims(1) and s.dims(1)[0] != 1
    if attr(s.node, "block_size", 0):
        s.veto(0, axis)
    elif wide:
        ids = s.ids_at(0, axis)
        for i in (1, 2):
            value = s.const(i)
            if ids is not None and value is not None:
                s.coupling.hold(value, ids, [0], masked=False)
    for i in (1, 2):
        s.const(i)
    same = _plain(s.value(2)) or _back_and_forth(s.node)
    s.emit(s.keep(but=[axis] if attr(s.node, "block_size", 0) else (), zero=None if same else False))
    return None


def _back_and_forth(node: ir.Node) -> bool:
    """Whether integers only go from a QuantizeLinear to DequantizeLinear, with one zero point."""
    value = node.outputs[0] if node.op_type == "QuantizeLinear" else node.inputs[0]
    maker = value.producer() if value is not None else None
    if value is None or maker is None or maker.op_type != "QuantizeLinear" or value.is_graph_output():
        return False
    return all(
        u.op_type == "DequantizeLinear" and len(u.inputs) > 2 and u.inputs[2] is maker.inputs[2]
        for u, _ in value.uses()
    )


def _weight(s: Step) -> None:
    """A weight that is stored as integers: each axis by itself, with its scales. Blocks of one scale stay whole."""
    data = s.const(0)
    assert data is not None
    for i in (1, 2):
        s.const(i)
    dims, scale = s.dims(0), s.dims(1)
    axis, block = attr(s.node, "axis", 1) % max(len(dims), 1), attr(s.node, "block_size", 0)
    fill = _fill(s, data, s.value(2), axis)
    if s.node.op_type == "QuantizeLinear" or fill is None:
        raise LookupError("its zero point is computed, or one per block")
    grids = []
    for a, n in enumerate(dims):
        if n == 1 or (block and a == axis):
            continue
        ids = s.coupling.held(data, a)
        grids.append(Grid(ids, (a,), True))
        for i in (1, 2):
            value = s.value(i)
            if value is not None and (block or (scale and scale[0] != 1 and a == axis)):
                s.coupling.hold(value, ids, [a if block else 0], masked=False)
    s.emit(grids)
    _to_zero_point(s, data, fill)
