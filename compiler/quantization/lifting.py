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
    After:  `y = QuantizeLinear(Conv(x, k, c), u, o)`, x = DequantizeLinear(q, s, z), k = DequantizeLinear(w, t, v),
            c = DequantizeLinear(b, s·t)

    And the same of ConvInteger, QLinearMatMul, and onnxruntime's operators of `MICROSOFT`, MatMulNBits among them. The
    integers are the same; products are added up in float.
    """
    count = 0
    for graph in g.graphs(model):
        for node in list(graph):
            rule = _RULES.get((node.domain, node.op_type))
            if rule is not None and node.graph is not None:
                count += rule(node)
    if count and not any(n.domain == MICROSOFT for n in model.graph.all_nodes()):
        model.graph.opset_imports.pop(MICROSOFT, None)
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

    def spread(array: np.ndarray, hint: str) -> ir.Value:
        flat = np.broadcast_to(array.reshape(-1) if each else array.reshape(()), shape)
        return _constant(node, flat.copy(), f"{w.name}_{hint}")

    flat = spread(steps, "step")
    origin = None if start is None else spread(start, "start")
    return _read(node, w, flat, origin, axis if each else None, f"{w.name}__dense")


# --- weights in blocks ------------------------------------------------------------------------------------------------

_BLOCKS = {4: (ir.DataType.INT4, ir.DataType.UINT4), 8: (ir.DataType.INT8, ir.DataType.UINT8)}
"""Bits → integers with and without a sign."""


def _blocks(node: ir.Node) -> bool:
    """MatMulNBits: x · w, w of K x N as integers, N rows of blocks along K."""
    rows, columns, bits, block = (int(g.attr(node, n, 0)) for n in ("K", "N", "bits", "block_size"))
    packed, scale, zero = g.const(node.inputs[1]), g.const(node.inputs[2]), _input(node, 3)
    zeros, order, bias = None if zero is None else g.const(zero), _input(node, 4), _input(node, 5)
    if bits not in _BLOCKS or packed is None or scale is None or order is not None:
        return False
    if zero is not None and (zeros is None or zeros.dtype != np.uint8):
        return False
    count, half = -(-rows // block), 1 << bits - 1
    q = _unpacked(packed.reshape(columns, -1), bits)[:, :rows].T
    kind, start = _BLOCKS[bits][1], None
    if zeros is None:
        q, kind = (q.astype(np.int16) - half).astype(np.int8), _BLOCKS[bits][0]
    else:
        start = _typed(node, _unpacked(zeros.reshape(columns, -1), bits)[:, :count].T, kind, "zeros")
    name, out = node.inputs[1].name if node.inputs[1] is not None else "", node.outputs[0]
    step = _constant(node, np.ascontiguousarray(scale.reshape(columns, count).T), f"{name}_scales")
    stored = _typed(node, q, kind, "integers")
    inputs = [stored, step] if start is None else [stored, step, start]
    weight = g.insert_before(node, "DequantizeLinear", inputs, {"axis": 0, "block_size": block}, hint=f"{name}__dense")
    weight.outputs[0].type, weight.outputs[0].shape = ir.TensorType(FLOAT), ir.Shape([rows, columns])
    made = g.insert_before(node, "MatMul", [node.inputs[0], weight.outputs[0]], hint=f"{out.name}__product").outputs[0]
    made.type, made.shape = ir.TensorType(FLOAT), out.shape
    if bias is not None:
        made = g.insert_before(node, "Add", [made, bias], hint=f"{out.name}__biased").outputs[0]
        made.type, made.shape = ir.TensorType(FLOAT), out.shape
    g.replace_node(node, made)
    return True


def _unpacked(values: np.ndarray, bits: int) -> np.ndarray:
    """Integers out of bytes, the low half of each first."""
    if bits == 8:
        return values
    return np.stack([values & 15, values >> 4], -1).reshape(len(values), -1)


def _typed(node: ir.Node, array: np.ndarray, kind: ir.DataType, hint: str) -> ir.Value:
    """A constant of integers of few bits."""
    graph = node.graph
    assert isinstance(graph, ir.Graph)
    name = g.fresh_name(graph, f"{node.outputs[0].name}_{hint}")
    tensor = ir.Tensor(np.ascontiguousarray(array).astype(kind.numpy()), dtype=kind, name=name)
    value = ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(kind), const_value=tensor)
    graph.register_initializer(value)
    return value


# --- operators that round their results -------------------------------------------------------------------------------


def _linear(node: ir.Node) -> bool:
    """QLinearConv, QLinearMatMul, QGemm."""
    op = {"QLinearConv": "Conv", "QLinearMatMul": "MatMul", "QGemm": "Gemm"}[node.op_type]
    gemm = op == "Gemm"
    a, a_scale, a_zero, b, b_scale, b_zero = node.inputs[:6]
    scale, zero = _input(node, 7 if gemm else 6), _input(node, 8 if gemm else 7)
    bias = _input(node, 6 if gemm else 8)
    rank, out = g.rank(b), node.outputs[0]
    if a is None or a_scale is None or b is None or b_scale is None or rank is None:
        return False
    first_out = op == "Conv" or (gemm and bool(g.attr(node, "transB", 0)))
    rows = (g.rank(a) or 2) - 2 if _many(a_scale) and op == "MatMul" else None
    columns = (0 if first_out else rank - 1) if _many(b_scale) else None
    operands = [
        _read(node, a, a_scale, a_zero, rows, f"{out.name}__rounded"),
        _read(node, b, b_scale, b_zero, columns, f"{out.name}__weight"),
    ]
    if bias is not None:
        steps = g.const(a_scale), g.const(b_scale)
        if steps[0] is None or steps[1] is None:
            return False
        step = _constant(node, np.asarray(steps[0] * steps[1], np.float32), f"{out.name}__bias_step")
        operands.append(_read(node, bias, step, None, 0 if _many(step) else None, f"{out.name}__bias"))
    _round(node, op, operands, scale, zero)
    return True


def _pointwise(node: ir.Node) -> bool:
    """Operators of one or two quantized tensors: (x, scale, zero) for each, then the result's scale and zero point."""
    op, count = _POINTWISE[node.op_type]
    if g.attr(node, "channels_last", 0):
        return False
    operands = [_read_at(node, 3 * i) for i in range(count)]
    _round(node, op, operands, _input(node, 3 * count), _input(node, 3 * count + 1))
    return True


