"""Copies of large arrays that numpy makes element by element."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import onnx_ir as ir

from . import process
from .targets import OPSET

BIG = 1 << 16
"""Elements from which calling onnxruntime pays."""


def in_rows(array: np.ndarray) -> np.ndarray:
    """The array in C order, itself where it is.

    onnxruntime turns a large matrix in a third of numpy's time.
    """
    if array.ndim != 2 or array.size < BIG or array.flags.c_contiguous or not array.flags.f_contiguous:
        return np.ascontiguousarray(array)
    kind = ir.DataType.from_numpy(array.dtype)
    if kind not in (ir.DataType.FLOAT, ir.DataType.FLOAT16):
        return np.ascontiguousarray(array)
    found: np.ndarray = _turner(kind).run(None, {"x": array.T})[0]
    return found


@cache
def _turner(kind: ir.DataType) -> Any:
    onnxruntime = process.onnxruntime()

    x, y = (ir.Value(name=n, shape=ir.Shape([None, None]), type=ir.TensorType(kind)) for n in "xy")
    turn = ir.Node("", "Transpose", [x], [ir.AttrInt64s("perm", [1, 0])], outputs=[y])
    graph = ir.Graph([x], [y], nodes=[turn])
    graph.opset_imports[""] = OPSET
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    proto = ir.to_proto(ir.Model(graph, ir_version=10))
    return onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
