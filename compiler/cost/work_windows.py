"""What pooling and resampling cost, which read a neighbourhood of each place; see docs/cost.md."""

from __future__ import annotations

from .. import dims as d
from ..dims import Dim
from .node import Op, Unknown, exactly, plus, times
from .work import Row, Work, less, per, product_of


def _pool(op: Op, macs: Dim) -> Work:
    size = product_of(op.attr("kernel_shape"))
    return per(op, op.n_out(), size if op.node.op_type == "AveragePool" else size - 1)


def _lp_pool(op: Op, macs: Dim) -> Work:
    if op.node.op_type == "GlobalLpPool":
        size, y = exactly(op.n_in(), op.n_out()), op.n_out()
    else:
        size, y = product_of(op.attr("kernel_shape")), op.n_out()
    p = op.attr("p", 2)
    if p in (1, 2):
        return Work(less(d.mul(times(size, y), 2), y if p == 1 else 0))
    return Work(less(times(size, y), y), plus(times(size, y), y))


def _resize(op: Op, macs: Dim) -> Work:
    mode = op.attr("mode", "nearest")
    if mode == "nearest":
        return Work()
    scaled = sum(a != b for a, b in zip(op.x(), op.y(), strict=True))
    if op.attr("antialias", 0) and scaled:
        raise Unknown("the width of an antialiasing filter depends on the scale")
    return per(op, op.n_out(), _weighted(_width(mode) ** scaled))


def _width(mode: str) -> int:
    """Neighbours along each axis that an interpolation reads."""
    found = {"nearest": 1, "linear": 2, "bilinear": 2, "cubic": 4, "bicubic": 4}.get(mode)
    if found is None:
        raise Unknown(f"mode '{mode}' is not one of the standard's")
    return found


def _weighted(neighbours: int) -> int:
    """A weighted sum of so many neighbours."""
    return 2 * neighbours - 1 if neighbours > 1 else 0


def _grid_sample(op: Op, macs: Dim) -> Work:
    places = d.mul(op.n_in(1), 3 if op.attr("align_corners", 0) else 4)
    width = _width(op.attr("mode", "linear"))
    return Work(plus(places, d.mul(op.n_out(), _weighted(width ** (len(op.x()) - 2)))))


def _roi_align(op: Op, macs: Dim) -> Work:
    ratio = op.attr("sampling_ratio", 0)
    if not ratio:
        raise Unknown("how many points are sampled depends on the data")
    # Four neighbours of each point, and the points' mean or maximum.
    return per(op, op.n_out(), 8 * ratio * ratio - (op.attr("mode", "avg") == "max"))


_INTERPOLATED = "weighted sums of the neighbours that are read (k of them: 2 k - 1); their weights are not counted"
_POOLED = "y for each element of the window but one; windows that reach over the edge count in full"

ROWS: dict[str, Row] = {
    "AveragePool": Row("y for each element of the window", _pool),
    "Col2Im": Row("x: each element is added into the output", lambda op, macs: per(op, op.n_in(), 1)),
    "GlobalLpPool": Row("p = 1: 2 x - y; p = 2: 2 x; else x - y + (x + y) special", _lp_pool),
    "GridSample": Row(f"4 for each coordinate (3 with align_corners), {_INTERPOLATED}", _grid_sample),
    "LpPool": Row("as GlobalLpPool, over windows", _lp_pool),
    "MaxPool": Row(_POOLED, _pool),
    "Resize": Row(f"nearest: nothing; else {_INTERPOLATED}", _resize),
    "RoiAlign": Row("8 y for each point that is sampled: four neighbours, and the mean", _roi_align),
    "Upsample": Row(f"nearest: nothing; else {_INTERPOLATED}", _resize),
}
