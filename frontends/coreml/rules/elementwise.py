"""Element by element: arithmetic, comparison, rounding, activations, casts.

Formulas and defaults are those of coremltools' operator definitions (`ops/defs/iOS15/elementwise_unary.py`,
`elementwise_binary.py`, `activation.py`, and their later versions).
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ..call import Call, Result, Unsupported, rule
from ..graph import BOOL, FLOAT, INT32

_UNARY = {
    "acos": "Acos",
    "asin": "Asin",
    "atan": "Atan",
    "atanh": "Atanh",
    "cos": "Cos",
    "cosh": "Cosh",
    "erf": "Erf",
    "exp": "Exp",
    "sigmoid": "Sigmoid",
    "sin": "Sin",
    "sinh": "Sinh",
    "softplus": "Softplus",
    "softsign": "Softsign",
    "sqrt": "Sqrt",
    "tan": "Tan",
    "tanh": "Tanh",
}
_EXACT_UNARY = {
    "abs": "Abs",
    "ceil": "Ceil",
    "floor": "Floor",
    "logical_not": "Not",
    "relu": "Relu",
    "round": "Round",
    "sign": "Sign",
}
_BINARY = {"add": "Add", "mul": "Mul", "pow": "Pow", "real_div": "Div", "sub": "Sub"}
_EXACT_BINARY = {
    "equal": "Equal",
    "greater": "Greater",
    "greater_equal": "GreaterOrEqual",
    "less": "Less",
    "less_equal": "LessOrEqual",
    "logical_and": "And",
    "logical_or": "Or",
    "logical_xor": "Xor",
    "maximum": "Max",
    "minimum": "Min",
}
_CAST = {
    "bool": BOOL,
    "fp16": FLOAT,
    "fp32": FLOAT,
    "int32": INT32,
    "int8": ir.DataType.INT8,
    "uint8": ir.DataType.UINT8,
    "int16": ir.DataType.INT16,
    "uint16": ir.DataType.UINT16,
}


@rule(*_UNARY)
@rule(*_EXACT_UNARY, exact=True)
def unary(o: Call) -> Result:
    return o.b.op({**_UNARY, **_EXACT_UNARY}[o.kind], o.value())


@rule("identity", exact=True)
def identity(o: Call) -> Result:
    return o.value()


@rule(*_BINARY)
@rule(*_EXACT_BINARY, exact=True)
def binary(o: Call) -> Result:
    return o.b.op({**_BINARY, **_EXACT_BINARY}[o.kind], o.value("x"), o.value("y"))


@rule("not_equal")
def not_equal(o: Call) -> Result:
    return o.b.op("Not", o.b.op("Equal", o.value("x"), o.value("y")))


def _is_float(o: Call) -> bool:
    return o.type("x").element.carried == FLOAT


def _floor_mod(o: Call, x: ir.Value, y: ir.Value) -> ir.Value:
    """The remainder with the sign of the divisor, as Python's `%`."""
    if not _is_float(o):
        return o.b.op("Mod", x, y)
    rest = o.b.op("Mod", x, y, fmod=1)
    wrong_sign = o.b.op("Less", o.b.op("Mul", o.b.op("Sign", rest), o.b.op("Sign", y)), o.b.number(0.0))
    return o.b.op("Where", wrong_sign, o.b.op("Add", rest, y), rest)


@rule("mod")
def mod(o: Call) -> Result:
    return _floor_mod(o, o.value("x"), o.value("y"))


@rule("floor_div")
def floor_div(o: Call) -> Result:
    x, y = o.value("x"), o.value("y")
    if _is_float(o):
        return o.b.op("Floor", o.b.op("Div", x, y))
    return o.b.op("Div", o.b.op("Sub", x, _floor_mod(o, x, y)), y)


@rule("square")
def square(o: Call) -> Result:
    return o.b.op("Mul", o.value(), o.value())


@rule("exp2")
def exp2(o: Call) -> Result:
    if _is_float(o):
        return o.b.op("Pow", o.b.number(2.0), o.value())
    return o.b.cast(o.b.op("Pow", o.b.number(2.0), o.b.cast(o.value(), FLOAT)), INT32)


def _shifted(o: Call, default: float) -> ir.Value:
    """x + epsilon, with MIL's default when it is omitted."""
    epsilon = o.number("epsilon", default)
    return o.value() if epsilon == 0.0 else o.b.op("Add", o.value(), o.b.number(epsilon))


@rule("inverse")
def inverse(o: Call) -> Result:
    return o.b.op("Reciprocal", _shifted(o, 1e-4))


@rule("log")
def log(o: Call) -> Result:
    return o.b.op("Log", _shifted(o, 1e-45))


