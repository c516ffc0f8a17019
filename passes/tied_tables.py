"""Tables that an exporter stored twice: once to be looked up, and once transposed, for the last product."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from ..compiler import graph
from ..compiler.weights import release_tensor

LEAST = 1 << 20
"""Bytes from which storing once is worth a Transpose. onnxruntime does it once, when it loads the model."""
BLOCK = 1 << 18
"""Elements that are compared at a time."""


def tie_tables(g: ir.Graph) -> int:
    """Let products read the transpose of a table that is looked up, where their weight is just that.

    before:  e = Gather(table, ids); y = MatMul(x, w), where w is the transpose of table, element by element
    after:   e = Gather(table, ids); y = MatMul(x, Transpose(table))
    """
    every = [v for v in g.initializers.values() if _is_matrix(v)]
    count = 0
    for table in (v for v in every if any(n.op_type == "Gather" and not n.domain and i == 0 for n, i in v.uses())):
        for other in every:
            if other is not table and _only_multiplied(other, g) and _transposed(table, other):
                _tie(g, table, other)
                count += 1
    return count


def _is_matrix(value: ir.Value) -> bool:
    tensor = graph.const_tensor(value)
    return tensor is not None and len(tensor.shape) == 2 and tensor.nbytes >= LEAST and tensor.dtype.bitwidth >= 8


def _only_multiplied(value: ir.Value, g: ir.Graph) -> bool:
    uses = value.uses()
    alone = all(n.op_type == "MatMul" and not n.domain and i == 1 and n.graph is g for n, i in uses)
    return bool(uses) and alone and not value.is_graph_output()


def _transposed(table: ir.Value, other: ir.Value) -> bool:
    """Whether one is the other's transpose, bit by bit; a row and a column tell most apart."""
    a, b = graph.const_tensor(table), graph.const_tensor(other)
    assert a is not None and b is not None
    if a.dtype != b.dtype or tuple(a.shape.numpy()) != tuple(b.shape.numpy())[::-1]:
        return False
    equal = all(np.array_equal(x, y) for x, y in _pieces(_bits(a), _bits(b).T))
    for tensor in (a, b):
        release_tensor(tensor)
    return equal


def _bits(tensor: ir.TensorProtocol) -> np.ndarray:
    array = tensor.numpy()
    return array.view(f"u{array.dtype.itemsize}")


def _pieces(a: np.ndarray, b: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    yield a[0], b[0]
    yield a[:, 0], b[:, 0]
    step = max(1, BLOCK // a.shape[1])
    for k in range(0, a.shape[0], step):
        yield a[k : k + step], b[k : k + step]


def _tie(g: ir.Graph, table: ir.Value, other: ir.Value) -> None:
    first = next(n for n in g if any(v is other for v in n.inputs))
    hint = f"{table.name}_transposed"
    made = graph.insert_before(first, "Transpose", [table], {"perm": (1, 0)}, like=other, hint=hint)
    graph.replace_value(other, made.outputs[0])
    assert other.name is not None
    g.initializers.pop(other.name)
