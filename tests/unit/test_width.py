"""Residual streams get narrower: what is left after removal equals what was masked, and is normalised as it should."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir
import pytest
from channelcheck import Case, check_removal
from channelnets import IMAGE, TOKENS, build
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rulenet import Net, count, removals

import passcheck
from edgec.compiler.channels.feasible import feasible
from edgec.compiler.channels.means import Mean
from edgec.compiler.channels.width import coupled
from edgec.compiler.errors import UsageError
from edgec.passes.mask_channels import MaskChannels
from edgec.passes.remove_channels import RemoveChannels

Norm = Callable[[Net, ir.Value], ir.Value]
SIZE, TOKENS_IN = 16, 6
SLOW = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)


def layer_norm(net: Net, x: ir.Value) -> ir.Value:
    return net("LayerNormalization", x, net.weight(SIZE, scale=1), net.weight(SIZE), axis=-1, epsilon=1e-2)


def rms_norm(net: Net, x: ir.Value) -> ir.Value:
    return net("RMSNormalization", x, net.weight(SIZE, scale=1), axis=-1, epsilon=1e-2)


def written_rms(net: Net, x: ir.Value) -> ir.Value:
    """As Llama writes it."""
    mean = net("ReduceMean", net("Pow", x, net.const(2.0, np.float32)), net.ints(-1), keepdims=1)
    root = net("Sqrt", net("Add", mean, net.const(1e-2, np.float32)))
    return net("Mul", net("Mul", x, net("Reciprocal", root)), net.weight(SIZE, scale=1))


def divided_rms(net: Net, x: ir.Value) -> ir.Value:
    mean = net("ReduceMean", net("Mul", x, x), net.ints(2), keepdims=1)
    root = net("Pow", net("Add", net.const(1e-2, np.float32), mean), net.const(0.5, np.float32))
    return net("Mul", net.weight(1, SIZE, scale=1), net("Div", x, root))


def written_layer_norm(net: Net, x: ir.Value) -> ir.Value:
    centred = net("Sub", x, net("ReduceMean", x, net.ints(-1), keepdims=1))
    variance = net("ReduceMean", net("Pow", centred, net.const(2.0, np.float32)), net.ints(-1), keepdims=1)
    scaled = net("Div", centred, net("Sqrt", net("Add", variance, net.const(1e-2, np.float32))))
    return net("Add", net("Mul", scaled, net.weight(SIZE, scale=1)), net.weight(SIZE))


def linear(net: Net, x: ir.Value | str, wide: int, out: int) -> ir.Value:
    return net("Add", net("MatMul", x, net.weight(wide, out)), net.weight(out))


def branch(net: Net, norm: Norm, x: ir.Value, hidden: int = 24) -> ir.Value:
    return linear(net, net("Gelu", linear(net, norm(net, x), SIZE, hidden)), hidden, SIZE)


def pre_norm(norm: Norm, blocks: int = 2) -> tuple[Net, ir.Value]:
    """Embedded, some blocks, normalised, read."""
    net = Net(x=("B", TOKENS_IN, 5))
    x = net("Add", linear(net, "x", 5, SIZE), net.weight(TOKENS_IN, SIZE))
    for _ in range(blocks):
        x = net("Add", x, branch(net, norm, x))
    return net, linear(net, norm(net, x), SIZE, 3)


def ops(model: ir.Model, *names: str) -> list[ir.Node]:
    return [n for n in model.graph if n.op_type in names]


@pytest.mark.parametrize("norm", [layer_norm, rms_norm, written_rms, divided_rms, written_layer_norm])
def test_the_stream_before_norms(norm: Norm) -> None:
    net, y = pre_norm(norm)
    case = net.case(y, width="exact")
    assert count(case) == (0, 2 * 24 + SIZE)
    assert not any(s.padded for s in case.coupling.streams)
    smaller = removals(case, rtol=1e-5)
    assert not ops(smaller, "Pad", "Slice")
    assert len(ops(smaller, "MatMul")) == len(ops(case.model, "MatMul"))
    assert count(Case.of(case.model, "none")) == (0, 2 * 24)


def test_what_is_left_is_the_norm_of_a_narrower_network() -> None:
    """Numbers and eps of the normalisation are those from before; the weights that stay are untouched."""
    net, y = pre_norm(layer_norm)
    model = net.model(y)
    before = {v.name: v.const_value.numpy() for v in model.graph.initializers.values()}
    assert MaskChannels(ratio=0.5, of="channels", align=1).run(model, passcheck.context("onnx")) > 0
    passcheck.check_pass(model, RemoveChannels(), seeds=2, rtol=1e-5)
    removed = model.clone()
    assert RemoveChannels().run(removed, passcheck.context("onnx")) > 0
    for node in ops(removed, "LayerNormalization"):
        assert node.attributes["epsilon"].as_float() == pytest.approx(1e-2, rel=1e-6)
        for v in node.inputs[1:]:
            left = v.const_value.numpy()
            assert left.shape == (SIZE // 2,)
            assert np.isclose(left[:, None], before[v.name], rtol=1e-5).any(1).all()
    masked = {v.name: v.const_value.numpy() for v in model.graph.initializers.values()}
    for name, array in before.items():
        if array.ndim == 2 and name in masked:
            kept = masked[name] == array
            assert kept.sum() >= array.size / 4, f"{name}: what stays changed"


def test_tied_embeddings_write_and_are_read() -> None:
    net = Net(ids=("B", TOKENS_IN))
    net.inputs["ids"].type = ir.TensorType(ir.DataType.INT64)
    table, places = net.weight(20, SIZE), net.weight(TOKENS_IN, SIZE)
    x = net("Add", net("Gather", table, "ids"), places)
    x = net("Add", x, branch(net, layer_norm, x))
    logits = net("MatMul", layer_norm(net, x), net("Transpose", table, perm=[1, 0]))
    case = Case.of(net.model(logits), "exact")
    assert count(case) == (0, 24 + SIZE)
    assert len(case.coupling.streams[0].leaves) == 4
    feeds = {"ids": np.random.default_rng(0).integers(0, 20, (2, TOKENS_IN))}
    check_removal(case, case.dead(0.5), feeds, rtol=1e-5)


@pytest.mark.parametrize("reader", ["MatMul", "Gemm"])
def test_a_table_that_reads_the_bare_stream_is_not_filled(reader: str) -> None:
    """Its slices would be means, and what it multiplies them by isn't zero."""
    net = Net(x=(4, 5))
    weight = net.weight(5, SIZE)
    x = net("MatMul", "x", weight)
    y = net("MatMul", layer_norm(net, x), net.weight(SIZE, 3))
    flip = {"transB": 1} if reader == "Gemm" else {}
    z = net(reader, x, weight if reader == "Gemm" else net("Transpose", weight, perm=[1, 0]), **flip)
    case = net.case(net("Concat", y, z, axis=1), width="exact")
    assert not any(s.leaves for s in case.coupling.streams)
    removals(case)
    padded = Case.of(case.model, "padded")
    assert count(padded) == (0, SIZE)
    removals(padded)


