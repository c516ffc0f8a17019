"""What a model input is for, read off the graph: an index, a mask, a state, a size, or plain data.

Random numbers break a model that uses an input as an index into an embedding or as an attention mask. So each input is
followed through the operators that keep its values (casts, reshapes, slices, constant offsets) to where it is used.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from .graph import attr, const, const_tensor, producer, rank, scalar, shape

MOVES = frozenset([
    "Cast", "Identity", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Slice", "Expand", "Transpose", "Tile", "Concat",
    "Split", "Gather", "Pad", "Clip", "Dropout",
])  # fmt: skip
"""Operators whose output holds values of their first input (any input, for Concat)."""

TRUTH = frozenset(["Equal", "Greater", "Less", "GreaterOrEqual", "LessOrEqual", "Not", "And", "Or", "Xor"])
SMALL = 4096
"""Elements up to which a constant on the way is read."""

SCORES = frozenset(["MatMul", "Einsum", "Gemm", "Mul", "Div", "Add", "Where", "Reshape", "Transpose"])
"""What may compute attention scores, to which a mask is added."""

STATE_NAME = re.compile(r"(^|[_.\d])(h|c|h_?[0n]|c_?[0n])($|[_.\d])|state|hidden|cache|past|memory|^mems?\d*$", re.I)
RATE_NAME = re.compile(r"(^|_)(sr|sampl\w*_?rate|rate|fs)($|_)", re.I)
LENGTH_NAME = re.compile(r"len(gth)?s?($|_)|num_(frames|tokens)", re.I)
INVERTED_NAME = re.compile(r"pad(ding)?_?mask|mask_?pad|ignore", re.I)


@dataclass
class Role:
    """What is known of the use of one input.

    Attributes:
        bound: exclusive upper bound where it is an index: of the smallest axis that it indexes.
        low: inclusive lower bound of an index.
        mask: whether it is a 0/1 mask; `inverted` where 1 means "ignore" (going by its name).
        additive: whether it is a float mask added to attention scores: 0 or very negative.
        state: whether it is the state of a recurrent layer or a cache.
        positive: whether a logarithm or a root is taken of it.
        size: whether it becomes a shape, a count or a slice bound.
        length: whether it counts the valid elements of a sequence, of `longest` elements if that is known.
        compared: constants that it is compared with for equality (the sample rates a speech model knows).
    """

    bound: int | None = None
    low: int = 0
    mask: bool = False
    inverted: bool = False
    additive: bool = False
    state: bool = False
    positive: bool = False
    size: bool = False
    length: bool = False
    longest: int | None = None
    compared: list[float] = field(default_factory=list)

    def index(self, bound: float, low: float) -> None:
        """Note that values must lie in [low, bound)."""
        self.bound = int(bound) if self.bound is None else min(self.bound, int(bound))
        self.low = max(self.low, int(low))


@dataclass(frozen=True)
class _Step:
    """A value on the way from an input: scale · input + offset while `plain`, else something truth-like made of it."""

    value: ir.Value
    scale: float = 1.0
    offset: float = 0.0
    plain: bool = True


def role(value: ir.Value) -> Role:
    """The role of the graph input `value`."""
    name = value.name or ""
    found = Role(mask="mask" in name.lower(), inverted=bool(INVERTED_NAME.search(name)))
    found.state = bool(STATE_NAME.search(name)) and value.dtype is not None and value.dtype.is_floating_point()
    found.length = bool(LENGTH_NAME.search(name)) and (rank(value) or 0) <= 1
    seen: set[tuple[int, bool]] = set()
    stack = [_Step(value)]
    while stack:
        step = stack.pop()
        if (id(step.value), step.plain) in seen:
            continue
        seen.add((id(step.value), step.plain))
        for node, i in step.value.uses():
            if node.domain == "":
                _note_use(found, step, node, i)
                stack += _follow(step, node, i)
    found.additive &= value.dtype is not None and value.dtype.is_floating_point()
    return found


def _note_use(found: Role, step: _Step, node: ir.Node, i: int) -> None:
    use = _USES.get((node.op_type, i))
    if use is not None:
        use(found, step, node)
    elif node.op_type == "Equal":
        _compare(found, step, const(_origin(node.inputs[1 - i])))
    elif node.op_type == "Add" and _feeds_softmax(node.outputs[0]) and _is_score(node.inputs[1 - i]):
        # (1 - mask) · -10000 is a truth by now; a mask added as it is must hold the big numbers itself.
        untouched = step.plain and step.scale == 1 and step.offset == 0
        found.additive |= untouched
        found.mask |= not untouched


def _compare(found: Role, step: _Step, other: np.ndarray | None) -> None:
    """Equal with a constant: with many, it is a one-hot encoding by hand, whose values are the range."""
    if not step.plain or other is None or not other.size or other.dtype.kind not in "iuf":
        return
    if other.size > 8:
        low, high = ((float(v) - step.offset) / step.scale for v in (other.min(), other.max()))
        found.index(high + 1, max(low, 0))
    else:
        found.compared += [(float(v) - step.offset) / step.scale for v in other.reshape(-1)]


def _origin(value: ir.Value | None) -> ir.Value | None:
    """Where the numbers of `value` come from, upwards through operators that only repeat or reshape them."""
    for _ in range(8):
        node = producer(value, "Expand", "Reshape", "Cast", "Tile", "Unsqueeze", "Identity")
        if node is None:
            break
        value = node.inputs[0]
    return value


def _follow(step: _Step, node: ir.Node, i: int) -> Iterator[_Step]:
    if node.op_type in MOVES and (i == 0 or node.op_type == "Concat"):
        yield from (_Step(o, step.scale, step.offset, step.plain) for o in node.outputs)
    elif node.op_type in TRUTH:
        yield _Step(node.outputs[0], plain=False)
    elif node.op_type in ("Add", "Sub", "Mul") and len(node.inputs) == 2:
        c = _extreme(node.inputs[1 - i])
        if not step.plain or c is None:
            if c is not None or not step.plain:
                yield _Step(node.outputs[0], plain=False)
        elif node.op_type == "Add":
            yield _Step(node.outputs[0], step.scale, step.offset + c)
        elif node.op_type == "Mul" and c > 0:
            yield _Step(node.outputs[0], step.scale * c, step.offset * c)
        elif node.op_type == "Sub" and i == 0:
            yield _Step(node.outputs[0], step.scale, step.offset - c)
        else:
            yield _Step(node.outputs[0], plain=False)


def _extreme(value: ir.Value | None) -> float | None:
    """The largest element of a small constant."""
    tensor = None if value is None else const_tensor(value)
    if tensor is None or not 0 < tensor.size <= SMALL or (tensor.size > 1 and not tensor.dtype.is_integer()):
        return None
    return float(tensor.numpy().max())


def _feeds_softmax(value: ir.Value) -> bool:
    for _ in range(4):
        nodes = [n for n, _ in value.uses()]
        if any(n.op_type == "Softmax" for n in nodes):
            return True
        if len(nodes) != 1 or nodes[0].op_type not in MOVES | {"Max", "Add"}:
            return False
        value = nodes[0].outputs[0]
    return False


def _is_score(value: ir.Value | None) -> bool:
    node = None if value is None else value.producer()
    return node is not None and node.op_type in SCORES


def _indexes(axes: Callable[[ir.Node], list[int]]) -> Callable[[Role, _Step, ir.Node], None]:
    """A use as an index into the axes of input 0 that `axes` names."""

    def use(found: Role, step: _Step, node: ir.Node) -> None:
        dims = shape(node.inputs[0])
        sizes = [d for a in axes(node) if dims and isinstance(d := dims[a], int)]
        # An axis of unknown size has one element at least.
        _bound(found, step, min(sizes, default=1))

    return use


def _bound(found: Role, step: _Step, size: float) -> None:
    if step.plain:
        found.index(math.ceil((size - step.offset) / step.scale), max(0, math.ceil(-step.offset / step.scale)))


def _one_hot(found: Role, step: _Step, node: ir.Node) -> None:
    depth = scalar(node.inputs[1])
    if depth is not None:
        _bound(found, step, depth)


def _nd_axes(node: ir.Node) -> list[int]:
    last, batch = (shape(node.inputs[1]) or (1,))[-1], attr(node, "batch_dims", 0)
    return list(range(batch, batch + (last if isinstance(last, int) else 1)))


def _mark(name: str) -> Callable[[Role, _Step, ir.Node], None]:
    def use(found: Role, step: _Step, node: ir.Node) -> None:
        setattr(found, name, True)

    return use


def _sequence_length(found: Role, step: _Step, node: ir.Node) -> None:
    found.length = True
    dims = shape(node.inputs[0])
    steps = dims[1 if attr(node, "layout", 0) else 0] if dims else None
    if isinstance(steps, int):
        found.longest = steps if found.longest is None else min(found.longest, steps)


def _attention_mask(found: Role, step: _Step, node: ir.Node) -> None:
    mask = node.inputs[3]
    is_float = mask is not None and mask.dtype != ir.DataType.BOOL
    found.additive |= is_float and step.plain and step.scale == 1 and step.offset == 0
    found.mask |= not found.additive


def _axis(node: ir.Node) -> list[int]:
    return [attr(node, "axis", 0)]


_USES: dict[tuple[str, int], Callable[[Role, _Step, ir.Node], None]] = {
    ("Gather", 1): _indexes(_axis),
    ("GatherElements", 1): _indexes(_axis),
    ("ScatterElements", 1): _indexes(_axis),
    ("GatherND", 1): _indexes(_nd_axes),
    ("ScatterND", 1): _indexes(_nd_axes),
    ("OneHot", 0): _one_hot,
    ("Where", 0): _mark("mask"),
    ("Attention", 3): _attention_mask,
    ("Log", 0): _mark("positive"),
    ("Sqrt", 0): _mark("positive"),
    **{(op, i): _mark("state") for op, i in (("LSTM", 5), ("LSTM", 6), ("GRU", 5), ("RNN", 5))},
    **{(op, 4): _sequence_length for op in ("LSTM", "GRU", "RNN")},
    **{("Attention", i): _mark("state") for i in (4, 5)},
    ("Attention", 6): _mark("length"),
    **{
        (op, i): _mark("size")
        for op, i in (
            ("Reshape", 1), ("Expand", 1), ("ConstantOfShape", 0), ("Slice", 1), ("Slice", 2), ("TopK", 1), ("Tile", 1),
            ("Range", 1), ("Loop", 0), ("Trilu", 1), ("NonMaxSuppression", 2), ("Split", 1), ("Pad", 1), ("Resize", 3),
        )
    },
}  # fmt: skip
