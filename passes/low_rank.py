"""Weights as products of two smaller ones: which there are, what they cost, and how to write them into the graph.

A *split* shares a weight's axes between two layers that follow each other. A matrix has one. A convolution of size
k x k has several: k x k, then 1 x 1; 1 x 1, then k x k; k x 1, then 1 x k; 1 x k, then k x 1. Between the two layers
are `rank` channels, and the weight, seen as a matrix of rows (of the second layer) x columns (of the first), is of that
rank.
"""

from __future__ import annotations

import fnmatch
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ..compiler import graph as g
from ..compiler.cost.node import Measures
from ..compiler.cost.products import node_macs
from ..compiler.cost.sizes import Sizes
from ..compiler.passbase import Context
from ..compiler.weights import Scratch

LAYERS = ("Conv", "Gemm", "MatMul")
NEUTRAL = {"strides": 1, "dilations": 1, "pads": 0}
"""A convolution's attributes along an axis on which it does nothing."""


@dataclass(frozen=True)
class Split:
    """A weight as a matrix of rows x columns.

    Attributes:
        dims: the weight's shape.
        order: its axes, those of the rows, then those of the columns.
        rows: how many of them are rows'.
        macs: multiply-accumulates of both layers, for each unit of rank, where that of free dimensions is 1.
        text: what the two layers are.
    """

    dims: tuple[int, ...]
    order: tuple[int, ...]
    rows: int
    macs: float
    text: str = "two matrices"

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        sizes = [self.dims[a] for a in self.order]
        return math.prod(sizes[: self.rows]), math.prod(sizes[self.rows :])

    def matrix(self, weight: np.ndarray) -> np.ndarray:
        """The weight as rows x columns."""
        return np.ascontiguousarray(weight.transpose(self.order)).reshape(self.shape)

    def weight(self, matrix: np.ndarray) -> np.ndarray:
        """The inverse of `matrix`."""
        sizes = [self.dims[a] for a in self.order]
        return np.ascontiguousarray(matrix.reshape(sizes).transpose(np.argsort(self.order)))


@dataclass(frozen=True)
class Candidate:
    """A weight that can be written as two, and all that read it.

    Attributes:
        value: the float32 initializer.
        readers: nodes and the input at which they read it.
        splits: the ways to do so, common to all readers.
        macs: of all readers as they are.
    """

    value: ir.Value
    readers: tuple[tuple[ir.Node, int], ...]
    splits: tuple[Split, ...]
    macs: float

    @property
    def name(self) -> str:
        return str(self.value.name)

    @property
    def parameters(self) -> int:
        return math.prod(self.splits[0].dims)

    def most(self, split: Split) -> int:
        """The largest rank that takes fewer multiply-accumulates, and fewer parameters, than the weight as it is."""
        by_macs = math.ceil(self.macs / split.macs) - 1 if split.macs else 0
        return min(by_macs, math.ceil(self.parameters / sum(split.shape)) - 1)

    def array(self) -> np.ndarray:
        """The numbers; mapped, not copied."""
        found = g.const(self.value)
        assert found is not None
        return found


def total_macs(model: ir.Model) -> float:
    """Of the whole model in one run, where free dimensions count as 1."""
    sizes = Sizes(model)
    return sum(_at_one(n, sizes) for n in g.nodes(model))


def candidates(model: ir.Model, min_size: int, keep: str, ctx: Context) -> list[Candidate]:
    """The weights that can be written as two, in the order of their first readers; notes say why others can't."""
    sizes = Sizes(model)
    patterns = [p for p in keep.split(";") if p]
    values: dict[ir.Value, None] = {}
    for node in g.nodes(model, *LAYERS):
        for value in node.inputs[:2]:
            tensor = None if value is None else g.const_tensor(value)
            if value is None or tensor is None or tensor.dtype != ir.DataType.FLOAT:
                continue
            if tensor.size >= min_size and len(tensor.shape) > 1:
                values[value] = None
    found = []
    for value in values:
        if any(fnmatch.fnmatchcase(str(value.name), p) for p in patterns):
            continue
        made = _candidate(value, sizes)
        if isinstance(made, str):
            ctx.note(f"weight '{value.name}' stays: {made}")
        elif made.splits:
            found.append(made)
    for p in patterns:
        if not any(fnmatch.fnmatchcase(str(v.name), p) for v in values):
            ctx.note(f"keep={p}: no weight has such a name")
    return found


