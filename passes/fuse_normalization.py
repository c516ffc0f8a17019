"""Normalisations that were exported written out become one node each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import onnx_ir as ir

from ..compiler import graph as g
from ..compiler.norm_forms import MEAN, NORMALISED, ROOT_MEAN_SQUARE, VARIANCE, X, inverse
from ..compiler.passbase import Context, Pass
from ..compiler.patterns import Match, OneOf, Op, Pattern, Var
from ..compiler.rewriting import FLOATS, Index, NearMisses, find
from .group_normalization import fuse_groups
from .scale_shift import Affine, absorb, as_axes


def _folded(factor: Pattern) -> Pattern:
    return Op("Add", Op("Mul", X, factor), Op("Sub", Var("bias"), Op("Mul", MEAN, factor)))


BATCH_STYLE = OneOf(_folded(Op("Mul", inverse(VARIANCE), Var("scale"))), _folded(inverse(VARIANCE)))
"""x · f + (bias - mean · f) with f = scale / deviation, as tf.nn.batch_normalization writes it."""


@dataclass(frozen=True)
class FuseNormalization(Pass):
    """Replace written-out normalisations by their operators.

    | before | after |
    |---|---|
    | `(x - mean) / Sqrt(mean((x - mean)²) + eps) · scale + bias` over the last axes | `LayerNormalization` |
    | the same over the axes after the channels, scale and bias for each channel | `InstanceNormalization` |
    | the same over other axes, as of channels before height and width | the first, between two `Transpose` |
    | `x / Sqrt(mean(x²) + eps) · scale` | `RMSNormalization` |
    | `Reshape`, `InstanceNormalization`, `Reshape`, `· scale + bias` | `GroupNormalization` |

    Sqrt, Reciprocal and Pow(·, ±0.5) are all known, and `x · f + (bias - mean · f)`. A scale of ones is made where the
    operator demands one.
    """

    name: ClassVar[str] = "fuse-normalization"

    def run(self, model: ir.Model, ctx: Context) -> int:
        count, index, near = 0, Index(model), NearMisses()
        kinds: tuple[tuple[str, Pattern, Callable[[Match, Context], str]], ...] = (
            ("LayerNormalization", BATCH_STYLE, _batch_style),
            ("LayerNormalization", NORMALISED, _standardised),
            ("RMSNormalization", ROOT_MEAN_SQUARE, _root_mean_square),
        )
        for what, pattern, fuse in kinds:
            for found in find(index, pattern, near, what):
                why = fuse(found, ctx)
                count += not why
                near.add(found.root, what, why)
        near.tell(ctx)
        return count + fuse_groups(model, ctx)


def _axes(m: Match) -> tuple[int, ...] | str:
    """The axes that are averaged over, sorted, or why they don't do."""
    rank = g.rank(m["x"])
    if m["x"].dtype not in FLOATS or rank is None:
        return "its input is not of float type and known rank"
    found = set()
    for name in ("mean", "variance"):
        node = m.named.get(name)
        if node is not None:
            axes = g.ints(node.inputs[1])
            if not axes:
                return "its mean is not over constant axes"
            found.add(tuple(sorted(a % rank for a in axes)))
    if len(found) > 1:
        return f"mean and variance are over different axes, {' and '.join(map(str, sorted(found)))}"
    return found.pop()


def _sizes(x: ir.Value, axes: Sequence[int]) -> tuple[int, ...] | None:
    dims = g.shape(x)
    if dims is None:
        return None
    found = tuple(d for i, d in enumerate(dims) if i in axes and isinstance(d, int))
    return found if len(found) == len(axes) else None


def _standardised(m: Match, ctx: Context) -> str:
    axes = _axes(m)
    if isinstance(axes, str):
        return axes
    x, rank = m["x"], g.rank(m["x"])
    assert rank is not None
    if _by_channel(m, axes, rank):
        channels = _sizes(x, (1,))
        if channels is not None:
            affine = absorb(m.output, rank, (1,), channels)
            return _replace(m, ctx, "InstanceNormalization", affine, channels, axes=None, bias_needed=True)
    sizes = _sizes(x, axes)
    if sizes is None:
        return "the axes it normalises are not of fixed size"
    return _replace(m, ctx, "LayerNormalization", absorb(m.output, rank, axes, sizes), sizes, axes)


