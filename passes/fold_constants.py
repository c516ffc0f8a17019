"""Computes at compile time what depends on constants only, as long as that doesn't make the model bigger."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from ..compiler import graph, ops
from ..compiler.errors import ModelError
from ..compiler.passbase import Context, Pass
from ..compiler.session import Session
from ..compiler.targets import OPSET

BIG = 1 << 20
"""Bytes from which a result is computed on its own, so that not all of them are in memory at once."""


@dataclass(frozen=True)
class FoldConstants(Pass):
    """Replace nodes that read only constants by what they return, computed by onnxruntime in one session.

    before:  w2 = Transpose(w); s = Sqrt(2.0); y = Mul(MatMul(x, w2), s)
    after:   y = Mul(MatMul(x, w2), 1.4142)                                (w2, 1.4142 are initializers)

    A result may have `limit` bytes, or more if constants of as many bytes go away. Weights that are stored packed stay
    so: quantisation, dequantisation and rounding to or from a shorter float are not folded; random operators neither.
    Reshapes of constants share the constant's bytes.

    Options:
        limit: bytes that a result may have although it makes the model bigger.
    """

    name: ClassVar[str] = "fold-constants"
    limit: int = 1 << 16

    def run(self, model: ir.Model, ctx: Context) -> int:
        total = 0
        for g in reversed(list(graph.graphs(model))):
            while (count := self._round(model, g, ctx)) > 0:
                total += count
        return total

    def _round(self, model: ir.Model, g: ir.Graph, ctx: Context) -> int:
        """Fold what is foldable now. More may be afterwards: behind big results, and behind sizes now known."""
        small: dict[ir.Node, None] = {}
        big: list[ir.Node] = []
        views = 0
        for node in g:
            if not self._foldable(node, small):
                continue
            if node.op_type in ops.RESHAPE and not small.keys() & set(_sources(node)):
                views += self._view(model, node)
                continue
            size = result_bytes(node)
            if size is None and node.op_type in _GROWING and not _inputs_ready(node):
                continue  # the next round knows how big
            if (size if size is not None else _growth(node)) > self._allowance(node, small):
                continue
            if (size or 0) > BIG:
                big.append(node) if _inputs_ready(node) else None
            else:
                small[node] = None
        count = views + _evaluate(model, g, list(small), ctx)
        for node in big:
            count += _evaluate(model, g, [node], ctx)
        return count

    def _foldable(self, node: ir.Node, folded: dict[ir.Node, None]) -> bool:
        if node.domain or node.op_type in _NEVER or not node.inputs or ops.is_random(node) or graph.subgraphs(node):
            return False
        if not all(v is None or graph.is_const(v) or v.producer() in folded for v in node.inputs):
            return False
        if node.op_type == "Identity" and node.outputs[0].is_graph_output():
            return False
        if not all(isinstance(o.type, ir.TensorType) and o.type.dtype not in _NOT_IN_NUMPY for o in node.outputs):
            return False
        return not (node.op_type == "Cast" and _rounds(node))

    def _allowance(self, node: ir.Node, folded: dict[ir.Node, None]) -> int:
        """Bytes that the result may have: of the constants that only this node reads, and at least `limit`.

        Of a constant that is cut up, each part has its own.
        """
        freed = 0
        for v in node.inputs:
            tensor = None if v is None else graph.const_tensor(v)
            if v is not None and tensor is not None and graph.used_once(v):
                freed += tensor.nbytes
            elif v is not None and v.producer() in folded and graph.used_once(v):
                freed += _nbytes(v) or 0
            elif v is not None and tensor is not None and _is_cut_up(v, tensor.nbytes):
                freed += result_bytes(node) or 0
        return max(self.limit, freed)

    def _view(self, model: ir.Model, node: ir.Node) -> int:
        """Reshape, Squeeze, Unsqueeze, Flatten of a constant: the same bytes under another shape."""
        out, source = node.outputs[0], node.inputs[0]
        dims = graph.static_shape(out)
        tensor = None if source is None else graph.const_tensor(source)
        if dims is None or tensor is None or source is None or prod(dims) != tensor.size or out.is_graph_output():
            return 0
        name = graph.fresh_name(model.graph, f"{source.name}_reshaped")
        value = ir.Value(
            name=name, shape=ir.Shape(dims), type=source.type, const_value=_reshaped(tensor, dims, name)
        )
        model.graph.register_initializer(value)
        graph.replace_value(out, value)
        _drop(node)
        return 1


_NEVER = frozenset({"Constant", "DequantizeLinear", "DynamicQuantizeLinear", "Loop", "If", "Scan", "QuantizeLinear"})

_NOT_IN_NUMPY = frozenset(
    t for t in ir.DataType if t.name.startswith(("BFLOAT", "FLOAT8", "FLOAT4", "INT2", "INT4", "UINT2", "UINT4"))
)
"""Types that onnxruntime doesn't hand out as numpy arrays."""

