"""Small models around linear operators, built in a line: random weights, BatchNormalization, whole chains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Node = tuple[Any, ...]
"""Operator, inputs (names in one string), output, then attributes as a dict if there are any."""


class Weights(dict[str, np.ndarray]):
    """Named random weights, the same for the same seed."""

    def __init__(self, seed: int = 0, dtype: type = np.float32) -> None:
        super().__init__()
        self.rng = np.random.default_rng([seed, 1])  # not what the inputs are made of
        self.dtype = dtype

    def add(self, name: str, *dims: int, low: float | None = None, high: float = 2.0) -> str:
        """Normal numbers, or uniform ones from `low` to `high`; returns the name."""
        array = self.rng.normal(size=dims) if low is None else self.rng.uniform(low, high, size=dims)
        self[name] = array.astype(self.dtype)
        return name

    def norm(self, name: str, channels: int) -> str:
        """The four operands of a BatchNormalization; returns their names."""
        parts = [self.add(f"{name}_scale", channels), self.add(f"{name}_bias", channels)]
        parts += [self.add(f"{name}_mean", channels), self.add(f"{name}_var", channels, low=0.2)]
        return " ".join(parts)


def build(
    nodes: Sequence[Node],
    inputs: Mapping[str, Sequence[int | str]],
    weights: Mapping[str, np.ndarray],
    outputs: Sequence[str] | Mapping[str, Sequence[int]] = ("y",),
    dtype: int = TensorProto.FLOAT,
) -> onnx.ModelProto:
    """A model of opset 25. Nodes are `(operator, inputs, output, attributes)`, in order; outputs may have a shape."""
    dims = outputs if isinstance(outputs, Mapping) else {}
    made = []
    for op_type, names, out, *attributes in nodes:
        args = [n if n != "-" else "" for n in names.split()]
        made.append(helper.make_node(op_type, args, out.split(), name=f"{op_type}_{out}", **dict(*attributes)))
    graph = helper.make_graph(
        made,
        "graph",
        [helper.make_tensor_value_info(n, dtype, list(d)) for n, d in inputs.items()],
        [helper.make_tensor_value_info(n, dtype, dims.get(n)) for n in outputs],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 25)], ir_version=10)
