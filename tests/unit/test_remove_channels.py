"""remove-channels: what is zero wherever it is made and read goes, and only that."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import passcheck
import pytest
from channelcheck import Case
from channelnets import Net, conv, linear
from passcheck import check_pass

from edgec.compiler.channels import shrink
from edgec.passes.remove_channels import RemoveChannels


def two_convs(seed: int = 0) -> Net:
    net = Net(seed)
    conv(net, 8, 3)
    net.node("Relu", [net.last], net.shape)
    conv(net, 6, 3)
    return net


def masked(net: Net, ratio: float, seed: int = 0) -> ir.Model:
    case = Case.of(passcheck.load(net.model()))
    shrink.mask(case.model, case.coupling, case.found, case.dead(ratio, seed))
    return case.model


def weights(model: ir.Model, op: str) -> list[tuple[int, ...]]:
    constants = [n.inputs[1].const_value for n in model.graph if n.op_type == op]
    return [tuple(t.shape.numpy()) for t in constants if t is not None]


def test_masked_filters_go():
    model = check_pass(masked(two_convs(), 0.5), RemoveChannels())
    assert weights(model, "Conv") == [(4, 3, 3, 3), (3, 4, 3, 3), (4, 3, 1, 1)]


def test_nothing_zero_nothing_done():
    check_pass(two_convs().model(), RemoveChannels(), rewrites=0)


@pytest.mark.parametrize("where", ["filters", "readers"])
def test_a_filter_alone_or_its_readers_alone_are_not_a_dead_channel_with_a_bias(where):
    """Zero filters still give their bias; unread channels are a matter of the exact masking before."""
    net = Net(3)
    net.node("Conv", ["x", net.weight(8, 3, 1, 1), net.weight(8)], [2, 8, 4, 4])
    net.node("Conv", [net.last, net.weight(6, 8, 3, 3)], [2, 6, 4, 4], pads=[1] * 4)
    model = passcheck.load(net.model())
    value = [n for n in model.graph if n.op_type == "Conv"][where == "readers"].inputs[1]
    array = np.array(value.const_value.numpy())
    array[(slice(None), 2) if where == "readers" else 2] = 0
    value.const_value = ir.tensor(array, name=value.name)
    case = Case.of(model)
    assert shrink.zero_classes(case.coupling, case.found).sum() == 0


def test_rows_of_heads_keep_equally_many():
    """Two zero dimensions of one head and one of the other: one of each goes."""
    net = Net(1, as_tokens=True)
    linear(net, 8)
    case = Case.of(passcheck.load(_attention(net)))
    grid = next(g for g in case.found.ragged if g.shape == (2, 4))
    dead = np.zeros(case.found.count, bool)
    dead[[*grid[0, :2], grid[1, 3]]] = True
    shrink.mask(case.model, case.coupling, case.found, dead)
    after = check_pass(case.model, RemoveChannels())
    lengths = {n for s in weights(after, "MatMul") + weights(after, "Gemm") for n in s}
    assert 6 in lengths and 7 not in lengths


def _attention(net: Net):
    from channelnets import attention

    net.rng = np.random.default_rng(7)
    net.pick = lambda *options: options[-1] if options == (2, 4) else options[0]  # two heads of four
    attention(net)
    return net.model()


def test_a_bias_that_layers_share_by_accident():
    """One constant of zeros for all: it shrinks for those that shrink, and only for them."""
    net = Net(5)
    zeros = net.constant(np.zeros(8, np.float32))
    for channels in (3, 8, 8):
        net.node("Conv", [net.last, net.weight(8, channels, 1, 1), zeros], [2, 8, 4, 4])
        net.node("Relu", [net.last], net.shape)
    model = passcheck.load(net.model())
    first = next(n for n in model.graph if n.op_type == "Conv")
    second = [n for n in model.graph if n.op_type == "Conv"][1]
    for node, at in ((first, (slice(2, 5),)), (second, (slice(None), slice(2, 5)))):
        array = np.array(node.inputs[1].const_value.numpy())
        array[at] = 0
        node.inputs[1].const_value = ir.tensor(array, name=node.inputs[1].name)
    model = check_pass(model, RemoveChannels())
    assert weights(model, "Conv")[:3] == [(5, 3, 1, 1), (8, 5, 1, 1), (8, 8, 1, 1)]
    assert [n.inputs[2].shape[0] for n in model.graph if n.op_type == "Conv" and len(n.inputs) > 2][:3] == [5, 8, 8]


def test_an_axis_is_never_emptied():
    net = two_convs()
    model = passcheck.load(net.model())
    for n in model.graph:
        for v in n.inputs[1:]:
            v.const_value = ir.tensor(np.zeros(v.shape.numpy(), np.float32), name=v.name)
    model = check_pass(model, RemoveChannels())
    assert weights(model, "Conv") == [(1, 3, 3, 3), (1, 1, 3, 3), (4, 1, 1, 1)]
