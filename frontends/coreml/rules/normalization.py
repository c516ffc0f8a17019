"""Normalisations (`ops/defs/iOS15/normalization.py`)."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ..call import Call, Result, Unsupported, rule


def _channel_vector(o: Call, name: str, default: float, channels: int) -> ir.Value:
    found = o.optional(name)
    return found if found is not None else o.b.constant(np.full(channels, default, np.float32))


@rule("batch_norm")
def batch_norm(o: Call) -> Result:
    channels = o.shape("mean")[0]
    gamma, beta = _channel_vector(o, "gamma", 1.0, channels), _channel_vector(o, "beta", 0.0, channels)
    mean, variance = o.value("mean"), o.value("variance")
    return o.b.op("BatchNormalization", o.value(), gamma, beta, mean, variance, epsilon=o.number("epsilon", 1e-5))


@rule("instance_norm")
def instance_norm(o: Call) -> Result:
    channels = o.type().shape[1]
    if channels is None:
        raise Unsupported("the number of channels must be fixed")
    gamma, beta = _channel_vector(o, "gamma", 1.0, channels), _channel_vector(o, "beta", 0.0, channels)
    return o.b.op("InstanceNormalization", o.value(), gamma, beta, epsilon=o.number("epsilon", 1e-5))


@rule("layer_norm")
def layer_norm(o: Call) -> Result:
    """gamma · (x − mean) / √(variance + epsilon) + beta over `axes`; gamma has the shape of those axes."""
    b, x, rank = o.b, o.value(), o.rank()
    axes = sorted(a % rank for a in o.ints("axes", range(rank)))
    epsilon = o.number("epsilon", 1e-5)
    sizes = [o.type().shape[a] for a in axes]
    if axes == list(range(rank - len(axes), rank)) and (o.has("gamma") or None not in sizes):
        gamma = o.optional("gamma") or b.constant(np.ones([s or 1 for s in sizes], np.float32))
        return b.op("LayerNormalization", x, gamma, o.optional("beta"), axis=axes[0], epsilon=epsilon)
    axes_value = b.ints(axes)
    centred = b.op("Sub", x, b.op("ReduceMean", x, axes_value))
    variance = b.op("ReduceMean", b.op("Mul", centred, centred), axes_value)
    result = b.op("Div", centred, b.op("Sqrt", b.op("Add", variance, b.number(epsilon))))
    broadcast = [s or 1 for s in (o.type().shape[a] if a in axes else 1 for a in range(rank))]
    for name, op in (("gamma", "Mul"), ("beta", "Add")):
        if o.has(name):
            result = b.op(op, result, b.reshape(o.value(name), broadcast))
    return result


@rule("l2_norm")
def l2_norm(o: Call) -> Result:
    """x / √(sum of squares over the last three axes + epsilon)."""
    b, x = o.b, o.value()
    total = b.op("ReduceSumSquare", x, b.ints([-3, -2, -1]))
    return b.op("Div", x, b.op("Sqrt", b.op("Add", total, b.number(o.number("epsilon", 1e-6)))))


@rule("local_response_norm")
def local_response_norm(o: Call) -> Result:
    """x / (k + alpha / size · sum of squares of `size` channels)^beta."""
    if o.rank() != 4:
        raise Unsupported(
            f"rank {o.rank()}: coremltools' own test (of rank 3) contradicts the definition, so only rank 4 is sure"
        )
    size = o.integer("size")
    if size % 2 == 0:
        raise Unsupported(f"size {size} is even, and MIL does not say on which side the window is longer")
    return o.b.op(
        "LRN",
        o.value(),
        size=size,
        alpha=o.number("alpha", 1e-4),
        beta=o.number("beta", 0.75),
        bias=o.number("k", 1.0),
    )
