"""Making a value zero by numbers alone: which constants have to be zero so that a branch computes nothing else."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ..channels.rules.elementwise import ZERO_TO_ZERO
from ..channels.shrink import replace_tensor
from ..graph import const, const_tensor, initializer, is_const
from ..weights import Scratch
from .find import SIZES, Block


@dataclass(frozen=True)
class Use:
    """A constant as input `index` of a node, that is to be `fill` all over."""

    node: ir.Node
    index: int
    fill: np.ndarray | int = 0


class Loud(Exception):
    """Why a value can't be made zero by changing constants."""


ONE = "one"
EVERY = "every"

FOLLOWS: dict[str, tuple[str, tuple[int, ...]]] = {
    "Conv": (ONE, (1, 0)), "ConvTranspose": (ONE, (1, 0)), "Gemm": (ONE, (1, 0)), "MatMul": (ONE, (1, 0)),
    "Mul": (ONE, (1, 0)), "Div": (ONE, (0,)), "Attention": (ONE, (2,)), "Einsum": (ONE, (1, 0)),
    "BatchNormalization": (ONE, (1,)), "LayerNormalization": (ONE, (1,)), "InstanceNormalization": (ONE, (1,)),
    "GroupNormalization": (ONE, (1,)), "RMSNormalization": (ONE, (1,)),
    "Add": (EVERY, (0, 1)), "Sub": (EVERY, (0, 1)), "Where": (EVERY, (1, 2)),
    **dict.fromkeys(
        ("AveragePool", "DepthToSpace", "Expand", "Flatten", "Gather", "GlobalAveragePool", "GlobalMaxPool", "MaxPool",
         "PRelu", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum", "Reshape", "Slice", "SpaceToDepth", "Split",
         "Squeeze", "Tile", "Transpose", "Unsqueeze", *(op for op in ZERO_TO_ZERO if op != "Shrink")),
        (ONE, (0,)),
    ),
}  # fmt: skip
"""Operator → which of these inputs must be zero, one or every, so that its result is; the first that can be."""

BIASES = {
    "Conv": 2, "ConvTranspose": 2, "Gemm": 2, "BatchNormalization": 2, "LayerNormalization": 2,
    "InstanceNormalization": 2, "GroupNormalization": 2,
}  # fmt: skip
"""Operators that add something on top → the input that is to be zero besides."""


def silencing(block: Block) -> list[Use]:
    """The constants that are to be zero so that the block's branch is. Raises Loud, saying where there is no way.

    Nobody but the branch may read what becomes zero on the way.
    """
    return _silencing(block.branch, _own(block))


def silencing_of(value: ir.Value, own: Collection[ir.Node]) -> list[Use]:
    """The same for a value that only the nodes `own` read, whatever they are."""
    return _silencing(value, set(own))


def _own(block: Block) -> set[ir.Node]:
    """The nodes inside that nobody needs but the sum, and the sum."""
    own = {block.add}
    for node in reversed(block.inside):
        users = {user for out in node.outputs for user, _ in out.uses()}
        if users <= own and not any(out.is_graph_output() for out in node.outputs):
            own.add(node)
    return own


def _silencing(value: ir.Value, own: set[ir.Node]) -> list[Use]:
    node = value.producer()
    if node is None:
        raise Loud(f"'{value.name}' comes from outside")
    if value.is_graph_output() or not all(user in own or user.op_type in SIZES for user, _ in value.uses()):
        raise Loud(f"'{value.name}' is read elsewhere, too")
    how = FOLLOWS.get(node.op_type) if node.domain == "" else None
    if node.op_type in ("Concat", "Sum", "Max", "Min", "Mean") and node.domain == "":
        how = EVERY, tuple(range(len(node.inputs)))
    if how is None:
        raise Loud(f"{node.name} ({node.op_type}) is not known to make zeros of zeros")
    kind, indices = how
    own = own | {node}
    found = _one(node, indices, own) if kind == ONE else [u for i in indices for u in _input(node, i, own)]
    bias = BIASES.get(node.op_type)
    if bias is not None and bias < len(node.inputs) and node.inputs[bias] is not None:
        found += _input(node, bias, own)
    return found


def _one(node: ir.Node, indices: tuple[int, ...], own: set[ir.Node]) -> list[Use]:
    why: Loud | None = None
    # What is a constant comes first: the zeros are then as near to the sum as can be.
    for i in sorted((i for i in indices if i < len(node.inputs)), key=lambda i: not _constant(node.inputs[i])):
        try:
            return _input(node, i, own)
        except Loud as e:
            why = why or e
    raise why or Loud(f"{node.name} ({node.op_type}) has no such input")


def _constant(value: ir.Value | None) -> bool:
    """Whether this is a constant, or one that is unpacked or turned."""
    while value is not None and not is_const(value):
        node = value.producer()
        if node is None or node.domain or node.op_type not in ("Cast", "DequantizeLinear", "Identity", "Transpose"):
            return False
        value = node.inputs[0]
    return value is not None


def _input(node: ir.Node, i: int, own: set[ir.Node]) -> list[Use]:
    value = node.inputs[i]
    if value is None:
        raise Loud(f"{node.name} ({node.op_type}) leaves out input {i}")
    if is_const(value):
        return [Use(node, i)]
    maker = value.producer()
    if maker is not None and maker.op_type == "DequantizeLinear" and is_const(maker.inputs[0]):
        return _packed(maker)
    return _silencing(value, own)


def _packed(node: ir.Node) -> list[Use]:
    """An unpacked constant is zero where the packed one is its zero point."""
    if len(node.outputs[0].uses()) > 1:
        raise Loud(f"'{node.outputs[0].name}' is read elsewhere, too")
    zero = const(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] is not None else None
    if len(node.inputs) > 2 and node.inputs[2] is not None and zero is None:
        raise Loud(f"{node.name}: its zero point is no constant")
    if zero is None or not zero.any():
        return [Use(node, 0)]
    if zero.size == 1:
        return [Use(node, 0, int(zero.reshape(())))]
    raise Loud(f"{node.name}: it has a zero point per channel")


def silence(uses: list[Use], scratch: Scratch | None = None) -> int:
    """Fill these constants; one with other readers is left to them. Returns how many were not yet so."""
    changed = 0
    for use in uses:
        value = use.node.inputs[use.index]
        assert value is not None
        tensor = const_tensor(value)
        if tensor is None:
            continue
        old = tensor.numpy()
        if old.size and (old == use.fill).all():
            continue
        changed += 1
        array = np.full(old.shape, use.fill, old.dtype)
        if len(value.uses()) == 1:
            replace_tensor(value, array, scratch)
        else:
            graph = use.node.graph
            assert isinstance(graph, ir.Graph)
            use.node.replace_input_with(use.index, initializer(graph, array, f"{value.name}_masked", scratch))
    return changed
