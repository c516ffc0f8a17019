"""How large the results of each operator are: products, windows that slide, grids, recurrent cells, attention.

Sources: the operators' own pages of the ONNX specification, and for `ceil_mode` and `auto_pad` its formulas of pooling.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from .. import dims as d
from ..dims import Dim
from ..graph import attr
from . import bounds
from .size_rules import Rule, Sized, broadcast, given, join, numbers, sizes_of

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


# --- products --------------------------------------------------------------------------------------------------------


def _matmul(right: int) -> Rule:
    def rule(sizes: Sizes, node: ir.Node) -> Sequence[Sized] | None:
        a, b = sizes.dims(node.inputs[0]), sizes.dims(node.inputs[right])
        if a is None or b is None:
            return None
        head = broadcast([a[:-2], b[:-2]]) if a[:-2] or b[:-2] else []
        return [[*head, *(a[-2:-1] if len(a) > 1 else ()), *(b[-1:] if len(b) > 1 else ())]]

    return rule


def _gemm(sizes: Sizes, node: ir.Node) -> Sequence[Sized] | None:
    a, b = sizes.dims(node.inputs[0]), sizes.dims(node.inputs[1])
    if a is None or b is None:
        return None
    return [[a[1 if attr(node, "transA", 0) else 0], b[0 if attr(node, "transB", 0) else 1]]]


def einsum_sizes(sizes: Sizes, node: ir.Node) -> dict[str, Dim] | None:
    """Each subscript of an Einsum → its extent. Axes under an ellipsis are named "-1", "-2" … from the last."""
    terms = attr(node, "equation").replace(" ", "").split("->")[0].split(",")
    found: dict[str, list[Dim]] = {}
    for term, value in zip(terms, node.inputs, strict=True):
        dims = sizes.dims(value)
        if dims is None:
            return None
        head, dots, tail = term.partition("...")
        middle = [str(i) for i in range(-(len(dims) - len(head) - len(tail)), 0)] if dots else []
        for label, dim in zip([*head, *middle, *tail], dims, strict=True):
            found.setdefault(label, []).append(dim)
    return {label: join(dims) for label, dims in found.items()}


def _einsum(sizes: Sizes, node: ir.Node) -> Sequence[Sized] | None:
    extents = einsum_sizes(sizes, node)
    if extents is None:
        return None
    inputs, arrow, output = attr(node, "equation").replace(" ", "").partition("->")
    dots = sorted((k for k in extents if k.startswith("-")), key=int)
    if not arrow:
        letters = inputs.replace("...", "").replace(",", "")
        output = "..." * bool(dots) + "".join(sorted(c for c in set(letters) if letters.count(c) == 1))
    head, _, tail = output.partition("...")
    return [[extents[k] for k in [*head, *(dots if "..." in output else ()), *tail]]]


def _attention(sizes: Sizes, node: ir.Node) -> Sequence[Sized] | None:
    q, k, v = (sizes.dims(i) for i in node.inputs[:3])
    if q is None or k is None or v is None:
        return None
    past = sizes.dims(given(node, 4))
    if len(q) == 4:
        heads, kv_heads, head, value, lines, keys = q[1], k[1], k[3], v[3], q[2], k[2]
    else:
        heads, kv_heads = attr(node, "q_num_heads"), attr(node, "kv_num_heads")
        head, value = (bounds.certain(bounds.floor_div(x[2], kv_heads)) for x in (k, v))
        lines, keys = q[1], k[1]
    whole = d.add(keys, past[2]) if past is not None else keys
    result: Sized = [q[0], heads, lines, value] if len(q) == 4 else [q[0], lines, d.mul(heads, value)]
    return [result, [q[0], kv_heads, whole, head], [q[0], kv_heads, whole, value], [q[0], heads, lines, whole]]


def _recurrent(sizes: Sizes, node: ir.Node) -> Sequence[Sized] | None:
    x, r = sizes.dims(node.inputs[0]), sizes.dims(node.inputs[2])
    if x is None or r is None:
        return None
    hidden = attr(node, "hidden_size") or r[2]
    if attr(node, "layout", 0):
        return [[x[0], x[1], r[0], hidden], *[[x[0], r[0], hidden]] * 2]
    return [[x[0], r[0], x[1], hidden], *[[r[0], x[1], hidden]] * 2]


# --- signals ---------------------------------------------------------------------------------------------------------


def _fourier(sizes: Sizes, node: ir.Node) -> Sequence[Sized] | None:
    dims, length = sizes.dims(node.inputs[0]), given(node, 1)
    if dims is None:
        return None
    axis = sizes.number(given(node, 2)) if given(node, 2) is not None else attr(node, "axis", -2)
    if not isinstance(axis, int):
        return [[None] * len(dims)]
    axis %= len(dims)
    n = sizes.number(length) if length is not None else dims[axis]
    sided, inverse = attr(node, "onesided", 0), attr(node, "inverse", 0)
    if n is not None and sided and not inverse:
        half = bounds.floor_div(n, 2)
        n = None if half is None else d.add(half, 1)
    elif n is not None and sided and length is None:
        n = d.mul(d.sub(n, 1), 2)
    result: list[Dim | None] = [n if i == axis else dim for i, dim in enumerate(dims)]
    return [[*result[:-1], 1 if sided and inverse else 2]]


def _short_time_fourier(sizes: Sizes, node: ir.Node) -> Sequence[Sized] | None:
    dims, step, window = sizes.dims(node.inputs[0]), sizes.number(node.inputs[1]), sizes.dims(given(node, 2))
    if dims is None:
        return None
    length = sizes.number(given(node, 3)) if given(node, 3) is not None else window[0] if window else None
    if length is None or step is None:
        return [[dims[0], None, None, 2]]
    frames, half = bounds.floor_div(d.sub(dims[1], length), step), bounds.floor_div(length, 2)
    bins = length if not attr(node, "onesided", 1) else None if half is None else d.add(half, 1)
    return [[dims[0], None if frames is None else d.add(frames, 1), bins, 2]]


def _mel(sizes: Sizes, node: ir.Node) -> Sequence[Sized]:
    bins, length = sizes.number(node.inputs[0]), sizes.number(node.inputs[1])
    half = None if length is None else bounds.floor_div(length, 2)
    return [[None if half is None else d.add(half, 1), bins]]


def _n_grams(sizes: Sizes, node: ir.Node) -> Sequence[Sized] | None:
    dims = sizes.dims(node.inputs[0])
    return None if dims is None else [[*dims[:-1], max(attr(node, "ngram_indexes")) + 1]]


RULES: dict[str, Callable[[Sizes, ir.Node], Sequence[Sized] | None]] = {
    **dict.fromkeys(("AveragePool", "LpPool", "MaxPool"), _pool),
    **dict.fromkeys(("Conv", "ConvInteger", "DeformConv"), _convolution(1)),
    **dict.fromkeys(("GRU", "LSTM", "RNN"), _recurrent),
    **dict.fromkeys(("GlobalAveragePool", "GlobalLpPool", "GlobalMaxPool"), _global_pool),
    **dict.fromkeys(("MatMul", "MatMulInteger"), _matmul(1)),
    **dict.fromkeys(("MaxRoiPool", "RoiAlign"), _roi_align),
    **dict.fromkeys(("Resize", "Upsample"), _resize),
    "AffineGrid": _affine_grid,
    "Attention": _attention,
    "Col2Im": _col_to_image,
    "ConvTranspose": _transposed,
    "DFT": _fourier,
    "Einsum": _einsum,
    "Gemm": _gemm,
    "GridSample": _grid_sample,
    "MaxUnpool": _unpool,
    "MelWeightMatrix": _mel,
    "QLinearConv": _convolution(3),
    "QLinearMatMul": _matmul(3),
    "STFT": _short_time_fourier,
    "TfIdfVectorizer": _n_grams,
}
"""Operator → the rule for its outputs' dimensions."""
