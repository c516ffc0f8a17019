"""How large the results of each operator are, in polynomials: element-wise operators, and those that move data.

A rule returns the dimensions of each output, None for one that it can't tell. Sources: the operators' own pages of the
ONNX specification.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import onnx_ir as ir

from .. import dims as d
from .. import ops
from ..dims import Dim, Poly
from ..graph import attr
from . import bounds

if TYPE_CHECKING:
    from .sizes import Sizes

Sized = list[Dim | None] | None
"""Dimensions, None for those that a rule can't tell; None for an unknown rank."""
Rule = Callable[["Sizes", ir.Node], Sequence[Sized] | None]


def _plain(dims: Sequence[Dim] | None) -> Sized:
    return None if dims is None else list(dims)


def given(node: ir.Node, index: int) -> ir.Value | None:
    """An input, None where it is left out."""
    return node.inputs[index] if index < len(node.inputs) else None


def sizes_of(sizes: Sizes, value: ir.Value | None) -> list[Dim | None] | None:
    """The elements of a vector of sizes, None for those that are not known."""
    found = sizes.elements(value)
    if found is not None:
        return list(found.reshape(-1))
    dims = sizes.dims(value)
    return [None] * dims[0] if dims is not None and len(dims) == 1 and isinstance(dims[0], int) else None


def numbers(sizes: Sizes, value: ir.Value | None) -> list[int] | None:
    """The elements of a vector that are all numbers: axes, pads, steps."""
    found = sizes.elements(value)
    if found is None:
        return None
    flat = found.reshape(-1).tolist()
    return flat if all(isinstance(x, int) for x in flat) else None


def axes_of(sizes: Sizes, node: ir.Node, index: int, rank: int) -> list[int] | None:
    """The axes that an input or the attribute of older opsets names, not negative; all where none is named."""
    value = given(node, index)
    named = numbers(sizes, value) if value is not None else attr(node, "axes")
    if value is not None and named is None:
        return None
    return list(range(rank)) if named is None else [a % rank for a in named]


def _same(sizes: Sizes, node: ir.Node) -> Sequence[Sized]:
    dims = sizes.dims(node.inputs[0])
    return [_plain(dims)] * len(node.outputs)


def join(columns: Sequence[Dim]) -> Dim:
    """What dimensions that are broadcast together come to. Where a run succeeds, all but those that are 1 are equal."""
    others = list(dict.fromkeys(c for c in columns if c != 1))
    if len(others) < 2:
        return others[0] if others else 1
    sure: list[Dim] = [o for o in others if isinstance(o, int)] or [o for o in others if bounds.at_least(o, 2)]
    return min(sure, key=lambda o: len(repr(o))) if sure else bounds.maximum(others)


def broadcast(shapes: Sequence[Sequence[Dim]]) -> list[Dim]:
    """The shape that these broadcast to."""
    if len(shapes) == 2 and shapes[0] == shapes[1]:
        return list(shapes[0])
    rank = max(map(len, shapes))
    return [join(column) for column in zip(*([*[1] * (rank - len(s)), *s] for s in shapes), strict=True)]


def _broadcast(sizes: Sizes, node: ir.Node) -> Sequence[Sized] | None:
    shapes = [s for v in node.inputs if (s := sizes.dims(v)) is not None]
    return [_plain(broadcast(shapes))] if shapes and len(shapes) == len(node.inputs) else None


def _reduce(sizes: Sizes, node: ir.Node) -> Sequence[Sized] | None:
    dims = sizes.dims(node.inputs[0])
    if dims is None:
        return None
    if node.op_type in ("ArgMax", "ArgMin"):
        axes: list[int] | None = [attr(node, "axis", 0) % len(dims)]
    else:
        axes = axes_of(sizes, node, 1, len(dims))
        named = numbers(sizes, given(node, 1)) or attr(node, "axes")
        if not named and axes is not None and attr(node, "noop_with_empty_axes", 0):
            return [_plain(dims)]
        if axes == []:
            axes = list(range(len(dims)))
    if axes is None:
        return [[None] * len(dims)] if attr(node, "keepdims", 1) else None
    if attr(node, "keepdims", 1):
        return [[1 if i in axes else dim for i, dim in enumerate(dims)]]
    return [[dim for i, dim in enumerate(dims) if i not in axes]]


