"""Attention: Core ML's fused operator where its form fits, else written out. Semantics: Attention-25."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from .build import BOOL, I32, Var
from .call import Call
from .ops_elementwise import spread
from .registry import lowers


@dataclass(frozen=True)
class Mask:
    """What may be attended: a bool or float mask that broadcasts to the scores, and which rows see nothing at all.

    Attributes:
        mask: bool (True: attend), or float to be added; None: everything.
        alive: 1 for rows that see something, else 0, [.., rows, 1]; None: all rows do.
    """

    mask: Var | None
    alive: Var | None


@lowers("Attention", floats=(0, 1, 2, 3, 4, 5))
def _attention(c: Call) -> list[Any]:
    """softmax(softcap(Q Kᵀ · scale) + mask) V, for [batch, heads, length, size] or [batch, length, heads · size]."""
    q, k, v = (_heads(c, i, n) for i, n in ((0, "q_num_heads"), (1, "kv_num_heads"), (2, "kv_num_heads")))
    past = 0
    if c.has(4):
        past = c.shape(4)[2]
        k, v = (c.op("concat", values=[c.x(i), x], axis=2) for i, x in ((4, k), (5, v)))
    present = [k if c.used(1) else None, v if c.used(2) else None]
    groups = int(q.shape[1]) // int(k.shape[1])
    k, v = _repeat(c, k, groups), _repeat(c, v, groups)
    mask = _mask(c, q, k, past)
    size = int(q.shape[3])
    scale = float(c.attr("scale") or 1 / np.sqrt(size))
    if c.version >= 18 and not c.attr("softcap", 0.0) and not c.used(3) and _own_precision(c):
        # Core ML's scale is fixed at 1 / sqrt(size): what differs goes into the query.
        factor = float(scale * np.sqrt(size))
        query = q if abs(factor - 1) < 1e-6 else c.op("mul", x=q, y=factor)
        y = c.op("scaled_dot_product_attention", query=query, key=k, value=v, attn_mask=mask.mask)
        inner = None
    else:
        y, inner = _written_out(c, q, k, v, mask, scale)
    if mask.alive is not None:
        y = c.op("mul", x=y, y=mask.alive)
    return [_merge(c, y), *present, inner]


def _own_precision(c: Call) -> bool:
    """Whether the softmax may be computed in the node's own precision."""
    wanted = c.attr("softmax_precision")
    return wanted is None or wanted in (ir.DataType.FLOAT, ir.DataType.DOUBLE) or c.half


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


# The mask


def _mask(c: Call, q: Var, k: Var, past: int) -> Mask:
    """The mask input, `is_causal`, the windows and the number of valid keys in one. Made once for all that share it."""
    b, _, rows, _ = (int(d) for d in q.shape)
    cols = int(k.shape[2])
    sides = (int(c.attr("left_window_size", -1)), int(c.attr("right_window_size", -1)))
    causal = bool(c.attr("is_causal", 0))
    # By variable, not by value: in a loop that is written out a value holds another variable in each turn.
    key = ("attention", c.opt(3), c.opt(6), b, rows, cols, past, sides, causal, c.half)
    found: Mask | None = c.builder.memory.get(key)
    if found is None:
        found = c.builder.memory[key] = _make_mask(c, _Positions(b, rows, cols, past, sides, causal))
    return found


@dataclass(frozen=True)
class _Positions:
    batch: int
    rows: int
    cols: int
    past: int
    sides: tuple[int, int]
    causal: bool


def _make_mask(c: Call, p: _Positions) -> Mask:
    given = _given(c, p.cols)
    fixed, seen = _by_position(c, p)
    dynamic_rows = seen is not None
    if fixed is not None:
        block = c.tensor(fixed.reshape(1, 1, p.rows, p.cols))
        seen = block if seen is None else c.op("logical_and", x=seen, y=block)
        dynamic_rows = dynamic_rows or not fixed.any(1).all()
    if given is None:
        return _guarded(c, seen) if dynamic_rows else Mask(seen, None)
    if c.is_const(3) and seen is None:
        array = c.array(3)
        allowed = array if array.dtype == np.bool_ else ~np.isneginf(array)
        return Mask(given, None) if allowed.any(-1).all() else _guarded(c, given)
    if seen is None:
        return _guarded(c, given)
    if c.builder.dtype(given) == BOOL:
        return _guarded(c, c.op("logical_and", x=seen, y=given))
    full = tuple(np.broadcast_shapes(_sizes(seen), _sizes(given)))
    return _guarded(c, c.op("select", cond=spread(c, seen, full), a=spread(c, given, full), b=float("-inf")))


def _sizes(x: Var) -> tuple[int, ...]:
    return tuple(int(d) for d in x.shape)


