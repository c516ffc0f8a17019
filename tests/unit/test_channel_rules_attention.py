"""Fused attention and rotary embeddings: heads and dimensions are found, and removed exactly."""

from __future__ import annotations

import math

import numpy as np
import pytest
from channelcheck import check_removal
from rulenet import Net, count, node, removals


def _projections(net: Net, width: int, heads: int, kv: int, size: int, flat: bool, value_size: int | None = None):
    """q, k, v of `x` as Attention takes them."""
    made = []
    for n, wide in ((heads, size), (kv, size), (kv, value_size or size)):
        y = net("Add", net("MatMul", "x", net.weight(width, n * wide)), net.weight(n * wide))
        if not flat:
            y = net("Transpose", net("Reshape", y, net.ints(0, 0, n, wide)), perm=[0, 2, 1, 3])
        made.append(y)
    return made


def _back(net: Net, y, wide: int, flat: bool):
    if not flat:
        y = net("Reshape", net("Transpose", y, perm=[0, 2, 1, 3]), net.ints(0, 0, -1))
    return net("MatMul", y, net.weight(wide, 6))


@pytest.mark.parametrize("flat", [True, False])
@pytest.mark.parametrize(("heads", "kv"), [(4, 4), (6, 3), (4, 1)])
@pytest.mark.parametrize("scale", [None, 0.3])
def test_attention(flat: bool, heads: int, kv: int, scale: float | None) -> None:
    net = Net(x=(2, 5, 12))
    attrs = {"q_num_heads": heads, "kv_num_heads": kv} if flat else {}
    if scale:
        attrs["scale"] = scale
    q, k, v = _projections(net, 12, heads, kv, 8, flat, 10)
    case = net.case(_back(net, net("Attention", q, k, v, **attrs), heads * 10, flat))
    # One head of keys can't go: nothing would be left. Of the queries that share one, the first can, the second, ….
    # Its dimensions of q and k, and those of v, are 8 + 10.
    assert count(case) == ((kv if kv > 1 else 0) + (heads // kv if heads > kv else 0), 18)
    left = removals(case)
    fused = node(left, "Attention")
    assert math.isclose(fused.attributes["scale"].as_float(), scale or 8**-0.5, rel_tol=1e-6)


def test_heads_are_counted_anew() -> None:
    net = Net(x=(2, 5, 12))
    q, k, v = _projections(net, 12, 6, 3, 4, True)
    case = net.case(_back(net, net("Attention", q, k, v, q_num_heads=6, kv_num_heads=3), 24, True))
    rows, left = np.flatnonzero(case.units.rows), set()
    for row in rows:
        dead = np.zeros(case.found.count, bool)
        dead[case.units.classes([row])] = True
        fused = node(check_removal(case, case.found.close(dead)), "Attention")
        left.add(tuple(fused.attributes[name].as_int() for name in ("q_num_heads", "kv_num_heads")))
    # One of three heads of keys with its two queries, or one query of each.
    assert len(rows) == 3 + 2 and left == {(4, 2), (3, 3)}


def test_queries_and_groups_go_at_once() -> None:
    """One of four queries from each of two groups that are left of three: (3, 4) heads become (2, 3)."""
    net = Net(x=(2, 5, 12))
    q, k, v = _projections(net, 12, 12, 3, 4, True)
    case = net.case(_back(net, net("Attention", q, k, v, q_num_heads=12, kv_num_heads=3), 48, True))
    rows = np.flatnonzero(case.units.rows)
    sizes = np.array([len(case.units.classes([r])) for r in rows])
    one_of_each = [rows[sizes == n][0] for n in np.unique(sizes)]
    dead = np.zeros(case.found.count, bool)
    dead[case.units.classes(one_of_each)] = True
    fused = node(check_removal(case, case.found.close(dead)), "Attention")
    assert (fused.attributes["q_num_heads"].as_int(), fused.attributes["kv_num_heads"].as_int()) == (6, 2)


def test_masks_by_head_lose_the_heads_rows() -> None:
    for computed in (False, True):
        net = Net(x=(2, 5, 12), table=(7, 4))
        q, k, v = _projections(net, 12, 4, 4, 4, True)
        mask = net.weight(4, 5, 5)
        if computed:
            # A table of biases, an entry per distance and head, as Swin has it.
            mask = net("Gather", net.weight(7, 4), net.const(np.arange(25).reshape(5, 5) % 7, np.int64))
            mask = net("Unsqueeze", net("Transpose", mask, perm=[2, 0, 1]), net.ints(0))
        case = net.case(_back(net, net("Attention", q, k, v, mask, q_num_heads=4, kv_num_heads=4), 16, True))
        assert count(case) == (4, 8)
        removals(case)


def test_a_mask_from_outside_keeps_all_heads() -> None:
    net = Net(x=(2, 5, 12), mask=(2, 4, 5, 5))
    q, k, v = _projections(net, 12, 4, 4, 4, True)
    case = net.case(_back(net, net("Attention", q, k, v, "mask", q_num_heads=4, kv_num_heads=4), 16, True))
    assert count(case) == (0, 8)
    removals(case)


def test_masks_without_heads_bind_nothing() -> None:
    net = Net(x=(2, 5, 12), mask=(5, 5))
    q, k, v = _projections(net, 12, 4, 4, 4, True)
    case = net.case(
        _back(net, net("Attention", q, k, v, "mask", q_num_heads=4, kv_num_heads=4, is_causal=1), 16, True)
    )
    assert count(case) == (4, 8)
    removals(case)


def test_caches_from_outside_freeze_heads_and_their_dimensions() -> None:
    net = Net(x=(2, 5, 12), past_k=(2, 4, 3, 4), past_v=(2, 4, 3, 4))
    q, k, v = _projections(net, 12, 4, 4, 4, True)
    y, new_k, new_v = net(
        "Attention", q, k, v, None, "past_k", "past_v", outputs=3, q_num_heads=4, kv_num_heads=4
    )
    case = net.case(_back(net, y, 16, True), new_k, new_v)
    assert count(case) == (0, 0)


def test_caches_that_only_go_out_freeze_what_they_hold() -> None:
    net = Net(x=(2, 5, 12))
    q, k, v = _projections(net, 12, 4, 4, 4, True)
    past = [net.weight(2, 4, 3, 4) for _ in range(2)]
    y, new_k, _ = net("Attention", q, k, v, None, *past, outputs=3, q_num_heads=4, kv_num_heads=4)
    case = net.case(_back(net, y, 16, True), net("Relu", net("MatMul", new_k, net.weight(4, 3))))
    # Heads are in the output; dimensions of keys are contracted before it, those of values aren't returned.
    assert count(case) == (0, 8)
    removals(case)


def test_operands_that_are_no_projections_bind_what_is() -> None:
    net = Net(x=(2, 5, 12), k=(2, 5, 16))
    q, _, v = _projections(net, 12, 4, 4, 4, True)
    case = net.case(_back(net, net("Attention", q, "k", v, q_num_heads=4, kv_num_heads=4), 16, True))
    assert count(case) == (0, 4)
    removals(case)


def test_dimensions_stay_where_neither_operand_becomes_zero() -> None:
    net = Net(x=(2, 5, 12))
    q, k, v = _projections(net, 12, 4, 4, 4, True)
    q, k = net("Sigmoid", q), net("Exp", k)
    case = net.case(_back(net, net("Attention", q, k, v, q_num_heads=4, kv_num_heads=4), 16, True))
    assert count(case) == (4, 4)
    removals(case)


@pytest.mark.parametrize("interleaved", [0, 1])
@pytest.mark.parametrize("flat", [True, False])
def test_rotary_embeddings_lose_pairs_of_all_heads(interleaved: int, flat: bool) -> None:
    net = Net(x=(2, 5, 12))
    q, k, v = _projections(net, 12, 4, 2, 8, flat)
    angles = np.outer(np.arange(9), 0.3 ** np.arange(4)).astype(np.float32)
    at = net.const(np.tile(np.arange(5), (2, 1)), np.int64)
    cos, sin = net.const(np.cos(angles)), net.const(np.sin(angles))
    turned = [
        net("RotaryEmbedding", y, cos, sin, at, interleaved=interleaved, **({"num_heads": n} if flat else {}))
        for y, n in ((q, 4), (k, 2))
    ]
    attrs = {"q_num_heads": 4, "kv_num_heads": 2} if flat else {}
    case = net.case(_back(net, net("Attention", *turned, v, **attrs), 32, flat))
    # 2 heads of keys, and 2 queries of each.
    assert count(case) == (2 + 2, 4 + 8)
    removals(case)


def test_partly_rotated_heads_keep_their_dimensions() -> None:
    net = Net(x=(2, 5, 12))
    q, k, v = _projections(net, 12, 4, 4, 8, False)
    angles = np.outer(np.arange(5), 0.3 ** np.arange(2)).astype(np.float32)
    cos, sin = (net.const(np.tile(f(angles), (2, 1, 1))) for f in (np.cos, np.sin))
    q, k = (net("RotaryEmbedding", y, cos, sin, rotary_embedding_dim=4) for y in (q, k))
    case = net.case(_back(net, net("Attention", q, k, v), 32, False))
    assert count(case) == (4, 8)
    removals(case)
