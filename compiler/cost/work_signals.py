"""What Fourier transforms, their windows, determinants and rotations cost; see docs/cost.md."""

from __future__ import annotations

from .. import dims as d
from ..dims import Dim
from .node import Op, Unknown, plus, times
from .work import Row, Work, log2_ceiling, per, typed


def _transform(size: Dim) -> Dim:
    return d.mul(size, 5 * log2_ceiling(size))


def _dft(op: Op, macs: Dim) -> Work:
    dims = op.x()
    axis = op.number(2) if op.has(2) else -2
    if not isinstance(axis, int):
        raise Unknown("the axis is not a constant")
    size = op.number(1) if op.has(1) else dims[axis]
    slices = d.product([s for i, s in enumerate(dims[:-1]) if i != axis % len(dims)])
    return Work(times(slices, plus(_transform(size), d.mul(size, 2 if op.attr("inverse", 0) else 0))))


def _stft(op: Op, macs: Dim) -> Work:
    batch, frames = op.y()[:2]
    size = op.x(2)[0] if op.has(2) else op.number(3)
    return Work(times(batch, frames, plus(_transform(size), size if op.has(2) else 0)))


def _window(op: Op, macs: Dim) -> Work:
    return Work(plus(d.mul(op.n_out(), 7), 5), d.mul(op.n_out(), 2))


def _det(op: Op, macs: Dim) -> Work:
    """By elimination: k divisions, k² products and k² differences for k = n - 1 … 1, and the product of the pivots."""
    size = op.x()[-1]
    if not isinstance(size, int):
        raise Unknown("the size of the matrix is a free dimension")
    k = size - 1
    return per(op, op.n_out(), k * (k + 1) // 2 + 2 * (k * (k + 1) * (2 * k + 1) // 6) + k)


def _rotary(op: Op, macs: Dim) -> Work:
    dims, part = op.x(), op.attr("rotary_embedding_dim", 0)
    if not part:
        return typed(op, d.mul(d.product(dims), 3))
    heads = dims[1] if len(dims) == 4 else op.attr("num_heads")
    return typed(op, times(3, dims[0], heads, dims[2] if len(dims) == 4 else dims[1], part))


ROWS: dict[str, Row] = {
    "BlackmanWindow": Row("7 y + 5 + 2 y special", _window),
    "DFT": Row("5 n ⌈log2 n⌉ for each transform of length n, as for a fast Fourier transform", _dft),
    "Det": Row("elimination of each n×n matrix: (4 n³ - 3 n² + 5 n - 6) / 6", _det),
    "HammingWindow": Row("7 y + 5 + 2 y special", _window),
    "HannWindow": Row("7 y + 5 + 2 y special", _window),
    "RotaryEmbedding": Row("3 for each element that is rotated", _rotary),
    "STFT": Row("per frame of length n: n for a window, 5 n ⌈log2 n⌉ as for DFT", _stft),
}
