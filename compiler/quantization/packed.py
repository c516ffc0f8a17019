"""Weights that are stored packed: which nodes unpack them, what these make, and what they ask of a target."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from ..functions import DECODERS, DOMAIN
from ..graph import attr, const_tensor, is_const, nodes, static_shape
from ..session import Session
from ..targets import OPSET, Storage
from .predecoded import decoded

SHORT_FLOATS = frozenset({ir.DataType.BFLOAT16, *(t for t in ir.DataType if t.name.startswith("FLOAT8"))})
"""Formats of numbers that float32 holds exactly and no Core ML version has."""

_FORMATS = {
    ir.DataType.BFLOAT16: "bfloat16", ir.DataType.FLOAT8E4M3FN: "float8e4m3", ir.DataType.FLOAT8E5M2: "float8e5m2",
    ir.DataType.FLOAT16: "float16", ir.DataType.FLOAT: "float16",
}  # fmt: skip

_SINCE = {
    ir.DataType.INT2: 25, ir.DataType.UINT2: 25, ir.DataType.INT4: 21, ir.DataType.UINT4: 21,
    ir.DataType.FLOAT8E4M3FN: 19, ir.DataType.FLOAT8E5M2: 19, ir.DataType.FLOAT8E4M3FNUZ: 19,
    ir.DataType.FLOAT8E5M2FNUZ: 19, ir.DataType.BFLOAT16: 13,
}  # fmt: skip
"""Element type → the opset from which operators take it (the operators' type constraints in onnx.defs)."""


def unpacks(node: ir.Node) -> bool:
    """Whether `node` is an operator that makes a weight, or a part of one, out of what is stored."""
    if node.domain == DOMAIN:
        return node.op_type in DECODERS
    if node.domain or node.op_type not in ("DequantizeLinear", "Cast") or not node.inputs:
        return False
    source = node.inputs[0]
    return node.op_type == "DequantizeLinear" or (source is not None and source.dtype in SHORT_FLOATS)


def decoders(value: ir.Value) -> list[ir.Node] | None:
    """The nodes that make `value` of constants by unpacking, in order; None if something else takes part in it."""
    found: dict[ir.Node, None] = {}
    if not _collect(value, found, {}):
        return None
    return list(found) or None


def _collect(value: ir.Value, found: dict[ir.Node, None], known: dict[ir.Value, bool]) -> bool:
    if value in known:
        return known[value]
    node = value.producer()
    good = is_const(value)
    if node is not None and unpacks(node):
        good = all(v is None or _collect(v, found, known) for v in node.inputs)
        if good:
            found[node] = None
    known[value] = good
    return good


def roots(model: ir.Model) -> Iterator[tuple[ir.Value, list[ir.Node]]]:
    """Every packed weight, as the value that others than unpacking nodes read, with the nodes that make it."""
    for node in nodes(model):
        if not unpacks(node):
            continue
        out = node.outputs[0]
        if out.is_graph_output() or any(not unpacks(n) for n, _ in out.uses()):
            chain = decoders(out)
            if chain is not None:
                yield out, chain


def dense(model: ir.Model, value: ir.Value, chain: list[ir.Node]) -> np.ndarray:
    """The weight, as a session unpacks it. Only that one is in memory. Raises ModelError."""
    found = decoded(model, value, chain)
    if found is not None:
        return found
    twins: dict[ir.Value, ir.Value] = {}
    stored: list[ir.Value] = []
    copies: list[ir.Node] = []
    for node in chain:
        for v in node.inputs:
            if v is not None and v not in twins:
                name = f"c{len(stored)}"
                twins[v] = ir.Value(name=name, shape=v.shape, type=v.type, const_value=v.const_value)
                stored.append(twins[v])
        inputs = [None if v is None else twins[v] for v in node.inputs]
        copy = ir.Node(node.domain, node.op_type, inputs, node.attributes.values(), overload=node.overload)
        made = copy.outputs[0]
        made.name, made.type, made.shape = f"v{len(copies)}", node.outputs[0].type, node.outputs[0].shape
        twins[node.outputs[0]] = made
        copies.append(copy)
    copies.append(ir.node("Identity", [twins[value]], name="whole"))  # A graph's output is left to onnxruntime.
    out = copies[-1].outputs[0]
    out.name, out.type, out.shape = "whole", value.type, value.shape
    imports = {"": OPSET, DOMAIN: 1}
    graph = ir.Graph([], [out], nodes=copies, initializers=stored, opset_imports=imports, name="packed")
    alone = ir.Model(graph, ir_version=model.ir_version, functions=list(model.functions.values()))
    return Session(alone, threads=1).run({})[out.name or ""]


# --- what a target needs ----------------------------------------------------------------------------------------------


def lacks(chain: list[ir.Node], storage: Storage) -> bool:
    """Whether a target that stores `storage` has no form for a weight that these nodes make."""
    return any(_lacks(node, chain, storage) for node in chain)


def _lacks(node: ir.Node, chain: list[ir.Node], storage: Storage) -> bool:
    source = node.inputs[0]
    tensor = None if source is None else const_tensor(source)
    if not node.domain and tensor is not None and not tensor.dtype.is_integer():
        return _FORMATS.get(tensor.dtype) not in storage.formats
    match node.op_type:
        case "DequantizeLinear":
            if tensor is not None and tensor.dtype.bitwidth > 8:
                return False  # Written out when it is lowered, as any other constant.
            bits = _bits(source, chain)
            block, axis = int(attr(node, "block_size", 0)), int(attr(node, "axis", 1))
            return bits not in storage.integers or bool(block and _blocks(node, axis, block, storage))
        case "LookupWeight":
            return _lookup(node, storage)
        case "ScaleWeight" | "ShiftScaleWeight":
            maker = None if source is None else source.producer()
            scaled = maker is not None and maker.op_type != "UnpackBits"
            axis, block = int(attr(node, "axis", 0)), int(attr(node, "block", 1))
            short = tensor is not None and not tensor.dtype.is_integer()
            integers = not scaled and not short and _bits(source, chain) not in storage.integers
            if tensor is not None and short and _FORMATS.get(tensor.dtype, "") not in storage.formats:
                return True
            return integers or not storage.scaled or _blocks(node, axis, block, storage)
        case "SparseWeight":
            plain = is_const(node.inputs[1]) and attr(node, "to", ir.DataType.FLOAT) == ir.DataType.FLOAT
            values = None if node.inputs[1] is None else node.inputs[1].dtype
            short = values in SHORT_FLOATS and _FORMATS.get(values, "") not in storage.formats
            return short or not (storage.sparse if plain else storage.joint)
        case "MaskWeight":
            return not storage.joint
    return False


def _bits(value: ir.Value | None, chain: list[ir.Node]) -> int:
    """Bits of an integer as stored."""
    tensor = None if value is None else const_tensor(value)
    if tensor is not None:
        return tensor.dtype.bitwidth
    node = None if value is None else value.producer()
    if node is not None and node.op_type == "UnpackBits":
        return int(attr(node, "bits", 8))
    if node is not None and node.op_type == "SparseWeight":
        return _bits(node.inputs[1], chain)
    return 8


def _blocks(node: ir.Node, axis: int, block: int, storage: Storage) -> bool:
    """Whether the target can't do these blocks."""
    dims, scale = static_shape(node.outputs[0]), static_shape(node.inputs[1])
    if dims is None or scale is None:
        return True
    n, groups = dims[axis], scale[axis] if len(scale) == len(dims) else 1
    if groups == 1 or block == 1:
        return False
    return not storage.blocks or (not storage.remainders and n != groups * block)


def _lookup(node: ir.Node, storage: Storage) -> bool:
    dims, tables = static_shape(node.inputs[0]), static_shape(node.inputs[1])
    if dims is None or tables is None:
        return True
    groups, entries, vector = tables
    bits = max(1, (entries - 1).bit_length())
    group, axis = int(attr(node, "group", 0)), int(attr(node, "axis", 0))
    several = groups > 1 or vector > 1
    ragged = bool(groups > 1 and group and dims[axis] % group)
    exact = entries == 1 << bits or storage.remainders
    return bits not in storage.tables or not exact or (several and not storage.groups) or (
        ragged and not storage.remainders
    )


def newer(chain: list[ir.Node], opset: int) -> bool:
    """Whether ONNX at `opset` has no such form: types, blocks, and the operators of the functions' bodies (18)."""
    for node in chain:
        kinds = [v.dtype for v in node.inputs if v is not None and v.dtype is not None]
        if any(opset < _SINCE.get(kind, 0) for kind in kinds) or (node.domain and opset < 18):
            return True
        if opset < 21 and attr(node, "block_size", 0):
            return True
        scale = node.inputs[1] if len(node.inputs) > 1 else None
        if opset < 23 and attr(node, "output_dtype", 0) not in (0, None if scale is None else scale.dtype):
            return True
    return False