def test_patches_a_class_token_and_a_scale_per_channel() -> None:
    """ViT, with what LayerScale adds: the scale of what goes can be anything but zero."""
    net = Net(x=("B", 3, 8, 8))
    x = net("Conv", "x", net.weight(SIZE, 3, 4, 4), net.weight(SIZE), strides=[4, 4])
    x = net("Transpose", net("Reshape", x, net.ints(0, SIZE, 4)), perm=[0, 2, 1])
    shape = net("Concat", net("Shape", "x", start=0, end=1), net.ints(1, SIZE), axis=0)
    x = net("Concat", net("Expand", net.weight(1, 1, SIZE), shape), x, axis=1)
    x = net("Add", x, net.weight(1, 5, SIZE))
    for _ in range(2):
        x = net("Add", x, net("Mul", branch(net, layer_norm, x), net.weight(SIZE, scale=0.1)))
    first = net("Gather", layer_norm(net, x), net.const(0, np.int64), axis=1)
    case = net.case(net("Gemm", first, net.weight(SIZE, 3), net.weight(3)), width="exact")
    assert count(case) == (0, 2 * 24 + SIZE)
    scales = [leaf for leaf in case.coupling.streams[0].leaves if leaf.scales]
    assert len(scales) == 4
    removals(case, rtol=1e-5)


