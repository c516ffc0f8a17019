"""Products by name: Einsum, MatMul of any rank, experts. What is found is removed exactly; the rest stays."""

from __future__ import annotations

import numpy as np
import pytest
from rulenet import Net, count, removals


def test_attention_written_with_einsum() -> None:
    net = Net(x=(2, 5, 12))
    q, k, v = (net("Einsum", "x", net.weight(12, 4, 6), equation="bld,dhk->bhlk") for _ in range(3))
    scores = net("Softmax", net("Einsum", q, k, equation="bhlk,bhmk->bhlm"), axis=-1)
    y = net("Einsum", scores, v, equation="bhlm,bhmk->blhk")
    case = net.case(net("Einsum", y, net.weight(4, 6, 3), equation="blhk,hkd->bld"))
    assert count(case) == (4, 12)
    removals(case)


@pytest.mark.parametrize("equation", ["...d,de->...e", "abd,de->abe", "abd,ed->abe", "abd,de"])
def test_linear_layers(equation: str) -> None:
    net = Net(x=(2, 5, 7))
    shape = (6, 7) if "ed" in equation else (7, 6)
    y = net("Relu", net("Einsum", "x", net.weight(*shape), equation=equation))
    case = net.case(net("MatMul", y, net.weight(6, 3)))
    assert count(case) == (0, 6)
    removals(case)


@pytest.mark.parametrize("op", ["Einsum", "MatMul"])
def test_experts_have_hidden_units_of_their_own(op: str) -> None:
    net = Net(x=(4, 5, 7))

    def product(x, w, equation: str):
        return net("Einsum", x, w, equation=equation) if op == "Einsum" else net("MatMul", x, w)

    y = net("Relu", product("x", net.weight(4, 7, 6), "etd,edh->eth"))
    case = net.case(product(y, net.weight(4, 6, 3), "eth,ehd->etd"))
    # Experts come from outside and stay; each loses other units, equally many.
    assert count(case) == (0, 6)
    removals(case)


def test_experts_that_a_gate_weighs_can_go() -> None:
    net = Net(x=(5, 7))
    gate = net("MatMul", "x", net.weight(7, 4))
    hidden = net("Relu", net("Einsum", "x", net.weight(4, 7, 6), equation="td,edh->eth"))
    each = net("Einsum", hidden, net.weight(4, 6, 3), equation="eth,ehd->etd")
    case = net.case(net("Einsum", gate, each, equation="te,etd->td"))
    assert count(case) == (4, 6)
    removals(case)


def test_a_softmax_over_experts_keeps_them() -> None:
    net = Net(x=(5, 7))
    gate = net("Softmax", net("MatMul", "x", net.weight(7, 4)), axis=-1)
    hidden = net("Relu", net("Einsum", "x", net.weight(4, 7, 6), equation="td,edh->eth"))
    each = net("Einsum", hidden, net.weight(4, 6, 3), equation="eth,ehd->etd")
    case = net.case(net("Einsum", gate, each, equation="te,etd->td"))
    assert count(case) == (0, 6)
    removals(case)


def test_products_of_activations_need_a_zero() -> None:
    for op, units in (("Relu", 6), ("Sigmoid", 0)):
        net = Net(x=(2, 5, 7))
        a, b = (net(op, net("MatMul", "x", net.weight(7, 6))) for _ in range(2))
        case = net.case(net("Einsum", a, b, equation="bid,bjd->bij"))
        assert count(case) == (0, units), op
        removals(case)


def test_sums_transposes_and_outer_products() -> None:
    net = Net(x=(2, 5, 7))
    y = net("MatMul", "x", net.weight(7, 6))
    turned = net("Einsum", y, equation="bld->dlb")
    total = net("Einsum", net("MatMul", "x", net.weight(7, 4)), equation="bld->bl")
    outer = net("Einsum", net("MatMul", "x", net.weight(7, 3)), y, equation="bli,blj->bij")
    case = net.case(
        net("Einsum", turned, net.weight(6, 2), equation="dlb,de->lbe"),
        total,
        net("Einsum", outer, net.weight(3, 6, 2), equation="bij,ijo->bo"),
    )
    assert count(case) == (0, 6 + 4 + 3)
    removals(case)


def test_a_diagonal_keeps_all() -> None:
    net = Net(x=(2, 6, 7))
    y = net("MatMul", "x", net.weight(7, 6))
    assert count(net.case(net("Einsum", y, equation="bii->bi"))) == (0, 0)


def test_a_sum_of_something_that_is_not_zero_keeps_all() -> None:
    net = Net(x=(2, 5, 7))
    y = net("Sigmoid", net("MatMul", "x", net.weight(7, 6)))
    assert count(net.case(net("Einsum", y, equation="bld->bl"))) == (0, 0)


