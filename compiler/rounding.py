"""Rounding of activations, kept apart from what a model computes.

Half precision is a pair `Cast(float16)` → `Cast(float)` behind a value of a float32 graph; integer activations are a
pair `QuantizeLinear` → `DequantizeLinear`. onnxruntime keeps such pairs at every optimisation level (there is a canary
test), so the loss is really measured; a backend reads them and emits the real type. Stripping them leaves the exact
model.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import onnx_ir as ir

from . import process
from .graph import (
    attr,
    can_replace,
    fresh_name,
    initializer,
    insert_before,
    is_const,
    nodes,
    note_named,
    producer,
    remove,
    replace_value,
)
from .targets import OPSET

FLOAT, HALF = ir.DataType.FLOAT, ir.DataType.FLOAT16

HALF_MAX = 65504.0
"""The largest float16; what is larger (by more than half a step) rounds to infinity."""

HALF_TINY = 2.0**-24
"""The smallest float16 above zero (a subnormal); what is below half of it rounds to zero."""

HALF_NORMAL = 2.0**-14
"""The smallest float16 of full precision."""


OURS = "edgec.rounding"
"""Key in the `meta` of what a pair makes: edgec put the pair there. One that came with the model is part of it."""

BIG = 1 << 16
"""Elements from which onnxruntime converts to float16: four times as fast as numpy, which converts one by one."""


def to_half(array: np.ndarray) -> np.ndarray:
    """A float32 array in float16, to the nearest even; infinite above 65520."""
    if array.size < BIG:
        with np.errstate(over="ignore"):
            return array.astype(np.float16)
    found: np.ndarray = _caster().run(None, {"x": np.ascontiguousarray(array).reshape(-1)})[0]
    return found.reshape(array.shape)


@cache
def _caster() -> Any:
    onnxruntime = process.onnxruntime()

    x, y = (ir.Value(name=n, shape=ir.Shape(["n"]), type=ir.TensorType(t)) for n, t in (("x", FLOAT), ("y", HALF)))
    graph = ir.Graph([x], [y], nodes=[ir.Node("", "Cast", [x], [ir.AttrInt64("to", HALF)], outputs=[y])])
    graph.opset_imports[""] = OPSET
    proto = ir.to_proto(ir.Model(graph, ir_version=10))
    return onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])


def is_pair(node: ir.Node) -> bool:
    """Whether `node` ends a rounding pair: it reads back what a `Cast` or `QuantizeLinear` has just rounded."""
    return pair_source(node) is not None


def pair_source(node: ir.Node) -> ir.Value | None:
    """The value that the rounding pair ending at `node` rounds, or None where `node` ends no pair.

    A `DequantizeLinear` or `Cast` of a constant is a stored weight, not rounding.
    """
    if node.op_type == "Cast" and node.domain == "":
        first = producer(node.inputs[0], "Cast")
        if first is None or attr(first, "to") != HALF or attr(node, "to") != FLOAT:
            return None
        source = first.inputs[0]
        return source if source is not None and source.dtype == FLOAT else None
    if node.op_type == "DequantizeLinear" and node.domain == "":
        first = producer(node.inputs[0], "QuantizeLinear", "DynamicQuantizeLinear")
        if first is not None and first.op_type != "QuantizeLinear" and producer(node.inputs[1]) is not first:
            return None
        # A quantized constant is a weight whose packing was not folded.
        return None if first is None or is_const(first.inputs[0]) else first.inputs[0]
    return None


def is_rounded(value: ir.Value) -> bool:
    """Whether float16 holds `value`: a pair of casts makes it, or it is a constant stored in float16.

    What is read back from integers is a product with a scale, of more digits than float16 has.
    """
    node = value.producer()
    return node is not None and node.op_type == "Cast" and (is_pair(node) or is_stored_half(node))


def is_stored_half(node: ir.Node) -> bool:
    """Whether `node` reads a float16 constant as float32."""
    if node.op_type != "Cast" or node.domain != "":
        return False
    source = node.inputs[0]
    return is_const(source) and source is not None and source.dtype == HALF


def pairs(model: ir.Model) -> Iterable[ir.Node]:
    """The last node of every rounding pair, in all graphs."""
    return [n for n in nodes(model, "Cast", "DequantizeLinear") if is_pair(n)]


@dataclass
class Exact:
    """How to read a model as if nothing were rounded, without a clone of it, which takes longer than a small run.

    Attributes:
        stands_for: what a rounding pair makes → what it rounds, through chains of pairs.
        gone: the nodes of the pairs, as far as only pairs read them.
        copies: nodes that make a graph output and are an Identity of this value.
    """

    stands_for: dict[ir.Value, ir.Value] = field(default_factory=dict)
    gone: set[ir.Node] = field(default_factory=set)
    copies: dict[ir.Node, ir.Value] = field(default_factory=dict)


def exactly(model: ir.Model) -> Exact:
    """What to leave out of `model` so that it computes exactly. Stored weights stay as they are."""
    exact = Exact()
    starts: dict[ir.Node, None] = {}
    for last in pairs(model):
        source, out = pair_source(last), last.outputs[0]
        assert source is not None
        source = exact.stands_for.get(source, source)
        exact.stands_for[out] = source
        if out.is_graph_output():
            exact.copies[last] = source
        else:
            exact.gone.add(last)
        first = producer(last.inputs[0])
        assert first is not None
        starts[first] = None
    for first in starts:
        made = first.outputs[0]
        if not made.is_graph_output() and all(n in exact.gone or n in exact.copies for n, _ in made.uses()):
            exact.gone.add(first)
    return exact


def has_rounding(model: ir.Model) -> bool:
    """Whether `model` holds a rounding pair."""
    return any(is_pair(n) for n in nodes(model, "Cast", "DequantizeLinear"))


def strip_rounding(model: ir.Model) -> ir.Model:
    """A clone of `model` without its rounding pairs. Stored weights stay as they are; tensors are shared.

    A pair that makes a graph output becomes an Identity where the output has to keep a node of its own.
    """
    model = model.clone()
    for last in pairs(model):
        source, first, out = pair_source(last), last.inputs[0].producer(), last.outputs[0]  # type: ignore[union-attr]
        assert source is not None and first is not None and last.graph is not None
        if not can_replace(out, source):
            source = insert_before(last, "Identity", [source], like=source).outputs[0]
        replace_value(out, source)
        remove([last, first])
    return model


def insert_pair(value: ir.Value, readers: Iterable[ir.Node] | None = None) -> ir.Value:
    """Round `value` to float16 and back, and make `readers` (all, by default) read the rounded one, which is returned.

    Args:
        value: a float32 value made by a node, a graph input or an initializer. Where all readers get the rounded value,
            so does a graph output, which keeps its name.
        readers: nodes that shall read the rounded value.
    """
    down = ir.Node("", "Cast", [value], [ir.AttrInt64("to", HALF)])
    up = ir.Node("", "Cast", [down.outputs[0]], [ir.AttrInt64("to", FLOAT)])
    return _insert(value, down, up, (HALF, "half"), readers)


def insert_integers(value: ir.Value, scale: np.ndarray, zero: np.ndarray, readers: Iterable[ir.Node]) -> ir.Value:
    """Make `readers` read `value` rounded to (q - zero) · scale, q an integer of zero's type; returns the rounded one.

    Args:
        value: as for `insert_pair`.
        scale: float32, rank 0.
        zero: the zero point, rank 0; integers of its type are stored.
        readers: nodes that shall read the rounded value.
    """
    graph = value.graph
    assert isinstance(graph, ir.Graph)
    step = initializer(graph, scale, f"{value.name}__scale")
    start = initializer(graph, zero, f"{value.name}__zero")
    down = ir.Node("", "QuantizeLinear", [value, step, start])
    up = ir.Node("", "DequantizeLinear", [down.outputs[0], step, start])
    assert start.dtype is not None
    return _insert(value, down, up, (start.dtype, "integer"), readers)


def insert_dynamic(value: ir.Value, readers: Iterable[ir.Node]) -> ir.Value:
    """Make `readers` read `value` rounded to 8 bits between its own least and largest number, found in every run.

    Args:
        value: as for `insert_pair`.
        readers: nodes that shall read the rounded value, which is returned.
    """
    graph = value.graph
    assert isinstance(graph, ir.Graph)
    down = ir.Node("", "DynamicQuantizeLinear", [value], num_outputs=3)
    up = ir.Node("", "DequantizeLinear", down.outputs)
    for out, kind, tag in zip(down.outputs[1:], (FLOAT, ir.DataType.UINT8), ("scale", "zero"), strict=True):
        out.name = fresh_name(graph, f"{value.name}__{tag}")
        out.type, out.shape = ir.TensorType(kind), ir.Shape([])
    return _insert(value, down, up, (ir.DataType.UINT8, "integer"), readers)


def _insert(
    value: ir.Value, down: ir.Node, up: ir.Node, stored: tuple[ir.DataType, str], readers: Iterable[ir.Node] | None
) -> ir.Value:
    """Put a pair behind `value`; `stored` is the type in between, and what to call it."""
    graph, maker = value.graph, value.producer()
    assert isinstance(graph, ir.Graph)
    chosen = None if readers is None else set(readers)
    rounded = up.outputs[0]
    rounded.meta[OURS] = True
    for node, (kind, tag) in ((down, stored), (up, (FLOAT, "rounded"))):
        out = node.outputs[0]
        node.name = out.name = fresh_name(graph, f"{value.name}__{tag}")
        out.dtype, out.shape = kind, value.shape
    for reader, i in value.uses():
        if reader is not down and (chosen is None or reader in chosen):
            reader.replace_input_with(i, rounded)
    if maker is not None:
        graph.insert_after(maker, [down, up])
    else:
        graph.insert_before(graph[0], [down, up])
    note_named(graph, 2)
    if chosen is None and value.is_graph_output():
        _rename_output(graph, value, rounded)
    return rounded


def _rename_output(graph: ir.Graph, value: ir.Value, rounded: ir.Value) -> None:
    """Make `rounded` the graph output in place of `value`, under the output's name."""
    for i, out in enumerate(graph.outputs):
        if out is value:
            graph.outputs[i] = rounded
    name = value.name
    value.name, rounded.name = fresh_name(graph, f"{name}__exact"), name
