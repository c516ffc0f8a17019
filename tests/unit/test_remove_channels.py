"""remove-channels: what is zero wherever it is made and read goes, and only that."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from channelcheck import Case
from channelnets import Net, conv, linear

import edgec
import passcheck
from edgec.compiler.channels import masking
from edgec.compiler.pipelines import O2, PREPARE
from edgec.passes.remove_channels import RemoveChannels
from passcheck import check_pass


def two_convs(seed: int = 0) -> Net:
    net = Net(seed)
    conv(net, 8, 3)
    net.node("Relu", [net.last], net.shape)
    conv(net, 6, 3)
    return net


def masked(net: Net, ratio: float, seed: int = 0) -> ir.Model:
    case = Case.of(passcheck.load(net.model()))
    masking.mask(case.model, case.coupling, case.found, case.dead(ratio, seed))
    return case.model


def weights(model: ir.Model, op: str) -> list[tuple[int, ...]]:
    constants = [n.inputs[1].const_value for n in model.graph if n.op_type == op]
    return [tuple(t.shape.numpy()) for t in constants if t is not None]


def test_masked_filters_go():
    model = check_pass(masked(two_convs(), 0.5), RemoveChannels())
    assert weights(model, "Conv") == [(4, 3, 3, 3), (3, 4, 3, 3), (4, 3, 1, 1)]


def test_nothing_zero_nothing_done():
    check_pass(two_convs().model(), RemoveChannels(), rewrites=0)


def with_zeros(net: Net, zeros: dict[int, tuple]) -> ir.Model:
    """The network, with zeros at these positions of the weight of its k-th Conv, MatMul or Gemm."""
    model = passcheck.load(net.model())
    linears = [n for n in model.graph if n.op_type in ("Conv", "MatMul", "Gemm")]
    for k, at in zeros.items():
        value = linears[k].inputs[1]
        array = np.array(value.const_value.numpy())
        array[at] = 0
        value.const_value = ir.tensor(array, name=value.name)
    return model


def chain(*steps: str, kernel: int = 1, bias: bool = True) -> Net:
    """Two convolutions with a bias, and what lies between."""
    net = Net(3)
    own = net.rng.normal(0, 1, (8, 3, 1, 1)).astype(np.float32)
    inputs = ["x", net.constant(own), *([net.constant(np.linspace(0.5, 2, 8, dtype=np.float32))] if bias else [])]
    net.node("Conv", inputs, [2, 8, 4, 4])
    for op in steps:
        if op == "GlobalAveragePool":
            net.node(op, [net.last], [2, 8, 1, 1])
        elif op == "BatchNormalization":
            numbers = [np.linspace(a, a + 1, 8, dtype=np.float32) for a in (0.0, -0.5, 0.1, 0.5)]
            net.node(op, [net.last, *(net.constant(n) for n in numbers)], net.shape)
        elif op in ("Add", "Mul"):
            net.node(op, [net.last, net.constant(np.linspace(1, 2, 8, dtype=np.float32).reshape(8, 1, 1))], net.shape)
        else:
            net.node(op, [net.last], net.shape)
    own = net.constant(net.rng.normal(0, 1, (6, 8, kernel, kernel)).astype(np.float32))
    net.node("Conv", [net.last, own], [2, 6, *net.shape[2:]], pads=[kernel // 2] * 4)
    return net


CONSTANT = (
    [("Relu",)],
    [("Sigmoid",), ("Tanh",)],
    [("HardSwish", "Add"), ("Mul", "LeakyRelu")],
    [("Softplus", "GlobalAveragePool"), ("Exp", "Neg", "Abs"), ("BatchNormalization", "Relu")],
)


@pytest.mark.parametrize("steps", [s for some in CONSTANT for s in some], ids="-".join)
def test_the_bias_of_zero_filters_goes_into_their_readers_bias(steps):
    model = check_pass(with_zeros(chain(*steps), {0: (slice(2, 5),)}), RemoveChannels())
    expected = 4 if steps[0] == "BatchNormalization" else 5  # its first scale is zero, too
    assert weights(model, "Conv")[:2] == [(expected, 3, 1, 1), (6, expected, 1, 1)]


def test_a_constant_that_is_padded_with_zeros_stays():
    model = check_pass(with_zeros(chain("Relu", kernel=3), {0: (slice(2, 5),)}), RemoveChannels(), rewrites=0)
    assert weights(model, "Conv")[0] == (8, 3, 1, 1)


def test_a_constant_of_zero_may_be_padded():
    """Filters of zeros without a bias: their readers' weights needn't be zero."""
    source = with_zeros(chain("Relu", kernel=3, bias=False), {0: (slice(2, 5),)})
    assert weights(check_pass(source, RemoveChannels()), "Conv")[:2] == [(5, 3, 1, 1), (6, 5, 3, 3)]


@pytest.mark.parametrize("step", ["Relu", "Sigmoid", "BatchNormalization", "Add", "Mul"])
def test_what_no_weight_reads_goes(step):
    model = check_pass(with_zeros(chain(step, kernel=3), {1: (slice(None), slice(1, 4))}), RemoveChannels())
    assert weights(model, "Conv")[:2] == [(5, 3, 1, 1), (6, 5, 3, 3)]


def test_what_another_reader_reads_stays():
    net = chain("Relu")
    relu = net.nodes[1].output[0]
    net.node("Conv", [relu, net.constant(net.rng.normal(0, 1, (6, 8, 1, 1)).astype(np.float32))], [2, 6, 4, 4])
    net.node("Add", [net.nodes[2].output[0], net.last], net.shape)
    check_pass(with_zeros(net, {1: (slice(None), slice(1, 4))}), RemoveChannels(), rewrites=0)


@pytest.mark.parametrize("steps", [("Relu",), ("Sigmoid", "GlobalAveragePool")], ids="-".join)
def test_of_equal_filters_one_stays(steps):
    """Filters 1, 4 and 6 are equal, and so are their biases; 2 and 3 differ in the bias alone."""
    model = with_zeros(chain(*steps, kernel=3), {0: (slice(0, 0),)})
    first = next(n for n in model.graph if n.op_type == "Conv")
    filters, bias = (np.array(v.const_value.numpy()) for v in first.inputs[1:3])
    filters[[4, 6]], bias[[4, 6]], filters[3] = filters[1], bias[1], filters[2]
    for value, array in zip(first.inputs[1:3], (filters, bias), strict=True):
        value.const_value = ir.tensor(array, name=value.name)
    assert weights(check_pass(model, RemoveChannels()), "Conv")[:2] == [(6, 3, 1, 1), (6, 6, 3, 3)]


@pytest.mark.parametrize("op", ["MaxPool", "Sigmoid", "Tanh"])
def test_what_is_made_of_equal_channels_is_not_equal_to_them(op):
    """As in YOLO's pyramid, where values lie beside what pooling makes of them."""
    net = Net(5)
    own = net.rng.normal(0, 1, (4, 3, 1, 1)).astype(np.float32)
    own[2] = own[1]
    before = net.node("Conv", ["x", net.constant(own)], [2, 4, 4, 4])
    options = {"kernel_shape": [3, 3], "pads": [1] * 4} if op == "MaxPool" else {}
    net.node(op, [before], net.shape, **options)
    net.node("Concat", [before, net.last], [2, 8, 4, 4], axis=1)
    net.node("Conv", [net.last, net.constant(net.rng.normal(0, 1, (5, 8, 1, 1)).astype(np.float32))], [2, 5, 4, 4])
    assert weights(check_pass(net.model(), RemoveChannels()), "Conv")[:2] == [(3, 3, 1, 1), (5, 6, 1, 1)]


