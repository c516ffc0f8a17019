"""Matrix products."""

from __future__ import annotations

from typing import Any

import numpy as np

from .build import F32, Slot, Var
from .call import Call
from .constants import Affine, of_array
from .registry import lowers


@lowers("MatMul")
def _matmul(c: Call) -> Var:
    if c.rank(0) > 1 and c.is_float_node() and (tied := c.transposed(1)) is not None:
        return c.op("matmul", x=c.x(0), y=tied, transpose_y=True)
    return product(c, c.x(0), c.x(1))


def product(c: Call, a: Var, b: Var) -> Var:
    """numpy's matmul: a vector is a row on the left and a column on the right, and its axis is dropped again."""
    a_shape, b_shape = tuple(int(d) for d in a.shape), tuple(int(d) for d in b.shape)
    if len(a_shape) > 1 and len(b_shape) > 1:
        return c.op("matmul", x=a, y=b)
    if len(a_shape) == 1:
        a = c.reshape(a, (1, *a_shape))
    if len(b_shape) == 1:
        b = c.reshape(b, (*b_shape, 1))
    return c.reshape(c.op("matmul", x=a, y=b), np.matmul(np.empty(a_shape), np.empty(b_shape)).shape)


@lowers("Gemm")
def _gemm(c: Call) -> Var:
    """alpha · A · B + beta · C. With constant B it is MIL's `linear`, whose weight is [outputs, inputs]."""
    alpha, beta = float(c.attr("alpha", 1.0)), float(c.attr("beta", 1.0))
    ta, tb = bool(c.attr("transA", 0)), bool(c.attr("transB", 0))
    weight = None if ta or not c.is_float_node() else weight_rows(c, 1, tb)
    bias = _gemm_bias(c) if weight is not None and alpha == beta == 1 else None
    if weight is None:
        y = c.op("matmul", x=c.x(0), y=c.x(1), transpose_x=ta, transpose_y=tb)
    else:
        y = c.op("linear", x=c.x(0), weight=weight, bias=bias)
    if alpha != 1:
        y = c.op("mul", x=y, y=c.like(y, alpha))
    if c.has(2) and bias is None and beta != 0:
        third = c.x(2)
        y = c.op("add", x=y, y=third if beta == 1 else c.op("mul", x=third, y=c.like(third, beta)))
    return y


def weight_rows(c: Call, i: int, transposed: bool) -> Var | None:
    """The constant matrix in input `i` as [outputs, inputs], dense or packed; None when it is not constant."""
    slot = c.slot(i)
    if slot.affine is not None and slot.affine.rounded and not slot.affine.is_half():
        return None  # float32 products, cast to float16: no constant for `linear`
    if transposed:
        return c.x(i) if slot.constant is not None or slot.affine is not None else None
    if slot.constant is not None:
        rows, cols = c.shape(i)
        return c.weight(slot.constant.map("T", lambda a: a.T, (cols, rows)))
    packed = None if slot.affine is None else slot.affine.transpose((1, 0))
    return None if packed is None else c.packed(packed)


def _gemm_bias(c: Call) -> Var | None:
    n = c.out_shape()[1]
    if not c.has(2) or not c.is_const(2) or c.const(2).size not in (1, n) or (c.rank(2) == 2 and c.shape(2)[0] != 1):
        return None
    return c.weight(c.const(2).map(f"bias{n}", lambda a: np.broadcast_to(a.reshape(-1), n), (n,)))


@lowers("MatMulInteger")
def _matmul_integer(c: Call) -> Any:
    """(A - a) · (B - b). Weights stay packed; the sums are integers in float32, exact up to 2²⁴ and within float
    error beyond, so that no weight has to be unpacked to 32-bit integers."""
    a = _shifted(c, 0, 2)
    b = _packed_integer(c, 1, 3) or _shifted(c, 1, 3)
    return Slot(full=product(c, a, b))


@lowers("ConvInteger")
def _conv_integer(c: Call) -> Any:
    from .ops_conv import window

    w = window(c, c.shape(1)[2:])
    x = _shifted(c, 0, 2)
    kernel = _packed_integer(c, 1, 3) or _shifted(c, 1, 3)
    return Slot(full=c.op(
        "conv", x=x, weight=kernel, strides=w.strides, pad_type="custom", pad=w.pad, dilations=w.dilations,
        groups=int(c.attr("group", 1))))  # fmt: skip


def _shifted(c: Call, i: int, zero: int) -> Var:
    """Input `i` minus its zero point, as float32. A vector of zero points belongs to rows of A, columns of B."""
    x = c.as_float(i)
    if not c.has(zero) or (c.is_const(zero) and not c.array(zero).any()):
        return x
    z = c.as_float(zero)
    if c.rank(zero) == 1 and c.shape(zero)[0] > 1:
        sizes = (-1, *(1,) * (c.rank(i) - 1)) if c.node.op_type == "ConvInteger" else (-1, 1)[:: 1 if i == 0 else -1]
        z = c.reshape(z, tuple(c.shape(zero)[0] if n == -1 else n for n in sizes))
    elif c.rank(zero) == 1:
        z = c.reshape(z, ())
    return c.op("sub", x=x, y=z)


