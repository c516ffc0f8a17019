"""Mixtures of experts among random layers: whatever experts are switched off, removal keeps what is left."""

from __future__ import annotations

import numpy as np
from channelcheck import Case, check_removal
from channelgraph import TOKENS, Net
from channelnets import linear
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import passcheck
from edgec.compiler.channels.feasible import feasible
from edgec.compiler.channels.shrink import zero_classes
from edgec.passes.mask_experts import MaskExperts
from edgec.passes.remove_channels import RemoveChannels


def mixture(net: Net, experts: int, chosen: int, how: str) -> None:
    """Stacked experts behind dense gates, or behind the largest of them: scattered among zeros, or as rows of ones."""
    x, (n, t, c) = net.last, net.shape
    hidden = net.pick(3, 5)
    logits = net.node("MatMul", [x, net.weight(c, experts)], [n, t, experts])
    logits = net.node("Add", [logits, net.weight(experts, scale=0.5)], [n, t, experts])
    if how == "logits":
        gates = logits
    else:
        gates = net.node("Softmax", [logits], [n, t, experts], axis=-1)
    if how != "dense":
        gates = _largest(net, gates, experts, chosen, how)
    up, down = net.weight(experts, c, hidden), net.weight(experts, hidden, c)
    h = net.node("Einsum", [x, up], [n, t, experts, hidden], equation="btd,edh->bteh")
    if net.pick(0, 1):
        h = net.node("Add", [h, net.weight(experts, hidden)], [n, t, experts, hidden])
    h = net.node(str(net.rng.choice(["Relu", "Gelu", "Sigmoid"])), [h], [n, t, experts, hidden])
    y = net.node("Einsum", [h, down], [n, t, experts, c], equation="bteh,ehd->bted")
    y = net.node("Einsum", [gates, y], [n, t, c], equation="bte,bted->btd")
    net.node("Add", [x, y], [n, t, c])


def _largest(net: Net, gates: str, experts: int, chosen: int, how: str) -> str:
    n, t, _ = net.shapes[gates]
    small = [n, t, chosen]
    net.node("TopK", [gates, net.constant([chosen])], small, 2, axis=-1)
    found, at = net.last, net.last[:-1] + "1"
    net.shapes[at] = tuple(small)
    if how == "scattered":
        zeros = net.constant(np.zeros((n, t, experts), np.float32))
        return net.node("ScatterElements", [zeros, at, found], [n, t, experts], axis=-1)
    if how == "logits":
        found = net.node("Softmax", [found], small, axis=-1)
    wide = net.node("OneHot", [at, net.constant(np.array(experts)), net.constant(np.array([0, 1], np.float32))],
                    [n, t, chosen, experts])  # fmt: skip
    found = net.node("Unsqueeze", [found, net.constant([3])], [n, t, chosen, 1])
    wide = net.node("Mul", [wide, found], [n, t, chosen, experts])
    return net.node("ReduceSum", [wide, net.constant([2])], [n, t, experts], keepdims=0)


STEPS = st.lists(st.sampled_from(sorted(set(TOKENS) - {"to_image"})), max_size=3)


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(
    STEPS, STEPS, st.integers(2, 5), st.integers(1, 4), st.sampled_from(["dense", "scattered", "one_hot", "logits"]),
    st.integers(0, 10_000),
)  # fmt: skip
def test_experts_of_any_network(before, after, experts, gone, how, seed):
    net = Net(seed, True)
    linear(net)
    for name in before:
        TOKENS[name](net)
    mixture(net, experts, min(2, experts - 1), how)
    for name in after:
        if len(net.shape) == 3:
            TOKENS[name](net)
    model = passcheck.load(net.model())
    ctx = passcheck.context("onnx")
    assert not Case.of(model).coupling.gates, "nothing is switched off yet"
    assert MaskExperts(count=gone).run(model, ctx) > 0 or experts == 1, ctx.notes
    case = Case.of(model)
    dead = feasible(case.found, zero_classes(case.coupling, case.found))
    check_removal(case, dead)
    least = 1 if how == "dense" else min(2, experts - 1)
    left = passcheck.check_pass(model, RemoveChannels(), seeds=1, rtol=1e-4)
    router = next(n for n in left.graph if n.op_type in ("Softmax", "TopK") and n.outputs[0].name in _gates(case))
    assert router.inputs[0].shape[-1] == max(experts - gone, least), ctx.notes


def _gates(case: Case) -> set[str]:
    return {str(v.name) for v in case.coupling.gates}


def test_experts_are_parts_that_can_be_taken_back_one_by_one():
    net = Net(3, True)
    linear(net)
    mixture(net, 5, 2, "scattered")
    model, ctx = passcheck.load(net.model()), passcheck.context("onnx")
    whole = model.clone()
    wanted = MaskExperts(count=3)
    wanted.run(whole, ctx)
    notes = len(ctx.notes)
    parts = wanted.parts(model, ctx)
    assert parts is not None and parts.what == "experts" and len(parts.units) == 3 and len(ctx.notes) == notes
    assert all(unit.size > 0 for unit in parts.units)
    names = [unit.names[0] for unit in parts.units]

    def tensors(m):
        return {k: v.const_value.numpy() for k, v in m.graph.initializers.items()}

    made = tensors(parts.make(names, ctx.scratch))
    assert all(np.array_equal(array, made[name]) for name, array in tensors(whole).items())
    none = tensors(parts.make([], ctx.scratch))
    assert all(np.array_equal(array, none[name]) for name, array in tensors(model).items())
    for name in names:
        left = parts.make([name], ctx.scratch)
        RemoveChannels().run(left, ctx)
        gate = next(n for n in left.graph if n.op_type == "Softmax")
        assert gate.inputs[0].shape[-1] == 4
