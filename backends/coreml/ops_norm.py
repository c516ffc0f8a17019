"""Normalisations. Core ML's own operators where their form fits; written out, in float32, where squares are summed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .build import Var
from .call import Call
from .registry import lowers


def _per_channel(c: Call, x: Var, rank: int) -> Var:
    """A vector over axis 1 in a shape that broadcasts."""
    return c.reshape(x, (1, int(x.shape[0]), *(1,) * (rank - 2)))


@lowers("BatchNormalization")
def _batch_norm(c: Call) -> list[Any]:
    """(x - mean) / sqrt(var + epsilon) · scale + bias, with the trained statistics."""
    if c.attr("training_mode", 0):
        c.missing("training_mode=1; export the model for inference")
    shape = c.shape()
    if not all(c.is_const(i) for i in range(1, 5)) or len(shape) < 2:
        return [_batch_norm_written_out(c)]
    # Core ML normalises images only: a matrix gets an axis of size one.
    x = c.reshape(c.x(), (*shape, 1)) if len(shape) == 2 else c.x()
    y = c.op("batch_norm", x=x, gamma=c.x(1), beta=c.x(2), mean=c.x(3), variance=c.x(4),
             epsilon=c.eps(c.attr("epsilon", 1e-5)))  # fmt: skip
    return [c.reshape(y, shape)]


def _batch_norm_written_out(c: Call) -> Var:
    scale, bias, mean, variance = (_per_channel(c, c.x(i), max(2, c.rank())) for i in range(1, 5))
    deviation = c.op("sqrt", x=c.op("add", x=variance, y=c.eps(c.attr("epsilon", 1e-5))))
    normal = c.op("real_div", x=c.op("sub", x=c.x(), y=mean), y=deviation)
    return c.reshape(c.op("add", x=c.op("mul", x=normal, y=scale), y=bias), c.out_shape())


@lowers("InstanceNormalization")
def _instance_norm(c: Call) -> Var:
    epsilon, rank = c.eps(c.attr("epsilon", 1e-5)), c.rank()
    if rank in (3, 4) and c.is_const(1) and c.is_const(2):
        return c.op("instance_norm", x=c.x(), gamma=c.x(1), beta=c.x(2), epsilon=epsilon)
    n, ch, *rest = c.shape()
    flat = c.reshape(c.x(), (n, ch, int(np.prod(rest))))
    y = c.reshape(c.op("layer_norm", x=flat, axes=[2], epsilon=epsilon), c.shape())
    return _scale_bias(c, y, _per_channel(c, c.x(1), rank), _per_channel(c, c.x(2), rank))


def _scale_bias(c: Call, x: Var, scale: Var | None, bias: Var | None) -> Var:
    x = x if scale is None else c.op("mul", x=x, y=scale)
    return x if bias is None else c.op("add", x=x, y=bias)


@lowers("LayerNormalization")
def _layer_norm(c: Call) -> list[Any]:
    axis, shape = c.axis(-1), c.shape()
    axes, inner = list(range(axis, len(shape))), shape[axis:]
    epsilon = c.eps(c.attr("epsilon", 1e-5))
    fits = [c.has(i) and c.is_const(i) and c.shape(i) == inner for i in (1, 2)]
    inside = fits[0] and (fits[1] or not c.has(2))
    gamma, beta = (c.x(1), c.opt(2)) if inside else (None, None)
    y = c.op("layer_norm", x=c.x(), axes=axes, gamma=gamma, beta=beta, epsilon=epsilon)
    if not inside:
        y = _scale_bias(c, y, c.x(1), c.opt(2))
    outputs: list[Any] = [y]
    if c.used(1) or c.used(2):
        mean, centred = _centre(c, c.x(), axes)
        outputs += [mean, c.op("rsqrt", x=_mean_square(c, centred, axes), epsilon=epsilon)]
    return outputs


def _centre(c: Call, x: Var, axes: Sequence[int]) -> tuple[Var, Var]:
    mean = c.op("reduce_mean", x=x, axes=list(axes), keep_dims=True)
    return mean, c.op("sub", x=x, y=mean)


def _mean_square(c: Call, x: Var, axes: Sequence[int]) -> Var:
    return c.op("reduce_mean", x=c.op("mul", x=x, y=x), axes=list(axes), keep_dims=True)


@lowers("RMSNormalization")
def _rms_norm(c: Call) -> Var:
    """x / sqrt(mean(x²) + epsilon) · scale.

    As MIL's layer_norm of [x, -x]: its mean is 0, its variance mean(x²); squares never appear in float16.
    """
    axis, shape = c.axis(-1), c.shape()
    inner = int(np.prod(shape[axis:]))
    flat = c.reshape(c.x(), (int(np.prod(shape[:axis], dtype=np.int64)), inner))
    both = c.op("concat", values=[flat, c.op("mul", x=flat, y=-1.0)], axis=1)
    normal = c.op("layer_norm", x=both, axes=[1], epsilon=c.eps(c.attr("epsilon", 1e-5)))
    half = c.op("slice_by_index", x=normal, begin=[0, 0], end=[0, inner], end_mask=[True, False])
    return c.op("mul", x=c.reshape(half, shape), y=c.x(1))


@lowers("GroupNormalization")
def _group_norm(c: Call) -> Var:
    """Each group of channels normalised over all that it holds; scale and bias per channel."""
    n, ch, *rest = c.shape()
    groups = int(c.attr("num_groups"))
    flat = c.reshape(c.x(), (n, groups, ch // groups * int(np.prod(rest, dtype=np.int64))))
    y = c.op("layer_norm", x=flat, axes=[2], epsilon=c.eps(c.attr("epsilon", 1e-5)))
    scale, bias = (_per_channel(c, c.x(i), c.rank()) for i in (1, 2))
    return _scale_bias(c, c.reshape(y, c.shape()), scale, bias)


@lowers("MeanVarianceNormalization", half=99)
def _mean_variance(c: Call) -> Var:
    """(x - mean) / (sqrt(mean(x²) - mean²) + 1e-9), the standard's function body."""
    axes = [a % c.rank() for a in c.attr("axes", (0, 2, 3))]
    _, centred = _centre(c, c.x(), axes)
    deviation = c.op("add", x=c.op("sqrt", x=_mean_square(c, centred, axes)), y=1e-9)
    return c.op("real_div", x=centred, y=deviation)


