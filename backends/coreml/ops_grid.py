"""Operators over image grids: sampling at given places, folding columns, undoing a pool."""

from __future__ import annotations

import numpy as np

from .build import Var
from .call import Call
from .constants import of_array
from .registry import lowers

_PADDING = {"zeros": "constant", "border": "border"}


@lowers("GridSample")
def _grid_sample(c: Call) -> Var:
    """MIL's resample, for bilinear sampling of images."""
    mode, padding = c.attr("mode", "linear"), c.attr("padding_mode", "zeros")
    if c.rank() != 4 or mode not in ("linear", "bilinear"):
        c.missing(f"mode '{mode}' in {c.rank() - 2} dimensions; Core ML samples images bilinearly")
    if padding not in _PADDING:
        c.missing(f"padding mode '{padding}'")
    return c.op(
        "resample", x=c.x(), coordinates=c.x(1), sampling_mode="bilinear", padding_mode=_PADDING[padding],
        padding_value=0.0, coordinates_mode="normalized_minus_one_to_one",
        align_corners=bool(c.attr("align_corners", 0)))  # fmt: skip


@lowers("Col2Im", floats=(0,))
def _col2im(c: Call) -> Var:
    """A transposed convolution in which each column element has its own place in the kernel."""
    image, block = c.ints(1), c.ints(2)
    n = len(image)
    if n > 3:
        c.missing("more than three spatial dimensions")
    strides, dilations = (list(c.attr(k) or [1] * n) for k in ("strides", "dilations"))
    pads = list(c.attr("pads") or [0] * (2 * n))
    taps = int(np.prod(block))
    batch, rows, _ = c.shape()
    steps = [
        (size + pads[i] + pads[i + n] - dilations[i] * (block[i] - 1) - 1) // strides[i] + 1
        for i, size in enumerate(image)
    ]
    kernel = np.tile(np.eye(taps).reshape(taps, 1, *block), (rows // taps, *(1,) * (n + 1))).astype(np.float32)
    full = [(s - 1) * strides[i] + dilations[i] * (block[i] - 1) + 1 for i, s in enumerate(steps)]
    ends = [full[i] - pads[i] - image[i] for i in range(n)]
    if min(ends) < 0:
        c.missing("columns that don't reach the end of the image")
    weight = c.weight(of_array(kernel, kernel.tobytes()))
    return c.op(
        "conv_transpose", x=c.reshape(c.x(), (batch, rows, *steps)), weight=weight,
        strides=strides, dilations=dilations, groups=rows // taps, pad_type="custom",
        pad=[k for pair in zip(pads[:n], ends, strict=True) for k in pair])  # fmt: skip


@lowers("MaxUnpool", exact=True, floats=(0,))
def _max_unpool(c: Call) -> Var:
    """Each value at its index into the flattened result, zeros elsewhere."""
    if c.has(2):
        c.missing("an explicit output shape, with which the indices mean something else")
    shape, count = c.out_shape(), int(np.prod(c.shape()))
    zeros = c.tensor(np.zeros(int(np.prod(shape)), np.float32))
    y = c.op(
        "scatter_along_axis", data=zeros, indices=c.reshape(c.x(1), (count,)), updates=c.reshape(c.x(), (count,)),
        axis=0, mode="update")  # fmt: skip
    return c.reshape(y, shape)


@lowers("AffineGrid", floats=(0,))
def _affine_grid(c: Call) -> Var:
    """Every position of the output, in -1 … 1, through the affine map of its picture."""
    sizes = c.ints(1)[2:]
    corners = bool(c.attr("align_corners", 0))
    axes = [np.linspace(-1, 1, n) if corners else (2 * np.arange(n) + 1) / n - 1 for n in sizes]
    grid = np.stack([*reversed(np.meshgrid(*axes, indexing="ij")), np.ones(sizes)], axis=-1)
    base = c.tensor(grid.reshape(-1, len(sizes) + 1).astype(np.float32))
    return c.reshape(c.op("matmul", x=base, y=c.x(), transpose_y=True), c.out_shape())