@rule("rsqrt")
def rsqrt(o: Call) -> Result:
    return o.b.op("Reciprocal", o.b.op("Sqrt", _shifted(o, 1e-12)))


@rule("clip", exact=True)
def clip(o: Call) -> Result:
    return o.b.op("Clip", o.value(), o.value("alpha"), o.value("beta"))


@rule("threshold", exact=True)
def threshold(o: Call) -> Result:
    return o.b.op("Max", o.value(), o.value("alpha"))


@rule("cast")
def cast(o: Call) -> Result:
    wanted = o.text("dtype")
    if wanted not in _CAST:
        raise Unsupported(f"it casts to '{wanted}', which MIL does not define")
    x = o.value()
    narrow = wanted in ("int16", "uint16")
    if o.type().element.carried == _CAST[wanted] and not narrow:
        return x
    result = o.b.cast(x, _CAST[wanted])
    return o.b.cast(result, INT32) if narrow else result


@rule("select", exact=True)
def select(o: Call) -> Result:
    """onnxruntime has no Where for booleans."""
    b, cond, first, second = o.b, o.value("cond"), o.value("a"), o.value("b")
    if o.type("a").dtype != "bool":
        return b.op("Where", cond, first, second)
    return b.op("Or", b.op("And", cond, first), b.op("And", b.op("Not", cond), second))


# Activations --------------------------------------------------------------------------------------------------------


@rule("relu6", exact=True)
def relu6(o: Call) -> Result:
    return o.b.op("Clip", o.value(), o.b.number(0.0), o.b.number(6.0))


@rule("leaky_relu")
def leaky_relu(o: Call) -> Result:
    return o.b.op("LeakyRelu", o.value(), alpha=o.number("alpha"))


@rule("clamped_relu")
def clamped_relu(o: Call) -> Result:
    return o.b.op("Min", o.b.op("LeakyRelu", o.value(), alpha=o.number("alpha")), o.b.number(o.number("beta")))


@rule("elu")
def elu(o: Call) -> Result:
    return o.b.op("Elu", o.value(), alpha=o.number("alpha"))


@rule("gelu")
def gelu(o: Call) -> Result:
    mode = o.text("mode", "EXACT")
    if mode == "SIGMOID_APPROXIMATION":
        return o.b.op("Mul", o.value(), o.b.op("Sigmoid", o.b.op("Mul", o.value(), o.b.number(1.702))))
    approximate = {"EXACT": "none", "TANH_APPROXIMATION": "tanh"}.get(mode)
    if approximate is None:
        raise Unsupported(f"mode '{mode}' is none of EXACT, TANH_APPROXIMATION, SIGMOID_APPROXIMATION")
    return o.b.op("Gelu", o.value(), approximate=approximate)


@rule("silu")
def silu(o: Call) -> Result:
    return o.b.op("Mul", o.value(), o.b.op("Sigmoid", o.value()))


@rule("linear_activation")
def linear_activation(o: Call) -> Result:
    return o.b.op("Add", o.b.op("Mul", o.value(), o.b.number(o.number("alpha"))), o.b.number(o.number("beta")))


@rule("scaled_tanh")
def scaled_tanh(o: Call) -> Result:
    inner = o.b.op("Tanh", o.b.op("Mul", o.value(), o.b.number(o.number("beta"))))
    return o.b.op("Mul", inner, o.b.number(o.number("alpha")))


@rule("sigmoid_hard")
def sigmoid_hard(o: Call) -> Result:
    return o.b.op("HardSigmoid", o.value(), alpha=o.number("alpha"), beta=o.number("beta"))


@rule("thresholded_relu", exact=True)
def thresholded_relu(o: Call) -> Result:
    """ONNX's ThresholdedRelu drops x = alpha; MIL keeps it."""
    kept = o.b.op("GreaterOrEqual", o.value(), o.b.number(o.number("alpha")))
    return o.b.op("Where", kept, o.value(), o.b.number(0.0))


def _per_channel(o: Call, name: str) -> ir.Value:
    """A constant vector over axis 1, shaped to broadcast against x."""
    return o.b.constant(o.const(name).astype(np.float32).reshape(-1, *[1] * (o.rank() - 2)))


@rule("prelu")
def prelu(o: Call) -> Result:
    return o.b.op("PRelu", o.value(), _per_channel(o, "alpha"))


@rule("softplus_parametric")
def softplus_parametric(o: Call) -> Result:
    inner = o.b.op("Softplus", o.b.op("Mul", o.value(), _per_channel(o, "beta")))
    return o.b.op("Mul", inner, _per_channel(o, "alpha"))


@rule("softmax")
def softmax(o: Call) -> Result:
    return o.b.op("Softmax", o.value(), axis=o.integer("axis", -1))
