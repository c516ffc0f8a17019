"""Control flow."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from .build import BOOL, F32, I32, Var
from .call import Call
from .registry import lowers


@lowers("If", floats=())
def _if(c: Call) -> Any:
    """MIL's cond: each branch becomes a block; floats leave it as float32."""
    then, other = c.attr("then_branch"), c.attr("else_branch")
    if c.is_const(0):
        return c.inline(then if bool(c.array(0).reshape(())) else other)

    def block(graph: ir.Graph) -> Any:
        with c.inner_block():
            c.inline(graph)
            found = [_outgoing(c, value) for value in graph.outputs]
        return tuple(found) if len(found) > 1 else found[0]

    pred = c.reshape(c.x(0), ())
    result = c.op("cond", pred=pred, _true_fn=lambda: block(then), _false_fn=lambda: block(other))
    return list(result) if isinstance(result, (list, tuple)) else [result]


def _outgoing(c: Call, value: ir.Value) -> Var:
    floats = (ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16)
    kind = F32 if value.dtype in floats else BOOL if value.dtype == ir.DataType.BOOL else I32
    return c.op("identity", x=c.cast(c.var(value, F32), kind))
