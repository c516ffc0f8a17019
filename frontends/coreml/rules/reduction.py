"""Reductions, sorting and cumulative sums (`ops/defs/iOS15/reduction.py`, `tensor_operation.py`)."""

from __future__ import annotations

import onnx_ir as ir

from ..call import Call, Result, rule
from ..graph import FLOAT, INT32, INT64

_REDUCE = {
    "reduce_l1_norm": "ReduceL1",
    "reduce_l2_norm": "ReduceL2",
    "reduce_log_sum": "ReduceLogSum",
    "reduce_log_sum_exp": "ReduceLogSumExp",
    "reduce_mean": "ReduceMean",
    "reduce_prod": "ReduceProd",
    "reduce_sum": "ReduceSum",
    "reduce_sum_square": "ReduceSumSquare",
}
_EXACT_REDUCE = {"reduce_max": "ReduceMax", "reduce_min": "ReduceMin"}


@rule(*_REDUCE)
@rule(*_EXACT_REDUCE, exact=True)
def reduce(o: Call) -> Result:
    b, x = o.b, o.value()
    axes = b.ints(o.ints("axes")) if o.has("axes") else None
    op, keep = {**_REDUCE, **_EXACT_REDUCE}[o.kind], int(o.flag("keep_dims"))
    in_float = op in ("ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMean") and o.output().dtype == "int32"
    if in_float:
        return b.cast(b.op(op, b.cast(x, FLOAT), axes, keepdims=keep), INT32)
    return b.op(op, x, axes, keepdims=keep)


@rule("reduce_argmax", "reduce_argmin")
def reduce_arg(o: Call) -> Result:
    op = "ArgMax" if o.kind == "reduce_argmax" else "ArgMin"
    found = o.b.op(op, o.value(), axis=o.integer("axis", -1), keepdims=int(o.flag("keep_dims")))
    return o.b.cast(found, INT32)


def _narrow_to_int32(o: Call, x: ir.Value) -> tuple[ir.Value, bool]:
    """TopK has no kernels for 8-bit integers: sort those as INT32."""
    narrow = o.type().dtype in ("int8", "uint8")
    return (o.b.cast(x, INT32) if narrow else x), narrow


@rule("topk", exact=True)
def topk(o: Call) -> Result:
    b = o.b
    axis = o.axis("axis", -1)
    x, narrow = _narrow_to_int32(o, o.value())
    k = o.integer("k", 1)
    count = b.ints([k]) if k != -1 else b.op("Shape", x, start=axis, end=axis + 1)
    order = {"largest": int(not o.flag("ascending")), "sorted": int(o.flag("sort", True))}
    values, indices = b.nodes_of("TopK", [x, count], {"axis": axis, **order}, 2)
    if narrow:
        values = b.cast(values, o.type().element.carried)
    return [values, b.cast(indices, INT32)] if len(o.outputs) > 1 else values


@rule("argsort")
def argsort(o: Call) -> Result:
    b, axis = o.b, o.axis("axis", -1)
    x = o.value()
    count = b.op("Shape", x, start=axis, end=axis + 1)
    _, indices = b.nodes_of("TopK", [x, count], {"axis": axis, "largest": int(not o.flag("ascending")), "sorted": 1}, 2)
    return b.cast(indices, INT32)


@rule("cumsum")
def cumsum(o: Call) -> Result:
    exclusive, reverse = int(o.flag("exclusive")), int(o.flag("reverse"))
    return o.b.op("CumSum", o.value(), o.b.ints(o.integer("axis", 0)), exclusive=exclusive, reverse=reverse)


@rule("non_zero")
def non_zero(o: Call) -> Result:
    """One row of indices per non-zero element."""
    found = o.b.op("NonZero", o.value())
    return o.b.cast(o.b.op("Transpose", found, perm=[1, 0]), INT32)


@rule("one_hot", exact=True)
def one_hot(o: Call) -> Result:
    """on_value where the position along the new axis equals the index, off_value elsewhere."""
    b, rank = o.b, o.rank("indices")
    axis = o.integer("axis", -1) % (rank + 1)
    size = b.cast(o.value("one_hot_vector_size"), INT64)
    if o.rank("one_hot_vector_size"):
        size = b.op("Squeeze", size)
    positions = b.op("Range", b.ints(0), size, b.ints(1))
    positions = b.op("Reshape", positions, b.ints([-1] + [1] * (rank - axis)))
    hit = b.op("Equal", b.op("Unsqueeze", b.cast(o.value("indices"), INT64), b.ints([axis])), positions)
    carried = o.output().element.carried
    on, off = (
        o.value(name) if o.has(name) else b.cast(b.ints(default), carried)
        for name, default in (("on_value", 1), ("off_value", 0))
    )
    return b.op("Where", hit, on, off)
