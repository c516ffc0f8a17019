"""No exact pass changes how many multiply-accumulates a model has, fused or written out."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir
import pytest
from corpus import exports

from edgec.compiler import cost, pipelines, plugins, shapes
from edgec.compiler.cost.analyze import analyze
from edgec.compiler.passbase import Pass
from edgec.frontends.onnx import load
from passcheck import context, ops

NETS = ("resnet18", "mobilenet_v3_small", "densenet121", "convnext_tiny", "vit_b_16", "bert12", "gpt", "gpt_sdpa")


def exact_passes() -> list[Pass]:
    """Every registered pass that promises to keep what a model computes."""
    found = [plugins.find_pass(name) for name in plugins.entries(plugins.PASSES)]
    return [p for p in found if not p.lossy]


def after(model: ir.Model, passes: list[Pass], target: str) -> Iterator[tuple[str, ir.Model]]:
    """The model after each of `passes` in turn that rewrote something."""
    model, ctx = model.clone(), context(target)
    for p in passes:
        if p.run(model, ctx):
            shapes.infer(model)
            yield p.name, model


@pytest.mark.parametrize("mode", ["dynamo", "legacy"])
@pytest.mark.parametrize("net", NETS)
def test_macs_stay_the_same_after_every_exact_pass(net: str, mode: str) -> None:
    model = load(exports.export(net, mode, tiny=True))
    expected, fired = cost.macs(model), set()
    assert expected
    for p in exact_passes():
        for name, rewritten in after(model, [p], "ios18"):
            assert (name, cost.macs(rewritten)) == (name, expected)
            fired.add(name)
    assert len(fired) >= 3


@pytest.mark.parametrize(("target", "opset"), [("ios18", None), ("onnx", 17)])
@pytest.mark.parametrize("net", NETS)
def test_macs_stay_the_same_along_a_pipeline_and_through_legalisation(net: str, target: str, opset: int | None) -> None:
    model = load(exports.export(net, "legacy", tiny=True))
    expected = cost.macs(model)
    fused = 0
    specs = [*pipelines.O1, *([*pipelines.LEGALIZE] if opset is None else [f"legalize{{opset={opset}}}"])]
    for name, rewritten in after(model, pipelines.build(specs), target):
        assert (name, cost.macs(rewritten)) == (name, expected)
        fused = max(fused, ops(rewritten)["Attention"])
    is_transformer = net in ("vit_b_16", "bert12", "gpt", "gpt_sdpa")
    assert (fused > 0) == is_transformer
    if opset is not None:
        assert ops(rewritten)["Attention"] == 0


@pytest.mark.parametrize("net", ["vit_b_16", "bert12", "gpt"])
def test_polynomials_stay_the_same_as_well(net: str) -> None:
    model = load(exports.export(net, "legacy_dyn", tiny=True))
    expected = analyze(model).totals.macs
    assert not isinstance(expected, int)
    *_, (_, last) = after(model, pipelines.build([*pipelines.O1]), "onnx")
    assert ops(last)["Attention"] > 0
    assert analyze(last).totals.macs == expected