@pytest.mark.parametrize("ranks", [(1, 2), (2, 1), (3, 1), (1, 3)])
def test_vectors(ranks: tuple[int, int]) -> None:
    shapes = {1: (7,), 2: (7, 7), 3: (2, 7, 7)}
    net = Net(x=shapes[ranks[0]])
    x = net("Mul", "x", net.weight(7))
    y = net("MatMul", x, net.weight(*shapes[ranks[1]]))
    case = net.case(net("ReduceSum", y, net.ints(-1)) if ranks[1] != 1 else y)
    removals(case, rows=False)


def test_weights_on_the_left_and_stretched_batches() -> None:
    net = Net(x=(2, 5, 7))
    y = net("MatMul", net.weight(6, 5), "x")
    y = net("MatMul", net.weight(1, 3, 6), net("Relu", y))
    case = net.case(net("ReduceSum", y, net.ints(1)))
    assert count(case) == (0, 6 + 3)
    removals(case)


def test_a_weight_read_twice_loses_the_same() -> None:
    net = Net(x=(2, 5, 7))
    shared = net.weight(7, 7)
    y = net("MatMul", net("Relu", net("MatMul", "x", shared)), shared)
    assert count(net.case(net("ReduceSum", y, net.ints(-1)))) == (0, 0)  # its rows are read with the input


def test_quantised_products() -> None:
    net = Net(x=(2, 5, 7))
    wide = net("Relu", net("MatMul", "x", net.weight(7, 6)))
    q, scale, point = net("DynamicQuantizeLinear", wide, outputs=3)
    weight = net.const(net.rng.integers(1, 100, (6, 8)), np.int8)
    y = net("MatMulInteger", q, weight, point, net.const(np.int8(0)))
    y = net("Mul", net("Cast", y, to=1), net("Mul", scale, net.weight(8)))
    case = net.case(net("MatMul", net("Relu", y), net.weight(8, 3)))
    assert count(case) == (0, 6 + 8)
    removals(case)


def test_a_zero_point_other_than_zero_is_what_masks_write() -> None:
    net = Net(x=(2, 5, 6))
    q, scale, point = net("DynamicQuantizeLinear", "x", outputs=3)
    weight = net.const(net.rng.integers(1, 100, (6, 8)), np.uint8)
    y = net("MatMulInteger", q, weight, point, net.const(np.uint8(7)))
    case = net.case(net("MatMul", net("Mul", net("Cast", y, to=1), scale), net.weight(8, 3)))
    assert count(case) == (0, 8)
    removals(case)


def test_dynamic_ranges_keep_what_is_not_zero() -> None:
    net = Net(x=(2, 5, 7))
    q, scale, point = net("DynamicQuantizeLinear", net("Sigmoid", net("MatMul", "x", net.weight(7, 6))), outputs=3)
    weight = net.const(net.rng.integers(1, 100, (6, 8)), np.int8)
    y = net("MatMulInteger", q, weight, point)
    case = net.case(net("MatMul", net("Mul", net("Cast", y, to=1), scale), net.weight(8, 3)))
    assert count(case) == (0, 8)
    removals(case)


@pytest.mark.parametrize("kind", ["tensor", "channel", "block"])
def test_weights_stored_as_integers(kind: str) -> None:
    net = Net(x=(2, 5, 7))

    def stored(rows: int, columns: int):
        data = net.const(net.rng.integers(1, 100, (rows, columns)), np.int8)
        if kind == "tensor":
            return net("DequantizeLinear", data, net.const(np.float32(0.02)))
        if kind == "channel":
            scale, points = np.full(columns, 0.02, np.float32), np.zeros(columns, np.int8)
            return net("DequantizeLinear", data, net.const(scale), net.const(points), axis=1)
        scale = net.rng.uniform(0.01, 0.02, (rows // 4, columns)).astype(np.float32)
        return net("DequantizeLinear", data, net.const(scale), axis=0, block_size=4)

    wide = net("MatMul", "x", net.weight(7, 8))
    y = net("MatMul", net("Relu", net("MatMul", wide, stored(8, 6))), net.weight(6, 3))
    case = net.case(y)
    # Of a block of rows with one scale nothing goes.
    assert count(case) == (0, 6 + (0 if kind == "block" else 8))
    removals(case)


def test_rounded_activations_pass() -> None:
    for point, units in ((0, 12), (3, 12)):
        net = Net(x=(2, 6, 4, 4))
        y = net("Relu", net("Conv", "x", net.weight(12, 6, 1, 1)))
        grid = net.const(np.float32(0.05)), net.const(np.uint8(point))
        y = net("DequantizeLinear", net("QuantizeLinear", y, *grid), *grid)
        case = net.case(net("ReduceSum", y, net.ints(1)))
        assert count(case) == (0, units)
        removals(case)
