"""Operators that choose by position, and integers whose zero is another number: channels pass, and go exactly."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from rulenet import Net, count, removals

import passcheck
from edgec.compiler.channels.masking import mask
from edgec.passes.remove_channels import RemoveChannels


def _hidden(net: Net, x: object = "x", width: int = 8, into: int = 6) -> object:
    return net("Relu", net("MatMul", x, net.weight(into, width)))


def test_elements_gathered_over_tokens_leave_channels_free() -> None:
    """Positions are the same for all channels, spread out over them, as torch.gather wants it."""
    net = Net(x=(2, 5, 6))
    y = _hidden(net)
    at = net("Expand", net.const(np.array([[[1], [3], [0]]]), np.int64), net.ints(2, 3, 8))
    taken = net("GatherElements", y, at, axis=1)
    case = net.case(net("MatMul", taken, net.weight(8, 4)))
    assert count(case) == (0, 8)
    removals(case)


def test_elements_gathered_over_channels_keep_them() -> None:
    """The 8 that they are from; the two that are taken may go as they are."""
    net = Net(x=(2, 5, 6))
    at = net("Expand", net.const(np.array([[[1, 3]]]), np.int64), net.ints(2, 5, 2))
    case = net.case(net("MatMul", net("GatherElements", _hidden(net), at, axis=2), net.weight(2, 4)))
    assert count(case) == (0, 2)
    removals(case)


def test_elements_scattered_over_tokens_leave_channels_free() -> None:
    net = Net(x=(2, 5, 6), z=(2, 2, 6))
    at = net("Expand", net.const(np.array([[[1], [3]]]), np.int64), net.ints(2, 2, 8))
    y = net("ScatterElements", _hidden(net), at, _hidden(net, "z"), axis=1)
    case = net.case(net("MatMul", y, net.weight(8, 4)))
    assert count(case) == (0, 8)
    removals(case)


def test_positions_of_the_largest_keep_what_they_count() -> None:
    """The largest of plain channels: what would go might be among them."""
    net = Net(x=(2, 5, 6))
    values, _ = net("TopK", _hidden(net), net.ints(3), outputs=2, axis=-1)
    case = net.case(net("MatMul", values, net.weight(3, 4)))
    assert count(case) == (0, 0)


POINTS = {"none": None, "one": 3, "by_column": np.arange(8) - 3, "by_row": np.arange(6) * 2 - 5}


@pytest.mark.parametrize("name", list(POINTS))
def test_integers_become_their_zero_point(name: str) -> None:
    point = POINTS[name]
    rng, net = np.random.default_rng(0), Net(x=(2, 5, 6))
    packed = rng.integers(-100, 100, (6, 8))
    axis = 0 if name == "by_row" else 1
    size = () if name in ("none", "one") else (6 if axis == 0 else 8,)
    scale = net.const(rng.uniform(0.01, 0.02, size).astype(np.float32))
    extra = [] if point is None else [net.const(np.array(point), np.int8)]
    w = net("DequantizeLinear", net.const(packed, np.int8), scale, *extra, axis=axis)
    y = net("Relu", net("MatMul", "x", w))
    case = net.case(net("MatMul", y, net.weight(8, 4)))
    assert count(case) == (0, 8)
    removals(case)
    masked, dead = case.model.clone(), case.dead(0.5)
    again = type(case).of(masked)
    mask(masked, again.coupling, again.found, dead)
    smaller = passcheck.check_pass(masked, RemoveChannels(), inputs={"x": rng.normal(size=(2, 5, 6)).astype("f")})
    assert sorted(_widths(smaller)) == [4, 4]


def _widths(model: ir.Model) -> list[int]:
    """How many hidden units each weight has that makes or reads them."""
    found = []
    for v in model.graph.initializers.values():
        if v.uses() and len(v.shape or ()) == 2:
            found.append(int(v.shape[0] if v.shape[1] == 4 and v.shape[0] != 6 else v.shape[1]))  # type: ignore[index]
    return found


@pytest.mark.parametrize("point", [None, 4])
def test_products_of_integers(point: int | None) -> None:
    rng, net = np.random.default_rng(0), Net(x=(2, 6))
    q, scale, zero = net("DynamicQuantizeLinear", "x", outputs=3)
    extra = [] if point is None else [net.const(np.array(point), np.uint8)]
    y = net("MatMulInteger", q, net.const(rng.integers(0, 9, (6, 8)), np.uint8), zero, *extra)
    y = net("Mul", net("Cast", y, to=1), scale)
    case = net.case(net("MatMul", net("Relu", y), net.weight(8, 4)))
    assert count(case) == (0, 8)
    removals(case)