def test_a_hidden_unit_of_tokens():
    """The bias of a MatMul is the Add behind it."""
    net = Net(4, as_tokens=True)
    for k, (rows, columns) in enumerate(((5, 8), (8, 6))):
        net.node("MatMul", [net.last, net.constant(net.rng.normal(0, 1, (rows, columns)).astype(np.float32))],
                 [2, 6, columns])  # fmt: skip
        net.node("Add", [net.constant(np.linspace(1, 2, columns, dtype=np.float32)), net.last], net.shape)
        if not k:
            net.node("Relu", [net.last], net.shape)
    model = check_pass(with_zeros(net, {0: (slice(None), slice(0, 3))}), RemoveChannels())
    assert weights(model, "MatMul")[:2] == [(5, 5), (5, 6)]


def test_rows_of_heads_keep_equally_many():
    """Two zero dimensions of one head and one of the other: one of each goes."""
    net = Net(1, as_tokens=True)
    linear(net, 8)
    case = Case.of(passcheck.load(_attention(net)))
    grid = next(g for g in case.found.ragged if g.shape == (2, 4))
    dead = np.zeros(case.found.count, bool)
    dead[[*grid[0, :2], grid[1, 3]]] = True
    masking.mask(case.model, case.coupling, case.found, dead)
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
        own = net.constant(net.rng.normal(0, 0.3, (8, channels, 1, 1)).astype(np.float32))
        net.node("Conv", [net.last, own, zeros], [2, 8, 4, 4])
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


def test_the_default_level_removes_what_is_provably_dead(tmp_path):
    """Zero filters behind a folded batch norm: -O2 leaves five of eight; and nothing of it is charged as a loss."""
    source = tmp_path / "m.onnx"
    onnx.save(ir.to_proto(with_zeros(chain("Relu"), {0: (slice(2, 5),)})), source)
    with edgec.compile(source, target="onnx", passes=",".join(O2[len(PREPARE) : -2])) as result:
        assert weights(result.model, "Conv")[:2] == [(5, 3, 1, 1), (6, 5, 1, 1)]
        record = next(p for p in result.report.passes if p.spec == "remove-channels")
        assert record.status == "ok" and record.exact is not None