def _layer_norm(sizes: Sizes, node: ir.Node) -> Sequence[Sized] | None:
    dims = sizes.dims(node.inputs[0])
    if dims is None:
        return None
    axis = attr(node, "axis", -1) % len(dims)
    statistics: Sized = [*dims[:axis], *[1] * (len(dims) - axis)]
    return [_plain(dims), *[statistics] * (len(node.outputs) - 1)]


def _batch_norm(sizes: Sizes, node: ir.Node) -> Sequence[Sized]:
    return [_plain(sizes.dims(node.inputs[0])), *[_plain(sizes.dims(node.inputs[3]))] * (len(node.outputs) - 1)]


# --- moving data -----------------------------------------------------------------------------------------------------


def _reshape(sizes: Sizes, node: ir.Node) -> Sequence[Sized] | None:
    source, target = sizes.dims(node.inputs[0]), sizes_of(sizes, node.inputs[1])
    if target is None:
        return None
    dims: list[Dim | None] = list(target)
    if not attr(node, "allowzero", 0):
        dims = [(source[i] if source and i < len(source) else None) if t == 0 else t for i, t in enumerate(dims)]
    if -1 in dims:
        i = dims.index(-1)
        rest = dims[:i] + dims[i + 1 :]
        dims[i] = None if source is None or None in rest else _remaining(source, [r for r in rest if r is not None])
    elif dims.count(None) == 1 and source is not None:
        dims[dims.index(None)] = _remaining(source, [r for r in dims if r is not None])
    return [dims]


def _remaining(source: Sequence[Dim], known: Sequence[Dim]) -> Dim | None:
    """What the elements of `source` leave to one more dimension beside those that are known."""
    left, taken = list(source), []
    for k in known:
        if k in left:
            left.remove(k)
        else:
            taken.append(k)
    return bounds.floor_div(d.product(left), d.product(taken))


def _flatten(sizes: Sizes, node: ir.Node) -> Sequence[Sized] | None:
    dims = sizes.dims(node.inputs[0])
    if dims is None:
        return None
    axis = attr(node, "axis", 1)
    axis += len(dims) if axis < 0 else 0
    return [[d.product(dims[:axis]), d.product(dims[axis:])]]


def _squeeze(sizes: Sizes, node: ir.Node) -> Sequence[Sized] | None:
    dims = sizes.dims(node.inputs[0])
    if dims is None:
        return None
    if given(node, 1) is None and attr(node, "axes") is None:
        # Which of them are 1 is certain for numbers alone, and for what is always larger.
        if any(not isinstance(dim, int) and not bounds.at_least(dim, 2) for dim in dims):
            return None
        return [[dim for dim in dims if dim != 1]]
    axes = axes_of(sizes, node, 1, len(dims))
    return None if axes is None else [[dim for i, dim in enumerate(dims) if i not in axes]]


def _unsqueeze(sizes: Sizes, node: ir.Node) -> Sequence[Sized] | None:
    dims = sizes.dims(node.inputs[0])
    named = numbers(sizes, given(node, 1)) if given(node, 1) is not None else attr(node, "axes")
    if dims is None or named is None:
        return None
    rank = len(dims) + len(named)
    axes, left = {a % rank for a in named}, iter(dims)
    return [[1 if i in axes else next(left) for i in range(rank)]]


def _transpose(sizes: Sizes, node: ir.Node) -> Sequence[Sized] | None:
    dims = sizes.dims(node.inputs[0])
    if dims is None:
        return None
    return [[dims[p] for p in attr(node, "perm") or range(len(dims) - 1, -1, -1)]]


def _concat(sizes: Sizes, node: ir.Node) -> Sequence[Sized] | None:
    shapes = [s for v in node.inputs if (s := sizes.dims(v)) is not None]
    if len(shapes) < len(node.inputs):
        return None
    axis = attr(node, "axis") % len(shapes[0])
    total: Dim = 0
    for s in shapes:
        total = d.add(total, s[axis])
    # The other axes are equal in all; a number among them says most.
    columns = [next((x for x in column if isinstance(x, int)), column[0]) for column in zip(*shapes, strict=True)]
    return [[total if i == axis else dim for i, dim in enumerate(columns)]]


