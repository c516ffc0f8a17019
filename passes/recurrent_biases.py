"""One bias where ONNX's recurrent operators have two: Core ML's have one, and the sum of two halves is no half."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ..compiler.graph import const, initializer
from ..compiler.weights import Scratch

SUMMED = frozenset({"LSTM", "RNN"})
"""Whose biases of inputs and states are only ever added up; a GRU's are not."""


def sum_biases(node: ir.Node, scratch: Scratch) -> bool:
    """Add the states' bias of an LSTM or RNN to the inputs', and leave zeros in its place; whether there was one.

    before:  B = [of inputs, of states]
    after:   B = [of inputs + of states, 0]
    """
    bias = node.inputs[3] if node.op_type in SUMMED and len(node.inputs) > 3 else None
    array = None if bias is None else const(bias)
    if bias is None or array is None or array.dtype != np.float32 or node.graph is None:
        return False
    inputs, states = np.split(array, 2, axis=1)
    if not states.any():
        return False
    both = np.concatenate([inputs + states, np.zeros_like(states)], axis=1)
    node.replace_input_with(3, initializer(node.graph, both, f"{bias.name}_summed", scratch))
    return True