def _by_channel(m: Match, axes: Sequence[int], rank: int) -> bool:
    """Whether all axes after the second are averaged, and it isn't a sequence of vectors that is normalised."""
    if tuple(axes) != tuple(range(2, rank)):
        return False
    views = g.producer(m["x"], "Reshape") is not None and g.sole_user(m.output, "Reshape") is not None
    return rank > 3 or views


def _batch_style(m: Match, ctx: Context) -> str:
    axes = _axes(m)
    if isinstance(axes, str):
        return axes
    rank = g.rank(m["x"])
    assert rank is not None
    where: Sequence[int] = (1,) if axes == tuple(range(2, rank)) and rank > 3 else axes
    sizes = _sizes(m["x"], where)
    if sizes is None:
        return "the axes it normalises are not of fixed size"
    bias = as_axes(m["bias"], rank, where, sizes)
    scale = as_axes(m.values["scale"], rank, where, sizes) if "scale" in m.values else None
    if bias is None or ("scale" in m.values and scale is None):
        return "scale and bias are not constants along those axes"
    affine = Affine(m.output, scale, bias, [])
    if where == (1,) and axes != (1,):
        return _replace(m, ctx, "InstanceNormalization", affine, sizes, axes=None, bias_needed=True)
    return _replace(m, ctx, "LayerNormalization", affine, sizes, axes)


def _root_mean_square(m: Match, ctx: Context) -> str:
    axes = _axes(m)
    if isinstance(axes, str):
        return axes
    rank, sizes = g.rank(m["x"]), _sizes(m["x"], axes)
    assert rank is not None
    if sizes is None:
        return "the axes it normalises are not of fixed size"
    return _replace(m, ctx, "RMSNormalization", absorb(m.output, rank, axes, sizes, shift=False), sizes, axes)


def _replace(
    m: Match,
    ctx: Context,
    op_type: str,
    affine: Affine,
    sizes: tuple[int, ...],
    axes: tuple[int, ...] | None,
    bias_needed: bool = False,
) -> str:
    """Put the operator in the place of the match and of the scale and shift after it."""
    x, old, rank = m["x"], affine.end, g.rank(m["x"])
    anchor = old.producer()
    graph = m.root.graph
    assert isinstance(graph, ir.Graph) and anchor is not None and rank is not None and x.dtype is not None
    kind = x.dtype.numpy()
    inputs = [x, g.initializer(graph, affine.scale_or_ones(sizes).astype(kind), f"{old.name}_scale", ctx.scratch)]
    if affine.bias is not None or bias_needed:
        inputs.append(g.initializer(graph, affine.bias_or_zeros(sizes).astype(kind), f"{old.name}_bias", ctx.scratch))
    attributes: dict[str, Any] = {"epsilon": m.numbers["eps"]}
    perm: list[int] = []
    if axes is not None:
        attributes["axis"] = -len(axes)
        if axes != tuple(range(rank - len(axes), rank)):
            perm = [i for i in range(rank) if i not in axes] + list(axes)
    if perm:
        inputs[0] = _transposed(x, perm, anchor, f"{old.name}_last")
    node = g.insert_before(anchor, op_type, inputs, attributes, hint=f"{old.name}_normalised")
    out = node.outputs[0]
    out.type, out.shape = old.type, inputs[0].shape
    if perm:
        out = _transposed(out, [perm.index(i) for i in range(rank)], anchor, f"{old.name}_back")
    g.replace_value(old, out)
    g.remove([*reversed(affine.nodes), *m.nodes])
    return ""


def _transposed(value: ir.Value, perm: Sequence[int], anchor: ir.Node, hint: str) -> ir.Value:
    out = g.insert_before(anchor, "Transpose", [value], {"perm": list(perm)}, hint=hint).outputs[0]
    dims = g.shape(value)
    out.type = value.type
    out.shape = None if dims is None else ir.Shape([dims[i] for i in perm])
    return out
