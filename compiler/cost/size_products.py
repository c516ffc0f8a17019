"""How large the results are of matrix products, recurrent cells, attention, transforms of signals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import onnx_ir as ir

from .. import dims as d
from ..dims import Dim
from ..graph import attr
from . import bounds
from .size_rules import Rule, Sized, broadcast, given, join

if TYPE_CHECKING:
    from .sizes import Sizes


def _matmul(right: int) -> Rule:
    def rule(sizes: Sizes, node: ir.Node) -> Sequence[Sized] | None:
        a, b = sizes.dims(node.inputs[0]), sizes.dims(node.inputs[right])
        if a is None or b is None:
            return None
        head = broadcast([a[:-2], b[:-2]]) if a[:-2] or b[:-2] else []
        return [[*head, *(a[-2:-1] if len(a) > 1 else ()), *(b[-1:] if len(b) > 1 else ())]]

    return rule


def _gemm(sizes: Sizes, node: ir.Node) -> Sequence[Sized] | None:
    a, b = sizes.dims(node.inputs[0]), sizes.dims(node.inputs[1])
    if a is None or b is None:
        return None
    return [[a[1 if attr(node, "transA", 0) else 0], b[0 if attr(node, "transB", 0) else 1]]]


def _einsum_sizes(sizes: Sizes, node: ir.Node) -> dict[str, Dim] | None:
    """Each subscript of an Einsum → its extent. Axes under an ellipsis are named "-1", "-2" … from the last."""
    terms = attr(node, "equation").replace(" ", "").split("->")[0].split(",")
    found: dict[str, list[Dim]] = {}
    for term, value in zip(terms, node.inputs, strict=True):
        dims = sizes.dims(value)
        if dims is None:
            return None
        head, dots, tail = term.partition("...")
        middle = [str(i) for i in range(-(len(dims) - len(head) - len(tail)), 0)] if dots else []
        for label, dim in zip([*head, *middle, *tail], dims, strict=True):
            found.setdefault(label, []).append(dim)
    return {label: join(dims) for label, dims in found.items()}


def _einsum(sizes: Sizes, node: ir.Node) -> Sequence[Sized] | None:
    extents = _einsum_sizes(sizes, node)
    if extents is None:
        return None
    inputs, arrow, output = attr(node, "equation").replace(" ", "").partition("->")
    dots = sorted((k for k in extents if k.startswith("-")), key=int)
    if not arrow:
        letters = inputs.replace("...", "").replace(",", "")
        output = "..." * bool(dots) + "".join(sorted(c for c in set(letters) if letters.count(c) == 1))
    head, _, tail = output.partition("...")
    return [[extents[k] for k in [*head, *(dots if "..." in output else ()), *tail]]]


def _attention(sizes: Sizes, node: ir.Node) -> Sequence[Sized] | None:
    q, k, v = (sizes.dims(i) for i in node.inputs[:3])
    if q is None or k is None or v is None:
        return None
    past = sizes.dims(given(node, 4))
    if len(q) == 4:
        heads, kv_heads, head, value, lines, keys = q[1], k[1], k[3], v[3], q[2], k[2]
    else:
        heads, kv_heads = attr(node, "q_num_heads"), attr(node, "kv_num_heads")
        head, value = (bounds.certain(bounds.floor_div(x[2], kv_heads)) for x in (k, v))
        lines, keys = q[1], k[1]
    whole = d.add(keys, past[2]) if past is not None else keys
    result: Sized = [q[0], heads, lines, value] if len(q) == 4 else [q[0], lines, d.mul(heads, value)]
    return [result, [q[0], kv_heads, whole, head], [q[0], kv_heads, whole, value], [q[0], heads, lines, whole]]


def _recurrent(sizes: Sizes, node: ir.Node) -> Sequence[Sized] | None:
    x, r = sizes.dims(node.inputs[0]), sizes.dims(node.inputs[2])
    if x is None or r is None:
        return None
    hidden = attr(node, "hidden_size") or r[2]
    if attr(node, "layout", 0):
        return [[x[0], x[1], r[0], hidden], *[[x[0], r[0], hidden]] * 2]
    return [[x[0], r[0], x[1], hidden], *[[r[0], x[1], hidden]] * 2]


# --- signals ---------------------------------------------------------------------------------------------------------


def _fourier(sizes: Sizes, node: ir.Node) -> Sequence[Sized] | None:
    dims, length = sizes.dims(node.inputs[0]), given(node, 1)
    if dims is None:
        return None
    axis = sizes.number(given(node, 2)) if given(node, 2) is not None else attr(node, "axis", -2)
    if not isinstance(axis, int):
        return [[None] * len(dims)]
    axis %= len(dims)
    n = sizes.number(length) if length is not None else dims[axis]
    sided, inverse = attr(node, "onesided", 0), attr(node, "inverse", 0)
    if n is not None and sided and not inverse:
        half = bounds.floor_div(n, 2)
        n = None if half is None else d.add(half, 1)
    elif n is not None and sided and length is None:
        n = d.mul(d.sub(n, 1), 2)
    result: list[Dim | None] = [n if i == axis else dim for i, dim in enumerate(dims)]
    return [[*result[:-1], 1 if sided and inverse else 2]]


def _short_time_fourier(sizes: Sizes, node: ir.Node) -> Sequence[Sized] | None:
    dims, step, window = sizes.dims(node.inputs[0]), sizes.number(node.inputs[1]), sizes.dims(given(node, 2))
    if dims is None:
        return None
    length = sizes.number(given(node, 3)) if given(node, 3) is not None else window[0] if window else None
    if length is None or step is None:
        return [[dims[0], None, None, 2]]
    frames, half = bounds.floor_div(d.sub(dims[1], length), step), bounds.floor_div(length, 2)
    bins = length if not attr(node, "onesided", 1) else None if half is None else d.add(half, 1)
    return [[dims[0], None if frames is None else d.add(frames, 1), bins, 2]]


def _mel(sizes: Sizes, node: ir.Node) -> Sequence[Sized]:
    bins, length = sizes.number(node.inputs[0]), sizes.number(node.inputs[1])
    half = None if length is None else bounds.floor_div(length, 2)
    return [[None if half is None else d.add(half, 1), bins]]


def _n_grams(sizes: Sizes, node: ir.Node) -> Sequence[Sized] | None:
    dims = sizes.dims(node.inputs[0])
    return None if dims is None else [[*dims[:-1], max(attr(node, "ngram_indexes")) + 1]]


RULES: dict[str, Rule] = {
    **dict.fromkeys(("GRU", "LSTM", "RNN"), _recurrent),
    **dict.fromkeys(("MatMul", "MatMulInteger"), _matmul(1)),
    "Attention": _attention,
    "DFT": _fourier,
    "Einsum": _einsum,
    "Gemm": _gemm,
    "MelWeightMatrix": _mel,
    "QLinearMatMul": _matmul(3),
    "STFT": _short_time_fourier,
    "TfIdfVectorizer": _n_grams,
}
"""Operator → the rule for its outputs' dimensions."""
