"""Channels that hold one number whatever the input is: their readers' biases take it up, so that they can go.

A filter of zeros gives its bias, everywhere; behind activations, pooling and further sums that is another number, but
still one. What a reader makes of it can be added to the reader's bias, unless zeros pad what it reads.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from ..graph import attr, const, initializer, is_const, scalar
from ..weights import Scratch
from .linear_nodes import Linear
from .shrink import replace_tensor

Known = tuple[int, np.ndarray]
"""An axis, and per position on it the number that is everywhere there; NaN where that isn't known."""


def _sigmoid(x: np.ndarray, node: ir.Node) -> np.ndarray:
    return np.asarray(1 / (1 + np.exp(-x)))


def _clip(x: np.ndarray, node: ir.Node) -> np.ndarray:
    low, high = (scalar(v) if v is not None else None for v in [*node.inputs[1:], None, None][:2])
    given = [v for v in node.inputs[1:] if v is not None]
    if len(given) != sum(b is not None for b in (low, high)):
        return np.full_like(x, np.nan)
    return np.asarray(np.clip(x, -math.inf if low is None else low, math.inf if high is None else high))


def _hard_sigmoid(x: np.ndarray, node: ir.Node) -> np.ndarray:
    return np.asarray(np.clip(attr(node, "alpha", 0.2) * x + attr(node, "beta", 0.5), 0, 1))


UNARY: Mapping[str, Callable[[np.ndarray, ir.Node], np.ndarray]] = {
    "Identity": lambda x, n: x,
    "Dropout": lambda x, n: x if len(n.inputs) < 3 else np.full_like(x, np.nan),  # the third says that it trains
    "Relu": lambda x, n: np.maximum(x, 0),
    "LeakyRelu": lambda x, n: np.where(x < 0, attr(n, "alpha", 0.01) * x, x),
    "Elu": lambda x, n: np.where(x < 0, attr(n, "alpha", 1.0) * np.expm1(x), x),
    "Sigmoid": _sigmoid,
    "Swish": lambda x, n: x / (1 + np.exp(-attr(n, "alpha", 1.0) * x)),
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": lambda x, n: x * np.clip(x / 6 + 0.5, 0, 1),
    "Tanh": lambda x, n: np.tanh(x),
    "Softplus": lambda x, n: np.log1p(np.exp(x)),
    "Neg": lambda x, n: -x,
    "Abs": lambda x, n: np.abs(x),
    "Exp": lambda x, n: np.exp(x),
    "Clip": _clip,
}
BINARY: Mapping[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "Add": np.add,
    "Sub": np.subtract,
    "Mul": lambda a, b: np.where((a == 0) | (b == 0), 0, a * b),
    "Div": lambda a, b: np.where(b == 0, np.nan, a / np.where(b == 0, 1, b)),
}


