"""What operators cost that work element by element, quantise, reduce, or move data; see docs/cost.md."""

from __future__ import annotations

from collections.abc import Iterable

from .. import dims as d
from ..dims import Dim
from .node import Op, Unknown, held, plus
from .work import Row, Work, each, less, moves, open_, per, rows, typed


def _clip(op: Op, macs: Dim) -> Work:
    return per(op, op.n_out(), op.has(1) + op.has(2))


def _variadic(op: Op, macs: Dim) -> Work:
    return per(op, op.n_out(), len(op.inputs) - 1)


def _pow(op: Op, macs: Dim) -> Work:
    exponent = held(op.inputs[1])
    flops = None if exponent is None else POWERS.get(exponent)
    return per(op, op.n_out(), 0, 1) if flops is None else per(op, op.n_out(), flops)


POWERS = {0.0: 0, 1.0: 0, 2.0: 1, 3.0: 2, 4.0: 3, -1.0: 1, -2.0: 2, 0.5: 1, -0.5: 2}
"""Constant exponent → multiplications, divisions and square roots that it is written out in."""


def _swish(op: Op, macs: Dim) -> Work:
    return per(op, op.n_out(), 4 + (op.attr("alpha", 1.0) != 1.0), 1)


def _gelu(op: Op, macs: Dim) -> Work:
    return per(op, op.n_out(), 8 if op.attr("approximate", "none") == "tanh" else 4, 1)


def _reduce(before: int = 0, after: int = 0, special_before: int = 0, special_after: int = 0, says: str = "") -> Row:
    """One operation less than there are elements for each slice; so much for each element before and slice after."""

    def rule(op: Op, macs: Dim) -> Work:
        x, y = op.n_in(), op.n_out()
        flops = plus(d.mul(x, 1 + before), d.mul(y, after - 1))
        return typed(op, flops, plus(d.mul(x, special_before), d.mul(y, special_after)))

    return Row(says, rule)


def _hardmax(op: Op, macs: Dim) -> Work:
    dims = op.x()
    return typed(op, less(d.product(dims), rows(dims, op.attr("axis", -1))))


def _scatter(op: Op, macs: Dim) -> Work:
    return per(op, op.n_in(2), 0 if op.attr("reduction", "none") == "none" else 1)


def _dropout(op: Op, macs: Dim) -> Work:
    if op.has(2) and held(op.inputs[2]) != 0:
        raise Unknown("training mode draws random numbers")
    return Work()


def _quantize(op: Op, macs: Dim) -> Work:
    return Work(d.mul(op.n_out(), 2), 0, op.n_out() if op.has(2) else 0)


def _dequantize(op: Op, macs: Dim) -> Work:
    return Work(op.n_out(), 0, op.n_out() if op.has(2) else 0)


def _dynamic_quantize(op: Op, macs: Dim) -> Work:
    x = op.n_in()
    return Work(plus(d.mul(x, 4), 7), 0, x)


ELEMENT: dict[str, Row] = {
    "Clip": Row("y for each bound that is given", _clip),
    "DequantizeLinear": Row("y; integer: y for a zero point", _dequantize),
    "Dropout": Row("nothing: it passes its input on, unless it trains", _dropout),
    "DynamicQuantizeLinear": Row("4 x + 7; integer: x", _dynamic_quantize),
    "Gelu": Row("4 y + y special; approximated by tanh 8 y + y special", _gelu),
    "Hardmax": Row("x - r: comparisons", _hardmax),
    "Max": Row("y for each input but one", _variadic),
    "Min": Row("y for each input but one", _variadic),
    "Sum": Row("y for each input but one", _variadic),
    "Mean": Row("y for each input: sums and a division", lambda op, macs: per(op, op.n_out(), len(op.inputs))),
    "Pow": Row(
        "y special; for constant exponents 2, 3, 4, -1, -2, 1/2, -1/2 the y to 3 y products, divisions and roots", _pow
    ),
    "QuantizeLinear": Row("2 y; integer: y for a zero point", _quantize),
    "ScatterElements": Row("nothing; with a reduction 1 for each update", _scatter),
    "ScatterND": Row("nothing; with a reduction 1 for each update", _scatter),
    "Swish": Row("4 y + y special; 5 y with an alpha that is not 1", _swish),
}
"""Operators with an attribute or input that decides."""

