"""Reductions, arg-reductions and running sums."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from .build import I32, Var
from .call import Call
from .ops_elementwise import log
from .registry import family, lowers


def _axes(c: Call) -> list[int] | None:
    """The reduced axes, None when nothing is to be reduced."""
    axes = c.ints(1, ()) if c.has(1) else list(c.attr("axes") or ())
    if not axes:
        return None if c.attr("noop_with_empty_axes", 0) else list(range(c.rank()))
    return sorted({a % c.rank() for a in axes})


def _reduce(c: Call, name: str) -> Var:
    axes = _axes(c)
    x = c.cast(c.x(), I32) if c.kind() == ir.DataType.BOOL else c.x()
    if c.kind() == ir.DataType.BOOL and name not in ("reduce_max", "reduce_min"):
        c.missing("booleans are only reduced by ReduceMax and ReduceMin")
    if not c.is_float_node() and name in ("reduce_mean", "reduce_l2_norm", "reduce_log_sum", "reduce_log_sum_exp"):
        c.missing("this reduction of integers")
    if axes is None or not c.rank():
        return _alone(c, name, x)
    if name == "reduce_log_sum":
        return log(c, c.op("reduce_sum", x=x, axes=axes, keep_dims=bool(c.attr("keepdims", 1))))
    y = c.op(name, x=x, axes=axes, keep_dims=bool(c.attr("keepdims", 1)))
    return c.op("not_equal", x=y, y=np.int32(0)) if c.kind() == ir.DataType.BOOL else y


def _alone(c: Call, name: str, x: Var) -> Any:
    """The reduction of one element."""
    if name in ("reduce_l1_norm", "reduce_l2_norm"):
        return c.op("abs", x=x)
    if name == "reduce_sum_square":
        return c.op("mul", x=x, y=x)
    if name == "reduce_log_sum":
        return log(c, x)
    return c.same(0)


family(_reduce, {"ReduceMax": "reduce_max", "ReduceMin": "reduce_min"}, exact=True, floats=(0,))
family(_reduce, {"ReduceMean": "reduce_mean", "ReduceSum": "reduce_sum", "ReduceProd": "reduce_prod",
                 "ReduceL1": "reduce_l1_norm", "ReduceLogSum": "reduce_log_sum",
                 "ReduceLogSumExp": "reduce_log_sum_exp"}, floats=(0,))  # fmt: skip


# The squares overflow float16 where the result may not.
@lowers("ReduceL2", "ReduceSumSquare", half=99)
def _squares(c: Call) -> Var:
    return _reduce(c, "reduce_l2_norm" if c.node.op_type == "ReduceL2" else "reduce_sum_square")


@lowers("ArgMax", "ArgMin", exact=True)
def _arg(c: Call) -> Var:
    """The first of equal ones, or with `select_last_index` the last: then the axis is read backwards."""
    axis, keep, last = c.axis(0), bool(c.attr("keepdims", 1)), c.attr("select_last_index", 0)
    name = "reduce_argmax" if c.node.op_type == "ArgMax" else "reduce_argmin"
    x = c.op("reverse", x=c.x(), axes=[axis]) if last else c.x()
    y = c.cast(c.op(name, x=x, axis=axis, keep_dims=keep), I32)
    return c.op("sub", x=np.int32(c.shape()[axis] - 1), y=y) if last else y


@lowers("CumSum", floats=(0,))
def _cumsum(c: Call) -> Var:
    axis = c.ints(1)[0] % c.rank()
    exclusive, reverse = bool(c.attr("exclusive", 0)), bool(c.attr("reverse", 0))
    return c.op("cumsum", x=c.x(), axis=axis, exclusive=exclusive, reverse=reverse)


@lowers("Det")
def _det(c: Call) -> Var:
    """Determinants of 1×1, 2×2 and 3×3 matrices, by their formula."""
    n = c.shape()[-1]
    if n > 3:
        c.missing(f"the determinant of {n}×{n} matrices")
    batch = c.shape()[:-2]
    flat = c.reshape(c.x(), (*batch, n * n))
    parts = c.op("split", x=flat, num_splits=n * n, axis=len(batch)) if n > 1 else [flat]
    m = [[parts[i * n + j] for j in range(n)] for i in range(n)]
    return c.reshape(_minor(c, m), batch)


def _minor(c: Call, m: list[list[Var]]) -> Var:
    if len(m) == 1:
        return m[0][0]
    total: Var = None
    for j, head in enumerate(m[0]):
        rest = [[row[k] for k in range(len(m)) if k != j] for row in m[1:]]
        term = c.op("mul", x=head, y=_minor(c, rest))
        total = term if total is None else c.op("sub" if j % 2 else "add", x=total, y=term)
    return total