@lowers("LpNormalization", half=99)
def _lp_norm(c: Call) -> Var:
    """x / norm; 0 where the norm is 0."""
    name = {1: "reduce_l1_norm", 2: "reduce_l2_norm"}[c.attr("p", 2)]
    norm = c.op(name, x=c.x(), axes=[c.axis(-1)], keep_dims=True)
    none = c.op("equal", x=norm, y=0.0)
    safe = c.op("add", x=norm, y=c.cast(none, c.dtype))
    return c.op("real_div", x=c.x(), y=safe)


@lowers("LRN", half=99)
def _lrn(c: Call) -> Var:
    """x / (bias + alpha / size · sum of the squares of `size` channels around)^beta, the window cut at the ends."""
    size = int(c.attr("size"))
    alpha, beta, bias = (float(c.attr(k, d)) for k, d in (("alpha", 1e-4), ("beta", 0.75), ("bias", 1.0)))
    if size % 2 and c.rank() == 4:
        return c.op("local_response_norm", x=c.x(), size=size, alpha=alpha, beta=beta, k=bias)
    ch = c.shape()[1]
    at = np.arange(ch)
    band = (at[None] >= at[:, None] - (size - 1) // 2) & (at[None] <= at[:, None] + size // 2)
    n, _, *rest = c.shape()
    flat = c.reshape(c.x(), (n, ch, int(np.prod(rest, dtype=np.int64))))
    total = c.op("matmul", x=c.tensor(band.astype(np.float32)), y=c.op("mul", x=flat, y=flat))
    scale = c.op("pow", x=c.op("add", x=c.op("mul", x=total, y=alpha / size), y=bias), y=beta)
    return c.reshape(c.op("real_div", x=flat, y=scale), c.shape())