_GROWING = frozenset({"ConstantOfShape", "Expand", "Range", "Tile", "Pad", "Resize", "OneHot", "CenterCropPad"})
"""Operators whose result can be much bigger than what they read."""


def _rounds(node: ir.Node) -> bool:
    """Whether a Cast is a rounding to a shorter float, or unpacks something from a shorter type that was chosen."""
    source = node.inputs[0]
    to = ir.DataType(graph.attr(node, "to"))
    if source is None or source.dtype is None:
        return True
    if source.dtype.is_floating_point() and to.is_floating_point() and to.bitwidth < source.dtype.bitwidth:
        return True
    small = graph.static_shape(source)
    return to.bitwidth > source.dtype.bitwidth and (small is None or prod(small) * to.bitwidth > 1024 * 8)


def _is_cut_up(value: ir.Value, size: int) -> bool:
    """Whether all that is read of a constant are parts, at constant places, that together are no bigger than it."""
    readers = {use.node for use in value.uses()}
    if value.is_graph_output() or any(n.domain or n.op_type not in ("Slice", "Split", "Gather") for n in readers):
        return False
    parts = [result_bytes(n) if _inputs_ready(n) else None for n in readers]
    return sum(size + 1 if p is None else p for p in parts) <= size


def _sources(node: ir.Node) -> list[ir.Node]:
    return [p for v in node.inputs if v is not None and (p := v.producer()) is not None]


def _inputs_ready(node: ir.Node) -> bool:
    return all(v is None or graph.is_const(v) for v in node.inputs)


def _nbytes(value: ir.Value) -> int | None:
    dims = graph.static_shape(value)
    return None if dims is None or value.dtype is None else prod(dims) * value.dtype.bitwidth // 8


def result_bytes(node: ir.Node) -> int | None:
    """The bytes of all results of `node`, from inferred shapes, or from the constants that say how big; or None."""
    sizes = [_nbytes(o) for o in node.outputs]
    if all(s is not None for s in sizes):
        return sum(s for s in sizes if s is not None)
    dtype = node.outputs[0].dtype
    width = 8 if dtype is None else dtype.itemsize
    if node.op_type == "ConstantOfShape":
        dims = graph.ints(node.inputs[0])
        return None if dims is None else int(prod(dims) * width)
    if node.op_type in ("Expand", "Tile"):
        dims, tensor = graph.ints(node.inputs[1]), node.inputs[0] and graph.const_tensor(node.inputs[0])
        return None if dims is None or not tensor else int(prod(dims) * tensor.nbytes)
    if node.op_type == "Range":
        bounds = [graph.scalar(v) for v in node.inputs]
        if None in bounds:
            return None
        start, end, step = bounds
        return int(max(0, np.ceil((end - start) / step)) * width)  # type: ignore[operator]
    return None


def _growth(node: ir.Node) -> float:
    """A bound for a result of unknown shape: as much as was read, where the operator can't make more of it."""
    if node.op_type in _GROWING:
        return float("inf")
    return sum((_nbytes(v) or 0) for v in node.inputs if v is not None)


