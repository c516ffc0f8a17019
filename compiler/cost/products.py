"""Multiply-accumulates, exactly, from shapes alone.

One MAC is one multiplication whose product is added to a sum: of convolutions, matrix products, einsum, attention and
the matrix products of recurrent cells. Element-wise work, normalisation, softmax, biases and pooling are no MACs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import onnx
import onnx.inliner
import onnx_ir as ir

from ..graph import attr, const, scalar, shape, static_shape, subgraphs

Count = int | None
"""None: not known, because a shape is symbolic or an operator is not one of the standard's."""


def _size(value: ir.Value | None) -> Count:
    dims = static_shape(value)
    return None if dims is None else math.prod(dims)


def _times(*factors: Count) -> Count:
    return None if any(f is None for f in factors) else math.prod(f for f in factors if f is not None)


def _dim(value: ir.Value | None, axis: int) -> Count:
    dims = shape(value)
    d = dims[axis] if dims is not None and -len(dims) <= axis < len(dims) else None
    return d if isinstance(d, int) else None


def _filter(value: ir.Value | None) -> Count:
    """Elements of one filter: of the weight but for its first axis."""
    dims = static_shape(value)
    return None if dims is None else math.prod(dims[1:])


def _conv(weight: int) -> Callable[[ir.Node], Count]:
    """Each output element is the dot product of one filter."""
    return lambda node: _times(_size(node.outputs[0]), _filter(node.inputs[weight]))


def _conv_transpose(node: ir.Node) -> Count:
    """Each input element is multiplied with one filter and added into the output."""
    return _times(_size(node.inputs[0]), _filter(node.inputs[1]))


def _gemm(node: ir.Node) -> Count:
    return _times(_size(node.outputs[0]), _dim(node.inputs[0], 0 if attr(node, "transA", 0) else 1))


def _matmul(node: ir.Node) -> Count:
    return _times(_size(node.outputs[0]), _dim(node.inputs[0], -1))


def _recurrent(node: ir.Node) -> Count:
    """Per step and sample every element of W and R once; padded steps count. Peepholes and biases are element-wise."""
    steps = _times(_dim(node.inputs[0], 0), _dim(node.inputs[0], 1))
    w, r = _size(node.inputs[1]), _size(node.inputs[2])
    return None if w is None or r is None else _times(steps, w + r)


def _attention(node: ir.Node) -> Count:
    """Queries times keys, and weights times values: batch x query heads x queries x keys x (head size + value size)."""
    q, k, v = (static_shape(i) for i in node.inputs[:3])
    if q is None or k is None or v is None:
        return None
    if len(q) == 4:
        heads, lines, head, value, keys = q[1], q[2], q[3], v[3], k[2]
    else:
        heads = attr(node, "q_num_heads")
        lines, head, value, keys = q[1], q[2] // heads, v[2] // attr(node, "kv_num_heads"), k[1]
    past = node.inputs[4] if len(node.inputs) > 4 else None
    cached = _dim(past, 2) if past is not None else 0
    return None if cached is None else q[0] * heads * lines * (keys + cached) * (head + value)


def _einsum(node: ir.Node) -> Count:
    """n operands multiplied at once: (n - 1) x the product of all subscripts' extents."""
    terms = attr(node, "equation").replace(" ", "").split("->")[0].split(",")
    sizes: dict[str, int] = {}
    for term, value in zip(terms, node.inputs, strict=True):
        dims = static_shape(value)
        if dims is None:
            return None
        head, dots, tail = term.partition("...")
        # Broadcast axes are aligned at their end, like numpy's: the last one is named "-1".
        middle = [str(i) for i in range(-(len(dims) - len(head) - len(tail)), 0)] if dots else []
        for label, d in zip([*head, *middle, *tail], dims, strict=True):
            sizes[label] = max(sizes.get(label, 0), d) if d else 0
    return (len(terms) - 1) * math.prod(sizes.values())


