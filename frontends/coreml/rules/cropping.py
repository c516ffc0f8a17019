"""Crops of an image at computed boxes (`crop_resize` in `ops/defs/*/image_resizing.py`).

Grid points from corner to corner are sampled; one outside the image gives `pad_value`, as in TensorFlow's
`crop_and_resize` and in the values of coremltools' tests.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ..call import Call, Result, Unsupported, rule
from ..graph import FLOAT, INT64

# Columns of start and end, for rows and for columns of the image.
_CORNERS = {"CORNERS_HEIGHT_FIRST": ((0, 2), (1, 3)), "CORNERS_WIDTH_FIRST": ((1, 3), (0, 2))}


def _boxes(o: Call) -> tuple[ir.Value, ir.Value | None, int]:
    """Boxes [N, 4], the image of each [N] (None: every image), and N. Up to iOS 16 both are in `roi`."""
    b = o.b
    if o.opset >= 7:
        count = o.shape("boxes")[0]
        indices = b.cast(o.value("box_indices"), INT64) if o.has("box_indices") else b.constant(np.arange(count))
        return b.cast(o.value("boxes"), FLOAT), indices, count
    count, _, width = o.shape("roi")[:3]
    flat = b.reshape(o.value("roi"), [count, width])
    if width == 4:
        return flat, None, count
    return b.slice(flat, [1], [5], [1]), b.cast(b.reshape(b.slice(flat, [0], [1], [1]), [count]), INT64), count


def _positions(o: Call, start: ir.Value, end: ir.Value, count: int) -> ir.Value:
    """Sampled positions [N, count] along one axis, from starts and ends [N, 1]: evenly spaced, both included."""
    b, mode = o.b, o.text("sampling_mode", "DEFAULT")
    if mode not in ("STRICT_ALIGN_CORNERS", "ALIGN_CORNERS"):
        raise Unsupported(f"sampling mode {mode}: MIL does not say how many samples a box has")
    only = 0.5 if mode == "ALIGN_CORNERS" else 0.0
    steps = np.arange(count) / (count - 1) if count > 1 else np.array([only])
    return b.op("Add", start, b.op("Mul", b.op("Sub", end, start), b.constant(steps.astype(np.float32)[None])))


def _axis(o: Call, boxes: ir.Value, columns: tuple[int, int], size: int, count: int) -> tuple[ir.Value, ir.Value]:
    """Positions along one axis of the image as GridSample counts them [N, count], and which of them are inside it."""
    b = o.b
    scale = o.number("spatial_scale", 1.0) * (size - 1 if o.flag("normalized_coordinates") else 1)
    start, end = (b.op("Mul", b.slice(boxes, [c], [c + 1], [1]), b.number(scale)) for c in columns)
    positions = _positions(o, start, end, count)
    inside = b.op(
        "And", b.op("GreaterOrEqual", positions, b.number(0.0)), b.op("LessOrEqual", positions, b.number(size - 1))
    )
    normal = b.op("Add", b.op("Mul", positions, b.number(2 / size)), b.number(1 / size - 1))
    return normal, inside


@rule("crop_resize")
def crop_resize(o: Call) -> Result:
    b, mode = o.b, o.text("box_coordinate_mode", "CORNERS_HEIGHT_FIRST")
    if mode not in _CORNERS:
        raise Unsupported(f"box_coordinate_mode '{mode}': MIL does not say where a box of that size begins")
    batch, channels, height, width = o.shape()
    rows, columns = o.integer("target_height", 1), o.integer("target_width", 1)
    boxes, indices, count = _boxes(o)
    y, inside_y = _axis(o, boxes, _CORNERS[mode][0], height, rows)
    x, inside_x = _axis(o, boxes, _CORNERS[mode][1], width, columns)
    full = b.ints([count, rows, columns, 1])
    grid = b.op(
        "Concat",
        b.op("Expand", b.reshape(x, [count, 1, columns, 1]), full),
        b.op("Expand", b.reshape(y, [count, rows, 1, 1]), full),
        axis=-1,
    )
    inside = b.op("And", b.reshape(inside_y, [count, 1, rows, 1]), b.reshape(inside_x, [count, 1, 1, columns]))
    each = batch if indices is None else 1
    if indices is None:
        images = b.op("Expand", o.value(), b.ints([count, batch, channels, height, width]))
        images = b.reshape(images, [count * batch, channels, height, width])
        grid = b.op("Expand", b.op("Unsqueeze", grid, b.ints([1])), b.ints([count, batch, rows, columns, 2]))
        grid = b.reshape(grid, [count * batch, rows, columns, 2])
    else:
        images = b.op("Gather", o.value(), indices, axis=0)
    sampled = b.op("GridSample", images, grid, mode="linear", padding_mode="border", align_corners=0)
    sampled = b.reshape(sampled, [count, each, channels, rows, columns])
    fill = b.number(o.number("pad_value", 0.0))
    result = b.op("Where", b.op("Unsqueeze", inside, b.ints([1])), sampled, fill)
    return b.op("Squeeze", result, b.ints([1])) if o.opset >= 7 else result
