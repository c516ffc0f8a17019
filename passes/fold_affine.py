"""Constant Mul, Div, Add, Sub and Neg: into the linear operator next to them, or into one another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from ..compiler import graph as g
from ..compiler.passbase import Context, Pass
from .folding import FAR, absorb, remove, rescale
from .linear import FLOATS, VIEWS, Linear, linear_at, linear_of, through_view

_OPS = ("Mul", "Div", "Add", "Sub", "Neg")
_SMALL = 64
"""Elements up to which merging two constants may make a bigger one than either."""
_CANCEL = 1e-3
"""Two shifts whose sum is smaller than this part of either are not merged: the rounding in between is meant."""
_LONG = 4
"""Nodes looked at together: three is what a merged chain and one more come to."""


@dataclass(frozen=True)
class Affine:
    """`node` computes `data * scale + shift`; None stands for 1 and 0."""

    node: ir.Node
    data: ir.Value
    scale: np.ndarray | None
    shift: np.ndarray | None


@dataclass(frozen=True)
class FoldAffine(Pass):
    """Fold multiplications and additions of constants into the weights next to them.

    Before: `c = Conv(x, W, b); m = Mul(c, s); y = Add(m, t)`
    After:  `y = Conv(x, W * s, b * s + t)`

    The same behind ConvTranspose, Gemm, MatMul (with its Add) and normalizations, and before them where it is exact: no
    shift before zero padding, where `x * s + t` becomes `x + t / s`. A Transpose or Reshape may be between an operator
    and what is behind it. `x * 2 * 3` becomes `x * 6`; `(x + a) * b + c` becomes `x * b + (a * b + c)`. Only
    floating point, and only constants that are one number, or one per channel.
    """

    name: ClassVar[str] = "fold-affine"

    def run(self, model: ir.Model, ctx: Context) -> int:
        """Fold what can be folded; returns the number of nodes that went."""
        count = 0
        for node in g.nodes(model, *_OPS):
            found = affine_at(node)
            if found is not None:
                count += _fold_back(found, ctx) or _merge(found, ctx)
        for node in reversed(list(g.nodes(model, *_OPS))):
            found = affine_at(node)
            if found is not None:
                count += _fold_forward(found, ctx)
        return count


def affine_at(node: ir.Node) -> Affine | None:
    """What `node` multiplies by and adds, if it is a constant; None for others, for integers, NaN and infinity."""
    if node.op_type == "Neg" and node.inputs[0] is not None:
        known = node.outputs[0].dtype in FLOATS
        return Affine(node, node.inputs[0], np.array(-1.0), None) if known else None
    a, b = node.inputs
    constants = [i for i, v in enumerate((a, b)) if g.is_const(v)]
    if len(constants) != 1 or a is None or b is None:
        return None
    at = constants[0]
    tensor, data = g.const_tensor((a, b)[at]), (a, b)[1 - at]
    if tensor is None or tensor.dtype not in FLOATS:
        return None
    c = tensor.numpy().astype(np.float64)
    if not np.isfinite(c).all():
        return None
    match node.op_type, at:
        case "Mul", _:
            return Affine(node, data, c, None)
        case "Div", 1 if c.all():
            return Affine(node, data, 1.0 / c, None)
        case "Add", _:
            return Affine(node, data, None, c)
        case "Sub", 1:
            return Affine(node, data, None, -c)
        case "Sub", 0:
            return Affine(node, data, np.array(-1.0), c)
    return None


def _fold_back(affine: Affine, ctx: Context) -> int:
    """Into the operator whose result is multiplied or added to, perhaps after a Transpose or a Reshape."""
    node, data, out = affine.node, affine.data, affine.node.outputs[0]
    value, scale, shift = data, affine.scale, affine.shift
    linear = None
    for _ in range(_LONG):
        if not g.used_once(value):
            return 0
        linear, view = linear_of(value), g.producer(value, *VIEWS)
        if linear is not None or view is None or view.inputs[0] is None:
            break
        scale, shift = through_view(scale, view), through_view(shift, view)
        if (scale is None) != (affine.scale is None) or (shift is None) != (affine.shift is None):
            return 0
        value = view.inputs[0]
    if linear is None or linear.node.graph is not node.graph or not g.can_replace(out, data):
        return 0
    if value is not data and not _keeps_shape(affine, data):
        return 0
    if not rescale(linear, scale, shift, ctx):
        return 0
    g.replace_value(out, data)
    remove(node)
    return 1


def _keeps_shape(affine: Affine, data: ir.Value) -> bool:
    """Whether the constants don't broadcast `data` to more dimensions or bigger ones."""
    dims = g.shape(data)
    constants = [c.shape for c in (affine.scale, affine.shift) if c is not None]
    return dims is not None and all(
        len(c) <= len(dims) and all(n in (1, d) for n, d in zip(c[::-1], dims[::-1], strict=False)) for c in constants
    )


