"""Operators without data inputs: constants, ranges, identity matrices. Fixed shapes make them constants."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from .build import Slot
from .call import Call
from .ops_shape import known
from .registry import lowers


@lowers("Constant")
def _constant(c: Call) -> Slot:
    name = next(iter(c.node.attributes), "")
    if name not in ("value", "value_float", "value_floats", "value_int", "value_ints"):
        c.missing("only numbers can be constants in Core ML")
    if name == "value":
        return known(np.asarray(c.attr(name).numpy()))
    return known(np.array(c.attr(name), np.float32 if "float" in name else np.int64))


@lowers("ConstantOfShape", floats=())
def _constant_of_shape(c: Call) -> Slot:
    value = c.attr("value")
    one = np.zeros(1, np.float32) if value is None else value.numpy().reshape(1)
    return known(np.broadcast_to(one, c.out_shape()))


@lowers("Range", floats=())
def _range(c: Call) -> Slot:
    start, step = (c.array(i).reshape(()) for i in (0, 2))
    count = c.out_shape()[0]
    return known((start + np.arange(count).astype(step.dtype) * step).astype(start.dtype))


@lowers("EyeLike", floats=())
def _eye_like(c: Call) -> Slot:
    kind = ir.DataType(c.attr("dtype")) if c.attr("dtype") else c.kind()
    rows, cols = c.shape()
    return known(np.eye(rows, cols, k=int(c.attr("k", 0))).astype(kind.numpy()))


def _windowed(c: Call, terms: tuple[float, ...]) -> Slot:
    n = int(c.number(0))
    span = n if c.attr("periodic", 1) else n - 1
    phase = 2 * np.pi * np.arange(n) / span
    kind = ir.DataType(c.attr("output_datatype", 1)).numpy()
    return known(sum(a * np.cos(k * phase) for k, a in enumerate(terms)).astype(kind))  # type: ignore[union-attr]


@lowers("HannWindow", floats=())
def _hann(c: Call) -> Slot:
    return _windowed(c, (0.5, -0.5))


@lowers("HammingWindow", floats=())
def _hamming(c: Call) -> Slot:
    return _windowed(c, (25 / 46, -21 / 46))


@lowers("BlackmanWindow", floats=())
def _blackman(c: Call) -> Slot:
    return _windowed(c, (0.42, -0.5, 0.08))
