"""Operators that move, cut, join and make elements: what is found is removed exactly, what is not known stays."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from rulenet import Net, count, removals


def test_heads_merged_with_a_free_batch() -> None:
    # As torch.nn.MultiheadAttention is exported with a free batch: [L, B, H * D] to [L, B * H, D], and back.
    net = Net(x=(5, "B", 12))
    batch = net("Slice", net("Shape", "x"), net.ints(1), net.ints(2))
    split = net("Concat", net.ints(5), net("Mul", batch, net.ints(4)), net.ints(6), axis=0)

    def heads(order: list[int]):
        return net("Transpose", net("Reshape", net("MatMul", "x", net.weight(12, 24)), split), perm=order)

    q, k, v = heads([1, 0, 2]), heads([1, 2, 0]), heads([1, 0, 2])
    y = net("MatMul", net("Softmax", net("MatMul", q, k), axis=-1), v)
    back = net("Concat", net.ints(5), batch, net.ints(24), axis=0)
    y = net("Reshape", net("Transpose", y, perm=[1, 0, 2]), back)
    case = net.case(net("MatMul", y, net.weight(24, 3)))
    assert count(case) == (4, 12)
    removals(case)


def test_numbers_computed_from_sizes_stay_what_they_were() -> None:
    net = Net(x=(2, "T", 7))
    y = net("MatMul", "x", net.weight(7, 6))
    width = net("Cast", net("Slice", net("Shape", y), net.ints(-1), net.ints(9)), to=1)
    y = net("Div", y, net("Sqrt", width))
    case = net.case(net("MatMul", y, net.weight(6, 3)))
    assert count(case) == (0, 6)
    removals(case)


def test_a_target_that_is_computed_from_a_shape() -> None:
    net = Net(x=(2, "T", 7))
    y = net("MatMul", "x", net.weight(7, 6))
    y = net("Reshape", y, net("Concat", net("Shape", y, start=0, end=2), net.ints(2, -1), axis=0))
    y = net("Reshape", net("Relu", y), net("Concat", net("Shape", y, start=0, end=2), net.ints(-1), axis=0))
    case = net.case(net("MatMul", y, net.weight(6, 3)))
    assert count(case) == (2, 3)
    removals(case)


def test_a_size_that_goes_out_is_that_from_before() -> None:
    net = Net(x=(2, "T", 7))
    y = net("MatMul", "x", net.weight(7, 6))
    shape = net("Shape", y)
    shape.type = ir.TensorType(ir.DataType.INT64)
    case = net.case(net("MatMul", y, net.weight(6, 3)), shape)
    assert count(case) == (0, 6)
    removals(case)


@pytest.mark.parametrize("fill", [None, 0.0, 1.5])
def test_padded_channels(fill: float | None) -> None:
    net = Net(x=(2, 5, 6, 6))
    y = net("Conv", "x", net.weight(8, 5, 1, 1))
    pads = [net.ints(0, 2, 0, 0, 0, 3, 0, 0)] + ([] if fill is None else [net.const(np.float32(fill))])
    case = net.case(net("Conv", net("Pad", y, *pads), net.weight(4, 13, 1, 1)))
    assert count(case) == (0, 8)
    removals(case)


@pytest.mark.parametrize("mode", ["reflect", "edge"])
def test_padding_with_channels_keeps_them(mode: str) -> None:
    net = Net(x=(2, 5, 6, 6))
    y = net("Pad", net("Conv", "x", net.weight(8, 5, 1, 1)), net.ints(0, 2, 0, 0, 0, 3, 0, 0), mode=mode)
    assert count(net.case(net("Conv", y, net.weight(4, 13, 1, 1)))) == (0, 0)


def test_cropped_channels_stay() -> None:
    net = Net(x=(2, 5, 6, 6))
    y = net("Pad", net("Conv", "x", net.weight(8, 5, 1, 1)), net.ints(0, -2, 0, 0, 0, 0, 0, 0))
    assert count(net.case(net("Conv", y, net.weight(4, 6, 1, 1)))) == (0, 0)


@pytest.mark.parametrize("mode", ["DCR", "CRD"])
def test_depth_to_space_loses_blocks(mode: str) -> None:
    net = Net(x=(2, 3, 4, 4))
    y = net("DepthToSpace", net("Conv", "x", net.weight(24, 3, 1, 1)), blocksize=2, mode=mode)
    case = net.case(net("Conv", y, net.weight(4, 6, 1, 1)))
    assert count(case) == (0, 6)
    removals(case)


def test_space_to_depth_repeats_channels() -> None:
    net = Net(x=(2, 3, 4, 4))
    y = net("SpaceToDepth", net("Conv", "x", net.weight(6, 3, 1, 1)), blocksize=2)
    case = net.case(net("Conv", y, net.weight(4, 24, 1, 1)))
    assert count(case) == (0, 6)
    removals(case)


@pytest.mark.parametrize(("start", "end", "step"), [(0, 9, 2), (1, 12, 3), (11, -99, -1), (9, 1, -2), (3, 8, 1)])
def test_slices_with_strides(start: int, end: int, step: int) -> None:
    net = Net(x=(2, 5, 7))
    y = net("MatMul", "x", net.weight(7, 12))
    y = net("Slice", y, net.ints(start), net.ints(end), net.ints(2), net.ints(step))
    taken = len(range(12)[slice(start, end if end > -12 else None, step)])
    case = net.case(net("MatMul", net("Relu", y), net.weight(taken, 3)))
    assert count(case) == (0, 12)
    removals(case)


def test_slices_of_dimensions_within_heads() -> None:
    net = Net(x=(2, 5, 7))
    y = net("Reshape", net("MatMul", "x", net.weight(7, 32)), net.ints(0, 0, 4, 8))
    parts = [net("Slice", y, net.ints(a), net.ints(b), net.ints(3)) for a, b in ((0, 3), (3, 5), (5, 8))]
    turned = net("Concat", net("Neg", parts[2]), parts[1], parts[0], axis=3)
    case = net.case(net("MatMul", net("Reshape", turned, net.ints(0, 0, 32)), net.weight(32, 3)))
    assert count(case)[0] == 4
    removals(case)


@pytest.mark.parametrize("index", [[3, 1, 4, 1], [[0, 2], [4, 5]], [-1, 0]])
def test_gathered_channels(index: list) -> None:
    net = Net(x=(2, 5, 7))
    y = net("Gather", net("MatMul", "x", net.weight(7, 6)), net.const(index, np.int64), axis=2)
    last = np.array(index).shape[-1]
    case = net.case(net("MatMul", net("Relu", y), net.weight(last, 3)))
    assert count(case)[1] >= 2
    removals(case)


def test_one_gathered_channel_stays() -> None:
    net = Net(x=(2, 5, 7))
    y = net("MatMul", "x", net.weight(7, 6))
    case = net.case(net("Gather", y, net.const(2, np.int64), axis=2), net("MatMul", y, net.weight(6, 3)))
    assert count(case) == (0, 5)
    removals(case)


@pytest.mark.parametrize("op", ["GatherElements", "GatherND", "ScatterND", "ScatterElements"])
def test_scattered_and_picked_elements_keep_all(op: str) -> None:
    net = Net(x=(2, 3, 7))
    y = net("MatMul", "x", net.weight(7, 6))
    if op == "GatherElements":
        y = net(op, y, net.const(np.zeros((2, 3, 6)), np.int64), axis=1)
    elif op == "GatherND":
        y = net(op, y, net.const([[0, 1], [1, 2]], np.int64))
    elif op == "ScatterND":
        y = net(op, y, net.const([[0, 1]], np.int64), net.weight(1, 6))
    else:
        y = net(op, y, net.const([[[0] * 6]], np.int64), net.weight(1, 1, 6), axis=1)
    assert count(net.case(net("MatMul", y, net.weight(6, 3)))) == (0, 0)


def test_groups_of_keys_repeated_by_expand() -> None:
    net = Net(x=(2, 5, 7))
    kv = net("Reshape", net("MatMul", "x", net.weight(7, 12)), net.ints(0, 0, 3, 4))
    kv = net("Expand", net("Unsqueeze", kv, net.ints(3)), net.ints(2, 5, 3, 2, 4))
    y = net("Reshape", kv, net.ints(2, 5, 24))
    case = net.case(net("MatMul", net("Relu", y), net.weight(24, 3)))
    assert count(case) == (3, 4)
    removals(case)


def test_tiles_and_computed_fills() -> None:
    net = Net(x=(2, 5, 7))
    y = net("Tile", net("MatMul", "x", net.weight(7, 4)), net.ints(1, 1, 3))
    ones = net("Expand", net.const(np.ones(1, np.float32)), net.ints(2, 5, 12))
    case = net.case(net("MatMul", net("Add", y, ones), net.weight(12, 3)))
    assert count(case) == (0, 4)
    removals(case)


def test_where_has_a_condition_and_two_branches() -> None:
    net = Net(x=(2, 5, 7))
    a, b = (net("MatMul", "x", net.weight(7, 6)) for _ in range(2))
    y = net("Where", net("Greater", a, net.const(np.float32(0))), a, net("Mul", b, net.weight(6)))
    case = net.case(net("MatMul", y, net.weight(6, 3)))
    assert count(case) == (0, 6)
    removals(case)


@pytest.mark.parametrize(("groups", "inner", "out"), [(1, 6, 8), (2, 3, 4), (6, 1, 1), (3, 2, 1)])
def test_transposed_convolutions(groups: int, inner: int, out: int) -> None:
    net = Net(x=(2, 3, 4, 4))
    y = net("Conv", "x", net.weight(6, 3, 1, 1))
    y = net("ConvTranspose", y, net.weight(6, out, 2, 2), net.weight(groups * out), group=groups, strides=[2, 2])
    case = net.case(net("Conv", net("Relu", y), net.weight(4, groups * out, 1, 1)))
    assert sum(count(case)) > 0
    removals(case)


@pytest.mark.parametrize("op", ["GroupNormalization", "InstanceNormalization"])
def test_norms_of_channels(op: str) -> None:
    net = Net(x=(2, 3, 4, 4))
    attrs = {"num_groups": 4} if op == "GroupNormalization" else {}
    y = net(op, net("Conv", "x", net.weight(8, 3, 1, 1)), net.weight(8), net.weight(8), **attrs)
    case = net.case(net("Conv", net("Relu", y), net.weight(4, 8, 1, 1)))
    assert count(case) == ((4, 0) if attrs else (0, 8))
    removals(case)


@pytest.mark.parametrize("axis", [-1, 1])
def test_layer_norms_keep_what_they_normalise(axis: int) -> None:
    net = Net(x=(2, 5, 7))
    y = net("Reshape", net("MatMul", "x", net.weight(7, 24)), net.ints(0, 0, 4, 6))
    y = net("LayerNormalization", y, net.weight(*(6,) if axis == -1 else (5, 4, 6)), axis=axis)
    case = net.case(net("MatMul", net("Reshape", y, net.ints(0, 0, 24)), net.weight(24, 3)))
    assert count(case) == ((4, 0) if axis == -1 else (0, 0))
    removals(case)


def test_resizes_that_name_all_sizes() -> None:
    for attrs, sizes in (({}, [2, 8, 9, 9]), ({"axes": [1, 2, 3]}, [8, 9, 9])):
        net = Net(x=(2, 3, 4, 4))
        y = net("Resize", net("Conv", "x", net.weight(8, 3, 1, 1)), None, None, net.ints(*sizes), **attrs)
        case = net.case(net("Conv", y, net.weight(4, 8, 1, 1)))
        assert count(case) == (0, 8)
        removals(case)


def test_flattened_maps_and_squeezed_axes() -> None:
    net = Net(x=(2, 3, 2, 2))
    y = net("Flatten", net("Relu", net("Conv", "x", net.weight(6, 3, 1, 1))))
    z = net("Squeeze", net("GlobalAveragePool", net("Conv", "x", net.weight(5, 3, 1, 1))), net.ints(2, 3))
    z = net("Squeeze", net("Unsqueeze", z, net.ints(1)), net.ints(1))
    case = net.case(net("Gemm", y, net.weight(24, 4)), net("Gemm", z, net.weight(5, 4)))
    assert count(case) == (0, 11)
    removals(case)


def test_a_tied_embedding_is_one() -> None:
    net = Net(x=(2, 5, 7))
    table = net.weight(9, 6)
    at = net("Cast", net("ReduceMax", net("Abs", "x"), net.ints(-1), keepdims=0), to=7)
    y = net("Gather", table, net("Mod", at, net.const(9, np.int64)))
    case = net.case(net("MatMul", net("Relu", y), net("Transpose", table, perm=[1, 0])))
    assert count(case) == (0, 6)
    removals(case)


def test_graphs_inside_read_what_they_read_and_no_more() -> None:
    net = Net(x=(2, 5, 7))
    seen, passed = (net("Relu", net("MatMul", "x", net.weight(7, 6))) for _ in range(2))
    branches = []
    for k, op in enumerate(("Neg", "Abs")):
        inner = ir.node(op, [seen], name=f"inner{k}")
        inner.outputs[0].name, inner.outputs[0].type = f"inner{k}", ir.TensorType(ir.DataType.FLOAT)
        inner.outputs[0].shape = ir.Shape([2, 5, 6])
        branches.append(ir.Graph([], inner.outputs, nodes=[inner], name=f"branch{k}"))
    flag = net("Greater", net("ReduceSum", "x", keepdims=0), net.const(np.float32(0)))
    y = net("If", flag, then_branch=branches[0], else_branch=branches[1])
    case = net.case(net("MatMul", net("Concat", y, passed, axis=2), net.weight(12, 3)))
    assert count(case) == (0, 6)
    removals(case)


def test_weights_of_convolutions_stored_as_integers() -> None:
    for groups in (1, 6):
        net = Net(x=(2, 3, 4, 4))
        shape = (6, 6 // groups, 3, 3)
        data = net.const(net.rng.integers(1, 99, shape), np.int8)
        weight = net("DequantizeLinear", data, net.const(np.full(6, 0.02, np.float32)), axis=0)
        y = net("Conv", net("Conv", "x", net.weight(6, 3, 1, 1)), weight, net.weight(6), group=groups)
        case = net.case(net("Conv", net("Relu", y), net.weight(4, 6, 1, 1)))
        assert count(case) == (0, 12 if groups == 1 else 6)
        removals(case)


def test_tables_cut_to_a_free_length() -> None:
    net = Net(x=(2, "T", 7))
    y = net("MatMul", "x", net.weight(7, 6))
    table = net("Slice", net.weight(9, 6), net.ints(0), net("Shape", y, start=1, end=2), net.ints(0))
    case = net.case(net("MatMul", net("Mul", y, table), net.weight(6, 3)))
    assert count(case) == (0, 6)
    removals(case)
