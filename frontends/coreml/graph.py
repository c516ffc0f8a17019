"""Building the ONNX graph: nodes, names and shared constants."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from ...compiler.functions import DOMAIN
from .values import Array

FLOAT, INT32, INT64, BOOL, FLOAT16 = (
    ir.DataType.FLOAT,
    ir.DataType.INT32,
    ir.DataType.INT64,
    ir.DataType.BOOL,
    ir.DataType.FLOAT16,
)


class Names:
    """Hands out names, each once: the name asked for, or that name with a number."""

    def __init__(self) -> None:
        self._used: dict[str, int] = {}

    def fresh(self, wanted: str) -> str:
        name = wanted
        while name in self._used:
            self._used[wanted] += 1
            name = f"{wanted}_{self._used[wanted]}"
        self._used[name] = 0
        return name


class Builder:
    """Collects the nodes of one graph. Constants always go to the outermost graph, so that branches share them."""

    def __init__(self, outer: Builder | None = None) -> None:
        self.root: Builder = outer.root if outer is not None else self
        self.nodes: list[ir.Node] = []
        self.initializers: dict[str, ir.Value] = {}
        self.names: Names = outer.names if outer is not None else Names()
        self.prefix = "value"
        self._shared: dict[tuple[str, tuple[int, ...], bytes], ir.Value] = {}
        self.functions: dict[str, None] = {}
        """Local functions that the graph calls; those of the outermost builder count."""
        self.spare = False
        """Whether there are nodes that nothing may read: what a packed form takes the place of."""

    def nodes_of(
        self, op_type: str, inputs: Sequence[ir.Value | None], attributes: Mapping[str, Any], outputs: int
    ) -> list[ir.Value]:
        """Append a node; its output values, unnamed by the caller, get names from the operator being lifted."""
        node = ir.node(op_type, list(inputs), attributes=dict(attributes), num_outputs=outputs)
        node.name = self.names.fresh(f"{self.prefix}/{op_type}")
        for value in node.outputs:
            value.name = self.names.fresh(f"{self.prefix}.{op_type}")
        self.nodes.append(node)
        return list(node.outputs)

    def op(self, op_type: str, *inputs: ir.Value | None, **attributes: Any) -> ir.Value:
        """Append a node with one output."""
        return self.nodes_of(op_type, inputs, attributes, 1)[0]

    def packed(self, op_type: str, *inputs: ir.Value, **attributes: Any) -> ir.Value:
        """Append a call of a local function, see compiler/functions.py."""
        self.root.functions[op_type] = None
        value = self.op(op_type, *inputs, **attributes)
        node = value.producer()
        assert node is not None
        node.domain = DOMAIN
        return value

    def initializer(self, tensor: ir.TensorProtocol, name: str) -> ir.Value:
        """Add a constant to the outermost graph."""
        name = self.names.fresh(name)
        tensor.name = name
        shape = ir.Shape([int(str(d)) for d in tensor.shape])
        value = ir.Value(name=name, shape=shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
        self.root.initializers[name] = value
        return value

    def constant(self, array: Array) -> ir.Value:
        """A small constant; equal ones are shared."""
        array = np.ascontiguousarray(array) if array.ndim else array
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self.root._shared:
            self.root._shared[key] = self.initializer(ir.tensor(array), f"{self.prefix}.const")
        return self.root._shared[key]

    def ints(self, values: Sequence[int] | int) -> ir.Value:
        """An INT64 constant: a vector from a sequence, a scalar from a number."""
        return self.constant(np.array(values, np.int64))

    def number(self, value: float) -> ir.Value:
        """A FLOAT scalar."""
        return self.constant(np.array(value, np.float32))

    def cast(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        return self.op("Cast", value, to=dtype)

    def round16(self, value: ir.Value) -> ir.Value:
        """Round to float16 and carry on in float32: how the IR writes half precision."""
        return self.cast(self.cast(value, FLOAT16), FLOAT)

    def reshape(self, value: ir.Value, shape: Sequence[int]) -> ir.Value:
        return self.op("Reshape", value, self.ints(list(shape)))

    def transpose(self, value: ir.Value, perm: Sequence[int]) -> ir.Value:
        return value if list(perm) == sorted(perm) else self.op("Transpose", value, perm=list(perm))

    def slice(
        self,
        value: ir.Value,
        starts: Sequence[int],
        ends: Sequence[int],
        axes: Sequence[int],
        steps: Sequence[int] = (),
    ) -> ir.Value:
        """Constant slices, with numpy's meaning of negative positions."""
        inputs = [self.ints(list(v)) for v in (starts, ends, axes)]
        return self.op("Slice", value, *inputs, *([self.ints(list(steps))] if steps else []))

    def concat(self, values: Sequence[ir.Value], axis: int) -> ir.Value:
        return values[0] if len(values) == 1 else self.op("Concat", *values, axis=axis)
