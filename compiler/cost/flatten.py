"""Calls of local functions, replaced by what they call, so that every node has its own sizes."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir
from onnx_ir.passes.common import InlinePass, LiftConstantsToInitializersPass

from .. import shapes
from ..graph import is_const, nodes


def flattened(
    model: ir.Model, needed: Callable[[ir.Model, ir.Function], bool] = lambda _model, _function: True
) -> ir.Model:
    """`model` with the bodies of its local functions in place of calls; itself where there is nothing to replace.

    Functions that only unpack a weight, called with constants alone, stay: their names say how the weight is stored.
    `needed` says which of the others matter. Tensors are shared with the original.
    """
    if not model.functions:
        return model
    found = {k for k in called(model) if needed(model, model.functions[k])}
    if not found:
        return model
    flat = model.clone()
    InlinePass(criteria=lambda f: f.identifier() in found)(flat)
    LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(flat)
    shapes.infer(flat)
    return flat


def called(model: ir.Model) -> set[ir.OperatorIdentifier]:
    """Functions that are called with something else than constants, in the model's graphs or in such functions."""
    found: set[ir.OperatorIdentifier] = set()
    calls = [n for n in nodes(model) if not all(v is None or is_const(v) for v in n.inputs)]
    while calls:
        key = calls.pop().op_identifier()
        if key in model.functions and key not in found:
            found.add(key)
            calls += list(model.functions[key].all_nodes())
    return found
