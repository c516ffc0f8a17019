"""Steps of random networks that are one operator each where others write many: attention, recurrence, products by name.

And those that cut, pad, repeat, choose and round channels of tokens.
"""

from __future__ import annotations

import numpy as np
from channelgraph import Net, tokens


def _linear(net: Net, value: str, width: int) -> str:
    shape = net.shapes[value]
    return net.node("MatMul", [value, net.weight(shape[-1], width)], [*shape[:-1], width])


@tokens
def fused_attention(net: Net) -> None:
    """Flat or by heads, with fewer heads of keys than of queries, turned by angles now and then."""
    x, (n, t, c) = net.last, net.shape
    kv, repeats, size, flat = net.pick(1, 2, 3), net.pick(1, 2), net.pick(2, 4), bool(net.pick(0, 1))
    turned, heads = net.pick(0, 1), (kv * repeats, kv, kv)
    angles = np.outer(np.arange(t), 0.5 ** np.arange(size // 2)).astype(np.float32)
    tables = [net.constant(np.tile(f(angles), (n, 1, 1))) for f in (np.cos, np.sin)] if turned else []
    parts = []
    for k, h in enumerate(heads):
        _linear(net, x, h * size)
        if not flat:
            net.node("Reshape", [net.last, net.constant([n, t, h, size])], [n, t, h, size])
            net.node("Transpose", [net.last], [n, h, t, size], perm=[0, 2, 1, 3])
        if turned and k < 2:
            count = {"num_heads": h} if flat else {}
            net.node("RotaryEmbedding", [net.last, *tables], net.shape, interleaved=net.pick(0, 1), **count)
        parts.append(net.last)
    counts = {"q_num_heads": heads[0], "kv_num_heads": kv} if flat else {}
    inner = heads[0] * size
    net.node("Attention", parts, [n, t, inner] if flat else [n, heads[0], t, size], is_causal=net.pick(0, 1), **counts)
    if not flat:
        net.node("Transpose", [net.last], [n, t, heads[0], size], perm=[0, 2, 1, 3])
        net.node("Reshape", [net.last, net.constant([n, t, inner])], [n, t, inner])
    y = _linear(net, net.last, c)
    net.node("Add", [x, y], [n, t, c])


@tokens
def recurrent(net: Net) -> None:
    """The tokens as steps in time, in one direction or both."""
    n, t, c = net.shape
    op, directions, size = str(net.rng.choice(["LSTM", "GRU", "RNN"])), net.pick(1, 2), net.pick(3, 4)
    gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[op] * size
    net.node("Transpose", [net.last], [t, n, c], perm=[1, 0, 2])
    inputs = [net.last, net.weight(directions, gates, c), net.weight(directions, gates, size)]
    if net.pick(0, 1):
        inputs.append(net.weight(directions, 2 * gates, scale=0.3))
        if net.pick(0, 1):
            inputs += ["", net.weight(directions, n, size)]
    way = {"direction": "bidirectional"} if directions > 1 else {}
    net.node(op, inputs, [t, directions, n, size], hidden_size=size, **way)
    net.node("Transpose", [net.last], [n, t, directions, size], perm=[2, 0, 1, 3])
    wide = directions * size
    net.node("Reshape", [net.last, net.constant([n, t, wide])], [n, t, wide])


@tokens
def experts(net: Net) -> None:
    """A hidden layer of each expert, weighed by a gate."""
    x, (n, t, c) = net.last, net.shape
    count, hidden = net.pick(2, 3), net.pick(2, 4)
    gate = _linear(net, x, count)
    if net.pick(0, 1):
        gate = net.node("Softmax", [gate], [n, t, count], axis=-1)
    net.node("Einsum", [x, net.weight(count, c, hidden)], [count, n, t, hidden], equation="ntc,ech->enth")
    net.node("Relu", [net.last], net.shape)
    net.node("Einsum", [net.last, net.weight(count, hidden, c)], [count, n, t, c], equation="enth,ehc->entc")
    net.node("Einsum", [gate, net.last], [n, t, c], equation="nte,entc->ntc")


@tokens
def cut(net: Net) -> None:
    """A slice of channels, with a stride or backwards, or some of them by their positions."""
    n, t, c = net.shape
    if net.pick(0, 1):
        at = net.rng.integers(0, c, net.pick(3, 5))
        net.node("Gather", [net.last, net.constant(at)], [n, t, len(at)], axis=2)
        return
    start, step = net.pick(0, 1), net.pick(1, 2, -1)
    begin, end = (c - 1, -c - 1) if step < 0 else (start, c)
    left = len(range(c)[slice(begin, None if step < 0 else end, step)])
    bounds = [net.constant([k]) for k in (begin, end, 2, step)]
    net.node("Slice", [net.last, *bounds], [n, t, left])


@tokens
def padded(net: Net) -> None:
    n, t, c = net.shape
    before, after = net.pick(0, 1, 2), net.pick(1, 2)
    inputs = [net.last, net.constant([0, 0, before, 0, 0, after])]
    if net.pick(0, 1):
        inputs.append(net.constant(np.array(net.pick(0, 1), np.float32)))
    net.node("Pad", inputs, [n, t, c + before + after])


@tokens
def repeated(net: Net) -> None:
    """Channels side by side, or each head of them for several readers."""
    n, t, c = net.shape
    if net.pick(0, 1):
        net.node("Tile", [net.last, net.constant([1, 1, 2])], [n, t, 2 * c])
    elif c % 2 == 0:
        net.node("Reshape", [net.last, net.constant([n, t, 2, 1, c // 2])], [n, t, 2, 1, c // 2])
        net.node("Expand", [net.last, net.constant([n, t, 2, 3, c // 2])], [n, t, 2, 3, c // 2])
        net.node("Reshape", [net.last, net.constant([n, t, 3 * c])], [n, t, 3 * c])


@tokens
def chosen(net: Net) -> None:
    """Of two layers whatever the first is positive at."""
    x, (n, t, c) = net.last, net.shape
    one, other = _linear(net, x, c), _linear(net, x, c)
    flag = net.node("Greater", [one, net.constant(np.array(0, np.float32))], [n, t, c])
    net.node("Where", [flag, one, other], [n, t, c])


@tokens
def rounded(net: Net) -> None:
    """Activations as integers and back, then a weight that is stored as integers, by column or by block."""
    n, t, c = net.shape
    grid = [net.constant(np.array(0.05, np.float32)), net.constant(np.array(net.pick(0, 3), np.int8))]
    q = net.node("QuantizeLinear", [net.last, *grid], [n, t, c])
    x = net.node("DequantizeLinear", [q, *grid], [n, t, c])
    width, blocks = net.pick(4, 6), c % 2 == 0 and net.pick(0, 1)
    data = net.constant(net.rng.integers(1, 100, (c, width)).astype(np.int8))
    scales = net.rng.uniform(0.01, 0.03, (c // 2, width) if blocks else width).astype(np.float32)
    how = {"axis": 0, "block_size": 2} if blocks else {"axis": 1}
    weight = net.node("DequantizeLinear", [data, net.constant(scales)], [c, width], **how)
    net.node("MatMul", [x, weight], [n, t, width])


@tokens
def turned_weight(net: Net) -> None:
    """A weight that is transposed at run time, as a tied embedding is."""
    n, t, c = net.shape
    width = net.pick(4, 6)
    x = net.last
    weight = net.node("Transpose", [net.weight(width, c)], [c, width], perm=[1, 0])
    net.node("MatMul", [x, weight], [n, t, width])
