"""What range an operator's results lie in, whatever its inputs."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ..compiler import graph

_NON_NEGATIVE = frozenset({"Abs", "Exp", "HardSigmoid", "Relu", "Sigmoid", "Softmax", "Sqrt", "Softplus"})
"""Operators that return no number below 0."""


def clip_bounds(node: ir.Node) -> tuple[float | None, float | None]:
    """The constant bounds of a Clip, -inf and inf for missing ones; None for those that aren't constant."""
    bounds: list[float | None] = [-np.inf, np.inf]
    for i, value in enumerate(node.inputs[1:3]):
        if value is not None:
            bounds[i] = graph.scalar(value)
    return bounds[0], bounds[1]


_HAND_ON = frozenset({"Flatten", "Identity", "MaxPool", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze"})
"""Operators that return elements of their first input."""


def at_least(value: ir.Value | None, low: float) -> bool:
    """Whether `value` is never below `low`, by the operator that makes it, seen through one that moves elements."""
    node = graph.producer(value)
    if node is not None and node.op_type in _HAND_ON and node.domain == "":
        node = graph.producer(node.inputs[0])
    if node is None or node.domain:
        return False
    if node.op_type == "Clip":
        least, most = clip_bounds(node)
        return least is not None and most is not None and min(least, most) >= low
    return low <= 0 and node.op_type in _NON_NEGATIVE
