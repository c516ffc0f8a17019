"""What a model weighs: nodes, parameters, bytes. What it computes: see products.py. No weight is read."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import onnx_ir as ir

from .. import disk
from ..graph import attr, graphs, is_const, nodes, static_shape
from ..quantization import packed
from ..records import Stats
from ..rounding import is_pair, is_stored_half
from .walk import macs


def stats(model: ir.Model, file: Path | None = None) -> Stats:
    """The figures of `model`; `file` is where it lies on disk, if it does. Linear in nodes."""
    found = op_counts(model)
    return Stats(
        nodes=sum(found.values()),
        parameters=parameters(model),
        weight_bytes=weight_bytes(model),
        file_bytes=0 if file is None else disk.size(file),
        macs=macs(model),
        ops=dict(found.most_common()),
    )


# --- nodes -----------------------------------------------------------------------------------------------------------


def count_nodes(model: ir.Model) -> int:
    """How many operators `model` holds, see `op_counts`."""
    return sum(op_counts(model).values())


def op_counts(model: ir.Model) -> Counter[str]:
    """Operator (`domain::op` outside the standard's) → how many there are in all graphs, the most frequent first.

    A call of a local function counts as the function's body. What says how a number is stored or rounded, and computes
    nothing, is not counted: Constant, the dequantisation or widening of a constant, the two nodes of a rounding pair.
    """
    bodies: dict[ir.OperatorIdentifier, Counter[str]] = {}

    def count(nodes: Iterator[ir.Node]) -> Counter[str]:
        found: Counter[str] = Counter()
        for node in nodes:
            key = node.op_identifier()
            if key in model.functions:
                if not is_decoder(node, model):
                    if key not in bodies:
                        bodies[key] = count(model.functions[key].all_nodes())
                    found.update(bodies[key])
            elif not (node.domain == "" and _is_format(node)):
                found[f"{node.domain}::{node.op_type}" if node.domain else node.op_type] += 1
        return found

    found = count(nodes(model))
    return Counter(dict(sorted(found.items(), key=lambda item: (-item[1], item[0]))))


def _is_format(node: ir.Node) -> bool:
    """Whether a standard operator only says how a constant is stored, or how a value is rounded."""
    if node.op_type == "Constant":
        return True
    if node.op_type == "DequantizeLinear":
        return is_const(node.inputs[0]) or is_pair(node) or packed.decoders(node.outputs[0]) is not None
    if node.op_type == "Cast" and (is_stored_half(node) or is_pair(node)):
        return True
    out = node.outputs[0]
    starts = node.op_type in ("Cast", "QuantizeLinear") and not out.is_graph_output() and bool(out.uses())
    return starts and all(is_pair(n) for n, _ in out.uses())


# --- weights ---------------------------------------------------------------------------------------------------------

# Inputs that hold no weight though they are floating-point: scales, sizes, fill values.
NOT_WEIGHTS: dict[str, frozenset[int]] = {
    "Clip": frozenset({1, 2}),
    "DequantizeLinear": frozenset({1, 2}),
    "OneHot": frozenset({2}),
    "Pad": frozenset({2}),
    "QLinearConv": frozenset({1, 2, 4, 5, 6, 7}),
    "QLinearMatMul": frozenset({1, 2, 4, 5, 6, 7}),
    "QuantizeLinear": frozenset({1, 2}),
    "Range": frozenset({0, 1, 2}),
    "Resize": frozenset({1, 2}),
}
# Inputs that hold weights though they are integers.
INTEGER_WEIGHTS: dict[str, frozenset[int]] = {
    "ConvInteger": frozenset({1}),
    "DequantizeLinear": frozenset({0}),
    "MatMulInteger": frozenset({0, 1}),
    "QLinearConv": frozenset({3, 8}),
    "QLinearMatMul": frozenset({0, 3}),
}
# A constant that only passes through these is judged by who reads the result.
PASS_ON = frozenset({"Cast", "Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"})


def parameters(model: ir.Model) -> int:
    """How many numbers were learned: elements of floating-point and of dequantised constants, shared ones once.

    However a weight is stored, it has as many parameters as the tensor that it stands for: scales, zero points and
    tables add none. Scalars (rank 0: an epsilon, the 0.5 of a GELU) are no parameters.
    """
    total = sum(t.size for v, t in constants(model) if len(t.shape) and is_weight(v, t.dtype, model))
    seen: set[int] = set()
    for value, chain in packed.roots(model):
        if any(n.domain for n in chain) and id(chain[0].inputs[0]) not in seen:
            seen.add(id(chain[0].inputs[0]))
            total += math.prod(static_shape(value) or static_shape(chain[0].inputs[0]) or ())
    for node in nodes(model):
        if is_decoder(node, model) and not packed.unpacks(node) and id(node.inputs[0]) not in seen:
            seen.add(id(node.inputs[0]))
            total += math.prod(static_shape(node.outputs[0]) or static_shape(node.inputs[0]) or ())
    return total


def is_weight(value: ir.Value, dtype: ir.DataType, model: ir.Model) -> bool:
    """Whether `value`, a constant or a moved one, is read as a weight. Bytes that are cast to float are weights."""
    is_float = dtype.is_floating_point()
    for node, slot in value.uses():
        standard = node.op_type if node.domain == "" else ""
        if is_decoder(node, model):
            continue
        if standard in PASS_ON and slot == 0:
            byte = dtype.is_integer() and dtype.bitwidth <= 8
            to = attr(node, "to") if node.op_type == "Cast" and (is_float or byte) else dtype
            if is_weight(node.outputs[0], ir.DataType(to), model):
                return True
        elif slot not in NOT_WEIGHTS.get(standard, ()) if is_float else slot in INTEGER_WEIGHTS.get(standard, ()):
            return True
    return is_float and value.is_graph_output()


def is_decoder(node: ir.Node, model: ir.Model) -> bool:
    """Whether `node` calls a local function that makes a weight out of constants alone."""
    if not node.domain or node.op_identifier() not in model.functions or not node.inputs:
        return False
    return all(v is None or is_const(v) for v in node.inputs) or packed.decoders(node.outputs[0]) is not None


def weight_bytes(model: ir.Model) -> int:
    """Bytes of all constants as stored, those that lie at one place on disk or in memory once."""
    places: dict[object, int] = {}
    for _, t in constants(model):
        key = (t.path, t.offset) if isinstance(t, ir.ExternalTensor) else id(t)
        places[key] = sum(map(len, t.string_data())) if isinstance(t, ir.StringTensor) else t.nbytes
    return sum(places.values())


def constants(model: ir.Model) -> Iterator[tuple[ir.Value, ir.TensorProtocol]]:
    """Every initializer and every Constant node's value, in all graphs and local functions, with its tensor."""
    for g in graphs(model):
        for value in g.initializers.values():
            if value.const_value is not None:
                yield value, value.const_value
    bodies = [nodes(model), *(f.all_nodes() for f in model.functions.values())]
    for node in (n for body in bodies for n in body):
        if node.op_type == "Constant" and node.domain == "":
            tensor = ir.convenience.get_const_tensor(node.outputs[0])
            if tensor is not None:
                yield node.outputs[0], tensor
