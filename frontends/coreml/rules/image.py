"""Resizing and sampling (`ops/defs/*/image_resizing.py`).

Resizing follows the grid points of MIL's definition literally (gather two neighbours along an axis, interpolate), so
that no runtime's coordinate conventions are involved.
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from ..call import Call, Result, Unsupported, rule
from ..graph import FLOAT
from ..values import Array


def grid(mode: str, size: int, wanted: int) -> Array:
    """The positions in an axis of `size` that `wanted` outputs are sampled at (see MIL's `resize_bilinear`)."""
    i = np.arange(wanted, dtype=np.float64)
    if mode in ("STRICT_ALIGN_CORNERS", "ALIGN_CORNERS"):
        middle = (size - 1) / 2 if mode == "ALIGN_CORNERS" else 0.0
        points = i * (size - 1) / (wanted - 1) if wanted > 1 else np.array([middle])
    elif mode == "DEFAULT":
        points = i * size / wanted
    elif mode == "OFFSET_CORNERS":
        delta = max(1, size - 1) / wanted
        points = (i + 0.5) * delta
    elif mode == "UNALIGN_CORNERS":
        points = (i + 0.5) * size / wanted - 0.5
    else:
        raise Unsupported(f"sampling mode '{mode}' is not one that MIL defines")
    clipped: Array = np.clip(points, 0.0, size - 1)
    return clipped


def _interpolate(o: Call, x: ir.Value, axis: int, size: int, points: Array) -> ir.Value:
    b = o.b
    low = np.minimum(np.floor(points).astype(np.int64), size - 1)
    weight = (points - low).astype(np.float32)
    if np.array_equal(low, np.arange(size)) and not weight.any():
        return x
    below = b.op("Gather", x, b.constant(low), axis=axis)
    if not weight.any():
        return below
    above = b.op("Gather", x, b.constant(np.minimum(low + 1, size - 1)), axis=axis)
    factor = b.constant(weight.reshape(-1, *[1] * (o.rank() - 1 - axis)))
    return b.op("Add", below, b.op("Mul", b.op("Sub", above, below), factor))


def _nearest(o: Call, x: ir.Value, axis: int, size: int, points: Array, floor: bool) -> ir.Value:
    """The pixel below (upsample_ and resize_nearest_neighbor), or the nearest one (resize).

    MIL names no rule for ties, so there must be none; coremltools' tests of `resize` show that it does not round down.
    """
    if floor:
        index = np.floor(points + 1e-9)
    else:
        if np.any(np.abs(points - np.floor(points) - 0.5) < 1e-6):
            raise Unsupported("nearest neighbour has ties at these sizes, and MIL does not say how they are resolved")
        index = np.rint(points)
    index = np.clip(index, 0, size - 1).astype(np.int64)
    return x if np.array_equal(index, np.arange(size)) else o.b.op("Gather", x, o.b.constant(index), axis=axis)


def _resize(o: Call, targets: dict[int, int], mode: str, nearest: bool, floor: bool = True) -> ir.Value:
    result = o.value()
    dims = o.type().shape
    for axis, wanted in targets.items():
        size = dims[axis]
        if size is None:
            raise Unsupported("the resized dimensions of 'x' must be fixed")
        points = grid(mode, size, wanted)
        if nearest:
            result = _nearest(o, result, axis, size, points, floor)
        else:
            result = _interpolate(o, result, axis, size, points)
    return o.b.op("Identity", result) if result is o.value() else result


def _spatial(o: Call, height: int, width: int) -> dict[int, int]:
    return {o.rank() - 2: height, o.rank() - 1: width}


def _scaled(o: Call) -> dict[int, int]:
    """Target sizes of an upsampling: floor(size · factor)."""
    sizes = o.shape()
    factors = [float(o.const(f"scale_factor_{side}", 1).item()) for side in ("height", "width")]
    return _spatial(o, math.floor(sizes[-2] * factors[0]), math.floor(sizes[-1] * factors[1]))


@rule("upsample_nearest_neighbor", exact=True)
def upsample_nearest(o: Call) -> Result:
    return _resize(o, _scaled(o), "DEFAULT", nearest=True)


@rule("upsample_bilinear")
def upsample_bilinear(o: Call) -> Result:
    align = o.flag("align_corners", True)
    half = o.flag("half_pixel_centers", not align)
    if align and half:
        raise Unsupported("align_corners together with half_pixel_centers")
    mode = "STRICT_ALIGN_CORNERS" if align else "UNALIGN_CORNERS" if half else "DEFAULT"
    return _resize(o, _scaled(o), mode, nearest=False)


@rule("resize_nearest_neighbor", exact=True)
def resize_nearest(o: Call) -> Result:
    targets = _spatial(o, o.integer("target_size_height"), o.integer("target_size_width"))
    return _resize(o, targets, "DEFAULT", nearest=True)


@rule("resize_bilinear")
def resize_bilinear(o: Call) -> Result:
    targets = _spatial(o, o.integer("target_size_height", 1), o.integer("target_size_width", 1))
    return _resize(o, targets, o.text("sampling_mode", "DEFAULT"), nearest=False)


@rule("resize")
def resize(o: Call) -> Result:
    """The last `resized_dims` entries of `shape` are the new sizes; 0 keeps a dimension."""
    count, rank = o.integer("resized_dims"), o.rank()
    wanted = o.ints("shape")[-count:] if count else []
    kind = o.text("interpolation_mode", "LINEAR")
    if kind not in ("LINEAR", "NEAREST_NEIGHBOR"):
        raise Unsupported(f"interpolation mode '{kind}' is neither LINEAR nor NEAREST_NEIGHBOR")
    targets = {rank - count + i: size for i, size in enumerate(wanted) if size}
    if o.type().element.carried != FLOAT and kind == "LINEAR":
        raise Unsupported("linear interpolation of integers")
    mode = o.text("sampling_mode", "DEFAULT")
    return _resize(o, targets, mode, nearest=kind == "NEAREST_NEIGHBOR", floor=False)


# Sampling at computed positions -------------------------------------------------------------------------------------


def _pixels(o: Call, coordinates: ir.Value, sizes: Array) -> ir.Value:
    """Coordinates in pixels (0 is the centre of the first), from the operator's own convention."""
    b, mode = o.b, o.text("coordinates_mode")
    if mode == "unnormalized":
        return coordinates
    if mode == "normalized_minus_one_to_one":
        coordinates = b.op("Mul", b.op("Add", coordinates, b.number(1.0)), b.number(0.5))
    elif mode != "normalized_zero_to_one":
        raise Unsupported(f"coordinates_mode '{mode}' is not one that MIL defines")
    if o.flag("align_corners"):
        return b.op("Mul", coordinates, b.constant(sizes - 1))
    return b.op("Sub", b.op("Mul", coordinates, b.constant(sizes)), b.number(0.5))


@rule("resample")
def resample(o: Call) -> Result:
    """GridSample; its `align_corners` decides whether reflection is about pixel centres or about pixel edges."""
    b = o.b
    sampling = {"bilinear": "linear", "nearest": "nearest"}.get(o.text("sampling_mode"))
    padding = {"constant": "zeros", "border": "border", "reflection": "reflection", "symmetric": "reflection"}.get(
        o.text("padding_mode")
    )
    if sampling is None or padding is None:
        raise Unsupported(f"sampling '{o.text('sampling_mode')}' with padding '{o.text('padding_mode')}'")
    height, width = o.shape()[-2:]
    sizes = np.array([width, height], np.float32)
    coordinates = o.value("coordinates")
    if o.type("coordinates").element.carried != FLOAT:
        coordinates = b.cast(coordinates, FLOAT)
    pixels = _pixels(o, coordinates, sizes)
    about_centres = o.text("padding_mode") == "reflection"
    if about_centres:
        scale, shift = 2 / np.maximum(sizes - 1, 1), np.full(2, -1.0)
    else:
        scale, shift = 2 / sizes, 1 / sizes - 1
    factor, offset = (b.constant(v.astype(np.float32)) for v in (scale, shift))
    position = b.op("Add", b.op("Mul", pixels, factor), offset)
    x, fill = o.value(), o.number("padding_value") if padding == "zeros" else 0.0
    if fill:
        x = b.op("Sub", x, b.number(fill))
    result = b.op("GridSample", x, position, mode=sampling, padding_mode=padding, align_corners=int(about_centres))
    return b.op("Add", result, b.number(fill)) if fill else result


@rule("affine")
def affine(o: Call) -> Result:
    b = o.b
    facts = (o.text("sampling_mode"), o.text("padding_mode"), o.text("coordinates_mode"), o.number("padding_value"))
    if facts != ("bilinear", "constant", "normalized_minus_one_to_one", 0.0) or not o.flag("align_corners"):
        raise Unsupported(f"{facts} with align_corners={o.flag('align_corners')}: MIL defines one combination only")
    batch, channels = o.shape()[:2]
    matrix = b.op("Expand", o.value("transform_matrix"), b.ints([batch, 6]))
    size = b.ints([batch, channels, o.integer("output_height"), o.integer("output_width")])
    points = b.op("AffineGrid", b.reshape(matrix, [batch, 2, 3]), size, align_corners=1)
    return b.op("GridSample", o.value(), points, mode="linear", padding_mode="zeros", align_corners=1)
