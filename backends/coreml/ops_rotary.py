"""Rotary position embedding."""

from __future__ import annotations

from .build import Var
from .call import Call
from .registry import lowers


@lowers("RotaryEmbedding", floats=(0, 1, 2))
def _rotary(c: Call) -> Var:
    """Pairs of numbers turned by the angle of their position: halves, or neighbours when interleaved."""
    shape = c.shape()
    heads = int(c.attr("num_heads", 0)) or shape[1]
    if len(shape) == 3:
        batch, length, width = shape
        x = c.reshape(c.x(), (batch, length, heads, width // heads))
    else:
        batch, _, length, _ = shape
        x = c.transpose(c.x(), (0, 2, 1, 3))
    size = int(x.shape[3])
    turned = int(c.attr("rotary_embedding_dim", 0)) or size
    cos, sin = (_angles(c, i, batch, length, turned // 2) for i in (1, 2))
    y = _turn(c, x, cos, sin, turned, bool(c.attr("interleaved", 0)))
    return c.reshape(y, shape) if len(shape) == 3 else c.transpose(y, (0, 2, 1, 3))


def _angles(c: Call, i: int, batch: int, length: int, half: int) -> Var:
    """cos or sin as [batch, length, 1, half]."""
    x = c.x(i)
    if c.has(3):
        x = c.op("gather", x=x, indices=c.x(3), axis=0)
    x = c.op("slice_by_index", x=x, begin=[0, 0, 0], end=[0, 0, half], end_mask=[True, True, False])
    return c.reshape(x, (int(x.shape[0]), length, 1, half))


def _turn(c: Call, x: Var, cos: Var, sin: Var, turned: int, interleaved: bool) -> Var:
    b, n, h, size = (int(d) for d in x.shape)
    rest = None
    if turned < size:
        x, rest = c.op("split", x=x, split_sizes=[turned, size - turned], axis=3)
    if interleaved:
        pairs = c.reshape(x, (b * n, h, turned // 2, 2))
        parts = c.op("split", x=pairs, num_splits=2, axis=3)
        one, two = (c.reshape(p, (b, n, h, turned // 2)) for p in parts)
    else:
        one, two = c.op("split", x=x, num_splits=2, axis=3)
    real = c.op("sub", x=c.op("mul", x=cos, y=one), y=c.op("mul", x=sin, y=two))
    imaginary = c.op("add", x=c.op("mul", x=sin, y=one), y=c.op("mul", x=cos, y=two))
    if interleaved:
        flat = [c.reshape(p, (b * n, h, turned // 2, 1)) for p in (real, imaginary)]
        y = c.reshape(c.op("concat", values=flat, axis=3), (b, n, h, turned))
    else:
        y = c.op("concat", values=[real, imaginary], axis=3)
    return y if rest is None else c.op("concat", values=[y, rest], axis=3)
