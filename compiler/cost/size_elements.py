"""What small integer tensors hold, element by element: the rules of `shape_rules`, and better ones where sizes help."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from .. import dims as d
from .. import shape_rules
from ..dims import Dim
from ..graph import attr
from ..shape_rules import MOST, Elements
from . import bounds

if TYPE_CHECKING:
    from .sizes import Sizes

Rule = Callable[["Sizes", ir.Node], Elements | list[Elements] | None]


def _pairwise(function: Callable[[Any, Any], Any]) -> Rule:
    """A rule that applies `function` element by element to two inputs, or to one after the other of many."""

    def one(a: Any, b: Any) -> Any:
        return None if a is None or b is None else function(a, b)

    each = np.frompyfunc(one, 2, 1)

    def rule(sizes: Sizes, node: ir.Node) -> Elements | None:
        found = [sizes.elements(v) for v in node.inputs]
        result = found[0]
        for other in found[1:]:
            if result is None or other is None:
                return None
            result = np.asarray(each(result, other), dtype=object)
        return result

    return rule


def _less(a: Dim, b: Dim) -> bool | None:
    if bounds.at_least(d.sub(b, a), 1):
        return True
    return False if bounds.covers(a, b) else None


def _not(answer: bool | None) -> bool | None:
    return None if answer is None else not answer


def _equal(a: Dim, b: Dim) -> bool | None:
    if a == b:
        return True
    return False if _less(a, b) or _less(b, a) else None


def _unknown(sizes: Sizes, value: ir.Value | None) -> Elements | None:
    """What a value holds; as many unknowns where only its length is known."""
    found = sizes.elements(value)
    if found is None:
        dims = sizes.dims(value)
        if dims is not None and len(dims) == 1 and isinstance(dims[0], int) and dims[0] <= MOST:
            found = np.full(dims[0], None, dtype=object)
    return found


def _concat(sizes: Sizes, node: ir.Node) -> Elements | None:
    arrays = [_unknown(sizes, v) for v in node.inputs]
    known = [a for a in arrays if a is not None]
    return np.concatenate(known, axis=attr(node, "axis")) if len(known) == len(arrays) else None


def _reshape(sizes: Sizes, node: ir.Node) -> Elements | None:
    data, target = sizes.elements(node.inputs[0]), sizes.dims(node.outputs[0])
    if data is None or target is None or not all(isinstance(t, int) for t in target):
        return None
    shape = [int(t) for t in target if isinstance(t, int)]
    return data.reshape(shape) if np.prod(shape) == data.size else None


def _split(sizes: Sizes, node: ir.Node) -> list[Elements] | None:
    data = sizes.elements(node.inputs[0])
    lengths = [dims[0] if (dims := sizes.dims(o)) else None for o in node.outputs]
    if data is None or data.ndim != 1 or not all(isinstance(n, int) for n in lengths):
        return None
    return list(np.split(data, np.cumsum([n for n in lengths if isinstance(n, int)])[:-1]))


def _constant(sizes: Sizes, node: ir.Node) -> Elements | None:
    for a in node.attributes.data.values():
        if a.type == ir.AttributeType.TENSOR:
            count = sizes.count(node.outputs[0])
            return a.value.numpy().astype(object) if isinstance(count, int) and count <= MOST else None
        if a.name in ("value_int", "value_ints"):
            return np.array(a.value, dtype=object)
    return None


def _transpose(sizes: Sizes, node: ir.Node) -> Elements | None:
    data = sizes.elements(node.inputs[0])
    return None if data is None else np.transpose(data, attr(node, "perm"))


def _shape(sizes: Sizes, node: ir.Node) -> Elements | None:
    dims = sizes.dims(node.inputs[0])
    if dims is None:
        return None
    end = attr(node, "end")
    array = np.empty(len(dims[attr(node, "start", 0) : len(dims) if end is None else end]), dtype=object)
    array[:] = dims[attr(node, "start", 0) : len(dims) if end is None else end]
    return array


RULES: dict[str, Rule] = {
    **shape_rules.RULES,
    **dict.fromkeys(("Flatten", "Reshape", "Squeeze", "Unsqueeze"), _reshape),
    "Concat": _concat,
    "Constant": _constant,
    "Div": _pairwise(bounds.truncated),
    "Equal": _pairwise(_equal),
    "Greater": _pairwise(lambda a, b: _less(b, a)),
    "GreaterOrEqual": _pairwise(lambda a, b: _not(_less(a, b))),
    "Less": _pairwise(_less),
    "LessOrEqual": _pairwise(lambda a, b: _not(_less(b, a))),
    "Max": _pairwise(lambda a, b: bounds.maximum([a, b])),
    "Min": _pairwise(lambda a, b: bounds.minimum([a, b])),
    "Mod": _pairwise(bounds.modulo),
    "Shape": _shape,
    "Split": _split,
    "Transpose": _transpose,
}  # fmt: skip
"""Operator → the elements of its outputs."""
