"""Whole residual branches: found by structure, masked by numbers, left out exactly, whatever network they are in."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from channelcheck import assert_equal, everything
from channelnets import IMAGE, TOKENS, build
from corpus import exports, nets_blocks
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import passcheck
from edgec.compiler import checks, cost, driver, shapes
from edgec.compiler.blocks.find import residual_blocks
from edgec.compiler.blocks.scores import Skipping, by_similarity, by_weights
from edgec.compiler.blocks.silence import Loud, silence, silencing
from edgec.compiler.cost.analyze import analyze
from edgec.compiler.cost.devices import device
from edgec.compiler.cost.roofline import roofline
from edgec.compiler.errors import UsageError
from edgec.compiler.plugins import find_pass
from edgec.compiler.session import Session
from edgec.compiler.synthesis import synthesise
from edgec.passes.mask_blocks import MaskBlocks
from edgec.passes.remove_channels import RemoveChannels

PLAIN = "canonicalize,fold-constants,fold-shapes,remove-dead-code"


def loaded(path: Path, passes: str | None = PLAIN) -> ir.Model:
    with driver.compile(str(path), level="O1", target="onnx", verify="off", passes=passes) as compiled:
        return compiled.model.clone()


def tiny(name: str, mode: str = "dynamo", passes: str | None = PLAIN) -> ir.Model:
    return loaded(exports.export(name, mode, tiny=True), passes)


def without(masked: ir.Model, feeds: dict[str, np.ndarray], rtol: float = 1e-5) -> ir.Model:
    """What is left after removal; all values that it has are those of the masked model."""
    removed = masked.clone()
    interface, ctx = checks.Interface.of(masked), passcheck.context("onnx")
    assert RemoveChannels().run(removed, ctx) > 0
    shapes.infer(removed)
    checks.check_structure(removed, interface)
    expected, got = everything(masked, feeds), everything(removed, feeds)
    compared = 0
    for name, array in got.items():
        if name in expected and expected[name].shape == array.shape:
            assert_equal(name, expected[name], array, rtol)
            compared += 1
    assert compared
    return removed


# --- any network -----------------------------------------------------------------------------------------------------

STEPS = st.lists(st.sampled_from(sorted({*IMAGE, *TOKENS})), max_size=5)
BLOCKS = st.sampled_from(["residual_block", "gated", "attention", "packed_attention"])
MIXED = st.lists(st.tuples(STEPS, BLOCKS), min_size=1, max_size=4)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(MIXED, st.integers(0, 10_000), st.booleans())
def test_any_blocks_of_any_network(steps, seed, as_tokens):
    """Masked, a branch is zero all over, the model computes what it does with the block switched off, and removal
    keeps every value that is left."""
    model = passcheck.load(build([name for some, block in steps for name in (*some, block)], seed, as_tokens))
    rng, chosen, uses = np.random.default_rng(seed), [], []
    for block in residual_blocks(model):
        try:
            numbers = silencing(block)
        except Loud:
            continue
        if rng.random() < 0.6:
            chosen.append(block)
            uses += numbers
    if not chosen:
        return
    feeds = synthesise(model)
    switched = Skipping(model, chosen, [feeds])
    branches, sums = [b.branch.name for b in chosen], [b.add.outputs[0].name for b in chosen]
    assert silence(uses) > 0
    after = everything(model, feeds)
    for name in branches:
        assert (after[name] == 0).all(), f"{name} is not zero"
    for name, array in switched.outputs(range(len(chosen)))[0].items():
        assert_equal(name, array, after[name], 1e-5)
    removed = without(model, feeds, 1e-4)
    left = {v.name for n in removed.graph for v in n.outputs}
    outputs = {v.name for v in removed.graph.outputs}
    assert not left & set(branches), "a branch is still there"
    assert not (left & set(sums)) - outputs, "a sum is still there"


# --- what is a block, and what isn't ---------------------------------------------------------------------------------

EVERY = [
    ("resnet18", 3, 0), ("resnet50", 3, 0), ("mobilenet_v3_small", 2, 0), ("densenet121", 0, 0),
    ("convnext_tiny", 3, 0), ("vit_b_16", 4, 0), ("bert12", 4, 0), ("gpt", 4, 0), ("gpt_sdpa", 4, 0),
]  # fmt: skip


@pytest.mark.parametrize("mode", ["dynamo", "legacy", "dynamo_dyn", "legacy_dyn"])
@pytest.mark.parametrize(("name", "blocks", "loud"), EVERY)
def test_exports(name: str, mode: str, blocks: int, loud: int) -> None:
    """The same blocks whatever the exporter, plain and fused; any of them can go."""
    for passes in (PLAIN, None):
        model = tiny(name, mode, passes)
        found = residual_blocks(model)
        assert len(found) == blocks
        if not found:
            continue
        feeds, before = synthesise(model), model.graph.num_nodes()
        for by in ("weights", "similarity", "output") if passes else ("weights",):
            masked, ctx = model.clone(), passcheck.context("onnx", feeds)
            assert MaskBlocks(count=2, by=by).run(masked, ctx) > 0, ctx.notes
            assert not any("stays" in n for n in ctx.notes), ctx.notes
            removed = without(masked, feeds)
            assert len(residual_blocks(removed)) == blocks - 2
            assert removed.graph.num_nodes() <= before - 6


@pytest.mark.parametrize("mode", ["dynamo", "legacy_dyn"])
@pytest.mark.parametrize(("build", "options", "blocks"), [
    (nets_blocks.Swin, {"sizes": (32, 32)}, 6),
    (nets_blocks.Llama, {"inputs": ("ids",), "sizes": (16, 16), "vocabularies": (50, 50)}, 4),
    (nets_blocks.Detector, {"sizes": (32, 32)}, 1),
], ids=["swin", "llama", "detector"])  # fmt: skip
def test_networks_that_are_hard(build, options, blocks, mode, tmp_path: Path) -> None:
    net = exports.Net(build, build, **options)
    exports.write(exports.prepare(net.build, net.example(batch=4)), net, mode, tmp_path / "net.onnx")
    model = loaded(tmp_path / "net.onnx")
    assert len(residual_blocks(model)) == blocks
    feeds = synthesise(model)
    MaskBlocks(count=1).run(model, passcheck.context("onnx"))
    without(model, feeds)


HEAD = '<ir_version: 10, opset_import: ["" : 25]> g (float[N,4] x) => (float[N,4] y)'


def net(body: str, head: str = HEAD) -> ir.Model:
    """A model with random weights, as far as it names them."""
    proto = onnx.parser.parse_model(f"{head} {{ {body} }}")
    rng = np.random.default_rng(0)
    for name, shape in (("w", (4, 4)), ("v", (4, 4)), ("b", (1, 4))):
        if f"{name})" in body or f"({name}," in body:
            proto.graph.initializer.append(onnx.numpy_helper.from_array(rng.normal(size=shape).astype("f"), name))
    return passcheck.load(proto)


@pytest.mark.parametrize("body", [
    "h = MatMul(x, w) g = Relu(h) f = MatMul(g, v) y = Add(x, f)",
    "h = MatMul(x, w) y = Add(h, x)",
    "h = MatMul(x, w) s = Sigmoid(h) f = Mul(s, h) y = Sum(f, x)",
    "h = MatMul(x, w) g = MatMul(x, v) f = Add(h, g) y = Add(x, f)",
    "h = MatMul(x, w) a = Add(x, h) g = MatMul(x, v) y = Add(a, g)",
    "s = MatMul(x, v) h = MatMul(x, w) g = Relu(h) f = MatMul(g, w) y = Add(s, f)",
], ids=["mlp", "swapped", "gated", "two_branches", "parallel", "projected"])  # fmt: skip
def test_what_is_a_block(body: str) -> None:
    model = net(body)
    found = residual_blocks(model)
    assert found and found[-1].add.outputs[0].name == "y"
    MaskBlocks(count=1, keep="" if len(found) == 1 else "a").run(model, passcheck.context("onnx"))
    without(model, {"x": np.random.default_rng(1).normal(size=(3, 4)).astype("f")})


@pytest.mark.parametrize("body", [
    "t = Tanh(x) y = Add(x, t)",
    "h = MatMul(x, w) g = MatMul(x, v) y = Add(h, g)",
    "h = MatMul(x, w) r = Relu(h) y = Add(b, r)",
    "s = Shape(x) c = ConstantOfShape(s) h = MatMul(c, w) y = Add(x, h)",
    "t = ReduceMean <keepdims = 1> (x) h = MatMul(x, w) y = Add(t, h)",
    "h = MatMul(x, w) z = Add(x, h) q = Tanh(h) y = Mul(z, q)",
], ids=["no_weights", "two_ways", "bias", "only_its_size", "spread_out", "read_elsewhere"])  # fmt: skip
def test_what_is_none(body: str) -> None:
    model, ctx = net(body), passcheck.context("onnx")
    assert residual_blocks(model) == []
    passcheck.check_pass(model, MaskBlocks(), rewrites=0, ctx=ctx, input_shapes={"x": [3, 4]})
    assert ctx.notes == ["no residual blocks that could be masked were found"]


def test_a_branch_that_numbers_cannot_silence() -> None:
    model, ctx = net("h = MatMul(x, w) f = Sigmoid(h) y = Add(x, f)"), passcheck.context("onnx")
    assert MaskBlocks(count=1).run(model, ctx) == 0
    assert any("Sigmoid" in n and "stays" in n for n in ctx.notes)


def test_weights_with_other_readers_are_left_to_them() -> None:
    """As in ALBERT, where all layers share their weights."""
    model = net("h = MatMul(x, w) g = Relu(h) a = MatMul(g, v) z = Add(x, a) "
                "k = MatMul(z, w) l = Relu(k) b2 = MatMul(l, v) y = Add(z, b2)")  # fmt: skip
    before = model.graph.initializers["v"].const_value.numpy().copy()
    assert MaskBlocks(count=1, keep="z").run(model, passcheck.context("onnx")) == 1
    np.testing.assert_array_equal(model.graph.initializers["v"].const_value.numpy(), before)
    removed = without(model, {"x": np.random.default_rng(1).normal(size=(3, 4)).astype("f")})
    assert passcheck.ops(removed)["MatMul"] == 2


def test_packed_weights_become_their_zero_point() -> None:
    proto = onnx.parser.parse_model(HEAD + """ <float[4,4] w = {1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16},
        uint8[4,4] q = {1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16}, float s = {0.1}, uint8 p = {7}> {
        h = MatMul(x, w)  v = DequantizeLinear(q, s, p)  f = MatMul(h, v)  y = Add(x, f) }""")  # fmt: skip
    model = passcheck.load(proto)
    assert MaskBlocks(count=1).run(model, passcheck.context("onnx")) == 1
    assert (model.graph.initializers["q"].const_value.numpy() == 7).all()
    assert passcheck.ops(without(model, {"x": np.ones((2, 4), "f")}))["Add"] == 0


# --- removal alone ---------------------------------------------------------------------------------------------------


def zeroed(model: ir.Model, *names: str) -> ir.Model:
    for name in names:
        value = model.graph.initializers[name]
        value.const_value = ir.tensor(np.zeros_like(value.const_value.numpy()), name=name)
    return model


def test_a_sum_that_is_wider_than_what_is_left_stays() -> None:
    """x is spread out over the rows of what is zero."""
    head = '<ir_version: 10, opset_import: ["" : 25]> g (float[1,4] x, float[3,4] z) => (float[3,4] y)'
    model = zeroed(net("h = MatMul(z, w) y = Add(x, h)", head), "w")
    assert passcheck.ops(passcheck.check_pass(model, RemoveChannels()))["Add"] == 1


def test_an_input_that_goes_out_as_it_came() -> None:
    model = zeroed(net("h = MatMul(x, w) y = Add(x, h)"), "w")
    after = passcheck.check_pass(model, RemoveChannels(), rewrites=1, input_shapes={"x": [3, 4]})
    assert passcheck.ops(after) == {"Identity": 1} and not after.graph.initializers


def test_what_is_taken_from_zero_stays() -> None:
    model = zeroed(net("h = MatMul(x, w) y = Sub(h, x)"), "w")
    assert passcheck.ops(passcheck.check_pass(model, RemoveChannels(), input_shapes={"x": [3, 4]}))["Sub"] == 1


# --- choosing --------------------------------------------------------------------------------------------------------


def weak(model: ir.Model, name: str, factor: float) -> None:
    value = model.graph.initializers[name]
    value.const_value = ir.tensor(value.const_value.numpy() * np.float32(factor), name=name)


@pytest.mark.parametrize("by", ["weights", "similarity", "output"])
@pytest.mark.parametrize("least", range(4))
def test_what_does_least_goes_first(by: str, least: int) -> None:
    """In a transformer one of four branches writes a thousandth of what the others do."""
    model = tiny("gpt")
    blocks = residual_blocks(model)
    for use in silencing(blocks[least]):
        weak(model, use.node.inputs[use.index].name, 1e-3)
    ctx = passcheck.context("onnx", synthesise(model))
    MaskBlocks(count=1, by=by).run(model, ctx)
    assert any(n.endswith(f": {blocks[least].name}") for n in ctx.notes), ctx.notes


def test_scores() -> None:
    """x + 0 does nothing, x + x doubles but does not turn, x - x leaves nothing."""
    model = net("h = MatMul(x, w) y = Add(x, h)")
    feeds = [{"x": np.random.default_rng(k).normal(size=(5, 4)).astype("f")} for k in range(2)]
    blocks, turn = residual_blocks(model), {}
    for factor in (0, 1, -0.5, -2):
        value = model.graph.initializers["w"]
        value.const_value = ir.tensor(np.eye(4, dtype=np.float32) * factor, name="w")
        turn[factor] = by_similarity(model, blocks, feeds)[0]
        assert by_weights(model, blocks)[0] == pytest.approx(factor**2)
        lost = Skipping(model, blocks, feeds).error([0])
        assert lost == pytest.approx((factor / (1 + factor)) ** 2, abs=1e-6)
    assert turn == pytest.approx({0: 0, 1: 0, -0.5: 0, -2: 2}, abs=1e-6)


def test_blocks_are_chosen_together() -> None:
    """Two branches that undo each other: each alone matters much, both together not at all."""
    model = net("h = MatMul(x, w) z = Add(x, h) k = MatMul(z, v) u = Add(z, k) l = MatMul(u, b3) y = Add(u, l)"
                .replace("b3", "w"))  # fmt: skip
    value = model.graph.initializers["w"]
    value.const_value = ir.tensor(np.eye(4, dtype=np.float32) * 0.5, name="w")
    model.graph.initializers["v"].const_value = ir.tensor(np.eye(4, dtype=np.float32) * -0.6, name="v")
    blocks = residual_blocks(model)
    feeds = [{"x": np.ones((2, 4), "f")}]
    model_of = Skipping(model, blocks, feeds)
    assert model_of.error([0]) > 0.1 and model_of.error([1]) > 0.1
    assert model_of.error([0, 1]) == pytest.approx((1 - 1.5 / (1.5 * 0.4 * 1.5)) ** 2, rel=1e-4)


@pytest.mark.parametrize("of", ["macs", "parameters", "bytes", "time"])
def test_the_share_that_is_said_is_what_goes(of: str) -> None:
    model = loaded(exports.export("resnet50", "dynamo", tiny=True))

    def size(m: ir.Model) -> float:
        seconds = roofline(analyze(m), device("m4")).seconds
        return {"macs": cost.macs(m), "parameters": cost.parameters(m), "bytes": cost.weight_bytes(m),
                "time": seconds}[of]  # fmt: skip

    before, ctx = size(model), passcheck.context("onnx")
    MaskBlocks(ratio=0.3, of=of, device="m4" if of == "time" else "").run(model, ctx)
    said = next(n for n in ctx.notes if "blocks are masked" in n)
    RemoveChannels().run(model, ctx)
    shapes.infer(model)
    share = float(said.split("masked, ")[1].split("%")[0]) / 100
    assert share > 0 and 1 - size(model) / before == pytest.approx(share, abs=0.02), said


def test_kept_blocks_stay() -> None:
    model, ctx = tiny("vit_b_16"), passcheck.context("onnx")
    names = [b.name for b in residual_blocks(model)]
    MaskBlocks(count=9, keep=f"{names[0]};{names[2]};no.such.sum").run(model, ctx)
    said = next(n for n in ctx.notes if "blocks are masked" in n)
    assert said.startswith("2 of 2") and names[1] in said and names[3] in said
    assert any("no.such.sum" in n for n in ctx.notes)


@pytest.mark.parametrize("options", ["ratio=1", "count=-1", "of=channels", "by=guess", "kept=x"])
def test_wrong_options_are_named(options: str) -> None:
    with pytest.raises(UsageError, match=options.split("=")[0]):
        find_pass(f"mask-blocks{{{options}}}")


@pytest.mark.parametrize("by", ["similarity", "output"])
def test_what_needs_inputs_says_so(by: str) -> None:
    with pytest.raises(UsageError, match="--inputs"):
        MaskBlocks(by=by).run(tiny("resnet18"), passcheck.context("onnx"))


@pytest.mark.parametrize("target", ["onnx", "ios"])
def test_as_passes_of_a_compilation(target: str) -> None:
    path = exports.export("vit_b_16", "legacy", tiny=True)
    specs = ("mask-blocks{count=2,by=output}", "remove-channels")
    with driver.compile(str(path), level="O0", target=target, extra_passes=specs) as compiled:
        assert compiled.proof is not None and all(p.status != "undone" for p in compiled.report.passes)
        assert len(residual_blocks(compiled.model)) == 2


def test_outputs_in_between_are_seen() -> None:
    """A session of its own sees the stream before and after a block that has no other reader."""
    model = tiny("resnet18")
    found = by_similarity(model, residual_blocks(model), [synthesise(model)])
    assert ((found > 0) & (found < 2)).all()
    assert len(Session(model).outputs) == len(model.graph.outputs)