def _by_position(c: Call, p: _Positions) -> tuple[np.ndarray | None, Var | None]:
    """What the causal rule and the windows allow: fixed, unless the number of valid keys decides where a query is."""
    left, right = p.sides
    bounds = [("less_equal", 0)] if p.causal else []
    bounds += [("greater_equal", -left)] if left >= 0 else []
    bounds += [("less_equal", right)] if right >= 0 else []
    if not c.has(6):
        at = np.arange(p.cols)[None] - np.arange(p.rows)[:, None] - p.past
        rules = [at <= n if name == "less_equal" else at >= n for name, n in bounds]
        return (np.logical_and.reduce(rules) if rules else None), None
    valid = c.reshape(c.cast(c.x(6), I32), (p.batch, 1, 1, 1))
    columns = c.tensor(np.arange(p.cols, dtype=np.int32).reshape(1, 1, 1, p.cols))
    seen = c.op("less", x=columns, y=valid)
    relative = np.arange(p.cols)[None] - np.arange(p.rows)[:, None] + p.rows
    at = c.op("sub", x=c.tensor(relative.reshape(1, 1, p.rows, p.cols).astype(np.int32)), y=valid)
    for name, n in bounds:
        seen = c.op("logical_and", x=seen, y=c.op(name, x=at, y=np.int32(n)))
    return None, seen


def _given(c: Call, cols: int) -> Var | None:
    """The mask input in four dimensions; keys beyond a short one can't be seen."""
    if not c.has(3):
        return None
    shape = (1,) * (4 - c.rank(3)) + c.shape(3)
    mask = c.reshape(c.x(3), shape)
    if shape[3] in (1, cols):
        return mask if shape[3] == cols else spread(c, mask, (*shape[:3], cols))
    block = np.zeros((*shape[:3], cols - shape[3]), np.bool_)
    rest = c.tensor(block) if c.builder.dtype(mask) == BOOL else c.tensor(np.full(block.shape, -np.inf, np.float32))
    return c.op("concat", values=[mask, rest], axis=3)


def _guarded(c: Call, mask: Var) -> Mask:
    """A row that sees nothing gives zeros: it is unmasked for the softmax, which would be 0 / 0, and zeroed after."""
    if c.builder.dtype(mask) == BOOL:
        number = c.cast(mask, I32)
        alive = c.op("reduce_max", x=number, axes=[3], keep_dims=True)
        dead = c.op("equal", x=alive, y=np.int32(0))
        return Mask(c.op("logical_or", x=mask, y=dead), c.cast(alive, c.dtype))
    best = c.op("reduce_max", x=mask, axes=[3], keep_dims=True)
    dead = c.op("equal", x=best, y=float("-inf"))
    shape = _sizes(mask)
    open_mask = c.op("select", cond=spread(c, dead, shape), a=0.0, b=mask)
    return Mask(open_mask, c.cast(c.op("logical_not", x=dead), c.dtype))


# Without the fused operator


def _written_out(c: Call, q: Var, k: Var, v: Var, mask: Mask, scale: float) -> tuple[Var, Var | None]:
    """The result and, if asked for, the scores: raw, softcapped, with the mask or normalised (`qk_matmul_output_mode`).

    Query and key each get the square root of the scale, as in the standard's body: float16 products stay small.
    """
    half = float(np.sqrt(abs(scale)))
    left = c.op("mul", x=q, y=half if scale > 0 else -half)
    scores = c.op("matmul", x=left, y=c.op("mul", x=k, y=half), transpose_y=True)
    stages = [scores]
    cap = float(c.attr("softcap", 0.0))
    if cap:
        scores = c.op("mul", x=c.op("tanh", x=c.op("mul", x=scores, y=1 / cap)), y=cap)
    stages.append(scores)
    if mask.mask is not None:
        if c.builder.dtype(mask.mask) == BOOL:
            cond = spread(c, mask.mask, _sizes(scores))
            scores = c.op("select", cond=cond, a=scores, b=float("-inf"))
        else:
            scores = c.op("add", x=scores, y=mask.mask)
    stages.append(_dead_rows(c, scores, mask))
    weights = c.op("softmax", x=scores, axis=3)
    alive = weights if mask.alive is None else c.op("mul", x=weights, y=mask.alive)
    stages.append(alive)
    mode = int(c.attr("qk_matmul_output_mode", 0))
    return c.op("matmul", x=weights, y=v), stages[mode] if c.used(3) else None


def _dead_rows(c: Call, scores: Var, mask: Mask) -> Var:
    """The masked scores as they are shown: rows that see nothing are all -inf."""
    if mask.alive is None or not c.used(3) or c.attr("qk_matmul_output_mode", 0) != 2:
        return scores
    alive = spread(c, c.op("greater", x=mask.alive, y=0.0), _sizes(scores))
    return c.op("select", cond=alive, a=scores, b=float("-inf"))