def _split(sizes: Sizes, node: ir.Node) -> Sequence[Sized] | None:
    dims = sizes.dims(node.inputs[0])
    if dims is None:
        return None
    axis, count = attr(node, "axis", 0) % len(dims), len(node.outputs)
    value = given(node, 1)
    named = sizes_of(sizes, value) if value is not None else attr(node, "split")
    if named is None and value is None:
        chunk = bounds.ceil_div(dims[axis], count)
        named = [chunk] * (count - 1) + [d.sub(dims[axis], d.mul(chunk, count - 1))]
    parts: Sequence[Dim | None] = named or [None] * count
    return [[part if i == axis else dim for i, dim in enumerate(dims)] for part in parts]


def _slice(sizes: Sizes, node: ir.Node) -> Sequence[Sized] | None:
    dims = sizes.dims(node.inputs[0])
    if dims is None:
        return None
    starts, ends, steps = (_slice_argument(sizes, node, i, name) for i, name in ((1, "starts"), (2, "ends"), (4, "")))
    axes = axes_of(sizes, node, 3, len(dims))
    if axes is None:
        return [[None] * len(dims)]
    result: list[Dim | None] = list(dims)
    if starts is None or ends is None or (steps is None and given(node, 4) is not None):
        return [[None if i in axes else dim for i, dim in enumerate(dims)]]
    for start, end, axis, step in zip(starts, ends, axes, steps or [1] * len(starts), strict=False):
        result[axis] = _sliced(dims[axis], start, end, step)
    return [result]


def _slice_argument(sizes: Sizes, node: ir.Node, index: int, name: str) -> Sequence[Dim | None] | None:
    """Starts, ends or steps: inputs, or attributes up to opset 9."""
    value = given(node, index)
    return sizes_of(sizes, value) if value is not None else attr(node, name)


def _sliced(size: Dim, start: Dim | None, end: Dim | None, step: Dim | None) -> Dim | None:
    """How many elements of `size` a slice takes: ceil((end - start) / step), both clamped to what there is."""
    if start is None or end is None or not isinstance(step, int) or step == 0:
        return None
    first = _clamped(size, start, step)
    last = _clamped(size, end, step)
    if first is None or last is None:
        return None
    span = d.sub(last, first) if step > 0 else d.sub(first, last)
    return bounds.maximum([bounds.ceil_div(span, abs(step)), 0])


END = 10**9
"""From here on, exporters mean "to the end" by a slice's end: no tensor is that long."""


def _clamped(size: Dim, index: Dim, step: int) -> Dim | None:
    """Where a slice starts or ends: negative indices count from the end; clamped to [0, n], backwards to [-1, n-1]."""
    least, most = (0, size) if step > 0 else (-1, d.sub(size, 1))
    if isinstance(index, int) and abs(index) >= END:
        return most if index > 0 else least
    if bounds.at_least(index, 0):
        return bounds.minimum([index, most])
    if bounds.at_least(d.mul(index, -1), 1):
        return bounds.maximum([d.add(size, index), least])
    return None


def _gather(sizes: Sizes, node: ir.Node) -> Sequence[Sized] | None:
    data, indices = sizes.dims(node.inputs[0]), sizes.dims(node.inputs[1])
    if data is None or indices is None:
        return None
    axis = attr(node, "axis", 0) % len(data)
    return [[*data[:axis], *indices, *data[axis + 1 :]]]


def _gather_nd(sizes: Sizes, node: ir.Node) -> Sequence[Sized] | None:
    data, indices = sizes.dims(node.inputs[0]), sizes.dims(node.inputs[1])
    if data is None or indices is None or not isinstance(indices[-1], int):
        return None
    return [[*indices[:-1], *data[attr(node, "batch_dims", 0) + indices[-1] :]]]


def _like(index: int) -> Rule:
    return lambda sizes, node: [_plain(sizes.dims(node.inputs[index]))]