REDUCTIONS: dict[str, Row] = {
    "ReduceSum": _reduce(says="x - y"),
    "ReduceProd": _reduce(says="x - y"),
    "ReduceMax": _reduce(says="x - y"),
    "ReduceMin": _reduce(says="x - y"),
    "ArgMax": _reduce(says="x - y"),
    "ArgMin": _reduce(says="x - y"),
    "GlobalMaxPool": _reduce(says="x - y"),
    "ReduceMean": _reduce(after=1, says="x: sums and y divisions"),
    "GlobalAveragePool": _reduce(after=1, says="x: sums and y divisions"),
    "ReduceL1": _reduce(before=1, says="2 x - y"),
    "ReduceSumSquare": _reduce(before=1, says="2 x - y"),
    "ReduceL2": _reduce(before=1, after=1, says="2 x: squares, sums and y roots"),
    "ReduceLogSum": _reduce(special_after=1, says="x - y + y special"),
    "ReduceLogSumExp": _reduce(special_before=1, special_after=1, says="x - y + (x + y) special"),
    "CumSum": Row("x", lambda op, macs: per(op, op.n_in(), 1)),
    "NonZero": Row("x: comparisons", lambda op, macs: per(op, op.n_in(), 1)),
    "TopK": Row("x: each element is compared at least once", lambda op, macs: per(op, op.n_in(), 1)),
}


def _all(row: Row, names: str) -> dict[str, Row]:
    return dict.fromkeys(names.split(), row)


def _merged(tables: Iterable[dict[str, Row]]) -> dict[str, Row]:
    return {name: row for table in tables for name, row in table.items()}


SIMPLE: dict[str, Row] = _merged([
    # Operations that IEEE 754-2019 requires (clauses 5 and 9.6), comparisons and logic among them: one each.
    _all(
        each(1),
        "Abs Add And BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor Ceil Div Equal Floor Greater GreaterOrEqual "
        "IsInf IsNaN Less LessOrEqual Mod Mul Neg Not Or Range Reciprocal Relu Round Sign Sqrt Sub ThresholdedRelu Xor",
    ),
    # Functions that it recommends (clause 9.2), and the error function.
    _all(each(0, 1), "Acos Acosh Asin Asinh Atan Atanh Cos Cosh Erf Exp Log Sin Sinh Tan Tanh"),
    # Functions of these, as the standard writes them out.
    _all(each(2), "LeakyRelu PRelu"),
    _all(each(3), "Softsign"),
    _all(each(4), "HardSigmoid Shrink"),
    _all(each(5), "HardSwish"),
    _all(each(3, 1), "Elu Sigmoid"),
    _all(each(5, 1), "Celu Selu"),
    _all(each(1, 2), "Softplus"),
    _all(each(2, 3), "Mish"),
])  # fmt: skip

MOVED: dict[str, Row] = _merged(
    [
        _all(
            moves(),
            "Cast CastLike CenterCropPad Compress Concat Constant ConstantOfShape DepthToSpace Expand EyeLike Flatten "
            "Gather GatherElements GatherND Identity MaxUnpool OneHot Pad Reshape ReverseSequence Scatter Shape Size "
            "Slice SpaceToDepth Split Squeeze StringConcat TensorScatter Tile Transpose Trilu Unsqueeze Where",
        ),
        _all(
            moves("handles sequences and optional values: nothing"),
            "ConcatFromSequence Optional OptionalGetElement OptionalHasElement SequenceAt SequenceConstruct "
            "SequenceEmpty SequenceErase SequenceInsert SequenceLength SplitToSequence",
        ),
        _all(moves("what runs inside is counted there, as often as it runs"), "If Loop Scan SequenceMap"),
    ]
)

OPEN: dict[str, Row] = _merged(
    [
        _all(
            open_("how random numbers are drawn is not defined"),
            "Bernoulli Multinomial RandomNormal RandomNormalLike RandomUniform RandomUniformLike",
        ),
        _all(open_("how much is computed depends on the data"), "MaxRoiPool NonMaxSuppression Unique"),
        _all(
            open_("work on strings and files depends on what they hold"),
            "ImageDecoder RegexFullMatch StringNormalizer StringSplit TfIdfVectorizer",
        ),
        _all(open_("the table is made once, and how is not defined"), "MelWeightMatrix"),
    ]
)

ROWS = _merged([SIMPLE, ELEMENT, REDUCTIONS, MOVED, OPEN])
