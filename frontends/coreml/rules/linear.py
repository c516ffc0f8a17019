"""Convolution, matrix products, attention (`ops/defs/iOS15/conv.py`, `linear.py`, `iOS18/transformers.py`)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from ..call import Call, Result, Unsupported, rule
from ..graph import FLOAT


def same_padding(size: int, kernel: int, stride: int, lower: bool) -> tuple[int, int]:
    """Padding before and after one axis that gives ceil(size / stride) outputs; `kernel` includes dilation."""
    total = max(0, (math.ceil(size / stride) - 1) * stride + kernel - size)
    small, large = total // 2, total - total // 2
    return (large, small) if lower else (small, large)


def onnx_padding(o: Call, kernel: list[int], strides: list[int]) -> list[int] | str:
    """The padding of a convolution or pool as ONNX `pads` (all begins, then all ends); `auto_pad` for open shapes.

    MIL interleaves begin and end of each axis.
    """
    kind = o.text("pad_type", "valid")
    spatial = len(kernel)
    if kind == "valid":
        return [0] * (2 * spatial)
    if kind == "custom":
        pairs = o.ints("pad", [0] * (2 * spatial))
        return pairs[0::2] + pairs[1::2]
    if kind not in ("same", "same_lower"):
        raise Unsupported(f"pad_type '{kind}' is none of valid, custom, same, same_lower")
    sizes = o.type("x").shape[2:]
    if any(size is None for size in sizes):
        return "SAME_LOWER" if kind == "same_lower" else "SAME_UPPER"
    pads = [
        same_padding(size or 0, k, s, kind == "same_lower") for size, k, s in zip(sizes, kernel, strides, strict=True)
    ]
    return [p[0] for p in pads] + [p[1] for p in pads]


def require_windows(o: Call, kernel: Sequence[int], steps: Sequence[int], pads: Sequence[int] | str) -> None:
    """Refuse windows that can't be: no step forward, or larger than the padded input (onnx's inference aborts then)."""
    if min([*kernel, *steps], default=1) < 1:
        raise ValueError(f"kernel {list(kernel)} and strides or dilations {list(steps)} must be positive")
    if isinstance(pads, str):
        return
    n = len(kernel)
    for size, k, before, after in zip(o.type("x").shape[2:], kernel, pads[:n], pads[n:], strict=True):
        if size is not None and size + before + after < k:
            raise ValueError(f"a window of {k} on {size} elements, padded by {before} and {after}")


class Windows:
    """The windows of a convolution along each spatial axis; `dilated` is how far they reach."""

    def __init__(self, o: Call) -> None:
        self._call, self.spatial = o, o.rank() - 2
        self.strides = o.ints("strides", [1] * self.spatial)
        self.dilations = o.ints("dilations", [1] * self.spatial)
        self.kernel = list(o.shape("weight")[2:])
        self.dilated = [(k - 1) * d + 1 for k, d in zip(self.kernel, self.dilations, strict=True)]

    def require(self, pads: Sequence[int] | str) -> None:
        """See `require_windows`."""
        require_windows(self._call, self.dilated, [*self.strides, *self.dilations], pads)

    def op(self, op: str, **padding: Any) -> ir.Value:
        """The convolution `op` with these windows."""
        o = self._call
        return o.b.op(
            op,
            o.value(),
            o.value("weight"),
            o.optional("bias"),
            kernel_shape=self.kernel,
            strides=self.strides,
            dilations=self.dilations,
            group=o.integer("groups", 1),
            **padding,
        )


@rule("conv")
def conv(o: Call) -> Result:
    windows = Windows(o)
    pads = onnx_padding(o, windows.dilated, windows.strides)
    windows.require(pads)
    return windows.op("Conv", **({"auto_pad": pads} if isinstance(pads, str) else {"pads": pads}))


@rule("conv_transpose")
def conv_transpose(o: Call) -> Result:
    windows = Windows(o)
    windows.require("")
    spatial, strides, dilated = windows.spatial, windows.strides, windows.dilated
    kind = o.text("pad_type", "valid")
    begins, ends = [0] * spatial, [0] * spatial
    if kind == "custom":
        pairs = o.ints("pad", [0] * (2 * spatial))
        begins, ends = pairs[0::2], pairs[1::2]
    elif kind == "same" and not o.has("output_shape"):
        excess = [k - s for k, s in zip(dilated, strides, strict=True)]
        begins = [max(e, 0) // 2 for e in excess]
        ends = [e - b for e, b in zip(excess, begins, strict=True)]
    elif kind not in ("valid", "same"):
        raise Unsupported(f"pad_type '{kind}' is none of valid, custom, same")
    if o.has("output_shape"):
        wanted, sizes = o.ints("output_shape")[-spatial:], o.shape()[2:]
        excess = [(n - 1) * s + k - w for n, s, k, w in zip(sizes, strides, dilated, wanted, strict=True)]
        if kind == "same":
            begins = [max(e, 0) // 2 for e in excess]
        ends = [e - b for e, b in zip(excess, begins, strict=True)]
    pads, beyond = [*begins, *(max(e, 0) for e in ends)], [max(-e, 0) for e in ends]
    return windows.op("ConvTranspose", pads=pads, output_padding=beyond)


def _as(o: Call, name: str, carried: ir.DataType) -> ir.Value:
    """An argument in the given type: from iOS 17 weights may have another type than x."""
    value = o.value(name)
    return value if o.type(name).element.carried == carried else o.b.cast(value, carried)


@rule("linear")
def linear(o: Call) -> Result:
    """x · weightᵀ + bias; weight is [out, in]."""
    b, x = o.b, o.value()
    carried, shape = o.type().element.carried, o.type().shape
    weight, bias = _as(o, "weight", carried), _as(o, "bias", carried) if o.has("bias") else None
    if carried != FLOAT:
        product = b.op("MatMul", x, b.op("Transpose", weight, perm=[1, 0]))
        return product if bias is None else b.op("Add", product, bias)
    if len(shape) == 2:
        return b.op("Gemm", x, weight, bias, transB=1)
    width, depth = o.shape("weight")
    flat = b.op("Gemm", b.reshape(x, [-1, depth]), weight, bias, transB=1)
    if sum(d is None for d in shape[:-1]) <= 1:
        return b.reshape(flat, [-1 if d is None else d for d in shape[:-1]] + [width])
    return b.op("Reshape", flat, b.concat([b.op("Shape", x, end=-1), b.ints([width])], 0))


def _swap_last(o: Call, value: ir.Value, rank: int) -> ir.Value:
    return o.b.transpose(value, [*range(rank - 2), rank - 1, rank - 2])


@rule("matmul")
def matmul(o: Call) -> Result:
    """From iOS 17 a constant operand may have another type than the result."""
    operands, carried = [], o.output().element.carried
    for name in ("x", "y"):
        value = _as(o, name, carried)
        if o.flag(f"transpose_{name}") and o.rank(name) >= 2:
            value = _swap_last(o, value, o.rank(name))
        operands.append(value)
    return o.b.op("MatMul", *operands)


@rule("einsum")
def einsum(o: Call) -> Result:
    """MIL has two equations, matrix products over axes −3 and −1.

    They are written out, because ONNX's shape inference of Einsum does not know that dimensions of 1 broadcast.
    """
    equation, rank = o.text("equation"), o.rank("values")
    letters = {c: "nchwu"[i] for i, c in enumerate(dict.fromkeys(c for c in equation if c.isalpha()))}
    if "".join(letters.get(c, c) for c in equation) not in ("nchw,nwhu->nchu", "nch,hcw->ncw"):
        raise Unsupported(f"equation '{equation}' is not one that MIL defines")
    swap = [*range(rank - 3), rank - 2, rank - 3, rank - 1]
    x, y = (o.b.transpose(v, swap) for v in o.values("values"))
    return o.b.transpose(o.b.op("MatMul", x, y), swap)


@rule("scaled_dot_product_attention")
def attention(o: Call) -> Result:
    """softmax(Q·Kᵀ / √E + mask) · V; a boolean mask lets through where it is true."""
    b = o.b
    depth = o.type("query").shape[-1]
    if depth is None:
        raise Unsupported("the last dimension of 'query' must be fixed")
    scores = b.op("MatMul", o.value("query"), _swap_last(o, o.value("key"), o.rank("key")))
    scores = b.op("Mul", scores, b.number(1.0 / math.sqrt(depth)))
    if o.has("attn_mask"):
        mask = o.value("attn_mask")
        if o.type("attn_mask").dtype == "bool":
            mask = b.op("Where", mask, b.number(0.0), b.number(-np.inf))
        scores = b.op("Add", scores, mask)
    return b.op("MatMul", b.op("Softmax", scores, axis=-1), o.value("value"))
