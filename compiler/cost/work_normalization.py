"""What normalisations, softmax and the losses made of it cost, as their definition is written out; see docs/cost.md."""

from __future__ import annotations

from collections.abc import Callable

from .. import dims as d
from ..dims import Dim
from .node import Op, Unknown, plus, times
from .work import Row, Work, less, per, rows


def _softmax(log: bool) -> Callable[[Op, Dim], Work]:
    def rule(op: Op, macs: Dim) -> Work:
        dims = op.x()
        x, r = d.product(dims), rows(dims, op.attr("axis", -1))
        return Work(less(d.mul(x, 4), d.mul(r, 2)), plus(x, r) if log else x)

    return rule


def _slices(op: Op) -> Dim:
    """How many slices a LayerNormalization or RMSNormalization makes alike."""
    dims = op.x()
    axis = op.attr("axis", -1)
    return d.product(dims[: axis % len(dims)])


def _layer_norm(op: Op, macs: Dim) -> Work:
    kept = len(op.outputs) > 2 and bool(op.outputs[2].uses() or op.outputs[2].is_graph_output())
    return Work(plus(d.mul(op.n_in(), 6 + op.has(2)), d.mul(_slices(op), 4 + kept)))


def _group_norm(op: Op, macs: Dim) -> Work:
    dims = op.x()
    groups = op.attr("num_groups") if op.node.op_type == "GroupNormalization" else dims[1]
    return Work(plus(d.mul(d.product(dims), 7), times(4, dims[0], groups)))


def _batch_norm(op: Op, macs: Dim) -> Work:
    if op.attr("training_mode", 0):
        raise Unknown("training mode is not counted")
    return Work(plus(d.mul(op.n_in(), 4), d.mul(op.n_in(1), 2)))


def _mean_variance(op: Op, macs: Dim) -> Work:
    dims = op.x()
    axes = {a % len(dims) for a in op.attr("axes", (0, 2, 3))}
    slices = d.product([size for i, size in enumerate(dims) if i not in axes])
    return Work(plus(d.mul(d.product(dims), 5), d.mul(slices, 4)))


def _lp_norm(op: Op, macs: Dim) -> Work:
    dims = op.x()
    return Work(less(d.mul(d.product(dims), 3), rows(dims, op.attr("axis", -1)) if op.attr("p", 2) == 1 else 0))


def _lrn(op: Op, macs: Dim) -> Work:
    return per(op, op.n_in(), op.attr("size") + 3, 1)


def _loss(op: Op, macs: Dim) -> Work:
    labels, weighted = op.n_in(1), op.has(2)
    flops = plus(labels, labels if weighted else 0)
    kind = op.attr("reduction", "mean")
    if kind != "none":
        flops = plus(flops, labels, -1)
    if kind == "mean":
        flops = plus(flops, labels if weighted else 1)
    if op.node.op_type != "SoftmaxCrossEntropyLoss":
        return Work(flops)
    x = op.n_in()
    return Work(plus(flops, d.mul(x, 4), d.mul(labels, -2)), plus(x, labels))


_NORMALISED = "7 x + 4 r: two means, squares, variance, root, quotient, scale and bias"

ROWS: dict[str, Row] = {
    "BatchNormalization": Row("4 x, and 2 for each channel", _batch_norm),
    "GroupNormalization": Row(_NORMALISED, _group_norm),
    "InstanceNormalization": Row(_NORMALISED, _group_norm),
    "LRN": Row("(size + 3) x + x special", _lrn),
    "LayerNormalization": Row(f"{_NORMALISED} (6 x without bias)", _layer_norm),
    "LogSoftmax": Row("4 x - 2 r + (x + r) special", _softmax(True)),
    "LpNormalization": Row("p = 1: 3 x - r; p = 2: 3 x", _lp_norm),
    "MeanVarianceNormalization": Row("5 x + 4 r", _mean_variance),
    "NegativeLogLikelihoodLoss": Row("per label a sign, a weight, and the sum or mean", _loss),
    "RMSNormalization": Row(
        "4 x + 2 r: squares, mean, root, quotient, scale",
        lambda op, macs: Work(plus(d.mul(op.n_in(), 4), d.mul(_slices(op), 2))),
    ),
    "Softmax": Row("4 x - 2 r + x special: maximum, difference, exponential, sum, quotient", _softmax(False)),
    "SoftmaxCrossEntropyLoss": Row("LogSoftmax and NegativeLogLikelihoodLoss", _loss),
}