def _packed_integer(c: Call, i: int, zero: int) -> Var | None:
    """A constant integer weight, packed with scale 1; None where the target has no packed weights."""
    if c.version < 16 or not c.is_const(i) or (c.has(zero) and not c.is_const(zero)):
        return None
    data = c.const(i)
    zeros = c.array(zero).reshape(-1) if c.has(zero) else np.zeros(1, data.dtype)
    if data.dtype.name not in ("int8", "uint8") or data.size < 10 or c.rank(i) < 2:
        return None
    if len(zeros) > 1 and len(zeros) != data.shape[-1]:
        return None
    vector = len(zeros) > 1
    axis = (0 if c.node.op_type == "ConvInteger" else c.rank(i) - 1) if vector else 0
    shape = zeros if vector else zeros.reshape(())
    scale = of_array(np.ones(shape.shape, np.float32), "ones", shape.shape)
    z = of_array(shape.astype(data.dtype), shape.tobytes(), data.dtype.name) if zeros.any() else None
    return c.builder.affine(Affine(data, scale, z, axis, 0, 8), F32, c.node.inputs[i].name)  # type: ignore[union-attr]


@lowers("Einsum")
def _einsum(c: Call) -> Var:
    """Operand by operand: sum out what nobody needs, bring to batch × rows × columns, multiply."""
    terms, out = _equation(c)
    result, labels = c.x(0), terms[0]
    if len(set(labels)) != len(labels) or any(len(set(t)) != len(t) for t in terms):
        c.missing("a repeated index within one operand (a diagonal)")
    for i, term in enumerate(terms[1:], 1):
        needed = set(out).union(*terms[i + 1 :])
        result, labels = _contract(c, result, labels, c.x(i), term, needed)
    gone = [i for i, k in enumerate(labels) if k not in out]
    if gone:
        result = c.op("reduce_sum", x=result, axes=gone, keep_dims=False)
        labels = "".join(k for k in labels if k in out)
    return c.transpose(result, [labels.index(k) for k in out])


def _equation(c: Call) -> tuple[list[str], str]:
    """The operands' labels and the result's, with upper-case stand-ins for the dots."""
    text = c.attr("equation").replace(" ", "")
    left, arrow, out = text.partition("->")
    terms = left.split(",")
    spare = [chr(k) for k in range(0x391, 0x3A9)]
    widths = [c.rank(i) - len(t.replace("...", "")) if "..." in t else 0 for i, t in enumerate(terms)]
    widest = "".join(spare[: max(widths)])
    terms = [t.replace("...", widest[len(widest) - w :]) for t, w in zip(terms, widths, strict=True)]
    if not arrow:
        once = sorted(k for k in set("".join(terms)) - set(widest) if "".join(terms).count(k) == 1)
        return terms, widest + "".join(once)
    return terms, out.replace("...", widest)


def _contract(c: Call, a: Var, la: str, b: Var, lb: str, needed: set[str]) -> tuple[Var, str]:
    """One product of two operands; labels in `needed` survive."""
    for only_a in (True, False):
        x, labels, other = (a, la, lb) if only_a else (b, lb, la)
        gone = [i for i, k in enumerate(labels) if k not in needed and k not in other]
        if gone:
            x = c.op("reduce_sum", x=x, axes=gone, keep_dims=False)
            labels = "".join(k for i, k in enumerate(labels) if i not in gone)
        a, la, b, lb = (x, labels, b, lb) if only_a else (a, la, x, labels)
    size = {k: int(n) for labels, x in ((la, a), (lb, b)) for k, n in zip(labels, x.shape, strict=True) if n != 1}
    batch = [k for k in la if k in lb and k in needed]
    summed = [k for k in la if k in lb and k not in needed]
    rows, cols = [k for k in la if k not in lb], [k for k in lb if k not in la]
    left = _matrix(c, a, la, batch, rows, summed, size)
    right = _matrix(c, b, lb, batch, summed, cols, size)
    y = c.op("matmul", x=left, y=right)
    labels = "".join([*batch, *rows, *cols])
    return c.reshape(y, tuple(size.get(k, 1) for k in labels)), labels


def _matrix(
    c: Call, x: Var, labels: str, batch: list[str], rows: list[str], cols: list[str], size: dict[str, int]
) -> Var:
    from .ops_elementwise import spread

    x = c.transpose(x, [labels.index(k) for k in (*batch, *rows, *cols)])
    x = spread(c, x, tuple(size.get(k, 1) for k in (*batch, *rows, *cols)))
    shape = tuple(int(np.prod([size.get(k, 1) for k in group], dtype=np.int64)) for group in (batch, rows, cols))
    return c.reshape(x, shape)
