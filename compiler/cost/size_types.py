"""Element types where nothing declares them: in the bodies of local functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import onnx_ir as ir

from ..dims import Dim
from ..graph import attr

if TYPE_CHECKING:
    from .sizes import Sizes

Sized = list[Dim | None] | None
"""Dimensions, None for those that a rule can't tell; None for an unknown rank."""

TypeRule = Callable[["Sizes", ir.Node, ir.Value], ir.DataType | None]


def _of_input(index: int) -> TypeRule:
    return lambda sizes, node, _: sizes.dtype(node.inputs[index]) if index < len(node.inputs) else None


def _always(dtype: ir.DataType) -> TypeRule:
    return lambda *_: dtype


def _by_attribute(name: str, default: TypeRule) -> TypeRule:
    def rule(sizes: Sizes, node: ir.Node, out: ir.Value) -> ir.DataType | None:
        given = attr(node, name, 0)
        return ir.DataType(given) if given else default(sizes, node, out)

    return rule


def _constant(_: Sizes, node: ir.Node, __: ir.Value) -> ir.DataType | None:
    for a in node.attributes.values():
        if a.type == ir.AttributeType.TENSOR:
            return a.value.dtype  # type: ignore[no-any-return]
        if a.name.startswith("value_"):
            return {"i": ir.DataType.INT64, "f": ir.DataType.FLOAT}.get(a.name[6:7], ir.DataType.STRING)
    return None


def _filled(_: Sizes, node: ir.Node, __: ir.Value) -> ir.DataType:
    value = attr(node, "value")
    return ir.DataType.FLOAT if value is None else value.dtype


def _quantized(sizes: Sizes, node: ir.Node, out: ir.Value) -> ir.DataType | None:
    given = sizes.dtype(node.inputs[2]) if len(node.inputs) > 2 else None
    return given or _by_attribute("output_dtype", _always(ir.DataType.UINT8))(sizes, node, out)


def _second_is_index(sizes: Sizes, node: ir.Node, out: ir.Value) -> ir.DataType | None:
    return sizes.dtype(node.inputs[0]) if out is node.outputs[0] else ir.DataType.INT64


def _second_is_mask(sizes: Sizes, node: ir.Node, out: ir.Value) -> ir.DataType | None:
    return sizes.dtype(node.inputs[0]) if out is node.outputs[0] else ir.DataType.BOOL


def _dynamic(_: Sizes, node: ir.Node, out: ir.Value) -> ir.DataType:
    return ir.DataType.FLOAT if out is node.outputs[1] else ir.DataType.UINT8


_FLOAT, _BOOL, _INT64 = (_always(t) for t in (ir.DataType.FLOAT, ir.DataType.BOOL, ir.DataType.INT64))

TYPES: dict[str, TypeRule] = {
    "": _of_input(0),
    **dict.fromkeys((
        "And", "Equal", "Greater", "GreaterOrEqual", "IsInf", "IsNaN", "Less", "LessOrEqual", "Not", "Or", "Xor",
        "OptionalHasElement", "RegexFullMatch",
    ), _BOOL),
    **dict.fromkeys(("ArgMax", "ArgMin", "NonMaxSuppression", "NonZero", "SequenceLength", "Shape", "Size"), _INT64),
    **dict.fromkeys(("ConvInteger", "MatMulInteger"), _always(ir.DataType.INT32)),
    **dict.fromkeys(("BlackmanWindow", "HammingWindow", "HannWindow", "MelWeightMatrix"),
                    _by_attribute("output_datatype", _FLOAT)),
    **dict.fromkeys(("RandomNormal", "RandomUniform"), _by_attribute("dtype", _FLOAT)),
    **dict.fromkeys(("Bernoulli", "EyeLike", "RandomNormalLike", "RandomUniformLike"),
                    _by_attribute("dtype", _of_input(0))),
    **dict.fromkeys(("MaxPool", "TopK", "Unique"), _second_is_index),
    "BitCast": _by_attribute("to", _of_input(0)),
    "Cast": _by_attribute("to", _of_input(0)),
    "CastLike": _of_input(1),
    "Constant": _constant,
    "ConstantOfShape": _filled,
    "DequantizeLinear": _by_attribute("output_dtype", _of_input(1)),
    "Dropout": _second_is_mask,
    "DynamicQuantizeLinear": _dynamic,
    "Multinomial": _by_attribute("dtype", _always(ir.DataType.INT32)),
    "OneHot": _of_input(2),
    "QLinearConv": _of_input(7),
    "QLinearMatMul": _of_input(7),
    "QuantizeLinear": _quantized,
    "TfIdfVectorizer": _FLOAT,
    "Where": _of_input(1),
}  # fmt: skip
"""Operator → the element type of one of its outputs; that of the first input for all others."""
