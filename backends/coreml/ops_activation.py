"""Activations and the softmax family."""

from __future__ import annotations

import numpy as np

from .build import I32, Var
from .call import Call
from .ops_elementwise import log
from .registry import lowers


@lowers("LeakyRelu")
def _leaky_relu(c: Call) -> Var:
    return c.op("leaky_relu", x=c.x(), alpha=float(c.attr("alpha", 0.01)))


@lowers("Elu")
def _elu(c: Call) -> Var:
    return c.op("elu", x=c.x(), alpha=float(c.attr("alpha", 1.0)))


@lowers("Selu")
def _selu(c: Call) -> Var:
    inner = c.op("elu", x=c.x(), alpha=float(c.attr("alpha", 1.67326319217681884765625)))
    return c.op("mul", x=inner, y=float(c.attr("gamma", 1.05070102214813232421875)))


@lowers("Celu")
def _celu(c: Call) -> Var:
    """max(0, x) + min(0, a (exp(x / a) - 1)), which is a · elu(x / a) for positive a."""
    alpha = float(c.attr("alpha", 1.0))
    if alpha < 0:
        x = c.x()
        curve = c.op("mul", x=c.op("sub", x=c.op("exp", x=c.op("mul", x=x, y=1 / alpha)), y=1.0), y=alpha)
        return c.op("add", x=c.op("relu", x=x), y=c.op("minimum", x=curve, y=0.0))
    return c.op("mul", x=c.op("elu", x=c.op("mul", x=c.x(), y=1 / alpha), alpha=1.0), y=alpha)


@lowers("HardSigmoid")
def _hard_sigmoid(c: Call) -> Var:
    return c.op("sigmoid_hard", x=c.x(), alpha=float(c.attr("alpha", 0.2)), beta=float(c.attr("beta", 0.5)))


@lowers("Swish")
def _swish(c: Call) -> Var:
    x, alpha = c.x(), float(c.attr("alpha", 1.0))
    if alpha == 1:
        return c.op("silu", x=x)
    return c.op("mul", x=x, y=c.op("sigmoid", x=c.op("mul", x=x, y=alpha)))


@lowers("Mish")
def _mish(c: Call) -> Var:
    x = c.x()
    return c.op("mul", x=x, y=c.op("tanh", x=c.op("softplus", x=x)))


@lowers("Gelu")
def _gelu(c: Call) -> Var:
    modes = {"none": "EXACT", "tanh": "TANH_APPROXIMATION"}
    return c.op("gelu", x=c.x(), mode=modes[c.attr("approximate", "none")])


@lowers("ThresholdedRelu", exact=True)
def _thresholded_relu(c: Call) -> Var:
    # Not MIL's thresholded_relu: it keeps x = alpha, ONNX keeps only what is greater.
    x = c.x()
    return c.op("select", cond=c.op("greater", x=x, y=float(c.attr("alpha", 1.0))), a=x, b=0.0)


@lowers("Shrink")
def _shrink(c: Call) -> Var:
    """x + bias below -lambd, x - bias above lambd, 0 between."""
    if not c.is_float_node():
        c.missing("integers are not supported")
    x, lambd, bias = c.x(), float(c.attr("lambd", 0.5)), float(c.attr("bias", 0.0))
    high = c.op("select", cond=c.op("greater", x=x, y=lambd), a=c.op("sub", x=x, y=bias), b=0.0)
    return c.op("select", cond=c.op("less", x=x, y=-lambd), a=c.op("add", x=x, y=bias), b=high)


@lowers("PRelu")
def _prelu(c: Call) -> Var:
    """MIL's prelu where the slope is a constant per channel; max(x, 0) + slope · min(x, 0) elsewhere."""
    x, shape = c.x(), c.shape()
    if not c.is_float_node():
        return c.op("add", x=c.op("maximum", x=x, y=c.like(x, 0)),
                    y=c.op("mul", x=c.op("minimum", x=x, y=c.like(x, 0)), y=c.x(1)))
    slope = (1,) * (len(shape) - c.rank(1)) + c.shape(1)
    per_channel = all(n == 1 for i, n in enumerate(slope) if i != 1) and 3 <= len(shape) <= 5 and slope[1] == shape[1]
    if per_channel and c.is_const(1):
        flat = c.const(1).map("flat", lambda a: a.reshape(-1), (shape[1],))
        return c.op("prelu", x=x, alpha=c.weight(flat))
    negative = c.op("mul", x=c.op("minimum", x=x, y=0.0), y=c.x(1))
    return c.op("add", x=c.op("relu", x=x), y=negative)


@lowers("Softmax")
def _softmax(c: Call) -> Var:
    return c.op("softmax", x=c.x(), axis=c.axis(-1))


@lowers("LogSoftmax")
def _log_softmax(c: Call) -> Var:
    """x - max - log(sum(exp(x - max))): log(softmax(x)) would lose the small ones."""
    axis = [c.axis(-1)]
    x = c.op("sub", x=c.x(), y=c.op("reduce_max", x=c.x(), axes=axis, keep_dims=True))
    total = c.op("reduce_sum", x=c.op("exp", x=x), axes=axis, keep_dims=True)
    return c.op("sub", x=x, y=log(c, total))


@lowers("Hardmax", exact=True)
def _hardmax(c: Call) -> Var:
    axis = c.axis(-1)
    best = c.cast(c.op("reduce_argmax", x=c.x(), axis=axis, keep_dims=True), I32)
    shape = [-1 if i == axis else 1 for i in range(c.rank())]
    positions = c.tensor(np.arange(c.shape()[axis], dtype=np.int32).reshape(shape))
    return c.cast(c.op("equal", x=best, y=positions), c.dtype)