def _reshaped(tensor: ir.TensorProtocol, dims: tuple[int, ...], name: str) -> ir.TensorProtocol:
    if isinstance(tensor, ir.ExternalTensor):
        return ir.ExternalTensor(
            tensor.location, tensor.offset, tensor.length, tensor.dtype,
            shape=ir.Shape(dims), name=name, base_dir=tensor.base_dir,
        )  # fmt: skip
    if tensor.dtype == ir.DataType.STRING:
        return ir.StringTensor(tensor.numpy().reshape(dims), shape=ir.Shape(dims), name=name)
    return ir.Tensor(tensor.numpy().reshape(dims), dtype=tensor.dtype, shape=ir.Shape(dims), name=name)


def _evaluate(model: ir.Model, g: ir.Graph, nodes: list[ir.Node], ctx: Context) -> int:
    """Replace these nodes, in order, by what onnxruntime computes for them. Returns how many went."""
    inside = set(nodes)
    frontier = [
        o
        for n in nodes
        for o in n.outputs
        if o.is_graph_output() or any(user not in inside for user, _ in o.uses())
    ]
    if not frontier:
        return 0
    try:
        results = _compute(nodes, frontier)
    except ModelError as e:
        if len(nodes) > 1:  # one of them has no kernel: let the others not suffer
            return sum(_evaluate(model, g, [n], ctx) for n in nodes if _inputs_ready(n))
        ctx.note(f"{nodes[0].name}: {nodes[0].op_type} of constants stays: {e}")
        return 0
    for value, array in zip(frontier, results, strict=True):
        new = graph.initializer(model.graph, array, value.name or "folded", ctx.scratch)
        if value.is_graph_output():
            producer = value.producer()
            assert producer is not None
            new = graph.insert_before(producer, "Identity", [new], like=value).outputs[0]
        graph.replace_value(value, new)
    for node in reversed(nodes):
        _drop(node)
    return len(nodes)


def _compute(nodes: list[ir.Node], wanted: list[ir.Value]) -> list[np.ndarray]:
    """The wanted values by onnxruntime; a Transpose alone by numpy, which maps instead of copying."""
    if len(nodes) == 1 and nodes[0].op_type == "Transpose":
        source = graph.const(nodes[0].inputs[0])
        perm = graph.attr(nodes[0], "perm")
        assert source is not None
        return [np.ascontiguousarray(np.transpose(source, perm))]
    twins: dict[ir.Value, ir.Value] = {}
    constants: list[ir.Value] = []
    for v in (v for n in nodes for v in n.inputs):
        if v is not None and v not in twins and graph.is_const(v):
            name = f"c{len(constants)}"
            twins[v] = ir.Value(name=name, shape=v.shape, type=v.type, const_value=v.const_value)
            constants.append(twins[v])
    copies = []
    for i, n in enumerate(nodes):
        inputs = [None if v is None else twins[v] for v in n.inputs]
        copy = ir.Node("", n.op_type, inputs, n.attributes.values(), num_outputs=len(n.outputs))
        for j, (old, new) in enumerate(zip(n.outputs, copy.outputs, strict=True)):
            new.name, new.type = f"v{i}_{j}", old.type
            twins[old] = new
        copies.append(copy)
    outputs = [twins[v] for v in wanted]
    g = ir.Graph([], outputs, nodes=copies, initializers=constants, opset_imports={"": OPSET}, name="constants")
    session = Session(ir.Model(g, ir_version=10), threads=1)
    found = session.run({})
    return [found[o.name or ""] for o in outputs]


def _drop(node: ir.Node) -> None:
    """Remove a folded node, and the constants that only it read."""
    constants = [v for v in node.inputs if v is not None and graph.is_const(v)]
    graph.remove([node])
    for v in constants:
        owner = v.graph
        if not v.uses() and not v.is_graph_output() and owner is not None and v.name in owner.initializers:
            owner.initializers.pop(v.name or "")
