"""Hidden units of LSTM, GRU and RNN are found, and removed exactly."""

from __future__ import annotations

import numpy as np
import pytest
from rulenet import Net, count, node, removals

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


def _weights(net: Net, op: str, directions: int, size: int, width: int):
    gates = GATES[op]
    return (
        net.weight(directions, gates * size, width),
        net.weight(directions, gates * size, size),
        net.weight(directions, 2 * gates * size),
    )


def _head(net: Net, y, directions: int, size: int):
    """Directions side by side, as a linear layer reads them."""
    y = net("Reshape", net("Transpose", y, perm=[0, 2, 1, 3]), net.ints(0, 0, directions * size))
    return net("MatMul", y, net.weight(directions * size, 3))


@pytest.mark.parametrize("op", GATES)
@pytest.mark.parametrize("directions", [1, 2])
def test_hidden_units_go_from_all_gates(op: str, directions: int) -> None:
    net = Net(x=(7, 2, 5))
    x = net("Relu", net("MatMul", "x", net.weight(5, 6)))
    direction = {"direction": "bidirectional"} if directions > 1 else {}
    y = net(op, x, *_weights(net, op, directions, 8, 6), hidden_size=8, **direction)
    case = net.case(_head(net, y, directions, 8))
    # 6 channels of the input, 8 units; those of two directions go in pairs, one of each.
    assert count(case) == (0, 14)
    left = removals(case)
    assert node(left, op).attributes["hidden_size"].as_int() == 4


@pytest.mark.parametrize("op", ["LSTM", "GRU"])
def test_layers_in_a_row_and_final_states(op: str) -> None:
    net = Net(x=(7, 2, 5))
    first = net(op, "x", *_weights(net, op, 1, 8, 5), hidden_size=8)
    states = 3 if op == "LSTM" else 2
    y = net(op, net("Squeeze", first, net.ints(1)), *_weights(net, op, 1, 6, 8), outputs=states, hidden_size=6)
    last = net("Gemm", net("Squeeze", y[1], net.ints(0)), net.weight(6, 3))
    outputs = [last]
    if op == "LSTM":
        outputs.append(net("MatMul", y[2], net.weight(6, 2)))
    case = net.case(*outputs)
    assert count(case) == (0, 14)
    removals(case)


@pytest.mark.parametrize("linear", [0, 1])
def test_gru_with_a_state_that_is_a_constant(linear: int) -> None:
    net = Net(x=(4, 2, 5))
    state = net.weight(1, 2, 8)
    y = net("GRU", "x", *_weights(net, "GRU", 1, 8, 5), None, state, hidden_size=8, linear_before_reset=linear)
    case = net.case(_head(net, y, 1, 8))
    assert count(case) == (0, 8)
    removals(case)


def test_states_made_at_run_time_shrink() -> None:
    net = Net(x=(7, "batch", 5))
    batch = net("Slice", net("Shape", "x"), net.ints(1), net.ints(2))
    shape = net("Concat", net.ints(1), batch, net.ints(8), axis=0)
    state, other = net("ConstantOfShape", shape), net("Expand", net.const(np.zeros((1, 1, 1), np.float32)), shape)
    y = net("LSTM", "x", *_weights(net, "LSTM", 1, 8, 5), None, state, other, hidden_size=8)
    case = net.case(_head(net, y, 1, 8))
    assert count(case) == (0, 8)
    removals(case)


def test_two_layers_that_start_at_the_same_zeros() -> None:
    net = Net(x=(7, "batch", 5))
    batch = net("Slice", net("Shape", "x"), net.ints(1), net.ints(2))
    states = net("ConstantOfShape", net("Concat", net.ints(2), batch, net.ints(8), axis=0))
    first, second = (net("Slice", states, net.ints(k), net.ints(k + 1), net.ints(0)) for k in range(2))
    y = net("GRU", "x", *_weights(net, "GRU", 1, 8, 5), None, first, hidden_size=8)
    y = net("GRU", net("Squeeze", y, net.ints(1)), *_weights(net, "GRU", 1, 8, 8), None, second, hidden_size=8)
    case = net.case(_head(net, y, 1, 8))
    assert count(case) == (0, 16)
    removals(case)


def test_a_state_from_outside_keeps_all_units() -> None:
    net = Net(x=(7, 2, 5), h=(1, 2, 8))
    y = net("GRU", "x", *_weights(net, "GRU", 1, 8, 5), None, "h", hidden_size=8)
    assert count(net.case(_head(net, y, 1, 8))) == (0, 0)


def test_peepholes_and_lengths() -> None:
    net = Net(x=(7, 2, 5))
    lengths, weights = net.const([7, 4], np.int32), _weights(net, "LSTM", 1, 8, 5)
    y = net("LSTM", "x", *weights, lengths, None, None, net.weight(1, 24), hidden_size=8)
    case = net.case(_head(net, y, 1, 8))
    assert count(case) == (0, 8)
    removals(case)


def test_activations_that_lift_zero_are_no_zeros_for_a_sum() -> None:
    for name, units in (("Tanh", 8), ("Sigmoid", 0)):
        net = Net(x=(7, 2, 5))
        y = net("RNN", "x", *_weights(net, "RNN", 1, 8, 5), hidden_size=8, activations=[name])
        case = net.case(net("ReduceSum", y, net.ints(3)))
        assert count(case) == (0, units), name
        removals(case)
