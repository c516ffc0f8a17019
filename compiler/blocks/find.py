"""Residual blocks of a graph: sums of a stream and a branch that is computed from it, `x + f(x)`, by structure alone.

Two paths lead from a value to an Add: a short one that changes nothing, or only fits shapes, and a long one with
weights. What the stream was itself summed from counts as the stream, too: in `x + attention(x) + mlp(x)` both are
branches of x.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import onnx_ir as ir

from ..cost.products import MACS, operator
from ..cost.sizes import Sizes
from ..graph import is_const, producer, subgraphs

SIZES = frozenset({"Shape", "Size"})
"""What is computed from these depends on how large a value is, not on what is in it."""
SUMS = frozenset({"Add", "Sum"})
PASSES = frozenset({"Identity", "Dropout", "Cast", "Relu", "Clip"})
"""What a stream may go through between two sums of it and still count as the same."""
FITS = frozenset({
    "AveragePool", "BatchNormalization", "Cast", "Dropout", "Flatten", "Gemm", "Conv", "GlobalAveragePool", "Identity",
    "MatMul", "MaxPool", "Pad", "Reshape", "Resize", "Slice", "Squeeze", "Transpose", "Unsqueeze",
})  # fmt: skip
"""What a shortcut may be made of that fits the stream to the shape of the branch."""
STREAM_SUMS = 3
"""How many sums back a stream is followed."""
SHORTCUT = 8
"""How many nodes a shortcut may have."""


@dataclass(frozen=True, eq=False)
class Block:
    """`add` = stream + branch.

    Attributes:
        stream: what is left of the sum without the branch; as large as the sum.
        branch: what is zero once the block is masked.
        inside: the nodes between, on the way from the stream to the branch.
    """

    add: ir.Node
    stream: ir.Value
    branch: ir.Value
    inside: tuple[ir.Node, ...]

    @property
    def name(self) -> str:
        return self.add.name or self.add.outputs[0].name or ""


def residual_blocks(model: ir.Model, sizes: Sizes | None = None) -> list[Block]:
    """The blocks of the main graph, in its order. Nested ones are all there.

    A block's branch multiplies with weights at least once, has no other reader than the sum, and the sum is as large
    as the stream, whatever the free dimensions are.
    """
    sizes = sizes or Sizes(model)
    order = {node: i for i, node in enumerate(model.graph)}
    found = []
    for node in model.graph:
        if node.domain == "" and node.op_type in SUMS and len(node.inputs) == 2:
            block = _block(node, order, sizes)
            if block is not None:
                found.append(block)
    return found


def _block(add: ir.Node, order: dict[ir.Node, int], sizes: Sizes) -> Block | None:
    a, b = add.inputs
    if a is None or b is None or a is b or is_const(a) or is_const(b):
        return None
    for stream, branch in ((a, b), (b, a)):
        if _whole(add, stream, branch, sizes):
            inside = _between(branch, _carried(stream), order)
            if inside is not None and _linear(inside):
                return Block(add, stream, branch, tuple(inside))
    for stream, branch in ((a, b), (b, a)):
        if _whole(add, stream, branch, sizes):
            block = _projected(add, stream, branch, order)
            if block is not None:
                return block
    return None


def _whole(add: ir.Node, stream: ir.Value, branch: ir.Value, sizes: Sizes) -> bool:
    """Whether the sum without the branch is the stream, and nobody else reads the branch."""
    dims = sizes.dims(stream)
    alone = len(branch.uses()) == 1 and not branch.is_graph_output()
    return alone and dims is not None and dims == sizes.dims(add.outputs[0])


def _carried(stream: ir.Value) -> set[ir.Value]:
    """The stream and what it was summed from, a few sums back."""
    found, level = {stream}, [stream]
    for _ in range(STREAM_SUMS):
        above = [v for value in level for v in _summands(value)]
        level = [v for v in above if v not in found]
        found.update(level)
    return found


def _summands(value: ir.Value) -> Iterator[ir.Value]:
    node = producer(value, *SUMS, *PASSES)
    if node is not None:
        yield from (v for v in node.inputs if v is not None and not is_const(v))


def _between(branch: ir.Value, ends: set[ir.Value], order: dict[ir.Node, int]) -> list[ir.Node] | None:
    """The nodes that lead from any of `ends` to the branch; None where none does. Sizes lead nowhere."""
    makers = [order.get(p, -1) for v in ends if (p := v.producer()) is not None]
    floor = min(makers) if len(makers) == len(ends) else -1
    seen: set[ir.Node] = set()
    stack, reached = [branch], False
    while stack:
        value = stack.pop()
        if value in ends:
            reached = True
            continue
        node = value.producer()
        if node is None or node in seen or order.get(node, -1) <= floor or node.op_type in SIZES:
            continue
        seen.add(node)
        stack += [v for v in node.inputs if v is not None]
        stack += [v for g in subgraphs(node) for n in g.all_nodes() for v in n.inputs if v is not None]
    return sorted(seen, key=lambda n: order.get(n, -1)) if reached else None


def _linear(inside: list[ir.Node]) -> int:
    """How many operators multiply with weights, or what can have some inside."""
    return sum(operator(n) in MACS for n in inside)


def _projected(add: ir.Node, stream: ir.Value, branch: ir.Value, order: dict[ir.Node, int]) -> Block | None:
    """A block whose stream is a short path of its own, such as a convolution that fits the number of channels.

    What lies on the long path must be read there only: two levels of a pyramid that are added are no block.
    """
    chain: list[ir.Node] = []
    value = stream
    while len(chain) < SHORTCUT:
        node = producer(value, *FITS)
        if node is None or _linear([*chain, node]) > 1 or not node.inputs:
            break
        chain.append(node)
        source = node.inputs[0]
        if source is None or is_const(source):
            break
        value = source
        inside = _between(branch, {value}, order)
        if inside is None or any(n in inside for n in chain):
            continue
        enclosed = {*inside, add}
        if _linear(inside) > 1 and all(
            user in enclosed or user.op_type in SIZES for n in inside for o in n.outputs for user, _ in o.uses()
        ):
            return Block(add, stream, branch, tuple(inside))
        return None
    return None
