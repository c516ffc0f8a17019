"""Multiply-accumulates of one node, exactly, from shapes alone.

One MAC is one multiplication whose product is added to a sum: of convolutions, matrix products, einsum, attention and
the matrix products of recurrent cells. Element-wise work, normalisation, softmax, biases and pooling are no MACs.
See docs/cost.md for sources.
"""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from .. import dims as d
from ..dims import Dim
from .node import Measures, Op, Unknown, exactly, plus, times


def operator(node: ir.Node) -> str:
    """The name under which the tables of costs know an operator: `domain::Name` outside the standard's own domain."""
    domain = node.domain
    return f"{domain}::{node.op_type}" if domain else node.op_type


def node_macs(node: ir.Node, sizes: Measures) -> Dim | None:
    """Multiply-accumulates of one node in one run, without the graphs inside it. None where a size is not known.

    An operator that is not in the table has none: whether it is a known operator is the business of `arithmetic`.
    """
    rule = MACS.get(operator(node))
    if rule is None:
        return 0
    try:
        return rule(Op(node, sizes))
    except Unknown:
        return None


# --- formulas --------------------------------------------------------------------------------------------------------


def _conv(weight: int) -> Callable[[Op], Dim]:
    """Each output element is the dot product of one filter: of the weight but for its first axis."""
    return lambda op: times(op.n_out(), *op.x(weight)[1:])


def _conv_transpose(op: Op) -> Dim:
    """Each input element is multiplied with one filter and added into the output."""
    return times(op.n_in(), *op.x(1)[1:])


def _gemm(op: Op) -> Dim:
    return times(op.n_out(), op.x()[0 if op.attr("transA", 0) else 1])


def _matmul(op: Op) -> Dim:
    return times(op.n_out(), op.x()[-1])


def _recurrent(op: Op) -> Dim:
    """Per step and sample every element of W and R once; padded steps count. Peepholes and biases are element-wise."""
    steps, batch = op.x()[:2]
    return times(steps, batch, plus(op.n_in(1), op.n_in(2)))


def attention_sizes(op: Op) -> tuple[Dim, Dim, Dim, Dim, Dim, Dim]:
    """batch, query heads, queries, keys (cached ones included), head size, value size of an Attention node."""
    q, k, v = op.x(0), op.x(1), op.x(2)
    if len(q) == 4:
        batch, heads, lines, head, keys, value = q[0], q[1], q[2], q[3], k[2], v[3]
    else:
        heads, kv = op.attr("q_num_heads", 0), op.attr("kv_num_heads", 0)
        batch, lines, head, keys, value = q[0], q[1], exactly(q[2], heads), k[1], exactly(v[2], kv)
    cached = op.x(4)[2] if op.has(4) else 0
    return batch, heads, lines, plus(keys, cached), head, value


def _attention(op: Op) -> Dim:
    """Queries times keys, and weights times values: batch x query heads x queries x keys x (head size + value size)."""
    batch, heads, lines, keys, head, value = attention_sizes(op)
    return times(batch, heads, lines, keys, plus(head, value))


def _einsum(op: Op) -> Dim:
    """n operands multiplied at once: (n - 1) x the product of all subscripts' extents."""
    terms = op.attr("equation").replace(" ", "").split("->")[0].split(",")
    sizes: dict[str, Dim] = {}
    for i, term in enumerate(terms):
        dims = op.x(i)
        head, dots, tail = term.partition("...")
        # Broadcast axes are aligned at their end, like numpy's: the last one is named "-1".
        middle = [str(i) for i in range(-(len(dims) - len(head) - len(tail)), 0)] if dots else []
        for label, size in zip([*head, *middle, *tail], dims, strict=True):
            if sizes.get(label, 1) == 1:
                sizes[label] = size
    return times(len(terms) - 1, *sizes.values())


def _linear(op: Op) -> Dim:
    """Each sample times all coefficients."""
    return times(*op.x()[:-1], len(op.attr("coefficients", ())))


MACS: dict[str, Callable[[Op], Dim]] = {
    # Every point of the grid times the matrix of its sample.
    "AffineGrid": lambda op: times(op.n_out(), op.x()[2]),
    "Attention": _attention,
    "Conv": _conv(1),
    "ConvInteger": _conv(1),
    "ConvTranspose": _conv_transpose,
    "DeformConv": _conv(1),
    "Einsum": _einsum,
    "GRU": _recurrent,
    "Gemm": _gemm,
    "LSTM": _recurrent,
    "MatMul": _matmul,
    "MatMulInteger": _matmul,
    "QLinearConv": _conv(3),
    # The second factor is input 3, but the sum runs over the first one's last axis.
    "QLinearMatMul": _matmul,
    "RNN": _recurrent,
    "ai.onnx.ml::LinearClassifier": _linear,
    "ai.onnx.ml::LinearRegressor": _linear,
}
"""Operator → its MACs in one run. A known operator that is not here has none."""


def costlier(a: Dim, b: Dim) -> bool | None:
    """Whether a > b; None where that depends on the sizes of free dimensions."""
    return d.less(b, a)
