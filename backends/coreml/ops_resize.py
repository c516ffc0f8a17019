"""Resize and grid sampling. What Core ML's own resampling doesn't express exactly becomes a product with a matrix of
weights for each axis (linear, cubic, antialiased) or a gather (nearest): shapes are fixed, so both are constants."""

from __future__ import annotations

from typing import Any

import numpy as np

from .build import Var
from .call import Call
from .registry import lowers
from .resampling import Axis, nearest, weights


@lowers("Resize", "Upsample", floats=(0,))
def _resize(c: Call) -> Any:
    axes = _axes(c)
    todo = [a for a in axes if not a.identity]
    if not todo:
        return c.same(0)
    mode = c.attr("mode", "nearest")
    if mode == "nearest":
        return _nearest(c, todo)
    if not c.is_float_node():
        c.missing(f"mode '{mode}' on integers")
    native = _bilinear(c, todo) if mode in ("linear", "bilinear") else None
    if native is not None:
        return native
    x = c.x()
    for axis in todo:
        x = _product(c, x, axis)
    return x


def _axes(c: Call) -> list[Axis]:
    """Each axis with its sizes, scale and region; `keep_aspect_ratio_policy` shows in the scale."""
    shape, out = c.shape(), c.out_shape()
    n = len(shape)
    which = [a % n for a in c.attr("axes") or range(n)]
    old = c.node.op_type == "Upsample"
    given = c.array(1 if old else 2).tolist() if c.has(1 if old else 2) and c.shape(1 if old else 2) != (0,) else None
    sizes = None if given or not c.has(3) else c.ints(3)
    scales = [1.0] * n
    if given:
        for a, s in zip(which, given, strict=True):
            scales[a] = float(s)
    else:
        assert sizes is not None
        ratio = {a: s / shape[a] for a, s in zip(which, sizes, strict=True)}
        policy = c.attr("keep_aspect_ratio_policy", "stretch")
        if policy != "stretch":
            same = min(ratio.values()) if policy == "not_larger" else max(ratio.values())
            ratio = dict.fromkeys(ratio, same)
        for a, r in ratio.items():
            scales[a] = r
    roi = c.array(1).tolist() if not old and c.has(1) and c.shape(1) != (0,) else None
    regions = [(0.0, 1.0)] * n
    if roi:
        for k, a in enumerate(which):
            regions[a] = (roi[k], roi[k + len(which)])
    transform = "asymmetric" if old else c.attr("coordinate_transformation_mode", "half_pixel")
    return [Axis(a, shape[a], out[a], scales[a], transform, regions[a]) for a in range(n)]


def _nearest(c: Call, todo: list[Axis]) -> Var:
    rounding = "floor" if c.node.op_type == "Upsample" else c.attr("nearest_mode", "round_prefer_floor")
    found = {a.axis: nearest(a, rounding) for a in todo}
    if any((index < 0).any() for index in found.values()):
        c.missing("nearest with extrapolation")
    x, rank = c.x(), c.rank()
    factors = {a.axis: a.out // a.size for a in todo if a.out % a.size == 0}
    whole = all(
        a.axis in factors and (found[a.axis] == np.arange(a.out) // factors[a.axis]).all() and a.axis >= rank - 2
        for a in todo)  # fmt: skip
    if whole and rank >= 3 and c.is_float_node():
        height, width = (np.float32(factors.get(rank - k, 1)) for k in (2, 1))
        return c.op("upsample_nearest_neighbor", x=x, scale_factor_height=height, scale_factor_width=width)
    for axis, index in found.items():
        x = c.op("gather", x=x, indices=c.tensor(index), axis=axis)
    return x


_BILINEAR = {
    "half_pixel": "UNALIGN_CORNERS", "pytorch_half_pixel": "UNALIGN_CORNERS", "align_corners": "STRICT_ALIGN_CORNERS",
    "asymmetric": "DEFAULT",
}  # fmt: skip


def _bilinear(c: Call, todo: list[Axis]) -> Var | None:
    """MIL's resize_bilinear, whose sampling modes are three of ONNX's for the last two axes; None elsewhere."""
    rank = c.rank()
    if rank < 3 or any(a.axis < rank - 2 for a in todo) or c.attr("antialias", 0) or c.attr("exclude_outside", 0):
        return None
    transform = todo[0].transform
    # Its grid comes from the sizes: a scale that isn't their ratio gives another one.
    if transform not in _BILINEAR or any(abs(a.scale * a.size - a.out) > 1e-6 for a in todo):
        return None
    if any(a.out == 1 for a in todo):
        return None
    height, width = c.out_shape()[-2:]
    return c.op(
        "resize_bilinear", x=c.x(), target_size_height=height, target_size_width=width,
        sampling_mode=_BILINEAR[transform])  # fmt: skip


def _product(c: Call, x: Var, axis: Axis) -> Var:
    """One axis resampled by a matrix [out, in]."""
    matrix = weights(
        axis, c.attr("mode"), float(c.attr("cubic_coeff_a", -0.75)), bool(c.attr("exclude_outside", 0)),
        bool(c.attr("antialias", 0)), float(c.attr("extrapolation_value", 0.0)))  # fmt: skip
    if matrix is None:
        c.missing("tf_crop_and_resize outside the input with an extrapolation value")
    rank = len(x.shape)
    if axis.axis == rank - 1:
        return _with_vector(c, x, matrix.T, left=False)
    if axis.axis == rank - 2 and rank > 1:
        return _with_vector(c, x, matrix, left=True)
    perm = [i for i in range(rank) if i != axis.axis] + [axis.axis]
    y = _with_vector(c, c.transpose(x, perm), matrix.T, left=False)
    return c.transpose(y, [perm.index(i) for i in range(rank)])


def _with_vector(c: Call, x: Var, matrix: np.ndarray, left: bool) -> Var:
    constant = c.tensor(matrix.astype(np.float32))
    if len(x.shape) == 1:
        flat = c.op("matmul", x=c.reshape(x, (1, int(x.shape[0]))), y=constant)
        return c.reshape(flat, (int(flat.shape[1]),))
    return c.op("matmul", x=constant, y=x) if left else c.op("matmul", x=x, y=constant)