def _candidate(value: ir.Value, sizes: Measures) -> Candidate | str:
    """The weight and its splits; why there are none, where that is worth saying."""
    readers = tuple((use.node, use.idx) for use in value.uses())
    if value.is_graph_output():
        return "it is an output"
    common: dict[tuple[tuple[int, ...], int], list[Split]] = {}
    for node, i in readers:
        found = _splits(node, i, sizes)
        if isinstance(found, str):
            return found
        for split in found:
            common.setdefault((split.order, split.rows), []).append(split)
    dense = sum(_at_one(node, sizes) for node, _ in dict(readers).items())
    splits = tuple(
        Split(s[0].dims, s[0].order, s[0].rows, sum(each.macs for each in s), s[0].text)
        for s in common.values()
        if len(s) == len(readers)
    )
    made = Candidate(value, readers, splits, dense) if splits else None
    if made is None:
        return "its readers disagree on what its rows are"
    return Candidate(value, readers, tuple(s for s in splits if made.most(s) >= 1), dense)


def _splits(node: ir.Node, i: int, sizes: Measures) -> list[Split] | str:
    """The ways to write the layer that `node` is as two."""
    value = node.inputs[i]
    tensor = None if value is None else g.const_tensor(value)
    if tensor is None or node.domain or node.op_type not in LAYERS or i > 1:
        return f"{node.op_type} '{node.name}' reads it, too"
    dims = tuple(tensor.shape.numpy())
    if node.op_type == "Conv" and i == 1:
        if g.attr(node, "group", 1) != 1:
            return f"'{node.name}' is a convolution in groups, which are written as two only by the channel"
        return list(_convolutions(node, dims, sizes))
    if node.op_type == "Conv" or g.is_const(node.inputs[1 - i]):
        return f"'{node.name}' reads it as its input"
    if len(dims) != 2:
        return f"'{node.name}' multiplies with a stack of matrices"
    turned = bool(g.attr(node, "transB" if i else "transA", 0))
    order = (0, 1) if (i == 0) != turned else (1, 0)
    places = _at_one(node, sizes) / max(1, math.prod(dims))
    return [Split(dims, order, 1, places * sum(dims))]


def _convolutions(node: ir.Node, dims: tuple[int, ...], sizes: Measures) -> Iterator[Split]:
    """The splits of a convolution: any of its axes of a kernel longer than 1 go to the first or to the second layer."""
    n = len(dims) - 2
    long = [d for d in range(n) if dims[2 + d] > 1]
    places = _at_one(node, sizes) / max(1, math.prod(dims))
    for count in range(len(long), -1, -1):
        for chosen in itertools.combinations(long, count):
            second = [d for d in long if d not in chosen]
            larger = [_larger(node, d, dims, sizes) for d in second]
            if any(each is None for each in larger):
                continue
            rows = (0, *(2 + d for d in second))
            columns = (1, *(2 + d for d in range(n) if d not in second))
            first = math.prod(dims[a] for a in columns) * math.prod(each or 1.0 for each in larger)
            macs = places * (first + math.prod(dims[a] for a in rows))
            yield Split(dims, (*rows, *columns), len(rows), macs, _text(dims, second))


def _text(dims: tuple[int, ...], second: Sequence[int]) -> str:
    kernels = [
        " x ".join(str(k if (d in second) == late else 1) for d, k in enumerate(dims[2:])) for late in (False, True)
    ]
    return f"{kernels[0]}, then {kernels[1]}"


def _larger(node: ir.Node, axis: int, dims: tuple[int, ...], sizes: Measures) -> float | None:
    """How much longer the input is than the output along a spatial axis, at most; None where nobody can tell."""
    x, y = sizes.dims(node.inputs[0]), sizes.dims(node.outputs[0])
    if x is not None and y is not None:
        before, after = x[2 + axis], y[2 + axis]
        if isinstance(before, int) and isinstance(after, int):
            return before / after if after > 0 else None
    stride = int(_along(node, "strides", axis, len(dims) - 2)[0])
    if str(g.attr(node, "auto_pad", "NOTSET")).startswith("SAME"):
        return float(stride)
    reach = (dims[2 + axis] - 1) * _along(node, "dilations", axis, len(dims) - 2)[0] + 1
    # output = floor((input + pads - reach) / stride) + 1 >= (input + pads - reach + 1) / stride
    return float(stride) if reach - sum(_along(node, "pads", axis, len(dims) - 2)) <= 1 else None