def _filled(sizes: Sizes, node: ir.Node) -> Sequence[Sized]:
    return [sizes_of(sizes, node.inputs[0])]


def _expand(sizes: Sizes, node: ir.Node) -> Sequence[Sized] | None:
    source, target = sizes.dims(node.inputs[0]), sizes_of(sizes, node.inputs[1])
    if source is None or target is None:
        return None
    rank = max(len(source), len(target))
    columns = zip([1] * (rank - len(source)) + source, [1] * (rank - len(target)) + target, strict=True)
    return [[None if b is None else join([a, b]) for a, b in columns]]


def _tile(sizes: Sizes, node: ir.Node) -> Sequence[Sized] | None:
    dims, repeats = sizes.dims(node.inputs[0]), sizes_of(sizes, node.inputs[1])
    if dims is None or repeats is None:
        return None
    return [[None if r is None else d.mul(dim, r) for dim, r in zip(dims, repeats, strict=True)]]


def _pad(sizes: Sizes, node: ir.Node) -> Sequence[Sized] | None:
    dims = sizes.dims(node.inputs[0])
    pads = sizes_of(sizes, given(node, 1)) if given(node, 1) is not None else attr(node, "pads")
    axes = None if dims is None else axes_of(sizes, node, 3, len(dims))
    if dims is None or axes is None:
        return None
    result: list[Dim | None] = list(dims)
    for i, axis in enumerate(axes):
        before, after = (pads[i], pads[i + len(axes)]) if pads else (None, None)
        result[axis] = None if before is None or after is None else d.add(dims[axis], d.add(before, after))
    return [result]


def _range(sizes: Sizes, node: ir.Node) -> Sequence[Sized] | None:
    start, end, step = (_bound(sizes, v) for v in node.inputs)
    if start is None or end is None or step is None or step == 0:
        return [[None]]
    if isinstance(start, Poly) or isinstance(end, Poly) or isinstance(step, Poly):
        if not isinstance(step, int) or isinstance(start, float) or isinstance(end, float):
            return [[None]]
        span = d.sub(end, start) if step > 0 else d.sub(start, end)
        return [[bounds.maximum([bounds.ceil_div(span, abs(step)), 0])]]
    return [[max(math.ceil((end - start) / step), 0)]]


def _bound(sizes: Sizes, value: ir.Value | None) -> Dim | float | None:
    found = sizes.number(value)
    tensor = sizes.tensor(value) if found is None else None
    if tensor is None or tensor.size != 1:
        return found
    number = float(tensor.numpy().reshape(()))
    return int(number) if number.is_integer() else number


def _depth_to_space(sizes: Sizes, node: ir.Node) -> Sequence[Sized] | None:
    dims, block = sizes.dims(node.inputs[0]), attr(node, "blocksize")
    if dims is None or len(dims) != 4:
        return None
    n, c, h, w = dims
    if node.op_type == "DepthToSpace":
        return [[n, bounds.floor_div(c, block**2), d.mul(h, block), d.mul(w, block)]]
    return [[n, d.mul(c, block**2), bounds.floor_div(h, block), bounds.floor_div(w, block)]]


def _one_hot(sizes: Sizes, node: ir.Node) -> Sequence[Sized] | None:
    dims, depth = sizes.dims(node.inputs[0]), _bound(sizes, node.inputs[1])
    if dims is None:
        return None
    axis = attr(node, "axis", -1) % (len(dims) + 1)
    return [[*dims[:axis], None if isinstance(depth, float) else depth, *dims[axis:]]]


def _shape(sizes: Sizes, node: ir.Node) -> Sequence[Sized] | None:
    dims = sizes.dims(node.inputs[0])
    if dims is None:
        return [[None]]
    end = attr(node, "end")
    return [[len(dims[attr(node, "start", 0) : len(dims) if end is None else end])]]


def _constant(_: Sizes, node: ir.Node) -> Sequence[Sized] | None:
    for a in node.attributes.data.values():
        if a.type == ir.AttributeType.TENSOR:
            return [list(a.value.shape.numpy())]
        if a.name.startswith("value_"):
            return [[len(a.value)] if a.name.endswith("s") else []]
    return None


