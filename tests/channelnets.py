"""Random networks for structured pruning: any sequence of steps from a table gives a valid model.

A step reads the state of a `Net` (its last values, as images N x C x H x W or as tokens N x T x C) and appends nodes.
Here are those from tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import channelfused
import numpy as np
import onnx
from channelgraph import IMAGE, TOKENS, Net, tokens
from channelsteps import conv

__all__ = ["IMAGE", "TOKENS", "Net", "build", "channelfused", "conv"]


def build(steps: Sequence[str], seed: int, as_tokens: bool) -> onnx.ModelProto:
    """The network of these steps; those that don't fit the form of the last value are passed over."""
    net = Net(seed, as_tokens)
    if net.rng.random() < 0.9:
        (linear if as_tokens else conv)(net)
        net.keep()
    for name in steps:
        table = IMAGE if len(net.shape) == 4 else TOKENS
        if name in table:
            table[name](net)
            net.keep()
    return net.model()


@tokens
def linear(net: Net, width: int = 0) -> None:
    n, t, c = net.shape
    width = width or net.pick(4, 6, 8, 12)
    if net.rng.random() < 0.2:
        net.node("Reshape", [net.last, net.constant([n * t, c])], [n * t, c])
        net.node("Gemm", [net.last, net.weight(width, c), net.weight(width, scale=0.3)], [n * t, width], transB=1)
        net.node("Reshape", [net.last, net.constant([n, t, width])], [n, t, width])
        return
    net.node("MatMul", [net.last, net.weight(c, width)], [n, t, width])
    if net.rng.random() < 0.5:
        net.node("Add", [net.last, net.weight(width, scale=0.3)], net.shape)


@tokens
def norm(net: Net) -> None:
    op = str(net.rng.choice(["LayerNormalization", "RMSNormalization"]))
    count = 2 if op == "LayerNormalization" else 1
    net.node(op, [net.last, *(net.weight(net.shape[-1], scale=1) for _ in range(count))], net.shape, axis=-1)


@tokens
def residual(net: Net) -> None:
    """A block before which something is normalised, by an operator or written out."""
    x, (n, t, c) = net.last, net.shape
    if net.rng.random() < 0.3:
        mean = [n, t, 1]
        net.node("Mul", [x, x], net.shape)
        net.node("ReduceMean", [net.last, net.constant([-1])], mean, keepdims=1)
        net.node("Add", [net.last, net.constant(np.array(1e-3, np.float32))], mean)
        net.node("Sqrt", [net.last], mean)
        net.node("Div", [x, net.last], [n, t, c])
        net.node("Mul", [net.last, net.weight(c, scale=1)], [n, t, c])
    else:
        norm(net)
    linear(net, 8)
    net.node(str(net.rng.choice(["Gelu", "Relu"])), [net.last], net.shape)
    linear(net, c)
    if net.rng.random() < 0.3:
        net.node("Mul", [net.last, net.weight(c, scale=0.3)], net.shape)
    net.node("Add", [x, net.last], [n, t, c])


@tokens
def gated(net: Net) -> None:
    x, c = net.last, net.shape[-1]
    linear(net, 8)
    before = net.last
    net.node("Sigmoid", [before], net.shape)
    gate = net.node("Mul", [before, net.last], net.shape)
    net.last = x
    linear(net, 8)
    net.node("Mul", [gate, net.last], net.shape)
    linear(net, c)
    net.node("Add", [x, net.last], net.shape)


def _heads(net: Net, value: str, heads: int, order: Sequence[int]) -> str:
    n, t, c = net.shapes[value]
    split = [n, t, heads, c // heads]
    net.node("Reshape", [value, net.constant(split)], split)
    return net.node("Transpose", [net.last], [split[a] for a in order], perm=list(order))


@tokens
def attention(net: Net, packed: bool = False) -> None:
    """Scaled dot products of heads, written out; q, k and v from three matrices or a packed one."""
    x, (n, t, c) = net.last, net.shape
    heads, width = net.pick(2, 3), net.pick(2, 4)
    inner = heads * width
    parts = []
    if packed:
        linear(net, 3 * inner)
        split = [n, t, 3, heads, width]
        net.node("Reshape", [net.last, net.constant(split)], split)
        order = [2, 0, 3, 1, 4]
        turned = net.node("Transpose", [net.last], [split[a] for a in order], perm=order)
        for k in range(3):
            parts.append(net.node("Gather", [turned, net.constant(np.array(k))], [n, heads, t, width], axis=0))
        net.node("Transpose", [parts[1]], [n, heads, width, t], perm=[0, 1, 3, 2])
        parts[1] = net.last
    else:
        for order in ([0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3]):
            net.last = x
            linear(net, inner)
            parts.append(_heads(net, net.last, heads, order))
    net.node("MatMul", parts[:2], [n, heads, t, t])
    net.node("Softmax", [net.last], net.shape, axis=-1)
    net.node("MatMul", [net.last, parts[2]], [n, heads, t, width])
    net.node("Transpose", [net.last], [n, t, heads, width], perm=[0, 2, 1, 3])
    net.node("Reshape", [net.last, net.constant([n, t, -1])], [n, t, inner])
    linear(net, c)
    net.node("Add", [x, net.last], [n, t, c])


@tokens
def packed_attention(net: Net) -> None:
    attention(net, packed=True)


@tokens
def to_image(net: Net) -> None:
    n, t, c = net.shape
    side = 2 if t % 2 == 0 else 1
    net.node("Transpose", [net.last], [n, c, t], perm=[0, 2, 1])
    net.node("Reshape", [net.last, net.constant([n, c, side, t // side])], [n, c, side, t // side])


@tokens
def positions(net: Net) -> None:
    """An embedding of constant positions, added."""
    _, t, c = net.shape
    table = net.weight(t + 2, c, scale=0.5)
    x, shape = net.last, net.shape
    net.node("Gather", [table, net.constant(net.rng.integers(0, t + 2, t))], [t, c])
    net.node("Add", [x, net.last], shape)
