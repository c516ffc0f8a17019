"""Steps of random networks: those from an image (N x C x H x W), and those that images and tokens have in common."""

from __future__ import annotations

import numpy as np
from channelgraph import SIDE, Net, Step, image, tokens

# --- images ----------------------------------------------------------------------------------------------------------


@image
def conv(net: Net, filters: int = 0, kernel: int = 0, groups: int = 1) -> None:
    n, c, h, w = net.shape
    filters, kernel = filters or net.pick(4, 6, 8, 12), kernel or net.pick(1, 3)
    inputs = [net.last, net.weight(filters, c // groups, kernel, kernel)]
    if net.rng.random() < 0.5:
        inputs.append(net.weight(filters, scale=0.3))
    net.node("Conv", inputs, [n, filters, h, w], group=groups, pads=[kernel // 2] * 4)


@image
def grouped_conv(net: Net) -> None:
    c = net.shape[1]
    groups = net.pick(*[g for g in (1, 2, 3, 4) if c % g == 0])
    conv(net, groups * net.pick(2, 3), groups=groups)


@image
def depthwise(net: Net) -> None:
    c = net.shape[1]
    conv(net, c * net.pick(1, 2), groups=c)


@image
def transposed_conv(net: Net) -> None:
    n, c, h, w = net.shape
    groups = net.pick(*[g for g in (1, 2, c) if c % g == 0])
    out = 1 if groups == c else net.pick(2, 4)
    inputs = [net.last, net.weight(c, out, 1, 1)]
    if net.rng.random() < 0.5:
        inputs.append(net.weight(out * groups, scale=0.3))
    net.node("ConvTranspose", inputs, [n, out * groups, h, w], group=groups)


@image
def batch_norm(net: Net) -> None:
    c = net.shape[1]
    inputs = [net.last, *(net.weight(c, scale=0.5) for _ in range(3)), net.weight(c, positive=True)]
    net.node("BatchNormalization", inputs, net.shape)


@image
def instance_norm(net: Net) -> None:
    c = net.shape[1]
    net.node("InstanceNormalization", [net.last, net.weight(c, scale=1), net.weight(c, scale=1)], net.shape)


@image
def group_norm(net: Net) -> None:
    c = net.shape[1]
    groups = net.pick(*[g for g in (1, 2, 3, 4) if c % g == 0])
    inputs = [net.last, net.weight(c, scale=1), net.weight(c, scale=1)]
    net.node("GroupNormalization", inputs, net.shape, num_groups=groups)


@image
def pool(net: Net) -> None:
    op = str(net.rng.choice(["AveragePool", "MaxPool"]))
    net.node(op, [net.last], net.shape, kernel_shape=[3, 3], pads=[1] * 4)


@image
def squeeze_excite(net: Net) -> None:
    n, c, h, w = net.shape
    x = net.last
    net.node("GlobalAveragePool", [x], [n, c, 1, 1])
    conv(net, 4, 1)
    net.node("Relu", [net.last], net.shape)
    conv(net, c, 1)
    net.node("Sigmoid", [net.last], net.shape)
    net.node("Mul", [x, net.last], [n, c, h, w])


@image
def residual_block(net: Net) -> None:
    x, shape = net.last, net.shape
    conv(net)
    net.node("Relu", [net.last], net.shape)
    conv(net, shape[1])
    net.node("Add", [x, net.last], shape)


@image
def concat_channels(net: Net) -> None:
    n, c, h, w = net.shape
    other = net.earlier(lambda s: len(s) == 4 and s[2:] == (h, w))
    if other is not None and c + net.shapes[other][1] <= 24:
        net.node("Concat", [net.last, other], [n, c + net.shapes[other][1], h, w], axis=1)


@image
def shuffle(net: Net) -> None:
    n, c, h, w = net.shape
    g = net.pick(*[g for g in (1, 2, 3, 4) if c % g == 0])
    net.node("Reshape", [net.last, net.constant([n, g, c // g, h, w])], [n, g, c // g, h, w])
    net.node("Transpose", [net.last], [n, c // g, g, h, w], perm=[0, 2, 1, 3, 4])
    net.node("Reshape", [net.last, net.constant([n, -1, h, w])], [n, c, h, w])


@image
def depth_to_space(net: Net) -> None:
    n, c, h, w = net.shape
    if c % 4 == 0 and h <= SIDE:
        mode = str(net.rng.choice(["DCR", "CRD"]))
        net.node("DepthToSpace", [net.last], [n, c // 4, 2 * h, 2 * w], blocksize=2, mode=mode)


@image
def space_to_depth(net: Net) -> None:
    n, c, h, w = net.shape
    if h % 2 == 0 and w % 2 == 0 and c <= 6:
        net.node("SpaceToDepth", [net.last], [n, 4 * c, h // 2, w // 2], blocksize=2)


@image
def resize(net: Net) -> None:
    n, c, h, w = net.shape
    if h <= SIDE:
        net.node("Resize", [net.last, "", "", net.constant([n, c, 2 * h, 2 * w])], [n, c, 2 * h, 2 * w], mode="nearest")
        net.node("MaxPool", [net.last], [n, c, h, w], kernel_shape=[2, 2], strides=[2, 2])


@image
def to_tokens(net: Net) -> None:
    n, c, h, w = net.shape
    net.node("Reshape", [net.last, net.constant([n, c, h * w])], [n, c, h * w])
    net.node("Transpose", [net.last], [n, h * w, c], perm=[0, 2, 1])


@image
def flattened(net: Net) -> None:
    n, c, h, w = net.shape
    if c * h * w <= 200:
        net.node("Flatten", [net.last], [n, c * h * w])
        net.node("Gemm", [net.last, net.weight(c * h * w, 8), net.weight(8, scale=0.3)], [n, 8])
        net.node("Unsqueeze", [net.last, net.constant([1])], [n, 1, 8])


# --- both ------------------------------------------------------------------------------------------------------------


def _axis(net: Net) -> int:
    return 1 if len(net.shape) == 4 else 2


def _along(net: Net, size: int) -> list[int]:
    axis = _axis(net)
    return [size if a == axis else n for a, n in enumerate(net.shape)]


def both(f: Step) -> Step:
    return image(tokens(f))


@both
def activation(net: Net) -> None:
    op = str(net.rng.choice(["Relu", "Sigmoid", "Tanh", "HardSwish", "Gelu", "Softplus", "Abs", "Neg", "Elu", "Exp"]))
    if op == "Exp":
        net.node("Tanh", [net.last], net.shape)
    net.node(op, [net.last], net.shape)


@both
def clip(net: Net) -> None:
    low = net.pick(-1, 0, 1)
    bounds = [net.constant(np.array(b, np.float32)) for b in (low, 2)]
    net.node("Clip", [net.last, *bounds], net.shape)


@both
def residual(net: Net) -> None:
    other = net.earlier(lambda s: s == net.shape)
    if other is not None:
        op = str(net.rng.choice(["Add", "Sub", "Mul", "Max"]))
        net.node(op, [net.last, other], net.shape)


@both
def per_channel(net: Net) -> None:
    """A constant per channel, for all at once, or per element."""
    axis, op = _axis(net), str(net.rng.choice(["Add", "Mul", "Sub", "Div", "PRelu", "Min"]))
    shape = [[net.shape[axis]] + [1] * (len(net.shape) - 1 - axis), [1], list(net.shape[1:])][net.pick(0, 0, 1, 2)]
    operands = [net.last, net.weight(*shape, scale=1, positive=op in ("Div", "PRelu"))]
    if op in ("Add", "Mul", "Sub") and net.rng.random() < 0.3:
        operands.reverse()
    net.node(op, operands, net.shape)


@both
def split(net: Net) -> None:
    """Two parts that meet again: added if alike, joined in the other order if not."""
    size = net.shape[_axis(net)]
    if size < 2:
        return
    first = size // 2 if size % 2 == 0 and net.rng.random() < 0.5 else net.pick(*range(1, size))
    a, b = f"v{len(net.nodes)}_0", f"v{len(net.nodes)}_1"
    net.node("Split", [net.last, net.constant([first, size - first])], _along(net, first), 2, axis=_axis(net))
    net.shapes[b] = tuple(_along(net, size - first))
    if net.rng.random() < 0.5:
        net.node("Relu", [b], net.shapes[b])
        b = net.last
    if 2 * first == size:
        net.node(str(net.rng.choice(["Add", "Mul"])), [a, b], net.shapes[a])
    else:
        net.node("Concat", [b, a], _along(net, size), axis=_axis(net))


@both
def cut(net: Net) -> None:
    size = net.shape[_axis(net)]
    start = net.pick(*range(size))
    step = net.pick(1, 1, 2)
    end = net.pick(*range(start + 1, size + 1))
    bounds = [net.constant([v]) for v in (start, end, _axis(net), step)]
    net.node("Slice", [net.last, *bounds], _along(net, len(range(start, end, step))))


@both
def gather(net: Net) -> None:
    size = net.shape[_axis(net)]
    index = net.rng.permutation(size)[: net.pick(*range(1, size + 1))]
    if net.rng.random() < 0.3:
        index = np.append(index, index[0])
    net.node("Gather", [net.last, net.constant(index)], _along(net, len(index)), axis=_axis(net))


@both
def reduced(net: Net) -> None:
    """A statistic over some axis, spread out again by a product or sum."""
    x, shape = net.last, net.shape
    axis = net.pick(*range(1, len(shape)))
    op = str(net.rng.choice(["ReduceMean", "ReduceSum", "ReduceMax", "ReduceL2"]))
    small = [1 if a == axis else n for a, n in enumerate(shape)]
    net.node(op, [x, net.constant([axis])], small)
    net.node("Tanh", [net.last], small)
    net.node(str(net.rng.choice(["Add", "Mul"])), [x, net.last], shape)


@both
def softmax(net: Net) -> None:
    net.node("Softmax", [net.last], net.shape, axis=net.pick(1, -1))


@both
def padded(net: Net) -> None:
    rank = len(net.shape)
    axis = net.pick(*range(1, rank))
    if net.shape[axis] > 8:
        return
    pads = [0] * (2 * rank)
    pads[axis], pads[rank + axis] = 1, net.pick(0, 1)
    shape = [n + pads[a] + pads[rank + a] for a, n in enumerate(net.shape)]
    old = net.shape
    value = net.constant(np.array(net.pick(0, 1), np.float32))
    net.node("Pad", [net.last, net.constant(pads), value], shape)
    if axis != _axis(net):
        net.node("Slice", [net.last, net.constant([0]), net.constant([old[axis]]), net.constant([axis])], old)


@both
def tiled(net: Net) -> None:
    size = net.shape[_axis(net)]
    if size <= 6:
        times = [2 if a == _axis(net) else 1 for a in range(len(net.shape))]
        net.node("Tile", [net.last, net.constant(times)], _along(net, 2 * size))