def _concat(node: ir.Node) -> bool:
    """QLinearConcat: the result's scale and zero point come first."""
    operands = [_read_at(node, i) for i in range(2, len(node.inputs), 3)]
    _round(node, "Concat", operands, _input(node, 0), _input(node, 1))
    return True


def _read_at(node: ir.Node, i: int) -> ir.Value:
    q, scale = node.inputs[i], node.inputs[i + 1]
    assert q is not None and scale is not None
    return _read(node, q, scale, _input(node, i + 2), None, f"{node.outputs[0].name}__rounded")


def _round(node: ir.Node, op: str, operands: list[ir.Value], scale: ir.Value | None, zero: ir.Value | None) -> None:
    """The float operator in the place of `node`, and its result rounded, if that has a scale."""
    out = node.outputs[0]
    attributes = {k: v.value for k, v in node.attributes.items() if k not in ("channels_last", "opset")}
    made = g.insert_before(node, op, operands, attributes, hint=f"{out.name}__exact").outputs[0]
    made.type, made.shape = ir.TensorType(FLOAT), out.shape
    if scale is not None:
        inputs = [made, scale] if zero is None else [made, scale, zero]
        made = g.insert_before(node, "QuantizeLinear", inputs, hint=f"{out.name}__integer").outputs[0]
        made.type, made.shape = ir.TensorType(_kind(zero)), out.shape
    g.replace_node(node, made)


def _kind(zero: ir.Value | None) -> ir.DataType:
    return ir.DataType.UINT8 if zero is None or zero.dtype is None else zero.dtype


def _many(value: ir.Value) -> bool:
    """Whether scales are a list, one for each channel, and not a scalar."""
    return bool(g.rank(value))


MICROSOFT = "com.microsoft"

_POINTWISE = {
    "QLinearAdd": ("Add", 2), "QLinearMul": ("Mul", 2), "QLinearSigmoid": ("Sigmoid", 1),
    "QLinearLeakyRelu": ("LeakyRelu", 1), "QLinearGlobalAveragePool": ("GlobalAveragePool", 1),
    "QLinearAveragePool": ("AveragePool", 1), "QLinearSoftmax": ("Softmax", 1),
}  # fmt: skip
"""onnxruntime's operator → the standard's, and how many tensors it reads (onnxruntime, docs/ContribOperators.md)."""

_RULES: dict[tuple[str, str], Callable[[ir.Node], bool]] = {
    ("", "MatMulInteger"): _sum,
    ("", "ConvInteger"): _sum,
    ("", "QLinearConv"): _linear,
    ("", "QLinearMatMul"): _linear,
    (MICROSOFT, "QGemm"): _linear,
    (MICROSOFT, "QLinearConcat"): _concat,
    (MICROSOFT, "MatMulNBits"): _blocks,
    **{(MICROSOFT, op): _pointwise for op in _POINTWISE},
}
