"""Constant scales and shifts along some axes, taken into the normalisation in front of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from ..compiler import graph as g


@dataclass
class Affine:
    """`end` is a normalised value times `scale` plus `bias`, arrays over the normalised axes; `nodes` make it."""

    end: ir.Value
    scale: np.ndarray | None = None
    bias: np.ndarray | None = None
    nodes: list[ir.Node] = field(default_factory=list)

    def scale_or_ones(self, sizes: Sequence[int]) -> np.ndarray:
        return np.ones(sizes) if self.scale is None else self.scale

    def bias_or_zeros(self, sizes: Sequence[int]) -> np.ndarray:
        return np.zeros(sizes) if self.bias is None else self.bias


def absorb(value: ir.Value, rank: int, axes: Sequence[int], sizes: Sequence[int], *, shift: bool = True) -> Affine:
    """A Mul and (with `shift`) an Add that alone follow `value`, with constants that vary along `axes` only."""
    found = Affine(value)
    for op_type in ("Mul", "Add") if shift else ("Mul",):
        node = g.sole_user(found.end, op_type)
        if node is None:
            continue
        other = node.inputs[1] if node.inputs[0] is found.end else node.inputs[0]
        array = as_axes(other, rank, axes, sizes)
        if array is None or g.rank(node.outputs[0]) != rank:
            continue
        if op_type == "Mul":
            found.scale = array
        else:
            found.bias = array
        found.end = node.outputs[0]
        found.nodes.append(node)
    return found


def as_axes(value: ir.Value | None, rank: int, axes: Sequence[int], sizes: Sequence[int]) -> np.ndarray | None:
    """A constant that broadcasts to `rank` dimensions as an array over `axes`, if it varies along no other."""
    tensor = None if value is None else g.const_tensor(value)
    if tensor is None or len(tensor.shape) > rank:
        return None
    array = tensor.numpy()
    shape = (1,) * (rank - array.ndim) + array.shape
    size_at = dict(zip(axes, sizes, strict=True))
    if any(d not in (1, size_at.get(i, 1)) for i, d in enumerate(shape)):
        return None
    return np.broadcast_to(array.reshape([shape[i] for i in axes]), tuple(sizes))
