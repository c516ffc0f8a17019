"""Values that are zero whatever the input is, and sums that hand on their other term because of that."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from ..channels.masked import Masked
from ..channels.rules.elementwise import ZERO_TO_ZERO
from ..cost.sizes import Sizes
from ..graph import can_replace, const, const_tensor, insert_before, is_const, replace_node, scalar
from .silence import BIASES

ANY: dict[str, tuple[int, ...]] = {
    "Attention": (2,), "Conv": (0, 1), "ConvTranspose": (0, 1), "Gemm": (0, 1), "MatMul": (0, 1), "Mul": (0, 1),
    "BatchNormalization": (1,), "GroupNormalization": (1,), "InstanceNormalization": (1,), "LayerNormalization": (1,),
    "RMSNormalization": (0, 1),
}  # fmt: skip
"""Operators whose result is zero if any of these inputs is, and their bias."""

ALL: dict[str, tuple[int, ...] | None] = {
    "Add": None, "Concat": None, "Max": None, "Mean": None, "Min": None, "Sub": None, "Sum": None, "Where": (1, 2),
    **dict.fromkeys(
        ("AveragePool", "DepthToSpace", "Div", "Expand", "Flatten", "Gather", "GatherElements", "GatherND",
         "GlobalAveragePool", "GlobalMaxPool", "MaxPool", "PRelu", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum",
         "Reshape", "Slice", "SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose", "Trilu", "Unsqueeze",
         *(op for op in ZERO_TO_ZERO if op != "Shrink")),
        (0,),
    ),
}  # fmt: skip
"""Operators whose result is zero if all of these inputs are; of all they have where none are named."""


BLOCK = 1 << 14
"""Elements that are looked at at a time."""


class Nothing:
    """The values of the main graph that are provably zero. Weights are looked at as far as their first other number."""

    def __init__(self, model: ir.Model) -> None:
        self.graph = model.graph
        self.values: set[ir.Value] = set()
        self._constants: dict[ir.Value, bool] = {}
        for node in model.graph:
            if node.domain == "" and self._makes_none(node):
                self.values.update(node.outputs[: None if node.op_type == "Split" else 1])

    def holds(self, value: ir.Value | None) -> bool:
        """Whether this value is zero all over."""
        return value is not None and (value in self.values or self._is_zero(value))

    def _is_zero(self, value: ir.Value) -> bool:
        if value not in self._constants:
            self._constants[value] = _filled(value, 0)
        return self._constants[value]

    def _makes_none(self, node: ir.Node) -> bool:
        op = node.op_type
        if op in ANY:
            bias = BIASES.get(op)
            here = any(self.holds(node.inputs[i]) for i in ANY[op] if i < len(node.inputs))
            return here and (bias is None or bias >= len(node.inputs) or not node.inputs[bias]
                             or self.holds(node.inputs[bias]))  # fmt: skip
        if op == "Einsum":
            return any(self.holds(v) for v in node.inputs)
        if op == "DequantizeLinear":
            return _unpacks_zeros(node)
        if op not in ALL or (op == "Dropout" and len(node.inputs) > 2):
            return False
        indices = ALL[op]
        read = [v for i, v in enumerate(node.inputs) if v is not None and (indices is None or i in indices)]
        return bool(read) and all(self.holds(v) for v in read) and not all(is_const(v) for v in read)


def _filled(value: ir.Value, number: int) -> bool:
    tensor = const_tensor(value)
    if tensor is None or tensor.size == 0 or tensor.dtype in (ir.DataType.STRING, ir.DataType.BOOL):
        return False
    if number == 0 and (masked := Masked.of(tensor)) is not None:
        return masked.empty()
    flat = tensor.numpy().reshape(-1)
    # Of a masked weight much is zero, and little all of it.
    return all((flat[k : k + BLOCK] == number).all() for k in range(0, flat.size, BLOCK))


def _unpacks_zeros(node: ir.Node) -> bool:
    """Whether a constant is unpacked that is its zero point all over."""
    packed, zero = node.inputs[0], node.inputs[2] if len(node.inputs) > 2 else None
    if packed is None or not is_const(packed):
        return False
    if zero is None:
        return _filled(packed, 0)
    point = scalar(zero)
    if point is None:
        points = const(zero)
        point = 0.0 if points is not None and points.size and not points.any() else None
    return point is not None and _filled(packed, int(point))


def leave_out(model: ir.Model, tidied: Callable[[ir.Value], None] | None = None) -> int:
    """Let sums with a term that is always zero hand on the other; what made the zeros goes. How many did.

    The sum must be as large as what is left of it. `tidied` gets every value that takes the place of a sum.
    """
    nothing = Nothing(model)
    sums = [n for n in model.graph if n.domain == "" and n.op_type in ("Add", "Sub", "Sum") and len(n.inputs) == 2]
    sums = [n for n in sums if any(v in nothing.values for v in n.inputs)]
    if not sums:
        return 0
    sizes, count = Sizes(model), 0
    dims = {v: sizes.dims(v) for n in sums for v in (*n.inputs, *n.outputs)}
    for node in sums:
        other = _other(node, nothing)
        if other is None or other.dtype != node.outputs[0].dtype:
            continue
        here, there = dims.get(other, sizes.dims(other)), dims[node.outputs[0]]
        if here is None or here != there:
            continue
        if not can_replace(node.outputs[0], other):
            other = insert_before(node, "Identity", [other], like=node.outputs[0]).outputs[0]
        replace_node(node, other)
        count += 1
        if tidied is not None:
            tidied(other)
    if count:
        _drop_unread(model.graph)
    return count


def _other(node: ir.Node, nothing: Nothing) -> ir.Value | None:
    """The term that is left where one is zero."""
    a, b = node.inputs
    if b in nothing.values:
        return a
    return b if a in nothing.values and node.op_type != "Sub" else None


def _drop_unread(graph: ir.Graph) -> None:
    for name, value in list(graph.initializers.items()):
        if not (value.uses() or value.is_graph_output() or value.is_graph_input()):
            graph.initializers.pop(name)


