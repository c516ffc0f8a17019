"""Element-wise operators: what a masked slice becomes decides whether it may be summed away."""

from __future__ import annotations

import numpy as np
import pytest
from channelcheck import Case
from rulenet import Net, count, removals

from edgec.compiler import functions


def _summed(net: Net, y, width: int = 6):
    """A sum over channels, which only zeros may leave, beside a layer that reads them."""
    return net.case(net("ReduceSum", y, net.ints(-1)), net("MatMul", y, net.weight(width, 3)))


@pytest.mark.parametrize(
    ("op", "units"),
    [("Relu", 6), ("Sigmoid", 0), ("Exp", 0), ("Tanh", 6), ("Softplus", 0), ("Gelu", 6), ("Cos", 0), ("Erf", 6)],
)
def test_only_what_stays_zero_is_summed_away(op: str, units: int) -> None:
    net = Net(x=(2, 5, 7))
    case = _summed(net, net(op, net("MatMul", "x", net.weight(7, 6))))
    assert count(case) == (0, units)
    removals(case)


@pytest.mark.parametrize(("low", "high", "units"), [(-1.0, 1.0, 6), (0.0, 6.0, 6), (0.5, 1.0, 0), (-2.0, -1.0, 0)])
def test_clip_keeps_zero_where_its_bounds_do(low: float, high: float, units: int) -> None:
    net = Net(x=(2, 5, 7))
    y = net("MatMul", "x", net.weight(7, 6))
    case = _summed(net, net("Clip", y, net.const(np.float32(low)), net.const(np.float32(high))))
    assert count(case) == (0, units)
    removals(case)


def test_zero_to_the_power_of_zero_is_one() -> None:
    net = Net(x=(2, 5, 7))
    base, exponent = (net("Relu", net("MatMul", "x", net.weight(7, 6))) for _ in range(2))
    assert count(_summed(net, net("Pow", base, exponent))) == (0, 0)
    net = Net(x=(2, 5, 7))
    case = _summed(net, net("Pow", net("MatMul", "x", net.weight(7, 6)), net.const(np.float32(2))))
    assert count(case) == (0, 6)
    removals(case)


def test_what_is_divided_by_is_never_zero() -> None:
    net = Net(x=(2, 5, 7))
    above, below = (net("MatMul", "x", net.weight(7, 6)) for _ in range(2))
    assert count(_summed(net, net("Div", above, below))) == (0, 0)
    net = Net(x=(2, 5, 7))
    safe = net("Exp", net("MatMul", "x", net.weight(7, 6)))
    case = _summed(net, net("Div", net("MatMul", "x", net.weight(7, 6)), safe))
    assert count(case) == (0, 6)
    removals(case)
    net = Net(x=(2, 5, 7))
    case = _summed(net, net("Div", net("MatMul", "x", net.weight(7, 6)), net.weight(6)))
    assert count(case) == (0, 6)
    removals(case)


def test_a_gate_makes_a_product_zero_and_a_sum_does_not() -> None:
    for op, units in (("Mul", 6), ("Add", 0)):
        net = Net(x=(2, 5, 7))
        gate, y = net("Sigmoid", net("MatMul", "x", net.weight(7, 6))), net("MatMul", "x", net.weight(7, 6))
        case = _summed(net, net(op, gate, y))
        assert count(case) == (0, units), op
        removals(case)


def test_stretched_axes_stay() -> None:
    net = Net(x=(2, 5, 7))
    one = net("MatMul", "x", net.weight(7, 1))
    case = net.case(net("MatMul", net("Mul", one, net("MatMul", "x", net.weight(7, 6))), net.weight(6, 3)))
    assert count(case) == (0, 6)
    removals(case)


def test_an_operand_from_outside_keeps_its_axes() -> None:
    net = Net(x=(2, 5, 7), other=(2, 5, 6))
    assert count(_summed(net, net("Mul", "other", net("MatMul", "x", net.weight(7, 6))))) == (0, 0)


def test_our_own_functions_pass_or_freeze() -> None:
    for name, units in (("Swish", 6), ("Unheard", 0)):
        net = Net(x=(2, 5, 7))
        y = net(name, net("MatMul", "x", net.weight(7, 6)), domain="edgec")
        model = net.model(net("Relu", net("MatMul", y, net.weight(6, 3))), functions=[name])
        assert ("edgec", name, "") in model.functions or name not in functions.BODIES
        case = Case.of(model)
        assert count(case) == (0, units), name
        if units:
            removals(case)
