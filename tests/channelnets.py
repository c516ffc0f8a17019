"""Random networks for structured pruning: any sequence of steps from a table gives a valid model.

A step reads the state of a `Net` (its last values, as images N x C x H x W or as tokens N x T x C) and appends nodes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Step = Callable[["Net"], None]
IMAGE: dict[str, Step] = {}
"""Steps from an image."""
TOKENS: dict[str, Step] = {}
"""Steps from tokens."""
BATCH, SIDE = 2, 4


def image(f: Step) -> Step:
    IMAGE[f.__name__] = f
    return f


def tokens(f: Step) -> Step:
    TOKENS[f.__name__] = f
    return f


class Net:
    """A model under construction. `shape` is that of the last value; `rng` decides what steps leave open."""

    def __init__(self, seed: int, as_tokens: bool = False) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.last = "x"
        self.start = (BATCH, 6, 5) if as_tokens else (BATCH, 3, SIDE, SIDE)
        self.shapes["x"] = self.start
        self.history = ["x"]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.shapes[self.last]

    def weight(self, *shape: int, scale: float | None = None, positive: bool = False) -> str:
        """A float constant; now and then one of that shape that there is already."""
        alike = [t.name for t in self.weights if tuple(t.dims) == shape and t.data_type == TensorProto.FLOAT]
        if alike and not positive and self.rng.random() < 0.1:
            return str(self.rng.choice(alike))
        fan = scale if scale is not None else 1 / np.sqrt(max(np.prod(shape[1:]), 1))
        array = self.rng.normal(0, fan, shape)
        array = (np.abs(array) + 0.5 if positive else array + 0.1 * np.sign(array)).astype(np.float32)
        return self.constant(array)

    def constant(self, array: np.ndarray | Sequence[int]) -> str:
        array = np.asarray(array) if isinstance(array, np.ndarray) else np.array(array, np.int64)
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(array, name))
        return name

    def node(self, op: str, inputs: Sequence[str], shape: Sequence[int], outputs: int = 1, **attributes: object) -> str:
        """Append a node; its (first) output becomes the last value."""
        names = [f"v{len(self.nodes)}_{k}" for k in range(outputs)]
        self.nodes.append(helper.make_node(op, inputs, names, name=f"n{len(self.nodes)}_{op}", **attributes))
        self.shapes[names[0]] = tuple(shape)
        self.last = names[0]
        return names[0]

    def keep(self) -> None:
        """Later steps may read the last value."""
        self.history.append(self.last)

    def earlier(self, fits: Callable[[tuple[int, ...]], bool]) -> str | None:
        """Some earlier value whose shape fits."""
        found = [v for v in self.history if v != self.last and fits(self.shapes[v])]
        return str(self.rng.choice(found)) if found else None

    def pick(self, *options: int) -> int:
        return int(self.rng.choice(options))

    def model(self) -> onnx.ModelProto:
        """With a linear layer on the last value, whose width is the output's: all before is free to shrink."""
        if len(self.shape) == 4:
            conv(self, filters=4, kernel=1)
        else:
            self.node("MatMul", [self.last, self.weight(self.shape[-1], 4)], [*self.shape[:-1], 4])
        out = helper.make_tensor_value_info(self.last, TensorProto.FLOAT, self.shape)
        x = helper.make_tensor_value_info("x", TensorProto.FLOAT, self.start)
        graph = helper.make_graph(self.nodes, "random", [x], [out], self.weights)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 25)], ir_version=10)


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


# --- tokens ----------------------------------------------------------------------------------------------------------


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