def _top_k(sizes: Sizes, node: ir.Node) -> Sequence[Sized] | None:
    dims = sizes.dims(node.inputs[0])
    if dims is None:
        return None
    axis = attr(node, "axis", -1) % len(dims)
    k = sizes.number(node.inputs[1])
    if k is None:
        k = sizes.counted(node.outputs[0], axis, f"the `k` of TopK '{node.name}', which a run decides", dims[axis])
    return [[k if i == axis else dim for i, dim in enumerate(dims)]] * 2


def _non_zero(sizes: Sizes, node: ir.Node) -> Sequence[Sized]:
    dims = sizes.dims(node.inputs[0])
    limit = None if dims is None else d.product(dims)
    count = sizes.counted(node.outputs[0], 1, f"how many elements NonZero '{node.name}' finds", limit)
    return [[None if dims is None else max(len(dims), 1), count]]


def _compress(sizes: Sizes, node: ir.Node) -> Sequence[Sized] | None:
    dims, axis = sizes.dims(node.inputs[0]), attr(node, "axis")
    limit = None if dims is None else d.product(dims) if axis is None else dims[axis]
    if axis is not None and dims is None:
        return None
    where = 0 if axis is None or dims is None else axis % len(dims)
    count = sizes.counted(node.outputs[0], where, f"how many elements Compress '{node.name}' keeps", limit)
    return [[count] if axis is None or dims is None else [count if i == where else x for i, x in enumerate(dims)]]


def _unique(sizes: Sizes, node: ir.Node) -> Sequence[Sized] | None:
    dims, axis = sizes.dims(node.inputs[0]), attr(node, "axis")
    if dims is None:
        return None
    whole = d.product(dims) if axis is None else dims[axis]
    where = 0 if axis is None else axis % len(dims)
    count = sizes.counted(node.outputs[0], where, f"how many different ones Unique '{node.name}' finds", whole)
    first: Sized = [count] if axis is None else [count if i == where else x for i, x in enumerate(dims)]
    return [first, [count], [whole], [count]]


def _non_max_suppression(sizes: Sizes, node: ir.Node) -> Sequence[Sized]:
    boxes, scores = sizes.dims(node.inputs[0]), sizes.dims(node.inputs[1])
    most = sizes.number(given(node, 2)) if given(node, 2) is not None else 0
    limit = None
    if boxes is not None and scores is not None and most is not None:
        limit = d.product([scores[0], scores[1], bounds.minimum([most, boxes[1]])])
    why = f"how many boxes NonMaxSuppression '{node.name}' keeps"
    return [[sizes.counted(node.outputs[0], 0, why, limit), 3]]


def _image(sizes: Sizes, node: ir.Node) -> Sequence[Sized]:
    why = f"how large the picture is that ImageDecoder '{node.name}' reads"
    height, width = (sizes.counted(node.outputs[0], axis, why) for axis in (0, 1))
    return [[height, width, 1 if attr(node, "pixel_format", "RGB") == "Grayscale" else 3]]


def _string_split(sizes: Sizes, node: ir.Node) -> Sequence[Sized] | None:
    dims = sizes.dims(node.inputs[0])
    if dims is None:
        return None
    why = f"how many parts StringSplit '{node.name}' makes of the longest text"
    return [[*dims, sizes.counted(node.outputs[0], len(dims), why)], _plain(dims)]


def _string_normalizer(sizes: Sizes, node: ir.Node) -> Sequence[Sized] | None:
    dims = sizes.dims(node.inputs[0])
    if dims is None or not attr(node, "stopwords"):
        return [_plain(dims)]
    why = f"how many words StringNormalizer '{node.name}' keeps"
    return [[*dims[:-1], sizes.counted(node.outputs[0], len(dims) - 1, why, bounds.maximum([dims[-1], 1]))]]


def _attribute_shape(_: Sizes, node: ir.Node) -> Sequence[Sized]:
    return [list(attr(node, "shape"))]


def _multinomial(sizes: Sizes, node: ir.Node) -> Sequence[Sized] | None:
    dims = sizes.dims(node.inputs[0])
    return None if dims is None else [[dims[0], attr(node, "sample_size", 1)]]