def post_norm() -> tuple[Net, ir.Value]:
    net = Net(x=("B", TOKENS_IN, 5))
    x = layer_norm(net, linear(net, "x", 5, SIZE))
    for _ in range(2):
        hidden = net("Gelu", linear(net, x, SIZE, 24))
        x = layer_norm(net, net("Add", x, linear(net, hidden, 24, SIZE)))
    return net, linear(net, x, SIZE, 3)


def test_after_norms_only_when_asked_for() -> None:
    net, y = post_norm()
    model = net.model(y)
    exact = Case.of(model, "exact")
    assert count(exact) == (0, 2 * 24)
    assert any("LayerNormalization" in why for why in exact.coupling.closed)
    padded = Case.of(model, "padded")
    assert count(padded) == (0, 2 * 24 + SIZE)
    smaller = removals(padded, rtol=1e-5)
    assert len(ops(smaller, "Pad")) == len(ops(smaller, "Slice")) == len(ops(smaller, "LayerNormalization")) == 3
    assert {n.inputs[0].shape[-1] for n in ops(smaller, "MatMul")} >= {SIZE // 2}


def test_removing_from_what_is_padded_already_ends() -> None:
    net, y = post_norm()
    model, ctx = net.model(y), passcheck.context("onnx")
    MaskChannels(ratio=0.5, of="channels", align=1, width="padded").run(model, ctx)
    assert RemoveChannels().run(model, ctx) > 0
    assert any("go on counting 16 channels, 8 of them zeros" in n for n in ctx.notes)
    left = len(list(model.graph))
    assert RemoveChannels().run(model, ctx) == 0
    assert len(list(model.graph)) == left


def test_a_norm_of_joined_tokens() -> None:
    """Swin's patch merging: its mean is over four tokens, that of each differs."""
    net = Net(x=("B", 8, 5))
    x = linear(net, "x", 5, SIZE)
    x = net("Add", x, branch(net, layer_norm, x))
    parts = [net("Slice", x, net.ints(k), net.ints(8), net.ints(1), net.ints(2)) for k in range(2)]
    joined = net("Concat", *parts, axis=2)
    normed = net("LayerNormalization", joined, net.weight(2 * SIZE), net.weight(2 * SIZE), axis=-1)
    y = net("MatMul", normed, net.weight(2 * SIZE, 3))
    model = net.model(y)
    assert count(Case.of(model, "exact")) == (0, 24)
    case = Case.of(model, "padded")
    assert count(case) == (0, 24 + SIZE)
    removals(case, rtol=1e-5)


def test_depthwise_convolution_before_the_norm() -> None:
    """ConvNeXt."""
    net = Net(x=("B", 3, 8, 8))
    x = net("Conv", "x", net.weight(SIZE, 3, 2, 2), net.weight(SIZE), strides=[2, 2])
    y = net("Conv", x, net.weight(SIZE, 1, 3, 3), net.weight(SIZE), pads=[1, 1, 1, 1], group=SIZE)
    y = branch(net, layer_norm, net("Transpose", y, perm=[0, 2, 3, 1]))
    y = net("Transpose", net("Mul", y, net.weight(SIZE)), perm=[0, 3, 1, 2])
    y = net("Conv", net("Add", x, y), net.weight(4, SIZE, 2, 2), strides=[2, 2])
    model = net.model(y)
    assert count(Case.of(model, "exact")) == (0, 24)
    case = Case.of(model, "padded")
    assert count(case) == (0, 24 + SIZE)
    removals(case, rtol=1e-5)


def test_other_writers_and_readers_are_refused() -> None:
    def refused(net: Net, y: ir.Value) -> bool:
        case = net.case(y, width="exact")
        removals(case)
        return not case.coupling.streams

    net = Net(x=("B", TOKENS_IN, 5))
    x = net("Relu", linear(net, "x", 5, SIZE))
    assert refused(net, linear(net, layer_norm(net, x), SIZE, 3)), "a mean doesn't pass a Relu"
    net = Net(x=("B", TOKENS_IN, SIZE))
    x = net("Add", "x", linear(net, "x", SIZE, SIZE))
    assert refused(net, linear(net, layer_norm(net, x), SIZE, 3)), "an input keeps its channels"
    net = Net(x=("B", TOKENS_IN, 5))
    x = linear(net, "x", 5, SIZE)
    y = net("MatMul", layer_norm(net, x), net.weight(SIZE, 3))
    assert refused(net, net("Concat", y, net("Softmax", x, axis=-1), axis=-1)), "a softmax looks at all channels"
    net = Net(x=("B", TOKENS_IN, 5))
    x = linear(net, "x", 5, SIZE)
    y = net("Add", rms_norm(net, x), layer_norm(net, x))
    assert refused(net, linear(net, y, SIZE, 3)), "zeros for one, means for the other"


def test_a_norm_of_which_more_is_read_stays() -> None:
    net = Net(x=("B", TOKENS_IN, 5))
    x = linear(net, "x", 5, SIZE)
    y, mean = net("LayerNormalization", x, net.weight(SIZE), net.weight(SIZE), outputs=2, axis=-1)
    case = net.case(net("Add", linear(net, y, SIZE, 3), mean), width="padded")
    assert len(case.units) == 0


def test_zeros_that_are_no_means_are_padded() -> None:
    """Masked by somebody else, who only zeroed: the norm still counts them."""
    net, y = pre_norm(layer_norm)
    model = net.model(y)
    case = Case.of(model, "padded")
    gone = case.dead(0.5)[case.found.of]
    for value, holds in case.coupling.holds.items():
        array = np.array(value.const_value.numpy())
        for h in holds:
            np.moveaxis(array, h.grid.axes[0], 0)[gone[h.grid.ids]] = 0
        value.const_value = ir.tensor(array, name=value.name)
    smaller = passcheck.check_pass(model, RemoveChannels(), seeds=2, rtol=1e-5)
    assert len(ops(smaller, "Pad")) == len(ops(smaller, "LayerNormalization")) == 3


def test_means_that_were_rounded_stay() -> None:
    """No zeros and no means: nothing that is certain can go."""
    net, y = pre_norm(layer_norm)
    model = net.model(y)
    MaskChannels(ratio=0.5, of="channels", align=1).run(model, passcheck.context("onnx"))
    writer = next(n for n in ops(model, "MatMul")).inputs[1]
    writer.const_value = ir.tensor(np.round(writer.const_value.numpy(), 2), name=writer.name)
    smaller = passcheck.check_pass(model, RemoveChannels(), seeds=2, rtol=1e-5)
    assert {n.inputs[1].shape[0] for n in ops(smaller, "LayerNormalization")} == {SIZE}


def test_in_steps_what_went_first_stays_gone() -> None:
    """The second mask starts from what the first left, and what it fills is the mean of what is left then."""
    net, y = pre_norm(layer_norm)
    model, ctx = net.model(y), passcheck.context("onnx")
    scales = [n.inputs[1] for n in ops(model, "LayerNormalization")]
    gone = [np.zeros(SIZE, bool)]
    for ratio in (0.25, 0.5):
        MaskChannels(ratio=ratio, of="channels", align=1).run(model, ctx)
        gone.append(scales[0].const_value.numpy() == 0)
        assert all(np.array_equal(s.const_value.numpy() == 0, gone[-1]) for s in scales)
        assert gone[-1].sum() == SIZE * ratio
        assert (gone[-1] >= gone[-2]).all()
    before = ops(model, "LayerNormalization")[0].attributes["epsilon"].as_float()
    assert before == pytest.approx(0.5e-2, rel=1e-6), "eps is that of half as many squares, whatever the steps"
    smaller = passcheck.check_pass(model, RemoveChannels(), seeds=2, rtol=1e-5)
    assert {n.inputs[1].shape[0] for n in ops(smaller, "LayerNormalization")} == {SIZE // 2}


def test_the_oracle_sees_a_mask_without_means(monkeypatch: pytest.MonkeyPatch) -> None:
    net, y = pre_norm(layer_norm)
    case = net.case(y, width="exact")
    monkeypatch.setattr(Mean, "write", lambda *_: None)
    with pytest.raises(AssertionError, match="differs by"):
        check_removal(case, case.dead(0.5))


def test_an_unknown_width() -> None:
    net, y = pre_norm(layer_norm)
    with pytest.raises(UsageError, match="choose one of none, exact, padded"):
        coupled(net.model(y), "lossy")


STEPS: Sequence[str] = sorted({*IMAGE, *TOKENS})
OFTEN = st.sampled_from(["norm", "gated", "linear", "residual"])
NETS = st.builds(
    build, st.lists(OFTEN | st.sampled_from(STEPS), min_size=3, max_size=12), st.integers(0, 10_000), st.just(True)
)


@SLOW
@given(NETS, st.floats(0.1, 0.9), st.integers(0, 100), st.sampled_from(["exact", "padded"]))
def test_random_networks(net, ratio, seed, width):
    case = Case.of(passcheck.load(net), width)
    check_removal(case, feasible(case.found, case.dead(ratio, seed)), rtol=1e-3)


@SLOW
@given(NETS, st.floats(0.1, 0.8), st.sampled_from(["exact", "padded"]), st.booleans())
def test_random_networks_masked_and_removed(net, ratio, width, twice):
    """By the passes, that find from the numbers alone what was masked."""
    model = passcheck.load(net)
    for part in (ratio / 2, ratio) if twice else (ratio,):
        MaskChannels(ratio=part, of="channels", align=1, width=width).run(model, passcheck.context("onnx"))
    passcheck.check_pass(model, RemoveChannels(), seeds=1, rtol=1e-3)


def post_norm_encoder(pooled: bool) -> tuple[Net, ir.Value]:
    """An encoder whose output is the stream itself, or its mean over tokens, of length 1 (sentence embeddings)."""
    net = Net(x=("B", TOKENS_IN, 5))
    x = layer_norm(net, linear(net, "x", 5, SIZE))
    for _ in range(2):
        hidden = net("Gelu", linear(net, x, SIZE, 24))
        x = layer_norm(net, net("Add", x, linear(net, hidden, 24, SIZE)))
    if not pooled:
        return net, net("Identity", x)
    mean = net("ReduceMean", x, net.ints(1), keepdims=0)
    length = net("ReduceL2", mean, net.ints(1), keepdims=1)
    least = net("Clip", length, net.const(1e-6, np.float32))
    return net, net("Div", mean, net("Expand", least, net("Shape", mean)))


@pytest.mark.parametrize("pooled", [False, True])
def test_an_output_that_is_the_stream_gets_its_zeros_back(pooled: bool) -> None:
    net, y = post_norm_encoder(pooled)
    model = net.model(y)
    assert count(Case.of(model, "exact")) == (0, 2 * 24)
    case = Case.of(model, "padded")
    assert count(case) == (0, 2 * 24 + SIZE)
    smaller = removals(case)
    assert smaller.graph.outputs[0].name == model.graph.outputs[0].name
    last = smaller.graph.outputs[0].producer()
    assert last is not None and last.op_type == "Gather"
    for ratio in (0.25, 0.5):  # a second time, what is left
        assert MaskChannels(ratio=ratio, of="channels", align=1, width="padded").run(model, passcheck.context("onnx"))
        model = passcheck.check_pass(model, RemoveChannels(), seeds=2, rtol=1e-5)
    wide = [n.inputs[0].producer().inputs[0].shape[-1] for n in ops(model, "Gather")]
    assert len(wide) == 2 and min(wide) < SIZE / 2


def test_an_output_that_is_no_stream_keeps_its_channels() -> None:
    """Nor does one that is not zero there."""
    net, _ = post_norm_encoder(pooled=False)
    plain = Net(x=("B", TOKENS_IN, 5))
    assert count(Case.of(plain.model(linear(plain, "x", 5, SIZE)), "padded")) == (0, 0)
    net, y = post_norm_encoder(pooled=False)
    assert count(Case.of(net.model(net("Add", y, net.const(1.0, np.float32))), "padded")) == (0, 2 * 24)
    net, y = post_norm_encoder(pooled=False)
    notes = coupled(net.model(y), "exact").closed
    assert len(notes) == 1 and "its channels are those of output" in notes[0]


def test_a_weight_that_also_makes_what_has_to_be_zero() -> None:
    """Written with the mean of what stays, its other product would not be: such a stream isn't filled."""
    net = Net(x=("B", TOKENS_IN, 5))
    shared = net.weight(5, SIZE)
    stream = linear(net, layer_norm(net, net("MatMul", "x", shared)), SIZE, 3)
    other = net("MatMul", net("Sin", "x"), shared)
    scores = net("MatMul", other, net("Transpose", other, perm=[0, 2, 1]))
    model = net.model(stream, scores)
    assert count(Case.of(model, "exact")) == (0, 0)
    assert any("looks at what goes" in why for why in coupled(model, "exact").closed)
    case = Case.of(model, "padded")
    assert count(case) == (0, SIZE)
    removals(case)
