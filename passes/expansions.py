"""Our own spelling of operators that older opsets lack, shorter than the standard's bodies, which compute every shape.

An expansion builds its nodes before the one it replaces and returns the value that takes the place of the first
output; None where it doesn't cover the case, which leaves it to the standard's body.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from ..compiler import graph as g
from ..compiler.weights import Scratch
from .unpack_weights import dequantised

LOWEST = float(np.finfo(np.float32).min)
"""Scores of keys that a boolean mask hides; -inf would make a row without any key NaN."""


@dataclass
class Body:
    """Inserts nodes before `anchor`. `masks` holds causal masks, which all layers of a model share."""

    anchor: ir.Node
    masks: dict[tuple[object, ...], ir.Value] = field(default_factory=dict)
    scratch: Scratch | None = None

    @property
    def x(self) -> ir.Value:
        """The first input."""
        (x, *_) = self.anchor.inputs
        assert x is not None
        return x

    def input(self, i: int) -> ir.Value | None:
        """The input at `i`, None where it is left out."""
        return self.anchor.inputs[i] if i < len(self.anchor.inputs) else None

    def attr(self, name: str, default: Any = None) -> Any:
        """An attribute of the node that is replaced."""
        return g.attr(self.anchor, name, default)

    def op(self, op_type: str, *inputs: ir.Value | None, outputs: int = 1, **attributes: Any) -> ir.Value:
        """The first output of a new node."""
        hint = f"{self.anchor.outputs[0].name}_{op_type.lower()}"
        node = g.insert_before(self.anchor, op_type, inputs, attributes, hint=hint, num_outputs=outputs)
        return node.outputs[0]

    def const(self, value: Any, hint: str = "constant") -> ir.Value:
        """A constant: floats in float32, integers in int64."""
        array = np.asarray(value)
        if array.dtype.kind in "if":
            array = array.astype(np.float32 if array.dtype.kind == "f" else np.int64)
        assert isinstance(self.anchor.graph, ir.Graph)
        return g.initializer(self.anchor.graph, array, f"{self.anchor.outputs[0].name}_{hint}", self.scratch)


def _first_only(node: ir.Node) -> bool:
    """Whether nobody reads an output after the first."""
    return not any(o.uses() or o.is_graph_output() for o in node.outputs[1:])


def _hard_swish(b: Body) -> ir.Value:
    return b.op("Mul", b.x, b.op("HardSigmoid", b.x, alpha=1 / 6, beta=0.5))


def _swish(b: Body) -> ir.Value:
    alpha = b.attr("alpha", 1.0)
    scaled = b.x if alpha == 1 else b.op("Mul", b.x, b.const(alpha))
    return b.op("Mul", b.x, b.op("Sigmoid", scaled))


def _mish(b: Body) -> ir.Value:
    return b.op("Mul", b.x, b.op("Tanh", b.op("Softplus", b.x)))


def _gelu(b: Body) -> ir.Value:
    if b.attr("approximate", "none") == "tanh":
        cube = b.op("Mul", b.op("Mul", b.x, b.x), b.x)
        inner = b.op("Add", b.x, b.op("Mul", cube, b.const(0.044715)))
        gate = b.op("Tanh", b.op("Mul", inner, b.const(math.sqrt(2 / math.pi))))
    else:
        gate = b.op("Erf", b.op("Div", b.x, b.const(math.sqrt(2))))
    return b.op("Mul", b.op("Mul", b.x, b.op("Add", gate, b.const(1.0))), b.const(0.5))


def _mean(b: Body, x: ir.Value, axes: list[int]) -> ir.Value:
    return b.op("ReduceMean", x, b.const(axes, "axes"), keepdims=1)


def _normalised(b: Body, x: ir.Value, axes: list[int]) -> ir.Value:
    deviation = b.op("Sqrt", b.op("Add", _mean(b, b.op("Mul", x, x), axes), b.const(b.attr("epsilon", 1e-5))))
    return b.op("Div", x, deviation)


def _last_axes(b: Body) -> list[int] | None:
    rank = g.rank(b.x)
    if rank is None or not _first_only(b.anchor):
        return None
    return list(range(b.attr("axis", -1) % rank, rank))


def _layer_normalization(b: Body) -> ir.Value | None:
    axes = _last_axes(b)
    if axes is None:
        return None
    y = b.op("Mul", _normalised(b, b.op("Sub", b.x, _mean(b, b.x, axes)), axes), b.input(1))
    return y if b.input(2) is None else b.op("Add", y, b.input(2))


def _rms_normalization(b: Body) -> ir.Value | None:
    axes = _last_axes(b)
    return None if axes is None else b.op("Mul", _normalised(b, b.x, axes), b.input(1))


def _group_normalization(b: Body) -> ir.Value | None:
    """Groups as the channels of InstanceNormalization, which every opset has; then scale and bias of each channel."""
    rank, dims, groups = g.rank(b.x), g.shape(b.x), b.attr("num_groups")
    if rank is None or rank < 3 or dims is None:
        return None
    flat = b.op("Reshape", b.x, b.const([0, groups, -1]))
    ones, zeros = b.const(np.ones(groups)), b.const(np.zeros(groups))
    normal = b.op("InstanceNormalization", flat, ones, zeros, epsilon=b.attr("epsilon", 1e-5))
    fixed = all(isinstance(d, int) for d in dims[1:])
    back = b.op("Reshape", normal, b.const([0, *dims[1:]]) if fixed else b.op("Shape", b.x))
    column = b.const([-1, *[1] * (rank - 2)])
    scale, bias = (b.op("Reshape", b.input(i), column) for i in (1, 2))
    return b.op("Add", b.op("Mul", back, scale), bias)


def _trilu(b: Body) -> ir.Value | None:
    """Row and column numbers, compared."""
    rank = g.rank(b.x)
    if rank is None:
        return None
    dims = b.op("Shape", b.x)
    row, column = (_numbers(b, b.op("Gather", dims, b.const(rank - 2 + i)), i) for i in (0, 1))
    shifted = row if b.input(1) is None else b.op("Add", row, b.input(1))
    keep = b.op("GreaterOrEqual", *((column, shifted) if b.attr("upper", 1) else (shifted, column)))
    dtype = (b.x.dtype or ir.DataType.FLOAT).numpy()
    assert isinstance(b.anchor.graph, ir.Graph)
    zero = g.initializer(b.anchor.graph, np.zeros((), dtype), f"{b.anchor.outputs[0].name}_zero")
    return b.op("Where", keep, b.x, zero)


def _numbers(b: Body, length: ir.Value, axis: int) -> ir.Value:
    """0 … length - 1 along axis 0 or 1 of a matrix: a column or a row."""
    counted = b.op("Range", b.const(0), length, b.const(1))
    return b.op("Unsqueeze", counted, b.const([1 - axis]))


def _attention(b: Body) -> ir.Value | None:
    """MatMul, Softmax, MatMul on heads; masks added or selected by, the causal one shared by all layers."""
    if any(b.input(i) is not None for i in (4, 5, 6)) or not _first_only(b.anchor) or _windowed(b):
        return None
    q, k, v = (b.input(i) for i in range(3))
    assert q is not None and k is not None and v is not None
    flat = g.rank(q) == 3
    heads, kv_heads, size = _heads(b, q, k, flat)
    if heads is None or kv_heads is None or ((scale := b.attr("scale")) is None and size is None):
        return None
    lengths = [(x, 1 if flat else 2) for x in (q, k)]
    if b.input(3) is not None and not _covers(b.input(3), *lengths[1]):
        return None
    q, v = _by_head(b, q, heads, flat, (0, 2, 1, 3)), _by_head(b, v, kv_heads, flat, (0, 2, 1, 3))
    k = _by_head(b, k, kv_heads, flat, (0, 2, 3, 1))
    if kv_heads != heads:
        index = b.const(np.repeat(np.arange(kv_heads), heads // kv_heads), "heads")
        k, v = (b.op("Gather", x, index, axis=1) for x in (k, v))
    factor = scale if scale is not None else 1 / math.sqrt(size or 1)
    scores = b.op("MatMul", q, k)
    scores = scores if factor == 1 else b.op("Mul", scores, b.const(factor, "scale"))
    weights = _weights(b, scores, _causal(b, *lengths) if b.attr("is_causal", 0) else None)
    y = b.op("MatMul", weights, v)
    if not flat:
        return y
    return b.op("Reshape", b.op("Transpose", y, perm=(0, 2, 1, 3)), b.const([0, 0, -1]))


def _windowed(b: Body) -> bool:
    precision = b.attr("softmax_precision", 1)
    return precision != 1 or any(b.attr(f"{side}_window_size", -1) != -1 for side in ("left", "right"))


def _heads(b: Body, q: ir.Value, k: ir.Value, flat: bool) -> tuple[int | None, int | None, int | None]:
    """Heads of q, heads of k and v, size of a head, where they are numbers."""
    dims, other = g.shape(q) or (), g.shape(k) or ()
    if flat:
        heads, kv_heads, wide = b.attr("q_num_heads"), b.attr("kv_num_heads"), dims[2]
        return heads, kv_heads, wide // heads if isinstance(wide, int) else None
    if len(dims) != 4 or len(other) != 4:
        return None, None, None
    heads, kv_heads, size = (d if isinstance(d, int) else None for d in (dims[1], other[1], dims[3]))
    # Equally many heads need not be counted.
    return (1, 1, size) if heads is None and dims[1] == other[1] else (heads, kv_heads, size)


def _covers(mask: ir.Value | None, k: ir.Value, axis: int) -> bool:
    """Whether the mask has an entry for every key: a shorter one would hide the rest."""
    dims, keys = g.shape(mask), g.shape(k)
    return bool(dims) and keys is not None and dims is not None and dims[-1] in (1, keys[axis]) and dims[-1] is not None


def _by_head(b: Body, x: ir.Value, heads: int, flat: bool, perm: tuple[int, ...]) -> ir.Value:
    """[batch, length, heads · size] or [batch, heads, length, size], brought to the order that `perm` makes of it."""
    if flat:
        return b.op("Transpose", b.op("Reshape", x, b.const([0, 0, heads, -1])), perm=perm)
    return b.op("Transpose", x, perm=(0, 1, 3, 2)) if perm == (0, 2, 3, 1) else x


def _weights(b: Body, scores: ir.Value, causal: ir.Value | None) -> ir.Value:
    """Softmax of what the masks leave; 0 where a boolean mask leaves a query no key."""
    cap, mask = b.attr("softcap", 0.0), b.input(3)
    if cap:
        scores = b.op("Mul", b.op("Tanh", b.op("Div", scores, b.const(cap))), b.const(cap))
    keep = mask if mask is not None and mask.dtype == ir.DataType.BOOL else None
    if mask is not None and keep is None:
        scores = b.op("Add", scores, mask)
    for allowed in (keep, causal):
        if allowed is not None:
            scores = b.op("Where", allowed, scores, b.const(LOWEST, "hidden"))
    weights = b.op("Softmax", scores, axis=-1)
    return weights if keep is None else b.op("Where", keep, weights, b.const(0.0))


def _causal(b: Body, q: tuple[ir.Value, int], k: tuple[ir.Value, int]) -> ir.Value:
    """True where key j ≤ query i, [queries, keys]."""
    sizes = [(g.shape(x) or ())[axis] for x, axis in (q, k)]
    key = (b.anchor.graph, *(s if s is not None else id(x) for s, (x, _) in zip(sizes, (q, k), strict=True)))
    if key not in b.masks:
        ends = [
            b.const(s) if isinstance(s, int) else b.op("Gather", b.op("Shape", x), b.const(axis))
            for s, (x, axis) in zip(sizes, (q, k), strict=True)
        ]
        row, column = _numbers(b, ends[0], 0), _numbers(b, ends[1], 1)
        b.masks[key] = b.op("GreaterOrEqual", row, column)
    return b.masks[key]


def _dequantize_linear(b: Body) -> ir.Value | None:
    """Blocks and 4-bit integers of a constant, which only opset 21 can say, written out."""
    if not all(v is None or g.is_const(v) for v in b.anchor.inputs):
        return None
    return b.const(dequantised(b.anchor), "dense")


EXPANSIONS: dict[str, Callable[[Body], ir.Value | None]] = {
    "Attention": _attention,
    "DequantizeLinear": _dequantize_linear,
    "Gelu": _gelu,
    "GroupNormalization": _group_normalization,
    "HardSwish": _hard_swish,
    "LayerNormalization": _layer_normalization,
    "Mish": _mish,
    "RMSNormalization": _rms_normalization,
    "Swish": _swish,
    "Trilu": _trilu,
}


def expand(body: Body) -> bool:
    """Put an expansion in the place of `body.anchor`, if there is one for it and it computes in float32."""
    node = body.anchor
    rule = EXPANSIONS.get(node.op_type)
    if rule is None or (body.x.dtype != ir.DataType.FLOAT and node.op_type not in ("Trilu", "DequantizeLinear")):
        return False
    made = rule(body)
    if made is None:
        return False
    if not g.can_replace(node.outputs[0], made):
        made = body.op("Identity", made)
    g.replace_value(node.outputs[0], made)
    g.remove([node])
    return True
