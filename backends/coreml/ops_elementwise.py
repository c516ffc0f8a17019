"""Elementwise operators: arithmetic, comparison, logic, rounding. Families of one MIL operator each are data."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import onnx_ir as ir

from .build import F32, I32, Var
from .call import Call
from .registry import family, lowers

_BITS = {
    ir.DataType.INT8: (8, True), ir.DataType.UINT8: (8, False), ir.DataType.INT16: (16, True),
    ir.DataType.UINT16: (16, False), ir.DataType.INT4: (4, True), ir.DataType.UINT4: (4, False),
}  # fmt: skip
_FLOATS = (ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16)


def is_float(c: Call, i: int = 0) -> bool:
    """Whether input `i` is of a float type."""
    return c.kind(i) in _FLOATS


def wrap(c: Call, x: Var, kind: ir.DataType | None) -> Var:
    """Integers as `kind` holds them: Core ML computes in 32 bits, so narrower types wrap around explicitly."""
    if kind not in _BITS:
        return x
    bits, signed = _BITS[kind]
    half = 2 ** (bits - 1) if signed else 0
    shifted = c.op("add", x=x, y=np.int32(half)) if half else x
    wrapped = c.op("mod", x=shifted, y=np.int32(2**bits))
    return c.op("sub", x=wrapped, y=np.int32(half)) if half else wrapped


# One MIL operator for one ONNX operator


def _unary(c: Call, name: str) -> Var:
    return c.op(name, x=c.x())


family(_unary, {
    "Acos": "acos", "Asin": "asin", "Atan": "atan", "Atanh": "atanh", "Cos": "cos", "Cosh": "cosh", "Erf": "erf",
    "Exp": "exp", "Sin": "sin", "Sinh": "sinh", "Sqrt": "sqrt", "Tan": "tan", "Tanh": "tanh", "Sigmoid": "sigmoid",
    "Softplus": "softplus", "Softsign": "softsign",
})  # fmt: skip
family(_unary, {"Ceil": "ceil", "Floor": "floor", "Round": "round", "Relu": "relu"}, exact=True)
family(_unary, {"Not": "logical_not"})


@lowers("Abs", "Sign", exact=True)
def _abs_sign(c: Call) -> Var:
    return wrap(c, c.op(c.node.op_type.lower(), x=c.x()), c.kind())


@lowers("Neg", exact=True)
def _neg(c: Call) -> Var:
    x = c.x()
    return wrap(c, c.op("mul", x=x, y=c.like(x, -1)), c.kind())


@lowers("Identity", "Dropout", exact=True)
def _identity(c: Call) -> list[Any]:
    if c.has(2) and c.number(2):
        c.missing("training mode; export the model for inference")
    outputs: list[Any] = [c.same(0)]
    if c.used(1):
        outputs.append(c.tensor(np.ones(c.shape(), np.bool_)))
    return outputs


@lowers("Reciprocal")
def _reciprocal(c: Call) -> Var:
    # Not MIL's `inverse`: it adds an epsilon, 1e-4 unless told otherwise.
    return c.op("real_div", x=1.0, y=c.x())


@lowers("Log")
def _log(c: Call) -> Var:
    return c.op("log", x=c.x(), epsilon=0.0)


def log(c: Call, x: Var) -> Var:
    """Natural logarithm, without MIL's epsilon."""
    return c.op("log", x=x, epsilon=0.0)


@lowers("Asinh")
def _asinh(c: Call) -> Var:
    """atanh(x / sqrt(1 + x²)) near 0, where the logarithm cancels; sign(x) · log(|x| + sqrt(1 + x²)) elsewhere."""
    x = c.x()
    root = c.op("sqrt", x=c.op("add", x=c.op("mul", x=x, y=x), y=1.0))
    size = c.op("abs", x=x)
    far = c.op("mul", x=c.op("sign", x=x), y=log(c, c.op("add", x=size, y=root)))
    near = c.op("atanh", x=c.op("real_div", x=x, y=root))
    return c.op("select", cond=c.op("less", x=size, y=0.5), a=near, b=far)


@lowers("Acosh")
def _acosh(c: Call) -> Var:
    """2 · atanh(sqrt((x - 1) / (x + 1))) near 1, where the logarithm cancels; log(x + sqrt(x² - 1)) elsewhere."""
    x = c.x()
    below, above = c.op("sub", x=x, y=1.0), c.op("add", x=x, y=1.0)
    far = log(c, c.op("add", x=x, y=c.op("sqrt", x=c.op("mul", x=below, y=above))))
    near = c.op("mul", x=c.op("atanh", x=c.op("sqrt", x=c.op("real_div", x=below, y=above))), y=2.0)
    return c.op("select", cond=c.op("less", x=x, y=2.0), a=near, b=far)


@lowers("IsNaN", exact=True)
def _is_nan(c: Call) -> Var:
    return c.op("not_equal", x=c.x(), y=c.x())


@lowers("IsInf", exact=True)
def _is_inf(c: Call) -> Var:
    x, above, below = c.x(), c.attr("detect_positive", 1), c.attr("detect_negative", 1)
    if above and below:
        return c.op("equal", x=c.op("abs", x=x), y=np.inf)
    if above or below:
        return c.op("equal", x=x, y=np.inf if above else -np.inf)
    return c.tensor(np.zeros(c.shape(), np.bool_))