def _fold_forward(affine: Affine, ctx: Context) -> int:
    """Into all the operators that read the result."""
    node, data, out = affine.node, affine.data, affine.node.outputs[0]
    readers = [] if out.is_graph_output() else [linear_at(user) for user in g.users(out)]
    linears = [r for r in readers if r is not None and r.data is out and r.node.graph is node.graph]
    if not linears or len(linears) != len(out.uses()) or not _keeps_shape(affine, data):
        return 0
    if not absorb(linears, affine.scale, affine.shift, ctx):
        return 0 if affine.shift is None else _swap(affine, linears, ctx)
    g.replace_value(out, data)
    remove(node)
    return 1


def _swap(last: Affine, linears: list[Linear], ctx: Context) -> int:
    """`x * s + t` before zero padding: `x + t / s` stays, and only the factor goes into the operators."""
    before = g.producer(last.data, *_OPS) if g.used_once(last.data) else None
    first = None if before is None or before.graph is not last.node.graph else affine_at(before)
    if first is None or first.scale is None or last.shift is None or last.scale is not None:
        return 0
    if first.shift is not None or not first.scale.all() or not _keeps_shape(first, first.data):
        return 0
    shift, dtype = last.shift / first.scale, last.node.outputs[0].dtype
    if dtype is None or np.abs(shift).max(initial=0) > FAR or not absorb(linears, first.scale, None, ctx):
        return 0
    _write([last, first], None, shift, ctx)
    return 1


def _merge(last: Affine, ctx: Context) -> int:
    """A chain of constant operations that ends in `last`: one Mul and one Add at most."""
    chain = [last]
    while len(chain) < _LONG and g.used_once(chain[-1].data):
        before = g.producer(chain[-1].data, *_OPS)
        found = None if before is None or before.graph is not last.node.graph else affine_at(before)
        if found is None:
            break
        chain.append(found)
    for length in range(len(chain), 1, -1):
        merged = _compose(chain[length - 1 :: -1], ctx)
        if merged is not None and (merged[0] is not None) + (merged[1] is not None) < length:
            return _write(chain[:length], *merged, ctx)
    return 0


def _compose(chain: list[Affine], ctx: Context) -> tuple[np.ndarray | None, np.ndarray | None] | None:
    """Scale and shift of the whole chain, first one first; None if they'd be big, inaccurate or out of range."""
    scale: np.ndarray | None = None
    shift: np.ndarray | None = None
    limit = _SMALL
    for a in chain:
        parts = [p for p in (a.scale, a.shift) if p is not None]
        limit = max(limit, *(p.size for p in parts))
        if a.scale is not None:
            scale = a.scale if scale is None else scale * a.scale
            shift = None if shift is None else shift * a.scale
            if shift is not None and np.abs(shift).max(initial=0) > FAR:
                return None
        if a.shift is not None:
            if shift is not None and (np.abs(shift + a.shift) < _CANCEL * np.abs(a.shift)).any():
                ctx.note(f"{a.node.name}: not merged with the addition before it, the two nearly cancel")
                return None
            shift = a.shift if shift is None else shift + a.shift
    dtype = chain[-1].node.outputs[0].dtype
    if dtype not in FLOATS:
        return None
    info = np.finfo(dtype.numpy())
    for part in (scale, shift):
        if part is not None and (part.size > limit or np.abs(part).max(initial=0) > info.max):
            return None
    if scale is not None and (np.abs(scale) < info.tiny).any():
        return None
    return scale, shift


def _write(chain: list[Affine], scale: np.ndarray | None, shift: np.ndarray | None, ctx: Context) -> int:
    """Put `Mul` and `Add` (or one of them) in the place of the chain, last one first."""
    last, first = chain[0], chain[-1]
    graph, out = last.node.graph, last.node.outputs[0]
    assert isinstance(graph, ir.Graph) and out.dtype is not None
    value, made = first.data, 0
    for op_type, number in (("Mul", scale), ("Add", shift)):
        if number is None:
            continue
        final = op_type == "Add" or shift is None
        operand = g.initializer(graph, number.astype(out.dtype.numpy()), f"{last.node.name}_{op_type}", ctx.scratch)
        new = g.insert_before(last.node, op_type, [value, operand], like=out if final else None, hint=out.name)
        value, made = new.outputs[0], made + 1
        if not final:
            # What the chain's input and output have in common holds in between as well.
            value.type, value.shape = out.type, out.shape if g.shape(first.data) == g.shape(out) else None
    g.replace_value(out, value)
    for a in chain:
        remove(a.node)
    return len(chain) - made
