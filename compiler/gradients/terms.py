"""Formulas over values of a graph, written with Python's operators: each makes a node at the graph's end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from .. import graph as g

INTEGERS = frozenset({"ArgMax", "NonZero", "Shape", "Size"})
"""Operators whose output is int64 whatever goes in."""
BOOLEANS = frozenset({"And", "Equal", "Greater", "GreaterOrEqual", "IsNaN", "Less", "LessOrEqual", "Not", "Or"})


class Tape:
    """Nodes that are added at the end of a graph. Equal constants and shapes are made once."""

    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph
        self._constants: dict[tuple[bytes, str, tuple[int, ...]], Term] = {}
        self._shapes: dict[ir.Value, Term] = {}

    def term(self, value: ir.Value) -> Term:
        """A value of the graph, to calculate with."""
        return Term(self, value)

    def const(self, array: Any, like: Term | None = None) -> Term:
        """A constant: of the element type of `like`; otherwise floats in float32 and integers in int64."""
        array = np.asarray(array)
        if like is not None:
            array = array.astype(like.dtype.numpy())
        elif array.dtype.kind in "if":
            array = array.astype(np.float32 if array.dtype.kind == "f" else np.int64)
        key = (array.tobytes(), str(array.dtype), array.shape)
        if key not in self._constants:
            self._constants[key] = Term(self, g.initializer(self.graph, array, "gradient_constant"))
        return self._constants[key]

    def ops(self, op_type: str, *inputs: Term | None, outputs: int = 1, **attributes: Any) -> list[Term]:
        """A new node's outputs. The first one's element type is the operator's, or that of the first input."""
        given = {k: v for k, v in attributes.items() if v is not None}
        node = ir.node(op_type, [None if t is None else t.value for t in inputs], given, num_outputs=outputs)
        for out in node.outputs:
            out.name = g.fresh_name(self.graph, f"gradient_{op_type}")
        node.name = node.outputs[0].name
        node.outputs[0].type = ir.TensorType(_dtype(op_type, inputs, given))
        self.graph.append(node)
        g.note_named(self.graph, 1)
        return [Term(self, out) for out in node.outputs]

    def op(self, op_type: str, *inputs: Term | None, **attributes: Any) -> Term:
        """The first output of a new node."""
        return self.ops(op_type, *inputs, **attributes)[0]

    def shape(self, of: Term) -> Term:
        """The dimensions of a value, int64 [rank]."""
        fixed = g.static_shape(of.value)
        if fixed is not None:
            return self.const(np.array(fixed, np.int64))
        if of.value not in self._shapes:
            self._shapes[of.value] = self.op("Shape", of)
        return self._shapes[of.value]

    def vector(self, parts: Sequence[int | Term]) -> Term:
        """Integers, and vectors of integers that are known when the model runs, one after the other."""
        if all(isinstance(p, int) for p in parts):
            return self.const(np.array(parts, np.int64))
        return self.op("Concat", *(self.const([p]) if isinstance(p, int) else p for p in parts), axis=0)


def _dtype(op_type: str, inputs: Sequence[Term | None], attributes: Mapping[str, Any]) -> ir.DataType:
    if op_type in INTEGERS:
        return ir.DataType.INT64
    if op_type in BOOLEANS:
        return ir.DataType.BOOL
    if op_type == "Cast":
        return ir.DataType(attributes["to"])
    if op_type == "ConstantOfShape":
        return ir.DataType(attributes["value"].dtype)
    first = inputs[1 if op_type == "Where" else 0]
    assert first is not None
    return first.dtype


