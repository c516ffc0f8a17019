"""Bitwise operators. MIL has none: numbers are taken apart bit by bit and put together again."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from .build import I32, Var
from .call import Call
from .registry import family, lowers

_WIDTH = {
    ir.DataType.UINT8: 8, ir.DataType.INT8: 8, ir.DataType.INT16: 16, ir.DataType.UINT16: 16, ir.DataType.INT32: 32,
    ir.DataType.INT64: 32,
}  # fmt: skip


def _and(c: Call, a: Var, b: Var) -> Var:
    return c.op("mul", x=a, y=b)


def _or(c: Call, a: Var, b: Var) -> Var:
    return c.op("maximum", x=a, y=b)


def _xor(c: Call, a: Var, b: Var) -> Var:
    return c.cast(c.op("not_equal", x=a, y=b), I32)


def _bitwise(c: Call, rule: Callable[[Call, Var, Var], Var]) -> Var:
    """Bit k of x is floor(x / 2^k) mod 2, in two's complement too; the highest is the sign, and counts negatively."""
    kind = c.kind()
    if kind not in _WIDTH:
        c.missing(f"{kind.name.lower()} has more bits than Core ML's signed 32")
    width, signed = _WIDTH[kind], kind.is_signed()
    total: Var = None
    for k in range(width):
        bit = rule(c, _bit(c, c.x(0), k, width, signed), _bit(c, c.x(1), k, width, signed))
        weight = -(2**k) if signed and k == width - 1 else 2**k
        part = c.op("mul", x=bit, y=np.int32(weight))
        total = part if total is None else c.op("add", x=total, y=part)
    return total


def _bit(c: Call, x: Var, k: int, width: int, signed: bool) -> Var:
    if signed and k == width - 1:
        return c.cast(c.op("less", x=x, y=np.int32(0)), I32)
    shifted = c.op("floor_div", x=x, y=np.int32(2**k)) if k else x
    return c.op("mod", x=shifted, y=np.int32(2))


family(_bitwise, {"BitwiseAnd": (_and,), "BitwiseOr": (_or,), "BitwiseXor": (_xor,)})


@lowers("BitwiseNot")
def _not(c: Call) -> Var:
    """-1 - x in two's complement, the largest number - x without a sign."""
    kind = c.kind()
    if kind not in _WIDTH:
        c.missing(f"{kind.name.lower()} has more bits than Core ML's signed 32")
    return c.op("sub", x=np.int32(-1 if kind.is_signed() else 2 ** _WIDTH[kind] - 1), y=c.x())