def _along(node: ir.Node, name: str, axis: int, n: int) -> list[int]:
    """What an attribute of a convolution says about one spatial axis; two numbers for pads."""
    found = g.attr(node, name) or [NEUTRAL[name]] * (2 * n if name == "pads" else n)
    return [int(found[axis]), int(found[n + axis])] if name == "pads" else [int(found[axis])]


def _at_one(node: ir.Node, sizes: Measures) -> float:
    """Multiply-accumulates where free dimensions count as 1, but at least those of one place of a layer's output."""
    found = node_macs(node, sizes)
    count = found if isinstance(found, int) else sum(c for _, c in found.terms) if found is not None else 0
    tensors = [g.const_tensor(v) for v in node.inputs[:2] if v is not None] if node.op_type in LAYERS else []
    return float(max(count, *(math.prod(t.shape.numpy()) for t in tensors if t is not None), 0))


def write(made: Candidate, split: Split, second: np.ndarray, first: np.ndarray, scratch: Scratch | None) -> None:
    """Put two layers in the place of every reader of a weight: `first`, rank x columns, then `second`, rows x rank."""
    graph = made.value.graph
    assert isinstance(graph, ir.Graph)
    node, i = made.readers[0]
    convolution = node.op_type == "Conv"
    if convolution:
        parts = _kernels(split, second, first)
    else:
        parts = (first, second) if split.order == (0, 1) else (first.T, second.T)
    ahead, behind = (
        g.initializer(graph, np.ascontiguousarray(p), f"{made.name}__{which}", scratch)
        for p, which in zip(parts, ("first", "second"), strict=True)
    )
    for node, i in made.readers:
        (_two_convolutions if convolution else _two_products)(node, i, split, ahead, behind)
    if not made.value.uses():
        graph.initializers.pop(made.name)


def _kernels(split: Split, second: np.ndarray, first: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    n, rank = len(split.dims) - 2, len(first)
    late = set(split.order[: split.rows])
    kernel = [[split.dims[2 + d] if (2 + d in late) == last else 1 for d in range(n)] for last in (False, True)]
    rows = [split.dims[a] for a in split.order[: split.rows]]
    turned = np.moveaxis(second.reshape(*rows, rank), -1, 1)
    return first.reshape(rank, split.dims[1], *kernel[0]), turned.reshape(split.dims[0], rank, *kernel[1])


def _two_convolutions(node: ir.Node, i: int, split: Split, ahead: ir.Value, behind: ir.Value) -> None:
    n = len(split.dims) - 2
    late = [2 + d in split.order[: split.rows] for d in range(n)]
    attributes: list[dict[str, list[int]]] = []
    for last, value in ((False, ahead), (True, behind)):
        here = {"kernel_shape": list(value.shape.numpy()[2:])}  # type: ignore[union-attr]
        for name, neutral in NEUTRAL.items():
            if g.attr(node, name) is None:
                continue
            each = [_along(node, name, d, n) if late[d] == last else [neutral] * 2 for d in range(n)]
            here[name] = [e[0] for e in each] + ([e[1] for e in each] if name == "pads" else [])
        attributes.append(here)
    pad = {"auto_pad": g.attr(node, "auto_pad")} if g.attr(node, "auto_pad") else {}
    inner = g.insert_before(
        node, "Conv", [node.inputs[0], ahead], {**attributes[0], **pad}, hint=f"{node.outputs[0].name}__low"
    )
    inner.outputs[0].type = node.outputs[0].type
    for name, numbers in attributes[1].items():
        node.attributes[name] = ir.AttrInt64s(name, numbers)
    node.replace_input_with(0, inner.outputs[0])
    node.replace_input_with(i, behind)


def _two_products(node: ir.Node, i: int, split: Split, ahead: ir.Value, behind: ir.Value) -> None:
    operands = [node.inputs[0], node.inputs[1]]
    operands[i] = ahead
    kept = {a: g.attr(node, a) for a in ("alpha", "transA", "transB") if g.attr(node, a) is not None}
    inner = g.insert_before(node, node.op_type, operands, kept, hint=f"{node.outputs[0].name}__low")
    inner.outputs[0].type = node.outputs[0].type
    # The first product has taken over the factor, and has turned the other operand.
    for name in ("alpha", "transA" if i else "transB"):
        node.attributes.pop(name, None)
    node.replace_input_with(1 - i, inner.outputs[0])
    node.replace_input_with(i, behind)
