"""What removal changes in operators that name counts, sizes or scales as attributes."""

from __future__ import annotations

import math

import onnx_ir as ir

from ..graph import attr
from .shrink import Shrinking, adapts


@adapts("Attention")
def _attention(s: Shrinking, node: ir.Node) -> None:
    """The heads that are left; the scale of scores stays what it was, though heads are smaller."""
    q, k = node.inputs[0], node.inputs[1]
    assert q is not None and k is not None and q.shape is not None and k.shape is not None
    flat = len(q.shape) == 3
    axis = 2 if flat else 3
    heads = attr(node, "q_num_heads") if flat else 1
    wide = q.shape[axis]
    if s.size(q, axis) in (None, wide) and s.size(k, axis) in (None, k.shape[axis]) and not _any(s, node):
        return
    if "scale" not in node.attributes and isinstance(wide, int):
        node.attributes["scale"] = ir.AttrFloat32("scale", 1 / math.sqrt(wide // heads))
    if flat:
        _count(s, node, "q_num_heads", q)
        _count(s, node, "kv_num_heads", k)


def _any(s: Shrinking, node: ir.Node) -> bool:
    return any(s.size(v, a) is not None for v in node.outputs if v.name for a in range(len(v.shape or ())))


def _count(s: Shrinking, node: ir.Node, name: str, value: ir.Value) -> None:
    """How many heads of a flat operand are left: those of its axis where anything is."""
    heads = s.heads(value, 2, attr(node, name))
    node.attributes[name] = ir.AttrInt64(name, heads)


@adapts("RotaryEmbedding")
def _rotary(s: Shrinking, node: ir.Node) -> None:
    x = node.inputs[0]
    assert x is not None and x.shape is not None
    if len(x.shape) == 3 and s.size(x, 2) is not None:
        _count(s, node, "num_heads", x)


@adapts("LSTM", "GRU", "RNN")
def _hidden(s: Shrinking, node: ir.Node) -> None:
    for k, value in enumerate(node.outputs):
        left = s.size(value, 3 if k == 0 else 2) if value.name else None
        if left is not None:
            node.attributes["hidden_size"] = ir.AttrInt64("hidden_size", left)