MACS: dict[str, Callable[[ir.Node], Count]] = {
    # Every point of the grid times the matrix of its sample.
    "AffineGrid": lambda node: _times(_size(node.outputs[0]), _dim(node.inputs[0], 2)),
    "Attention": _attention,
    "Conv": _conv(1),
    "ConvInteger": _conv(1),
    "ConvTranspose": _conv_transpose,
    "DeformConv": _conv(1),
    "Einsum": _einsum,
    "GRU": _recurrent,
    "Gemm": _gemm,
    "LSTM": _recurrent,
    "MatMul": _matmul,
    "MatMulInteger": _matmul,
    "QLinearConv": _conv(3),
    "QLinearMatMul": _matmul,
    "RNN": _recurrent,
}
"""Standard operator → its MACs in one run. An operator that is not here has none."""


# Constants of these types may be shapes and axes, which inference wants to see.
_SIZES = frozenset({ir.DataType.INT32, ir.DataType.INT64})


def macs(model: ir.Model) -> Count:
    """Multiply-accumulates of the model's costliest run: of If the costlier branch, Loop and Scan times their trips.

    None where a shape is symbolic, a trip count is not a constant, or an operator is unknown.
    """
    return _sum(model.graph, model)


def node_macs(node: ir.Node, model: ir.Model) -> Count:
    """Multiply-accumulates of one node in one run, with the graphs inside it, or the local function that it calls."""
    if node.op_identifier() in model.functions:
        return _call(node, model)
    if node.domain:
        return None
    if node.op_type in MACS:
        return MACS[node.op_type](node)
    inner = [_sum(g, model) for g in subgraphs(node)]
    if not any(inner) and None not in inner:
        return 0
    if node.op_type == "If":
        return None if None in inner else max(i for i in inner if i is not None)
    return _times(_trips(node), *inner)


def _sum(nodes: Iterable[ir.Node], model: ir.Model) -> Count:
    total = 0
    for node in nodes:
        found = node_macs(node, model)
        if found is None:
            return None
        total += found
    return total


def _trips(node: ir.Node) -> Count:
    """How often the body of a Loop or Scan runs at most."""
    if node.op_type == "Loop":
        limit = scalar(node.inputs[0])
        return None if limit is None else int(limit)
    if node.op_type == "Scan":
        scanned = attr(node, "num_scan_inputs")
        axes = attr(node, "scan_input_axes") or [0] * scanned
        return _dim(node.inputs[len(node.inputs) - scanned], axes[0])
    return None


def _call(node: ir.Node, model: ir.Model) -> Count:
    """The MACs of a local function. Its body has no shapes of its own: they are inferred for this call."""
    reached, stack = set(), [node.op_identifier()]
    while stack:
        key = stack.pop()
        if key in model.functions and key not in reached:
            reached.add(key)
            stack += [n.op_identifier() for n in model.functions[key].all_nodes()]
    inside = [n for key in reached for n in model.functions[key].all_nodes()]
    if not any(n.op_type in MACS or subgraphs(n) or (n.domain and n.op_identifier() not in reached) for n in inside):
        return 0
    copies = [ir.Value(name=f"in{i}", shape=v.shape, type=v.type) if v else None for i, v in enumerate(node.inputs)]
    call = ir.node(node.op_type, copies, node.attributes, domain=node.domain, num_outputs=len(node.outputs))
    body = ir.Graph([v for v in copies if v], call.outputs, nodes=[call], opset_imports=model.opset_imports)
    for copy, value in zip(copies, node.inputs, strict=True):
        numbers = const(value) if value is not None and value.dtype in _SIZES else None
        if copy is not None and numbers is not None and numbers.size <= 64:
            body.inputs.remove(copy)
            copy.const_value = ir.Tensor(numbers, name=copy.name)
            body.register_initializer(copy)
    alone = ir.Model(body, ir_version=model.ir_version, functions=[model.functions[key] for key in reached])
    flat = onnx.inliner.inline_local_functions(ir.to_proto(alone))
    inferred = ir.from_proto(onnx.shape_inference.infer_shapes(flat, data_prop=True))
    return _sum(inferred.graph, inferred)
