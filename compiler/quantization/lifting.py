"""Operators on integers as what they stand for: float operators between rounding pairs, with stored weights.

What onnxruntime.quantization writes (dynamic models; QOperator format) and what our own backend writes becomes the form
in which passes and backends see which numbers are rounded, and which weights are stored as integers.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from .. import graph as g

FLOAT = ir.DataType.FLOAT


def lift(model: ir.Model) -> int:
    """Rewrite all integer operators that can be; returns how many.

    Before: `y = Mul(Cast(MatMulInteger(q, w, z, v)), Mul(s, t))`, w constant
    After:  `y = MatMul(DequantizeLinear(q, s, z), DequantizeLinear(w, t, v))`

    Before: `y = QLinearConv(q, s, z, w, t, v, u, o, b)`
    After:  `y = QuantizeLinear(Conv(DequantizeLinear(q, s, z), DequantizeLinear(w, t, v), DequantizeLinear(b, s·t)), u, o)`

    And the same of ConvInteger and QLinearMatMul. The integers are the same; products are added up in float.
    """
    count = 0
    for node in g.nodes(model, *_RULES):
        if node.graph is not None:
            count += _RULES[node.op_type](node)
    return count


def _input(node: ir.Node, i: int) -> ir.Value | None:
    return node.inputs[i] if i < len(node.inputs) else None


def _read(
    anchor: ir.Node, q: ir.Value, scale: ir.Value, zero: ir.Value | None, axis: int | None, hint: str
) -> ir.Value:
    """The numbers that integers stand for."""
    inputs = [q, scale] if zero is None else [q, scale, zero]
    attributes = {} if axis is None else {"axis": axis}
    made = g.insert_before(anchor, "DequantizeLinear", inputs, attributes, hint=hint).outputs[0]
    made.type, made.shape = ir.TensorType(FLOAT), q.shape
    return made


def _constant(node: ir.Node, array: np.ndarray, hint: str) -> ir.Value:
    graph = node.graph
    assert isinstance(graph, ir.Graph)
    return g.initializer(graph, array, hint)


# --- sums of integers, scaled afterwards ------------------------------------------------------------------------------


def _sum(node: ir.Node) -> bool:
    """MatMulInteger or ConvInteger, Cast, Mul by both scales."""
    cast = g.sole_user(node.outputs[0], "Cast")
    last = None if cast is None or g.attr(cast, "to") != FLOAT else g.sole_user(cast.outputs[0], "Mul")
    if cast is None or last is None:
        return False
    both = next((v for v in last.inputs if v is not cast.outputs[0]), None)
    product = g.producer(both, "Mul")
    q, w = node.inputs[0], node.inputs[1]
    down = g.producer(q, "DynamicQuantizeLinear", "QuantizeLinear")
    if product is None or down is None or q is None or w is None or not g.is_const(w):
        return False
    step = down.outputs[1] if down.op_type == "DynamicQuantizeLinear" else down.inputs[1]
    scale = next((v for v in product.inputs if v is not None and v is not step and g.is_const(v)), None)
    if step is None or scale is None or step not in product.inputs:
        return False
    conv = node.op_type == "ConvInteger"
    zero = _input(node, 2)
    if zero is not None and zero not in down.outputs and zero not in down.inputs:
        return False
    weight = _weight(node, w, scale, _input(node, 3), conv)
    if weight is None:
        return False
    name = last.outputs[0].name
    x = _read(last, q, step, zero, None, f"{name}__rounded")
    attributes = {k: v.value for k, v in node.attributes.items()}
    made = g.insert_before(last, "Conv" if conv else "MatMul", [x, weight], attributes, like=last.outputs[0])
    g.replace_node(last, made.outputs[0])
    return True


def _weight(node: ir.Node, w: ir.Value, scale: ir.Value, zero: ir.Value | None, conv: bool) -> ir.Value | None:
    """A constant operand, dequantised; None where its scales are not one for all or one for each output channel."""
    dims, steps = g.static_shape(w), g.const(scale)
    start = None if zero is None else g.const(zero)
    if dims is None or steps is None or len(dims) < 2 or (zero is not None and start is None):
        return None
    axis = 0 if conv else len(dims) - 1
    own = (1,) * (len(dims) - 1 - steps.ndim) + steps.shape if conv else steps.shape
    place = -(len(dims) - 1) if conv else -1  # of the channels among the axes of a result
    if steps.size > 1 and (steps.size != dims[axis] or own[place] != steps.size):
        return None
    if start is not None and start.size not in (1, steps.size if steps.size > 1 else dims[axis]):
        return None
    each = steps.size > 1 or (start is not None and start.size > 1)
    shape = (dims[axis],) if each else ()
    flat = _constant(node, np.broadcast_to(steps.reshape(-1) if each else steps.reshape(()), shape).copy(), f"{w.name}_step")
    origin = None
    if start is not None:
        origin = _constant(
            node, np.broadcast_to(start.reshape(-1) if each else start.reshape(()), shape).copy(), f"{w.name}_start"
        )
    return _read(node, w, flat, origin, axis if each else None, f"{w.name}__dense")


# --- operators that round their results -------------------------------------------------------------------------------


def _rounding(node: ir.Node) -> bool:
    """QLinearConv, QLinearMatMul."""
    conv = node.op_type == "QLinearConv"
    a, a_scale, a_zero, b, b_scale, b_zero, scale, zero = node.inputs[:8]
    bias = _input(node, 8)
    if any(v is None for v in (a, a_scale, b, b_scale, scale)):
        return False
    assert a is not None and a_scale is not None and b is not None and b_scale is not None and scale is not None
    rank, out = g.rank(b), node.outputs[0]
    if rank is None:
        return False
    axes: tuple[int | None, int] = (None, 0 if conv else rank - 1)
    if not conv and g.rank(a_scale):
        axes = ((g.rank(a) or 2) - 2, axes[1])
    x = _read(node, a, a_scale, a_zero, axes[0], f"{out.name}__rounded")
    w = _read(node, b, b_scale, b_zero, axes[1] if _many(b_scale) else None, f"{out.name}__weight")
    operands = [x, w]
    if bias is not None:
        steps = (g.const(a_scale), g.const(b_scale))
        if steps[0] is None or steps[1] is None:
            return False
        step = _constant(node, np.asarray(steps[0] * steps[1], np.float32), f"{out.name}__bias_step")
        operands.append(_read(node, bias, step, None, 0 if _many(step) else None, f"{out.name}__bias"))
    attributes = {k: v.value for k, v in node.attributes.items()}
    op, hint = "Conv" if conv else "MatMul", f"{out.name}__exact"
    made = g.insert_before(node, op, operands, attributes, hint=hint).outputs[0]
    made.type, made.shape = ir.TensorType(FLOAT), out.shape
    inputs = [made, scale] if zero is None else [made, scale, zero]
    g.replace_node(node, g.insert_before(node, "QuantizeLinear", inputs, like=out).outputs[0])
    return True


def _many(value: ir.Value) -> bool:
    """Whether scales are a list, one for each channel, and not a scalar."""
    return bool(g.rank(value))


_RULES: dict[str, Callable[[ir.Node], bool]] = {
    "MatMulInteger": _sum,
    "ConvInteger": _sum,
    "QLinearConv": _rounding,
    "QLinearMatMul": _rounding,
}