@dataclass
class Constants:
    """One walk through a model in order; weights of readers and their biases are replaced on the way.

    Attributes:
        known: value → what is known of its channels. Values of which nothing is known are left out.
        changed: how many weights and biases were replaced.
    """

    model: ir.Model
    scratch: Scratch | None = None
    known: dict[ir.Value, Known] = field(default_factory=dict)
    changed: int = 0

    def run(self) -> int:
        for node in list(self.model.graph):
            if node.domain == "" and node.outputs:
                with np.errstate(over="ignore", invalid="ignore"):
                    found = self._visit(node)
                if found is not None and not np.isnan(found[1]).all():
                    self.known[node.outputs[0]] = found
        return self.changed

    def _visit(self, node: ir.Node) -> Known | None:
        op = node.op_type
        linear = Linear.of(node)
        if linear is not None:
            return self._linear(linear)
        if op in BINARY:
            return self._binary(node)
        if op == "BatchNormalization":
            return self._batch_norm(node)
        if op == "Concat":
            return self._concat(node)
        x = None if not node.inputs or node.inputs[0] is None else self.known.get(node.inputs[0])
        if x is None:
            return None
        if op in UNARY:
            return x[0], UNARY[op](x[1], node)
        return x if op in PASSES and PASSES[op](node, x) else None

    def _linear(self, linear: Linear) -> Known | None:
        x = self.known.get(linear.x)
        if x is not None and x[0] == linear.in_axis and linear.owned:
            self._absorb(linear, x[1])
        rows = linear.live_rows()
        if rows.all():
            return None
        bias = linear.bias_array()
        if bias is None:
            return None
        return linear.out_axis, np.where(rows, np.nan, bias)

    def _absorb(self, linear: Linear, k: np.ndarray) -> None:
        """Set the slices that read known channels to zero, and add what they gave to the bias."""
        k = np.where(linear.live_columns() & np.isfinite(k), k, np.nan)
        if linear.pads:
            k = np.where(k == 0, 0, np.nan)
        if np.isnan(k).all():
            return
        give = linear.given(np.nan_to_num(k))
        if give.any():
            bias = linear.bias_array(added=True)
            if bias is None or not np.isfinite(give).all():
                return
            self._set_bias(linear, bias + give)
        replace_tensor(linear.weight, linear.without_columns(~np.isnan(k)), self.scratch)
        self.changed += 1

    def _set_bias(self, linear: Linear, bias: np.ndarray) -> None:
        node, at, value = linear.bias_node, linear.bias_at, linear.added
        assert node is not None and isinstance(node.graph, ir.Graph)
        made = initializer(node.graph, bias.astype(linear.dtype), f"{linear.weight.name}_bias", self.scratch)
        if len(node.inputs) <= at:
            node.resize_inputs(at + 1)
        node.replace_input_with(at, made)
        if value is not None and not value.uses():
            node.graph.initializers.pop(str(value.name))
        self.changed += 1

    def _binary(self, node: ir.Node) -> Known | None:
        """Two values of which the same axis is known, or one and a constant per channel or for all."""
        values = [v for v in node.inputs if v is not None]
        found = next((self.known[v] for v in values if v in self.known), None)
        rank = len(node.outputs[0].shape or ())
        if found is None or len(values) != 2 or not rank:
            return None
        owner = next(v for v in values if v in self.known)
        axis = found[0] + rank - len(owner.shape or ())
        numbers = [self._numbers(v, axis, rank, found[1].size) for v in values]
        if any(n is None for n in numbers):
            return None
        return axis, BINARY[node.op_type](numbers[0], numbers[1])  # type: ignore[arg-type]

    def _numbers(self, value: ir.Value, axis: int, rank: int, size: int) -> np.ndarray | None:
        """A number per channel, NaN where it isn't known; None where it has another form."""
        shift = rank - len(value.shape or ())
        if value in self.known:
            own, k = self.known[value]
            return k if own + shift == axis and k.size == size else None
        if not is_const(value):
            return np.full(size, np.nan)
        shape = tuple(value.shape or ())
        if any(n != 1 for a, n in enumerate(shape) if a + shift != axis):
            return np.full(size, np.nan)
        array = np.asarray(const(value), np.float64).reshape(-1)
        return np.broadcast_to(array, size) if array.size in (1, size) else None

    def _batch_norm(self, node: ir.Node) -> Known | None:
        parts = [const(v) for v in node.inputs[1:5]]
        x = node.inputs[0]
        if x is None or any(p is None for p in parts):
            return None
        scale, bias, mean, var = (np.asarray(p, np.float64) for p in parts)
        axis, k = self.known.get(x, (1, np.full(scale.size, np.nan)))
        if axis != 1:
            return None
        y = scale * (k - mean) / np.sqrt(var + attr(node, "epsilon", 1e-5)) + bias
        return 1, np.where(scale == 0, bias, y)

    def _concat(self, node: ir.Node) -> Known | None:
        rank = len(node.outputs[0].shape or ())
        if not rank or not any(v in self.known for v in node.inputs if v is not None):
            return None
        axis = attr(node, "axis") % rank
        parts = []
        for v in node.inputs:
            size = v.shape[axis] if v is not None and v.shape is not None else None
            if not isinstance(size, int) or v is None:
                return None
            own, k = self.known.get(v, (axis, np.full(size, np.nan)))
            parts.append(k if own == axis else np.full(size, np.nan))
        return axis, np.concatenate(parts)


def _pool(node: ir.Node, x: Known) -> bool:
    return x[0] == 1 and (node.op_type != "AveragePool" or not any(attr(node, "pads", ())) or not x[1].any())


def _auto(node: ir.Node) -> bool:
    return attr(node, "auto_pad", "NOTSET") in ("NOTSET", "VALID")


PASSES: Mapping[str, Callable[[ir.Node, Known], bool]] = {
    "GlobalAveragePool": lambda n, x: x[0] == 1,
    "GlobalMaxPool": lambda n, x: x[0] == 1,
    "MaxPool": lambda n, x: _pool(n, x) and _auto(n),
    "AveragePool": lambda n, x: _pool(n, x) and _auto(n) and not attr(n, "ceil_mode", 0),
}
"""Operators whose output holds the same numbers on the same axis, and when."""
