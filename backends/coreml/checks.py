"""What Core ML can't hold whatever the operator: types, ranks, free dimensions, attributes of newer opsets."""

from __future__ import annotations

from functools import cache

import onnx
import onnx_ir as ir

from ...compiler.errors import Missing
from ...compiler.functions import DOMAIN
from ...compiler.targets import OPSET
from .unlowered import Unlowered

FLOATS = frozenset({ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16})
INTEGERS = frozenset({
    ir.DataType.INT64, ir.DataType.INT32, ir.DataType.INT16, ir.DataType.INT8, ir.DataType.INT4, ir.DataType.INT2,
    ir.DataType.UINT64, ir.DataType.UINT32, ir.DataType.UINT16, ir.DataType.UINT8, ir.DataType.UINT4, ir.DataType.UINT2,
})  # fmt: skip
MAX_RANK = 5
"""Core ML's tensors have at most five dimensions."""

ORDER_ONLY = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Cast", "Identity"})
"""Operators that take a value of more dimensions, held in another shape with its elements in the same order."""


def is_static(value: ir.Value) -> bool:
    """Whether the shape is known and fixed."""
    return value.shape is not None and all(isinstance(d, int) for d in value.shape)


def check_input(value: ir.Value) -> Missing | None:
    """Why a model input can't be one of Core ML's; None when it can."""
    what = f"input '{value.name}'"
    if value.dtype not in FLOATS | INTEGERS | {ir.DataType.BOOL}:
        kind = "unknown" if value.dtype is None else value.dtype.name.lower()
        return Missing("", what, f"Core ML has no inputs of type {kind}")
    if value.shape is None:
        return Missing("", what, f"its shape is unknown; pass --shape {value.name}:SIZES")
    for i, dim in enumerate(value.shape):
        if not isinstance(dim, int):
            sizes = ",".join(str(d) if isinstance(d, int) else "1" for d in value.shape)
            name = f"'{dim.value}'" if dim.value else f"{i}"
            return Missing("", what, f"dimension {name} is not fixed; pass --shape {value.name}:{sizes}")
    if len(value.shape) > MAX_RANK or 0 in value.shape.dims:
        why = f"shape {value.shape}: Core ML's tensors have 1 to {MAX_RANK} dimensions, none of them 0"
        return Missing("", what, why)
    return None


def check_output(value: ir.Value) -> Missing | None:
    """Why a model output can't be one of Core ML's; None when it can."""
    if value.shape is not None and len(value.shape) > MAX_RANK:
        why = f"it has {len(value.shape)} dimensions; Core ML's tensors have at most {MAX_RANK}"
        return Missing("", f"output '{value.name}'", why)
    return None


def check_values(node: ir.Node) -> None:
    """Raise Unlowered for a type or rank that no operator of Core ML takes."""
    for value in (*node.inputs, *node.outputs):
        if value is None:
            continue
        if value.dtype == ir.DataType.BFLOAT16:
            raise Unlowered(f"'{value.name}' is bfloat16, whose rounding Core ML has not")
        if value.shape is None:
            continue
        if len(value.shape) > MAX_RANK and node.op_type not in ORDER_ONLY:
            rank = len(value.shape)
            raise Unlowered(f"'{value.name}' has {rank} dimensions; Core ML's tensors have at most {MAX_RANK}")
        if 0 in value.shape.dims and value.const_value is None:
            raise Unlowered(f"'{value.name}' has shape {value.shape}: Core ML has no empty tensors")


def check_attributes(node: ir.Node) -> None:
    """Raise Unlowered for an attribute of a newer opset: ignoring it would change the function."""
    if node.domain == DOMAIN:
        return
    known = _attributes(node.op_type)
    for name in node.attributes:
        if name not in known:
            raise Unlowered(f"opset {OPSET} has no attribute '{name}' for it")


@cache
def _attributes(op_type: str) -> frozenset[str]:
    return frozenset(onnx.defs.get_schema(op_type, OPSET, "").attributes)
