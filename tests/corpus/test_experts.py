"""Experts of every kind of mixture are switched off by numbers, and removed exactly, at every value."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from channelcheck import Case, assert_equal, check_removal, everything

import passcheck
from corpus import exports, nets_experts
from edgec.compiler import checks, cost, driver, shapes
from edgec.compiler.channels.feasible import feasible
from edgec.compiler.channels.shrink import zero_classes
from edgec.compiler.synthesis import synthesise
from edgec.passes.add_router_biases import AddRouterBiases
from edgec.passes.mask_experts import MaskExperts
from edgec.passes.remove_channels import RemoveChannels

PLAIN = "canonicalize,fold-constants,fold-shapes,remove-dead-code"
TOKENS = {"inputs": ("ids",), "sizes": (16, 16), "vocabularies": (50, 50)}
KINDS = ("Stacked", "Scattered", "OneHot", "Gathered", "Branches", "Picked", "Chosen")
OF_ALL = nets_experts.EXPERTS


def exported(kind: str, mode: str, folder: Path, passes: str | None = PLAIN, bias: bool = True) -> ir.Model:
    build = getattr(nets_experts, kind)
    net = exports.Net(lambda: build(bias), lambda: build(bias), **TOKENS)
    exports.write(exports.prepare(net.build, net.example(batch=4)), net, mode, folder / "net.onnx")
    options = {"level": "O1", "target": "onnx", "verify": "off", "latency": False, "passes": passes}
    with driver.compile(str(folder / "net.onnx"), **options) as compiled:
        return compiled.model.clone()


def removed(masked: ir.Model) -> ir.Model:
    model = masked.clone()
    RemoveChannels().run(model, passcheck.context("onnx"))
    shapes.infer(model)
    checks.check_structure(model, checks.Interface.of(masked))
    return model


@pytest.mark.parametrize("mode", ["dynamo", "legacy_dyn"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind(kind: str, mode: str, tmp_path: Path) -> None:
    for passes in (PLAIN, None):
        model = exported(kind, mode, tmp_path, passes)
        assert not Case.of(model).coupling.gates, "nothing is switched off yet"
        feeds, ctx = synthesise(model), passcheck.context("onnx")
        masked = model.clone()
        assert MaskExperts(count=2).run(masked, ctx) > 0, ctx.notes
        assert any(n.endswith("2 of 5 experts are masked: " + n.split(": ")[-1]) for n in ctx.notes), ctx.notes
        after = removed(masked)
        # Every value that is as large as before is the same; outputs always are.
        expected, got = everything(masked, feeds), everything(after, feeds)
        for name, array in got.items():
            if name in expected and expected[name].shape == array.shape and array.dtype.kind == "f":
                assert_equal(name, expected[name], array, 1e-4)
        router = next(n for n in after.graph if n.op_type in ("Softmax", "TopK"))
        assert got[router.inputs[0].name].shape[-1] == OF_ALL - 2
        assert cost.parameters(after) < 0.75 * cost.parameters(model)


@pytest.mark.parametrize("kind", ["Stacked", "Scattered", "OneHot", "Gathered"])
def test_what_is_left_at_every_value(kind: str, tmp_path: Path) -> None:
    """Values that became narrower too, cut by their labels."""
    model = exported(kind, "dynamo", tmp_path)
    MaskExperts(count=2).run(model, passcheck.context("onnx"))
    case = Case.of(model)
    dead = feasible(case.found, zero_classes(case.coupling, case.found))
    assert case.coupling.gates and dead.any()
    check_removal(case, dead)


def test_gates_that_are_masked_are_exactly_zero(tmp_path: Path) -> None:
    model = exported("Stacked", "dynamo", tmp_path)
    ctx = passcheck.context("onnx")
    MaskExperts(count=2).run(model, ctx)
    gone = [int(e) for e in ctx.notes[-1].split(": ")[-1].split(", ")]
    values = everything(model, synthesise(model))
    gates = next(values[n.outputs[0].name] for n in model.graph if n.op_type == "Softmax")
    assert (gates[..., gone] == 0).all() and (np.delete(gates, gone, -1) > 0).all()


@pytest.mark.parametrize("kind", ["Scattered", "Chosen"])
def test_no_fewer_than_are_chosen_at_a_time(kind: str, tmp_path: Path) -> None:
    model, ctx = exported(kind, "dynamo", tmp_path), passcheck.context("onnx")
    MaskExperts(count=4).run(model, ctx)
    assert any("no more than 3 can go" in n for n in ctx.notes), ctx.notes
    after = removed(model)
    for name, array in everything(after, feeds := synthesise(model)).items():
        if name in {v.name for v in model.graph.outputs}:
            assert_equal(name, everything(model, feeds)[name], array, 1e-4)


def test_without_a_bias_experts_stay_and_it_is_said(tmp_path: Path) -> None:
    model, ctx = exported("Branches", "dynamo", tmp_path, bias=False), passcheck.context("onnx")
    passcheck.check_pass(model, MaskExperts(count=1), rewrites=0, ctx=ctx)
    assert any("no bias" in n and "add-router-biases" in n for n in ctx.notes)
    biased = passcheck.check_pass(model, AddRouterBiases(), rewrites=1)
    assert MaskExperts(count=1).run(biased, passcheck.context("onnx")) > 0
    assert cost.macs(removed(biased)) < cost.macs(model)


def test_the_one_that_is_used_least_goes(tmp_path: Path) -> None:
    model = exported("Scattered", "dynamo", tmp_path)
    bias = next(v for v in model.graph.initializers.values() if v.shape.numpy() == (OF_ALL,))
    bias.const_value = ir.tensor(np.array([3, 3, -5, 3, 3], np.float32), name=bias.name)
    ctx = passcheck.context("onnx", synthesise(model))
    MaskExperts(count=1, by="gates").run(model, ctx)
    assert any(n.endswith("masked: 2") for n in ctx.notes), ctx.notes