# Two inputs


def _binary(c: Call, name: str) -> Var:
    return wrap(c, c.op(name, x=c.x(0), y=c.x(1)), c.kind())


family(_binary, {"Add": "add", "Sub": "sub", "Mul": "mul"})
family(_binary, {"And": "logical_and", "Or": "logical_or", "Xor": "logical_xor"})


def _compare(c: Call, name: str) -> Var:
    if c.kind() == ir.DataType.BOOL:
        differ = c.op("logical_xor", x=c.x(0), y=c.x(1))
        return c.op("logical_not", x=differ)
    return c.op(name, x=c.x(0), y=c.x(1))


family(_compare, {
    "Equal": "equal", "Greater": "greater", "GreaterOrEqual": "greater_equal", "Less": "less",
    "LessOrEqual": "less_equal",
}, exact=True)  # fmt: skip


@lowers("Div")
def _div(c: Call) -> Var:
    """Floats divide; integers truncate towards zero, where MIL's floor_div rounds down."""
    x, y = c.x(0), c.x(1)
    if is_float(c):
        return c.op("real_div", x=x, y=y)
    size = c.op("floor_div", x=c.op("abs", x=x), y=c.op("abs", x=y))
    return c.op("mul", x=size, y=c.op("mul", x=c.op("sign", x=x), y=c.op("sign", x=y)))


@lowers("Mod")
def _mod(c: Call) -> Var:
    """fmod=0: the result has the divisor's sign, as MIL's mod; fmod=1: the dividend's."""
    x, y = c.x(0), c.x(1)
    if not c.attr("fmod", 0):
        return c.op("mod", x=x, y=y)
    return c.op("mul", x=c.op("mod", x=c.op("abs", x=x), y=c.op("abs", x=y)), y=c.op("sign", x=x))


@lowers("Pow", floats=(0,))
def _pow(c: Call) -> Var:
    x, y = c.x(0), c.x(1)
    if is_float(c):
        if c.is_const(1) and c.const(1).size == 1 and c.number(1) == 2 and c.out_shape() == c.shape():
            return c.op("mul", x=x, y=x)
        return c.op("pow", x=x, y=c.cast(y, c.dtype))
    if is_float(c, 1):
        return c.cast(c.op("pow", x=c.cast(x, F32), y=c.cast(y, F32)), I32)
    return c.op("pow", x=x, y=y)


@lowers("BitShift")
def _bit_shift(c: Call) -> Var:
    factor = c.op("pow", x=np.int32(2), y=c.x(1))
    if c.kind() in (ir.DataType.UINT32, ir.DataType.UINT64):
        c.missing("shifts of 32-bit and wider unsigned integers need more than Core ML's signed 32 bits")
    if c.attr("direction") == "RIGHT":
        return c.op("floor_div", x=c.x(0), y=factor)
    return wrap(c, c.op("mul", x=c.x(0), y=factor), c.kind())


# Any number of inputs


def _fold(c: Call, name: str) -> Var:
    result: Var = functools.reduce(lambda a, b: c.op(name, x=a, y=b), c.all())
    return result if len(c.node.inputs) > 1 else c.op("identity", x=result)


family(_fold, {"Max": "maximum", "Min": "minimum"}, exact=True)
family(_fold, {"Sum": "add"})


@lowers("Mean")
def _mean(c: Call) -> Var:
    return c.op("mul", x=_fold(c, "add"), y=1.0 / len(c.node.inputs))


@lowers("Where", exact=True)
def _where(c: Call) -> Var:
    """MIL's select takes its shape from `a` and `b`: what is smaller than the result is spread first."""
    shape = c.out_shape()
    a, b = c.x(1), c.x(2)
    if shape not in (tuple(a.shape), tuple(b.shape)):
        a = spread(c, a, shape)
    if len(a.shape) and tuple(a.shape) != shape:
        a = spread(c, a, shape)
    if len(b.shape) and tuple(b.shape) != shape:
        b = spread(c, b, shape)
    return c.op("select", cond=spread(c, c.x(0), shape), a=a, b=b)


def spread(c: Call, x: Var, shape: tuple[int, ...]) -> Var:
    """`x` broadcast to `shape`."""
    old = (1,) * (len(shape) - len(x.shape)) + tuple(int(d) for d in x.shape)
    x = c.reshape(x, old)
    if old == tuple(shape):
        return x
    return c.op("tile", x=x, reps=np.array([n // o for n, o in zip(shape, old, strict=True)], np.int32))


@lowers("Clip", exact=True)
def _clip(c: Call) -> Var:
    x = c.x()
    bounds = [c.const(i).size == 1 and c.number(i) if c.is_const(i) else None for i in (1, 2)]
    if is_float(c) and None not in bounds and bounds[0] <= bounds[1] and all(abs(b) < 3e38 for b in bounds):  # type: ignore[operator,arg-type]
        return c.op("clip", x=x, alpha=float(bounds[0]), beta=float(bounds[1]))  # type: ignore[arg-type]
    if c.has(1):
        x = c.op("maximum", x=x, y=c.x(1))
    if c.has(2):
        x = c.op("minimum", x=x, y=c.x(2))
    return x if c.has(1) or c.has(2) else c.same(0)
