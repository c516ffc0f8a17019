"""Attention and rotary embedding: Core ML's fused operator where its form fits, else written out."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from .build import BOOL, Var
from .call import Call
from .ops_elementwise import spread
from .registry import lowers


@lowers("Attention", floats=(0, 1, 2, 4, 5))
def _attention(c: Call) -> list[Any]:
    """softmax(softcap(Q Kᵀ · scale) + mask) V, for [batch, heads, length, size] or [batch, length, heads · size]."""
    q, k, v = (_heads(c, i, n) for i, n in ((0, "q_num_heads"), (1, "kv_num_heads"), (2, "kv_num_heads")))
    present: list[Any] = [None, None]
    past = 0
    if c.has(4):
        past = c.shape(4)[2]
        k, v = (c.op("concat", values=[c.x(i), x], axis=2) for i, x in ((4, k), (5, v)))
    present = [k if c.used(1) else None, v if c.used(2) else None]
    groups = int(q.shape[1]) // int(k.shape[1])
    k, v = _repeat(c, k, groups), _repeat(c, v, groups)
    mask = _mask(c, q, k, past)
    size = int(q.shape[3])
    scale = c.attr("scale") or 1 / np.sqrt(size)
    fused = c.version >= 18 and not c.attr("softcap", 0.0) and not c.used(3) and _soft_type(c)
    if fused:
        # Core ML's scale is fixed at 1 / sqrt(size): what differs goes into the query.
        factor = float(scale * np.sqrt(size))
        query = q if abs(factor - 1) < 1e-6 else c.op("mul", x=q, y=factor)
        y = c.op("scaled_dot_product_attention", query=query, key=k, value=v, attn_mask=mask)
        return [_merge(c, y), *present, None]
    y, inner = _written_out(c, q, k, v, mask, float(scale))
    return [_merge(c, y), *present, inner]


def _soft_type(c: Call) -> bool:
    """Whether the softmax may be computed in the node's own precision."""
    wanted = c.attr("softmax_precision")
    return wanted is None or wanted == ir.DataType.FLOAT or c.half


def _heads(c: Call, i: int, attribute: str) -> Var:
    if c.rank(i) == 4:
        return c.x(i)
    batch, length, width = c.shape(i)
    heads = int(c.attr(attribute))
    return c.transpose(c.reshape(c.x(i), (batch, length, heads, width // heads)), (0, 2, 1, 3))


def _merge(c: Call, y: Var) -> Var:
    if c.rank() == 4:
        return y
    return c.reshape(c.transpose(y, (0, 2, 1, 3)), c.out_shape())


def _repeat(c: Call, x: Var, groups: int) -> Var:
    """Each key and value head for all query heads of its group."""
    if groups == 1:
        return x
    b, h, n, e = (int(d) for d in x.shape)
    wide = c.op("tile", x=c.reshape(x, (b, h, 1, n * e)), reps=[1, 1, groups, 1])
    return c.reshape(wide, (b, h * groups, n, e))


def _mask(c: Call, q: Var, k: Var, past: int) -> Var | None:
    """What may be seen, from the mask input, `is_causal` and the number of valid keys: bool, or float to be added."""
    batch, _, rows, _ = (int(d) for d in q.shape)
    cols = int(k.shape[2])
    seen: Var | None = None
    if c.attr("is_causal", 0):
        allowed = np.tril(np.ones((rows, cols), np.bool_), past)
        seen = c.tensor(allowed.reshape(1, 1, rows, cols))
    if c.has(6):
        lengths = c.reshape(c.x(6), (batch, 1, 1, 1))
        valid = c.op("less", x=c.tensor(np.arange(cols, dtype=np.int32).reshape(1, 1, 1, cols)), y=lengths)
        seen = valid if seen is None else _both(c, seen, valid)
    if not c.has(3):
        return seen
    given = c.x(3)
    shape = (1,) * (4 - c.rank(3)) + c.shape(3)
    given = c.reshape(given, shape)
    if shape[3] < cols and shape[3] != 1:
        given = _extend(c, given, shape, cols)
    if seen is None:
        return given
    if c.builder.dtype(given) == BOOL:
        return _both(c, seen, given)
    full = tuple(np.broadcast_shapes(tuple(int(d) for d in seen.shape), tuple(int(d) for d in given.shape)))
    given = given if tuple(given.shape) == full else spread(c, given, full)
    return c.op("select", cond=spread(c, seen, full), a=given, b=float("-inf"))


def _extend(c: Call, mask: Var, shape: tuple[int, ...], cols: int) -> Var:
    """Keys beyond a short mask can't be seen."""
    block = (*shape[:3], cols - shape[3])
    if c.builder.dtype(mask) == BOOL:
        rest = c.tensor(np.zeros(block, np.bool_))
    else:
        rest = c.tensor(np.full(block, -np.inf, np.float32))
    return c.op("concat", values=[mask, rest], axis=3)


def _both(c: Call, a: Var, b: Var) -> Var:
    return c.op("logical_and", x=a, y=b)


def _written_out(c: Call, q: Var, k: Var, v: Var, mask: Var | None, scale: float) -> tuple[Var, Var | None]:
    """The result and, if asked for, the scores: raw, softcapped, masked or normalised, as `qk_matmul_output_mode` says.

    Query and key each get the square root of the scale, as in the standard's body: float16 products stay small.
    """
    half = float(np.sqrt(abs(scale)))
    left = c.op("mul", x=q, y=half if scale > 0 else -half)
    scores = c.op("matmul", x=left, y=c.op("mul", x=k, y=half), transpose_y=True)
    stages = [scores]
    cap = float(c.attr("softcap", 0.0))
    if cap:
        scores = c.op("mul", x=c.op("tanh", x=c.op("mul", x=scores, y=1 / cap)), y=cap)
    capped = scores
    if mask is not None:
        if c.builder.dtype(mask) == BOOL:
            shape = tuple(int(d) for d in scores.shape)
            scores = c.op("select", cond=spread(c, mask, shape), a=scores, b=float("-inf"))
        else:
            scores = c.op("add", x=scores, y=mask)
    weights = c.op("softmax", x=scores, axis=3)
    stages += [scores, capped, weights]
    mode = int(c.attr("qk_matmul_output_mode", 0))
    return c.op("matmul", x=weights, y=v), stages[mode] if c.used(3) else None


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
