"""How large the results are of windows that slide, of pooling, and of what is resampled on a grid.

Sources: the operators' own pages of the ONNX specification, and for `ceil_mode` and `auto_pad` its formulas of pooling.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from .. import dims as d
from ..dims import Dim
from ..graph import attr
from . import bounds
from .size_rules import Rule, Sized, given, numbers, sizes_of

if TYPE_CHECKING:
    from .sizes import Sizes

Spatial = list[Dim | None]


# --- windows ---------------------------------------------------------------------------------------------------------


def _window(sizes: Sizes, node: ir.Node, dims: Sequence[Dim], kernel: Sequence[Dim | None]) -> Spatial:
    """The spatial axes of what a convolution or pooling returns."""
    count = len(dims) - 2
    strides, dilations = attr(node, "strides") or [1] * count, attr(node, "dilations") or [1] * count
    pads, auto = attr(node, "pads") or [0] * (2 * count), attr(node, "auto_pad", "NOTSET")
    found: Spatial = []
    for i in range(count):
        k, n = kernel[i], dims[i + 2]
        if auto.startswith("SAME"):
            found.append(bounds.ceil_div(n, strides[i]))
            continue
        if k is None:
            found.append(None)
            continue
        reach = d.add(d.mul(d.sub(k, 1), dilations[i]), 1)
        before, after = (pads[i], pads[i + count]) if auto == "NOTSET" else (0, 0)
        found.append(_steps(n, before, after, reach, strides[i], bool(attr(node, "ceil_mode", 0))))
    return found


def _steps(n: Dim, before: int, after: int, reach: Dim, stride: int, ceil: bool) -> Dim | None:
    """floor((n + pads - reach) / stride) + 1; with `ceil` rounded up, but no window starts behind data and left pad."""
    room = d.sub(d.add(n, before + after), reach)
    if not ceil:
        steps = bounds.floor_div(room, stride)
        return None if steps is None else d.add(steps, 1)
    up = d.add(bounds.ceil_div(room, stride), 1)
    if isinstance(reach, int) and reach > stride - 1 + after:
        return up
    started = bounds.floor_div(d.add(n, before - 1), stride)
    return None if started is None else bounds.minimum([up, d.add(started, 1)])


def _convolution(weight: int) -> Rule:
    def rule(sizes: Sizes, node: ir.Node) -> Sequence[Sized] | None:
        dims, filters = sizes.dims(node.inputs[0]), sizes.dims(node.inputs[weight])
        if dims is None or filters is None:
            return None
        return [[dims[0], filters[0], *_window(sizes, node, dims, attr(node, "kernel_shape") or filters[2:])]]

    return rule


def _pool(sizes: Sizes, node: ir.Node) -> Sequence[Sized] | None:
    dims = sizes.dims(node.inputs[0])
    if dims is None:
        return None
    return [[*dims[:2], *_window(sizes, node, dims, attr(node, "kernel_shape"))]] * len(node.outputs)


def _global_pool(sizes: Sizes, node: ir.Node) -> Sequence[Sized] | None:
    dims = sizes.dims(node.inputs[0])
    return None if dims is None else [[*dims[:2], *[1] * (len(dims) - 2)]]


def _transposed(sizes: Sizes, node: ir.Node) -> Sequence[Sized] | None:
    """stride · (n - 1) + output_padding + reach - pads, by the specification of ConvTranspose."""
    dims, filters = sizes.dims(node.inputs[0]), sizes.dims(node.inputs[1])
    if dims is None or filters is None:
        return None
    count = len(dims) - 2
    strides, dilations = attr(node, "strides") or [1] * count, attr(node, "dilations") or [1] * count
    pads, extra = attr(node, "pads") or [0] * (2 * count), attr(node, "output_padding") or [0] * count
    kernel, auto = attr(node, "kernel_shape") or filters[2:], attr(node, "auto_pad", "NOTSET")
    spatial: Spatial = list(attr(node, "output_shape") or ())[-count:] if count else []
    for i in range(0 if spatial else count):
        n = dims[i + 2]
        if auto.startswith("SAME"):
            spatial.append(d.mul(n, strides[i]))
            continue
        reach = d.add(d.mul(d.sub(kernel[i], 1), dilations[i]), 1)
        cut = pads[i] + pads[i + count] if auto == "NOTSET" else 0
        spatial.append(d.add(d.add(d.mul(d.sub(n, 1), strides[i]), reach), extra[i] - cut))
    return [[dims[0], d.mul(filters[1], attr(node, "group", 1)), *spatial]]


def _unpool(sizes: Sizes, node: ir.Node) -> Sequence[Sized] | None:
    dims = sizes.dims(node.inputs[0])
    if dims is None:
        return None
    if given(node, 2) is not None:
        return [sizes_of(sizes, node.inputs[2]) or [None] * len(dims)]
    kernel, count = attr(node, "kernel_shape"), len(dims) - 2
    strides, pads = attr(node, "strides") or [1] * count, attr(node, "pads") or [0] * (2 * count)
    cut = [pads[i] + pads[i + count] for i in range(count)]
    return [[*dims[:2], *(d.add(d.mul(d.sub(dims[i + 2], 1), strides[i]), kernel[i] - cut[i]) for i in range(count))]]


# --- other sizes of a picture ----------------------------------------------------------------------------------------


def _resize(sizes: Sizes, node: ir.Node) -> Sequence[Sized] | None:
    dims = sizes.dims(node.inputs[0])
    if dims is None:
        return None
    at, wanted = (1, None) if len(node.inputs) < 3 else (2, given(node, 3))
    axes = [a % len(dims) for a in attr(node, "axes") or range(len(dims))]
    result: Spatial = list(dims)
    if wanted is not None and sizes.dims(wanted) != [0]:
        target = sizes_of(sizes, wanted)
        if attr(node, "keep_aspect_ratio_policy", "stretch") != "stretch":
            target = _kept_ratio(node, [dims[a] for a in axes], numbers(sizes, wanted))
        for i, axis in enumerate(axes):
            result[axis] = None if target is None else target[i]
        return [result]
    factors = attr(node, "scales") or _scales(sizes, given(node, at))
    roi = _roi(sizes, node) if attr(node, "coordinate_transformation_mode") == "tf_crop_and_resize" else None
    for i, axis in enumerate(axes):
        cropped = attr(node, "coordinate_transformation_mode") == "tf_crop_and_resize" and roi is None
        part = 1.0 if roi is None else roi[i + len(axes)] - roi[i]
        result[axis] = None if factors is None or cropped else scaled(dims[axis], factors[i] * part)
    return [result]


def _scales(sizes: Sizes, value: ir.Value | None) -> list[float] | None:
    tensor = sizes.tensor(value)
    return None if tensor is None else [float(x) for x in tensor.numpy().reshape(-1)]


def _roi(sizes: Sizes, node: ir.Node) -> list[float] | None:
    return _scales(sizes, given(node, 1))


def _kept_ratio(node: ir.Node, have: Sequence[Dim], want: Sequence[int] | None) -> list[Dim | None] | None:
    """The sizes wanted, all but one smaller (or larger) so that the ratio stays. Known for numbers alone."""
    known = [h for h in have if isinstance(h, int)]
    if want is None or len(known) < len(have):
        return None
    pick = min if attr(node, "keep_aspect_ratio_policy") == "not_larger" else max
    scale = pick(Fraction(w, h) for w, h in zip(want, known, strict=True))
    return [int(scale * h + Fraction(1, 2)) for h in known]


def scaled(n: Dim, factor: float) -> Dim | None:
    """floor(n · factor), in exact arithmetic for factors with a small denominator, else as an atom of its own."""
    ratio = Fraction(factor).limit_denominator(1024)
    if float(np.float32(ratio)) == float(np.float32(factor)):
        return bounds.floor_div(d.mul(n, ratio.numerator), ratio.denominator)
    return int(np.floor(np.float32(n) * np.float32(factor))) if isinstance(n, int) else None


def _roi_align(sizes: Sizes, node: ir.Node) -> Sequence[Sized] | None:
    dims, rois = sizes.dims(node.inputs[0]), sizes.dims(node.inputs[1])
    if dims is None or rois is None:
        return None
    height, width = attr(node, "pooled_shape") or (attr(node, "output_height", 1), attr(node, "output_width", 1))
    return [[rois[0], dims[1], height, width]]


def _grid_sample(sizes: Sizes, node: ir.Node) -> Sequence[Sized] | None:
    dims, grid = sizes.dims(node.inputs[0]), sizes.dims(node.inputs[1])
    return None if dims is None or grid is None else [[*dims[:2], *grid[1:-1]]]


def _affine_grid(sizes: Sizes, node: ir.Node) -> Sequence[Sized] | None:
    size = sizes_of(sizes, node.inputs[1])
    return None if size is None else [[size[0], *size[2:], len(size) - 2]]


def _col_to_image(sizes: Sizes, node: ir.Node) -> Sequence[Sized] | None:
    dims, image, block = sizes.dims(node.inputs[0]), sizes_of(sizes, node.inputs[1]), sizes_of(sizes, node.inputs[2])
    if dims is None or image is None:
        return None
    known = [b for b in block or [None] if b is not None]
    channels = bounds.floor_div(dims[1], d.product(known)) if block is not None and len(known) == len(block) else None
    return [[dims[0], channels, *image]]


RULES: dict[str, Rule] = {
    **dict.fromkeys(("AveragePool", "LpPool", "MaxPool"), _pool),
    **dict.fromkeys(("Conv", "ConvInteger", "DeformConv"), _convolution(1)),
    **dict.fromkeys(("GlobalAveragePool", "GlobalLpPool", "GlobalMaxPool"), _global_pool),
    **dict.fromkeys(("MaxRoiPool", "RoiAlign"), _roi_align),
    **dict.fromkeys(("Resize", "Upsample"), _resize),
    "AffineGrid": _affine_grid,
    "Col2Im": _col_to_image,
    "ConvTranspose": _transposed,
    "GridSample": _grid_sample,
    "MaxUnpool": _unpool,
    "QLinearConv": _convolution(3),
}
"""Operator → the rule for its outputs' dimensions."""