@dataclass(frozen=True, eq=False)
class Term:
    """A value in a formula. Numbers beside it become constants of its element type."""

    tape: Tape
    value: ir.Value

    @property
    def dtype(self) -> ir.DataType:
        """The element type; float32 where nothing says so."""
        return self.value.dtype or ir.DataType.FLOAT

    @property
    def dims(self) -> tuple[int | str | None, ...] | None:
        """The dimensions, as far as inference knows them; None of what was made for a gradient."""
        return g.shape(self.value)

    def has_dims(self, dims: Sequence[int | str | None]) -> None:
        """Note its dimensions, where a rule knows them."""
        self.value.shape = ir.Shape(dims)

    def op(self, op_type: str, *others: Term | float | None, **attributes: Any) -> Term:
        """The first output of a node that reads this, then `others`."""
        return self.tape.op(op_type, self, *map(self._like, others), **attributes)

    def _like(self, other: Term | float | None) -> Term | None:
        return other if other is None or isinstance(other, Term) else self.tape.const(other, self)

    def __add__(self, other: Term | float) -> Term:
        return self.op("Add", other)

    def __radd__(self, other: float) -> Term:
        return self.op("Add", other)

    def __sub__(self, other: Term | float) -> Term:
        return self.op("Sub", other)

    def __rsub__(self, other: float) -> Term:
        return self.tape.const(other, self).op("Sub", self)

    def __mul__(self, other: Term | float) -> Term:
        return self.op("Mul", other)

    def __rmul__(self, other: float) -> Term:
        return self.op("Mul", other)

    def __truediv__(self, other: Term | float) -> Term:
        return self.op("Div", other)

    def __rtruediv__(self, other: float) -> Term:
        return self.op("Reciprocal") if other == 1 else self.tape.const(other, self).op("Div", self)

    def __pow__(self, other: Term | float) -> Term:
        return self.op("Pow", other)

    def __neg__(self) -> Term:
        return self.op("Neg")

    def __gt__(self, other: Term | float) -> Term:
        return self.op("Greater", other)

    def __ge__(self, other: Term | float) -> Term:
        return self.op("GreaterOrEqual", other)

    def __lt__(self, other: Term | float) -> Term:
        return self.op("Less", other)

    def __le__(self, other: Term | float) -> Term:
        return self.op("LessOrEqual", other)

    def __and__(self, other: Term) -> Term:
        return self.op("And", other)

    def equals(self, other: Term | float) -> Term:
        """Where both are the same."""
        return self.op("Equal", other)

    def where(self, then: Term, otherwise: Term | float) -> Term:
        """Of a boolean term: one or the other."""
        return self.tape.op("Where", self, then, then._like(otherwise))

    def like(self, other: Term) -> Term:
        """In the element type of `other`."""
        return self if self.dtype == other.dtype else self.op("Cast", to=int(other.dtype))

    @property
    def shape(self) -> Term:
        """The dimensions as a vector of int64."""
        return self.tape.shape(self)

    def dim(self, axis: int) -> int | Term:
        """One dimension: a number, or a vector of length 1 where it isn't known before the model runs."""
        dims = self.dims
        if dims is not None and isinstance(dims[axis], int):
            return dims[axis]  # type: ignore[return-value]
        if axis == -1:
            return self.op("Shape", start=-1)
        return self.op("Shape", start=axis, end=axis + 1)

    def size(self, axis: int) -> Term:
        """One dimension as a vector of length 1."""
        n = self.dim(axis)
        return self.tape.const([n]) if isinstance(n, int) else n

    def ints(self, op_type: str, numbers: Sequence[int], **attributes: Any) -> Term:
        """An operator whose second input is a constant list of axes or sizes."""
        return self.op(op_type, self.tape.const(np.array(numbers, np.int64)), **attributes)

    def sum(self, axes: Sequence[int], keep: bool = True) -> Term:
        """The sum over these axes; over none: itself."""
        return self.ints("ReduceSum", axes, keepdims=int(keep)) if len(axes) else self

    def mean(self, axes: Sequence[int]) -> Term:
        """The mean over these axes, which stay with length 1."""
        return self.ints("ReduceMean", axes, keepdims=1)

    def reshape(self, *parts: int | Term) -> Term:
        """In another shape: numbers (0 copies a dimension, -1 is what is left) and vectors."""
        return self.op("Reshape", self.tape.vector(parts))

    def expand(self, to: Term) -> Term:
        """Repeated to the shape of `to`."""
        return self.op("Expand", to.shape)

    def transpose(self, *perm: int) -> Term:
        """With its axes in another order."""
        return self if list(perm) == sorted(perm) else self.op("Transpose", perm=list(perm))

    def zeros(self) -> Term:
        """Zeros in its shape."""
        fixed = g.static_shape(self.value)
        zero = ir.tensor(np.zeros(1, self.dtype.numpy()), name="zero")
        if fixed is not None and int(np.prod(fixed)) <= 64:
            return self.tape.const(np.zeros(fixed), self)
        return self.shape.op("ConstantOfShape", value=zero)


def sum_to(found: Term, of: Term, to: Term) -> Term:
    """The adjoint of numpy's broadcasting: `found`, in the shape of `of`, summed to that of `to`, which was repeated.

    Where the dimensions don't tell which axes were, they are compared when the model runs.
    """
    axes = _repeated(of.dims, to.dims)
    if axes is not None:
        leading = len(of.dims or ()) - len(to.dims or ())
        found = found.sum([a for a in axes if a >= leading])
        return found.sum(range(leading), keep=False)
    tape, have = found.tape, of.shape
    want = to.shape
    missing = have.op("Size") - want.op("Size")
    ones = missing.reshape(1).op("ConstantOfShape", value=ir.tensor(np.ones(1, np.int64), name="one"))
    differ = tape.op("Concat", ones, want, axis=0).equals(have).op("Not")
    where = differ.op("NonZero").reshape(-1)
    return found.op("ReduceSum", where, keepdims=1, noop_with_empty_axes=1).op("Reshape", want)


def _repeated(
    have: Sequence[int | str | None] | None, want: Sequence[int | str | None] | None
) -> list[int] | None:
    """The axes along which a shape `want` was repeated to become `have`, leading ones included; None if unknown."""
    if have is None or want is None:
        return None
    lead = len(have) - len(want)
    axes = list(range(lead))
    for a, (h, w) in enumerate(zip(have[lead:], want, strict=True), lead):
        if h is not None and h == w:
            continue
        if w == 1:
            axes.append(a)
        elif not isinstance(w, int) and h != 1:
            return None
    return axes
