"""A small network under construction, and the tables of steps that can be taken from where it is."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Step = Callable[["Net"], None]
IMAGE: dict[str, Step] = {}
"""Steps from an image."""
TOKENS: dict[str, Step] = {}
"""Steps from tokens."""
BATCH, SIDE = 2, 4


def image(f: Step) -> Step:
    IMAGE[f.__name__] = f
    return f


def tokens(f: Step) -> Step:
    TOKENS[f.__name__] = f
    return f


class Net:
    """A model under construction. `shape` is that of the last value; `rng` decides what steps leave open."""

    def __init__(self, seed: int, as_tokens: bool = False) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.last = "x"
        self.start = (BATCH, 6, 5) if as_tokens else (BATCH, 3, SIDE, SIDE)
        self.shapes["x"] = self.start
        self.history = ["x"]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.shapes[self.last]

    def weight(self, *shape: int, scale: float | None = None, positive: bool = False) -> str:
        """A float constant; now and then one of that shape that there is already."""
        alike = [t.name for t in self.weights if tuple(t.dims) == shape and t.data_type == TensorProto.FLOAT]
        if alike and not positive and self.rng.random() < 0.1:
            return str(self.rng.choice(alike))
        fan = scale if scale is not None else 1 / np.sqrt(max(np.prod(shape[1:]), 1))
        array = self.rng.normal(0, fan, shape)
        array = (np.abs(array) + 0.5 if positive else array + 0.1 * np.sign(array)).astype(np.float32)
        return self.constant(array)

    def constant(self, array: np.ndarray | Sequence[int]) -> str:
        array = np.asarray(array) if isinstance(array, np.ndarray) else np.array(array, np.int64)
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(array, name))
        return name

    def node(self, op: str, inputs: Sequence[str], shape: Sequence[int], outputs: int = 1, **attributes: object) -> str:
        """Append a node; its (first) output becomes the last value."""
        names = [f"v{len(self.nodes)}_{k}" for k in range(outputs)]
        self.nodes.append(helper.make_node(op, inputs, names, name=f"n{len(self.nodes)}_{op}", **attributes))
        self.shapes[names[0]] = tuple(shape)
        self.last = names[0]
        return names[0]

    def keep(self) -> None:
        """Later steps may read the last value."""
        self.history.append(self.last)

    def earlier(self, fits: Callable[[tuple[int, ...]], bool]) -> str | None:
        """Some earlier value whose shape fits."""
        found = [v for v in self.history if v != self.last and fits(self.shapes[v])]
        return str(self.rng.choice(found)) if found else None

    def pick(self, *options: int) -> int:
        return int(self.rng.choice(options))

    def model(self) -> onnx.ModelProto:
        """With a linear layer on the last value, whose width is the output's: all before is free to shrink."""
        if len(self.shape) == 4:
            n, c, h, w = self.shape
            self.node("Conv", [self.last, self.weight(4, c, 1, 1)], [n, 4, h, w])
        else:
            self.node("MatMul", [self.last, self.weight(self.shape[-1], 4)], [*self.shape[:-1], 4])
        out = helper.make_tensor_value_info(self.last, TensorProto.FLOAT, self.shape)
        x = helper.make_tensor_value_info("x", TensorProto.FLOAT, self.start)
        graph = helper.make_graph(self.nodes, "random", [x], [out], self.weights)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 25)], ir_version=10)
