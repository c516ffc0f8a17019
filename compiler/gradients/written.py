"""Operators without a rule, and functions, written out as what they are defined by."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import onnx
import onnx_ir as ir
from onnx_ir.passes import common

from .. import session
from ..protos import bare_proto
from ..targets import OPSET

ROUNDING = frozenset({"Bernoulli", "DynamicQuantizeLinear"})


def inlined(model: ir.Model) -> ir.Model:
    """A copy in which no local function is called, with constants as initializers. Weights are shared."""
    made = model.clone()
    if made.functions:
        common.InlinePass()(made)
    _lift(made)
    return made


def has_definition(op: str) -> bool:
    """Whether the standard defines the operator by others, and this can be differentiated.

    Not what rounds or draws: by their definitions nothing at all would come back, and nobody would know.
    """
    if op in ROUNDING or not onnx.defs.has(op):
        return False
    schema: Any = onnx.defs.get_schema(op, OPSET)  # whose stubs lack these two
    return bool(schema.has_function or schema.has_context_dependent_function)


def write_out(model: ir.Model, ops: Collection[str]) -> ir.Model:
    """A copy in which the standard's own definitions stand for these operators, where it has any."""
    proto, tensors = bare_proto(model, lambda _: True)
    session.write_out(proto, ops)
    made = ir.from_proto(proto)
    for name, tensor in tensors.items():
        made.graph.initializers[name].const_value = tensor
    _lift(made)
    return made


def _lift(model: ir.Model) -> None:
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    common.NameFixPass()(model)
