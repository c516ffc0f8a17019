"""Small networks with random weights, operator by operator, for the rules of structured pruning.

    net = Net(x=(2, 4, 16))
    y = net("Relu", net("MatMul", "x", net.weight(16, 8)))
    case = net.case(net("MatMul", y, net.weight(8, 5)))
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx.parser
import onnx_ir as ir
from channelcheck import Case, check_removal

from edgec.compiler import shapes
from edgec.compiler.channels.feasible import feasible
from edgec.compiler.cost.sizes import Sizes
from edgec.compiler.functions import BODIES, DOMAIN, declare
from edgec.compiler.targets import OPSET

Dims = Sequence[int | str]


class Net:
    """Nodes one after the other; inputs are named, values are `ir.Value`s."""

    def __init__(self, **inputs: Dims) -> None:
        self.rng = np.random.default_rng(0)
        self.nodes: list[ir.Node] = []
        self.constants: list[ir.Value] = []
        self.inputs = {
            name: ir.Value(name=name, shape=ir.Shape(dims), type=ir.TensorType(ir.DataType.FLOAT))
            for name, dims in inputs.items()
        }

    def const(self, array: Any, dtype: Any = None) -> ir.Value:
        """An initializer."""
        array = np.asarray(array, dtype)
        name = f"c{len(self.constants)}"
        value = ir.Value(
            name=name,
            shape=ir.Shape(array.shape),
            type=ir.TensorType(ir.DataType.from_numpy(array.dtype)),
            const_value=ir.Tensor(array, name=name),
        )
        self.constants.append(value)
        return value

    def weight(self, *shape: int, scale: float = 0.5) -> ir.Value:
        """Random numbers, none of them zero."""
        return self.const(self.rng.normal(0, scale, shape).astype(np.float32) + np.float32(1e-3))

    def ints(self, *values: int) -> ir.Value:
        return self.const(np.array(values, np.int64))

    def __call__(
        self, op: str, *inputs: ir.Value | str | None, outputs: int = 1, domain: str = "", **attrs: Any
    ) -> Any:
        """Add a node; its output, or all of them as a list."""
        given = [self.inputs[i] if isinstance(i, str) else i for i in inputs]
        node = ir.node(op, given, attrs, domain=domain, num_outputs=outputs, name=f"n{len(self.nodes)}")
        for k, out in enumerate(node.outputs):
            out.name = f"v{len(self.nodes)}_{k}"
        self.nodes.append(node)
        return node.outputs[0] if outputs == 1 else list(node.outputs)

    def model(self, *outputs: ir.Value, functions: Sequence[str] = ()) -> ir.Model:
        """What is needed for these outputs, with these functions of ours: known ones, others are an Identity."""
        wanted = {v.producer() for v in outputs}
        for made in reversed(self.nodes):
            if made in wanted:
                wanted |= {v.producer() for v in made.inputs if v is not None}
                for inner in (a.as_graph() for a in made.attributes.values() if a.type == ir.AttributeType.GRAPH):
                    wanted |= {v.producer() for n in inner for v in n.inputs if v is not None}
        kept = [n for n in self.nodes if n in wanted]
        for made in self.nodes:
            if made not in wanted:
                made.resize_inputs(0)
        graph = ir.Graph(
            list(self.inputs.values()),
            list(outputs),
            nodes=kept,
            initializers=self.constants,
            opset_imports={"": OPSET},
            name="net",
        )
        for out in outputs:
            out.type = out.type or ir.TensorType(ir.DataType.FLOAT)
        model = ir.Model(graph, ir_version=11)
        for name in functions:
            if name in BODIES:
                declare(model, name)
            else:
                text = f'<domain: "{DOMAIN}", opset_import: ["" : {OPSET}]> {name} (x) => (y) {{ y = Identity(x) }}'
                made = ir.serde.deserialize_function(onnx.parser.parse_function(text))
                model.functions[(DOMAIN, name, "")] = made
                graph.opset_imports[DOMAIN] = 1
        shapes.infer(model)
        sizes = Sizes(model)
        for out in outputs:
            if out.shape is None:  # onnx knows none after a GroupNormalization
                out.shape = ir.Shape([n if isinstance(n, int) else None for n in sizes.dims(out) or ()])
        return model

    def case(self, *outputs: ir.Value, width: str = "none") -> Case:
        return Case.of(self.model(*outputs), width)


def removals(case: Case, rtol: float = 1e-4, ratios: Sequence[float] = (0.25, 0.5), rows: bool = True) -> ir.Model:
    """Random units at several ratios, with and without whole rows; what is left after the last."""
    removed = case.model
    for seed, ratio in enumerate(ratios):
        for with_rows in (True, False) if rows else (False,):
            dead = case.dead(ratio, seed=seed, rows=with_rows)
            if dead[0] or case.found.fault(dead) is not None:
                # Units that each can go, but not all of these together.
                dead = feasible(case.found, np.where(np.arange(dead.size) == 0, False, dead))
            removed = check_removal(case, dead, rtol=rtol)
    return removed


def count(case: Case) -> tuple[int, int]:
    """Units that are rows (heads, groups), and channels."""
    return int(case.units.rows.sum()), int((~case.units.rows).sum())


def node(model: ir.Model, op: str) -> ir.Node:
    """The first node of that operator."""
    return next(n for n in model.graph if n.op_type == op)
