"""Fourier transforms, as products with constant matrices of cosines and sines."""

from __future__ import annotations

import numpy as np

from .build import Var
from .call import Call
from .constants import of_array
from .registry import lowers


@lowers("DFT", floats=(0,), half=99)
def _dft(c: Call) -> Var:
    """Along one axis; numbers are real (last axis 1) or complex (last axis 2)."""
    rank, shape = c.rank(), c.shape()
    axis = (c.ints(2)[0] if c.has(2) else -2) % rank
    inverse, onesided = bool(c.attr("inverse", 0)), bool(c.attr("onesided", 0))
    size = c.ints(1)[0] if c.has(1) else (2 * (shape[axis] - 1) if inverse and onesided else shape[axis])
    cos, sin = _matrices(size, inverse, onesided, shape[axis])
    perm = [i for i in range(rank - 1) if i != axis] + [axis, rank - 1]
    back = [perm.index(i) for i in range(rank)]
    x = c.transpose(c.x(), perm)
    parts = c.op("split", x=x, num_splits=2, axis=rank - 1) if shape[-1] == 2 else [x]
    flat = [c.reshape(p, tuple(int(d) for d in p.shape[:-1])) for p in parts]
    real, imaginary = _product(c, flat[0], cos), _product(c, flat[0], sin)
    if len(flat) == 2:
        real = c.op("sub", x=real, y=_product(c, flat[1], sin))
        imaginary = c.op("add", x=imaginary, y=_product(c, flat[1], cos))
    columns = [real] if inverse and onesided else [real, imaginary]
    wide = [c.reshape(v, (*(int(d) for d in v.shape), 1)) for v in columns]
    y = c.op("concat", values=wide, axis=rank - 1) if len(wide) > 1 else wide[0]
    return c.transpose(y, back)


def _product(c: Call, x: Var, matrix: np.ndarray) -> Var:
    constant = c.weight(of_array(matrix, matrix.shape, matrix.tobytes()))
    if len(x.shape) == 1:
        row = c.op("matmul", x=c.reshape(x, (1, int(x.shape[0]))), y=constant)
        return c.reshape(row, (int(row.shape[1]),))
    return c.op("matmul", x=x, y=constant)


def _matrices(size: int, inverse: bool, onesided: bool, given: int) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and sines [inputs, outputs]. Inputs beyond the transform's size are cut, missing ones are zeros.

    A one-sided inverse takes half a spectrum: what is left out mirrors the rest, so that it counts twice.
    """
    inputs = np.arange(given)
    outputs = np.arange(size // 2 + 1 if onesided and not inverse else size)
    phase = 2 * np.pi * (np.outer(inputs, outputs) % size) / size * (1 if inverse else -1)
    weight = np.where(inputs < size, 1.0, 0.0)
    if inverse:
        weight = weight / size
        if onesided:
            weight = weight * np.where((inputs == 0) | (2 * inputs == size), 1, 2) * (inputs <= size // 2)
    scaled = weight[:, None]
    return (np.cos(phase) * scaled).astype(np.float32), (np.sin(phase) * scaled).astype(np.float32)


@lowers("STFT", floats=(0,), half=99)
def _stft(c: Call) -> Var:
    """A convolution whose kernels are the windowed cosines and sines; [batch, frames, bins, 2]."""
    batch, length, *rest = c.shape()
    if rest and rest[0] != 1:
        c.missing("complex signals")
    step = c.ints(1)[0]
    window = c.array(2).astype(np.float64) if c.has(2) else np.ones(c.ints(3)[0])
    size = c.ints(3)[0] if c.has(3) else len(window)
    bins = size // 2 + 1 if c.attr("onesided", 1) else size
    phase = -2 * np.pi * (np.outer(np.arange(bins), np.arange(size)) % size) / size
    kernels = np.concatenate([np.cos(phase), np.sin(phase)]) * window
    weight = kernels.reshape(2 * bins, 1, size).astype(np.float32)
    signal = c.reshape(c.x(), (batch, 1, length))
    y = c.op("conv", x=signal, weight=c.weight(of_array(weight, weight.tobytes())), strides=[step], pad_type="valid")
    frames = int(y.shape[2])
    return c.transpose(c.reshape(y, (batch, 2, bins, frames)), (0, 3, 2, 1))
