"""Linear operators in 8-bit integers, as onnxruntime's kernels want them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ...compiler import graph as g
from ...compiler.rounding import OURS, pair_source, pairs
from . import nbits
from .pads import pad_before
from .weights import unpack_while_loading

INTEGERS = (ir.DataType.INT8, ir.DataType.UINT8)
MERGED = ("Relu", "Clip")
"""Activations that an integer convolution applies before it rounds (onnxruntime 1.32, its selectors)."""


@dataclass(frozen=True)
class Site:
    """A linear operator of the main graph that reads rounded activations and a weight of 8 bits, or one in blocks.

    Attributes:
        node: Conv, Gemm or MatMul.
        family: sites that are computed in integers together, or not: see `FAMILIES`.
        given: whether the rounding came with the model: then it is not taken out.
    """

    node: ir.Node
    family: str
    given: bool


FAMILIES = {
    "conv": "convolutions",
    "pointwise": "convolutions of 1 × 1",
    "depthwise": "grouped convolutions",
    "static": "matrix products with ranges measured before",
    "dynamic": "matrix products with ranges found in every run",
    "nbits": "matrix products with weights in blocks",
}
"""Family → what it is called in notes."""


def sites(model: ir.Model) -> list[Site]:
    """All linear operators that integer kernels could compute."""
    found = []
    for node in model.graph:
        family = "nbits" if nbits.fits(node) else _family(node)
        if family == "nbits":
            found.append(Site(node, family, False))
        elif family is not None:
            rounded = node.inputs[0]
            assert rounded is not None
            found.append(Site(node, family, not rounded.meta.get(OURS)))
    return found


def _family(node: ir.Node) -> str | None:
    if node.domain or node.op_type not in ("Conv", "Gemm", "MatMul"):
        return None
    first, weight = _down(node.inputs[0]), stored(node.inputs[1])
    if first is None or first.outputs[0].dtype not in INTEGERS:
        return None
    if first.op_type == "DynamicQuantizeLinear":
        return "dynamic" if weight is not None and _product(node, weight) else None
    if node.op_type != "Conv":
        # Both operands may be activations: the products inside of an attention.
        other = _down(node.inputs[1])
        return "static" if weight is not None or (other is not None and other.op_type == "QuantizeLinear") else None
    if weight is None:
        return None
    dims = g.static_shape(node.inputs[1])
    if int(g.attr(node, "group", 1)) > 1:
        return "depthwise"
    return "pointwise" if dims is not None and all(d == 1 for d in dims[2:]) else "conv"


def _down(value: ir.Value | None) -> ir.Node | None:
    """The QuantizeLinear or DynamicQuantizeLinear of the pair that makes `value`."""
    last = g.producer(value, "DequantizeLinear")
    return None if last is None or pair_source(last) is None else g.producer(last.inputs[0])


@dataclass(frozen=True)
class Stored:
    """A weight of 8-bit integers: (q - zero) · scale, with one scale, or one for each slice along `axis`."""

    q: ir.Value
    scale: np.ndarray
    zero: np.ndarray | None
    axis: int


def stored(value: ir.Value | None) -> Stored | None:
    """What `value` is stored as, if it is that."""
    node = g.producer(value, "DequantizeLinear")
    if node is None or any(v is not None and not g.is_const(v) for v in node.inputs):
        return None
    q, rank = node.inputs[0], g.rank(node.inputs[0])
    scale = g.const(node.inputs[1])
    if q is None or q.dtype not in INTEGERS or scale is None or not rank or g.attr(node, "block_size", 0):
        return None
    zero = g.const(node.inputs[2]) if len(node.inputs) > 2 else None
    return Stored(q, scale, zero, int(g.attr(node, "axis", 1)) % rank)


def _product(node: ir.Node, weight: Stored) -> bool:
    """Whether a product is x · q with at most a scale for each column, and a bias."""
    if g.rank(weight.q) != 2 or g.rank(node.inputs[0]) is None:
        return False
    turned = node.op_type == "Gemm" and bool(g.attr(node, "transB", 0))
    if node.op_type == "Gemm" and (g.attr(node, "transA", 0) or g.attr(node, "alpha", 1.0) != 1.0):
        return False
    if node.op_type == "Gemm" and len(node.inputs) > 2 and g.attr(node, "beta", 1.0) != 1.0:
        return False
    return weight.scale.ndim == 0 or weight.axis == (0 if turned else 1)


def lowered(
    model: ir.Model, families: Collection[str], unsigned: bool = False, padded: bool = False
) -> ir.Model:
    """A clone of `model` in which these families are computed in integers, and everything else in float.

    Rounding that serves no integer kernel is left out, but where it came with the model. With `unsigned`, weights are
    integers without a sign: without instructions for 8-bit products (VNNI), sums of two products of integers with and
    without a sign are kept in 16 bits and may be cut off. With `padded`, see `pad_before`.
    """
    model = model.clone()
    chosen = [s for s in sites(model) if s.family in families or s.given]
    for site in chosen:
        if site.family == "dynamic":
            _multiply(site.node, unsigned)
        elif site.family == "nbits":
            nbits.multiply(site.node)
    static = {s.node for s in chosen if s.family not in ("dynamic", "nbits")}
    _strip(model, static)
    if unsigned:
        for node in static:
            _without_sign(node)
    if padded:
        pad_before(model, static)
    unpack_while_loading(model, static)
    return model


# --- ranges that are found in every run -------------------------------------------------------------------------------


def _multiply(node: ir.Node, unsigned: bool) -> None:
    """A product of integers, scaled afterwards: what onnxruntime makes one kernel of (DynamicQuantizeMatMul).

    Before:  `y = MatMul(DequantizeLinear(q, s, z), DequantizeLinear(w, t))`, q, s, z of a DynamicQuantizeLinear

    After:   `y = Mul(Cast(MatMulInteger(q, w, z)), Mul(s, t))`
    """
    graph, first, weight, out = node.graph, _down(node.inputs[0]), stored(node.inputs[1]), node.outputs[0]
    assert isinstance(graph, ir.Graph) and first is not None and weight is not None
    q, zero = _typed(weight, unsigned)
    if node.op_type == "Gemm" and g.attr(node, "transB", 0):
        q = np.ascontiguousarray(q.T)
    name = weight.q.name
    integers = g.initializer(graph, q, f"{name}_columns") if q is not g.const(weight.q) else weight.q
    start = g.initializer(graph, zero, f"{name}_zero")
    step = g.initializer(graph, weight.scale.astype(np.float32), f"{name}_scale")
    a, s, z = first.outputs
    made = g.insert_before(node, "MatMulInteger", [a, integers, z, start], hint=f"{out.name}__sum").outputs[0]
    made.type, made.shape = ir.TensorType(ir.DataType.INT32), out.shape
    real = g.insert_before(node, "Cast", [made], {"to": int(ir.DataType.FLOAT)}, like=out, hint=f"{out.name}__real")
    both = g.insert_before(node, "Mul", [s, step], hint=f"{out.name}__scale").outputs[0]
    both.type, both.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(weight.scale.shape)
    result = g.insert_before(node, "Mul", [real.outputs[0], both], like=out, hint=f"{out.name}__scaled").outputs[0]
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is not None:
        result = g.insert_before(node, "Add", [result, bias], like=out, hint=f"{out.name}__biased").outputs[0]
    g.replace_node(node, result)


def _typed(weight: Stored, unsigned: bool) -> tuple[np.ndarray, np.ndarray]:
    """Integers and zero points, without a sign if that is wanted."""
    q = np.asarray(g.const(weight.q))
    zero = np.zeros(weight.scale.shape, q.dtype) if weight.zero is None else np.asarray(weight.zero)
    if unsigned and q.dtype == np.int8:
        # The same bits with the highest one turned.
        return q.view(np.uint8) ^ np.uint8(128), zero.view(np.uint8) ^ np.uint8(128)
    return q, zero


# --- ranges that were measured before ---------------------------------------------------------------------------------


def _strip(model: ir.Model, integer: Collection[ir.Node]) -> None:
    """Take out the rounding that no integer kernel reads or gives, if it did not come with the model."""
    for last in list(pairs(model)):
        out, first = last.outputs[0], g.producer(last.inputs[0])
        source = pair_source(last)
        if first is None or source is None or first.op_type == "Cast" or not out.meta.get(OURS):
            continue
        if _maker(source) in integer or any(n in integer for n, _ in out.uses()):
            continue
        if g.can_replace(out, source):
            g.replace_node(last, source)


def _maker(value: ir.Value) -> ir.Node | None:
    """The operator that makes `value`, activations that merge with it aside."""
    node = g.producer(value)
    while node is not None and not node.domain and node.op_type in MERGED:
        node = g.producer(node.inputs[0])
    return node


def _without_sign(node: ir.Node) -> None:
    """The same weight in integers without a sign."""
    old, weight = g.producer(node.inputs[1], "DequantizeLinear"), stored(node.inputs[1])
    if old is None or weight is None or weight.q.dtype != ir.DataType.INT8:
        return
    graph = node.graph
    assert isinstance(graph, ir.Graph)
    q, zero = _typed(weight, True)
    inputs = [g.initializer(graph, a, f"{weight.q.name}_{n}") for a, n in ((q, "unsigned"), (zero, "zero"))]
    attributes: Mapping[str, int] = {"axis": weight.axis} if weight.scale.ndim else {}
    operands = [inputs[0], old.inputs[1], inputs[1]]
    made = g.insert_before(old, "DequantizeLinear", operands, attributes, like=old.outputs[0])
    g.rewire(node, 1, made.outputs[0])


def families(model: ir.Model) -> Iterator[str]:
    """The families that may be chosen, in the order of `FAMILIES`."""
    present = {s.family for s in sites(model) if not s.given}
    yield from (f for f in FAMILIES if f in present)
