"""Operators that work element by element, with numpy's broadcasting."""

from __future__ import annotations

from collections.abc import Iterable

from ...graph import is_const, scalar
from ...ops import BROADCAST
from ..flow import Step, rule
from ..gates import compared
from ..grids import Grid

ZERO_TO_ZERO = (
    "Abs", "Asin", "Asinh", "Atan", "Atanh", "Cast", "Ceil", "Celu", "Elu", "Erf", "Floor", "Gelu", "HardSwish",
    "Identity", "LeakyRelu", "Mish", "Neg", "Relu", "Round", "Selu", "Shrink", "Sign", "Sin", "Sinh", "Softsign",
    "Sqrt", "Swish", "edgec::Swish", "Tan", "Tanh", "Dropout",
)  # fmt: skip
"""f(0) = 0, so that a slice that is zero stays zero. (Not assumed of Shrink, which has a bias.)"""
ZERO_TO_OTHER = (
    "Acos", "Acosh", "BitwiseNot", "Clip", "Cos", "Cosh", "Exp", "HardSigmoid", "IsInf", "IsNaN", "Log", "Not",
    "Reciprocal", "Sigmoid", "Softplus", "ThresholdedRelu",
)  # fmt: skip
PRODUCTS = ("Mul", "And", "BitwiseAnd")
DIVISIONS = ("Div", "Mod", "BitShift", "Pow")


@rule(*ZERO_TO_ZERO)
def _keeps_zero(s: Step) -> None:
    zero = None if s.node.op_type != "Shrink" else False
    if s.node.op_type in ("Identity", "Cast") and (value := s.const(0)) is not None:
        return s.emit(Grid(s.coupling.held(value, a), (a,), True) for a, n in enumerate(s.dims(0)) if n != 1)
    s.emit(s.keep(zero=zero))
    if len(s.node.outputs) > 1:  # the mask of a Dropout
        s.emit(s.keep(zero=False), 1)
    return None


@rule(*ZERO_TO_OTHER)
def _loses_zero(s: Step) -> None:
    """Clip keeps zero where its bounds allow it."""
    keeps = None
    if s.node.op_type == "Clip":
        low, high = (scalar(v) if v is not None else 0.0 for v in (s.value(1), s.value(2)))
        keeps = None if low is not None and high is not None and low <= 0 <= high else False
        for i in (1, 2):
            s.const(i)
    else:
        keeps = False
    if s.node.op_type in ("Log", "Reciprocal"):
        _no_zeros(s, 0)
    s.emit(s.keep(zero=keeps))


def _no_zeros(s: Step, i: int) -> None:
    """A slice of zeros would give infinities and NaN here, and these would spread: it is not masked at all."""
    for g in s.label(i):
        if g.zero:
            s.atoms.freeze(g.ids)


@rule(*BROADCAST, "PRelu")
def _broadcast(s: Step) -> None:
    """A product is zero where one factor is, a sum where all terms are, a quotient where the dividend is."""
    op = s.node.op_type
    if op == "Equal" and compared(s):
        return
    rank, out = len(s.out_dims()), s.out_dims()
    parts: list[list[Grid]] = []
    for i, value in enumerate(s.node.inputs):
        if value is None or is_const(value):
            continue
        dims = s.dims(i)
        shift = rank - len(dims)
        # An axis of one element that is stretched is left unclaimed: it can't go.
        to = {a: a + shift for a, n in enumerate(dims) if n != 1 or out[a + shift] == 1}
        divisor = i > 0 and op in (*DIVISIONS, "PRelu")
        if divisor and op in ("Div", "Mod"):
            _no_zeros(s, i)
        # 0 to the power of 0 is 1.
        raised = op == "Pow" and i == 0 and scalar(s.value(1)) is None
        parts.append(s.carry(i, to, zero=False if divisor or raised else None))
    if op in PRODUCTS or op in (*DIVISIONS, "PRelu"):
        meet, every = any, True
    else:
        meet, every = all, False
    label = s.coupling.merge((g for part in parts for g in part), meet)
    label = tuple(_with_others(s, g, every) for g in label)
    label += _from_constants(s, label, out)
    for i in range(len(s.node.inputs)):
        if s.const(i) is not None:
            label = tuple(_with_constant(s, i, g, rank) for g in label)
    s.emit(label)


def _with_others(s: Step, grid: Grid, product: bool) -> Grid:
    """Freeze where another input has elements there that can't go; a term that is spread over the grid isn't zero."""
    out, zero = s.out_dims(), grid.zero
    for i, value in enumerate(s.node.inputs):
        if value is None or is_const(value):
            continue
        dims = s.dims(i)
        shift = len(out) - len(dims)
        own = {a + shift for g in s.label(i) for a in g.axes}
        wide = {a + shift for a, n in enumerate(dims) if n != 1 or out[a + shift] == 1}
        for axis in grid.axes:
            if axis in wide and axis not in own:
                s.coupling.veto(grid, axis)
        if not product and not set(grid.axes) <= own & wide:
            zero = False
    if s.node.op_type in ("Equal", "GreaterOrEqual", "LessOrEqual", "Xor", "Where"):
        zero = False
    return Grid(grid.ids, grid.axes, zero)


def _from_constants(s: Step, label: Iterable[Grid], out: object) -> tuple[Grid, ...]:
    """An axis that only a constant stretches has that constant's ids."""
    covered = {a for g in label for a in g.axes}
    sizes, found = s.out_dims(), []
    for axis, size in enumerate(sizes):
        if axis in covered or size == 1 or not isinstance(size, int):
            continue
        wide = [i for i in range(len(s.node.inputs)) if _extent(s, i, axis, len(sizes)) == size]
        others = [i for i in range(len(s.node.inputs)) if _extent(s, i, axis, len(sizes)) not in (1, size)]
        if wide and not others and all(s.const(i) is not None for i in wide):
            found.append(Grid(s.atoms.fresh(size), (axis,), False))
    return tuple(found)


def _extent(s: Step, i: int, axis: int, rank: int) -> object:
    dims = s.dims(i)
    at = axis - (rank - len(dims))
    return dims[at] if at >= 0 else 1


def _with_constant(s: Step, i: int, grid: Grid, rank: int) -> Grid:
    """Tie a constant operand to the grid that it meets. Divisors and exponents are never masked."""
    value = s.const(i)
    assert value is not None
    dims = s.dims(i)
    shift = rank - len(dims)
    masked = s.node.op_type not in DIVISIONS or i == 0
    meets = [d for d, a in enumerate(grid.axes) if a >= shift and dims[a - shift] != 1]
    if meets:
        ids = grid.ids if len(meets) == grid.ids.ndim else s.atoms.slab(grid.ids, meets)
        s.coupling.hold(value, ids, [grid.axes[d] - shift for d in meets], masked=masked)
    op = s.node.op_type
    if op in PRODUCTS:
        zero = grid.zero or (masked and len(meets) == grid.ids.ndim)
    elif op in DIVISIONS or op == "PRelu":
        zero = grid.zero and i > 0
        if op == "Pow":
            exponent = scalar(value)
            zero = zero and exponent is not None and exponent > 0
    else:
        zero = grid.zero and len(meets) == grid.ids.ndim
    return Grid(grid.ids, grid.axes, zero)