def _window(sizes: Sizes, node: ir.Node) -> Sequence[Sized]:
    return [[sizes.number(node.inputs[0])]]


def _scalars(_: Sizes, node: ir.Node) -> Sequence[Sized]:
    return [[]] * len(node.outputs)


def _dynamic_quantize(sizes: Sizes, node: ir.Node) -> Sequence[Sized]:
    return [_plain(sizes.dims(node.inputs[0])), [], []]


def _determinant(sizes: Sizes, node: ir.Node) -> Sequence[Sized] | None:
    dims = sizes.dims(node.inputs[0])
    return None if dims is None else [_plain(dims[:-2])]


def _loss(sizes: Sizes, node: ir.Node) -> Sequence[Sized] | None:
    scores, labels = sizes.dims(node.inputs[0]), sizes.dims(node.inputs[1])
    return [_plain(labels) if attr(node, "reduction", "mean") == "none" else [], _plain(scores)]


def _center_crop_pad(sizes: Sizes, node: ir.Node) -> Sequence[Sized] | None:
    dims, target = sizes.dims(node.inputs[0]), sizes_of(sizes, node.inputs[1])
    if dims is None or target is None:
        return None
    axes = [a % len(dims) for a in attr(node, "axes") or range(len(dims))]
    named = dict(zip(axes, target, strict=True))
    return [[named.get(i, dim) for i, dim in enumerate(dims)]]


RULES: dict[str, Rule] = {
    **dict.fromkeys(ops.UNARY, _same),
    **dict.fromkeys(ops.BROADCAST | {"StringConcat"}, _broadcast),
    **dict.fromkeys(ops.REDUCE | {"ArgMax", "ArgMin"}, _reduce),
    **dict.fromkeys((
        "Bernoulli", "BitCast", "CastLike", "CumProd", "CumSum", "DequantizeLinear", "Dropout", "EyeLike",
        "GroupNormalization", "Hardmax", "InstanceNormalization", "LRN", "LogSoftmax", "LpNormalization",
        "MeanVarianceNormalization", "PRelu", "QuantizeLinear", "RMSNormalization", "RandomNormalLike",
        "RandomUniformLike", "RegexFullMatch", "ReverseSequence", "RotaryEmbedding", "Scatter", "ScatterElements",
        "ScatterND", "Softmax", "TensorScatter", "Trilu",
    ), _same),
    **dict.fromkeys(("BlackmanWindow", "HammingWindow", "HannWindow"), _window),
    **dict.fromkeys(("RandomNormal", "RandomUniform"), _attribute_shape),
    **dict.fromkeys(("OptionalHasElement", "SequenceLength", "Size"), _scalars),
    **dict.fromkeys(("NegativeLogLikelihoodLoss", "SoftmaxCrossEntropyLoss"), _loss),
    "BatchNormalization": _batch_norm,
    "CenterCropPad": _center_crop_pad,
    "Compress": _compress,
    "Concat": _concat,
    "Constant": _constant,
    "ConstantOfShape": _filled,
    "DepthToSpace": _depth_to_space,
    "Det": _determinant,
    "DynamicQuantizeLinear": _dynamic_quantize,
    "Expand": _expand,
    "Flatten": _flatten,
    "Gather": _gather,
    "GatherElements": _like(1),
    "GatherND": _gather_nd,
    "ImageDecoder": _image,
    "LayerNormalization": _layer_norm,
    "Multinomial": _multinomial,
    "NonMaxSuppression": _non_max_suppression,
    "NonZero": _non_zero,
    "OneHot": _one_hot,
    "Pad": _pad,
    "Range": _range,
    "Reshape": _reshape,
    "Shape": _shape,
    "Slice": _slice,
    "SpaceToDepth": _depth_to_space,
    "Split": _split,
    "Squeeze": _squeeze,
    "StringNormalizer": _string_normalizer,
    "StringSplit": _string_split,
    "Tile": _tile,
    "TopK": _top_k,
    "Transpose": _transpose,
    "Unique": _unique,
    "Unsqueeze": _unsqueeze,
}  # fmt: skip
"""Operator → the rule for its outputs' dimensions."""
