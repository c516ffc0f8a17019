"""As many channels as the budget allows are masked, and no more; levels spend what the user allows."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from layercases import build

import edgec
from edgec.compiler import pipelines
from edgec.compiler.guard.task import Task
from edgec.compiler.passbase import Context
from edgec.compiler.plugins import find_pass
from edgec.compiler.targets import find_target
from edgec.compiler.verify import Comparison, compare_outputs
from edgec.passes.mask_within_budget import MaskWithinBudget
from passcheck import context, run

HIDDEN = 128


def network() -> ir.Model:
    """Hidden units of which a few do most of the work."""
    text = "(float[N,32] x) => (float[N,16] y) { a = Gemm(x, w0, b0) b = Relu(a) y = Gemm(b, w1) }"
    rng = np.random.default_rng(1)
    loud = np.exp(-np.arange(HIDDEN) / 12)
    w0, w1 = rng.normal(size=(32, HIDDEN)) / 6, rng.normal(size=(HIDDEN, 16)) * loud[:, None]
    return build(text, w0=w0, w1=w1, b0=rng.normal(size=HIDDEN))


def inputs(seed: int = 0, count: int = 300) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(seed).normal(size=(count, 32)).astype(np.float32)}


def given(model: ir.Model, x: Mapping[str, np.ndarray]) -> Context:
    plain = context("onnx")
    return Context(plain.target, plain.scratch, x, True, runs=[x], original=model.clone())


def masked(model: ir.Model) -> float:
    """The share of hidden units that nothing reads."""
    weight = model.graph.initializers["w1"].const_value
    assert weight is not None
    return float((~weight.numpy().any(1)).mean())


def damage(model: ir.Model, original: ir.Model, x: Mapping[str, np.ndarray]) -> Comparison:
    return compare_outputs(run(original, x), run(model, x))


@pytest.mark.parametrize("snr", [12.0, 25.0, 60.0])
def test_the_budget_is_kept_and_used(snr: float) -> None:
    original, x = network(), inputs()
    model, ctx = original.clone(), given(original, x)
    ctx.min_snr = snr
    MaskWithinBudget(share=1.0).run(model, ctx)
    assert damage(model, original, x).snr_db >= snr
    assert {12.0: masked(model) > 0.7, 25.0: 0.5 < masked(model) < 0.7, 60.0: masked(model) < 0.5}[snr]
    assert any("too little" in n for n in ctx.notes) == (snr > 12)


def test_a_share_leaves_the_rest_of_the_noise_to_others() -> None:
    original, x = network(), inputs()
    ctx = given(original, x)
    model = original.clone()
    MaskWithinBudget(share=0.25).run(model, ctx)
    assert masked(model) > 0
    assert damage(model, original, x).snr_db >= 25 + 6


def test_a_metric_is_a_budget() -> None:
    original, x, other = network(), inputs(), inputs(7, 600)
    labels = run(original, other)["y"].argmax(-1)
    found = {}
    for drop in (0.01, 0.2):
        model, ctx = original.clone(), given(original, x)
        ctx.metric = Task.of(original, "accuracy", {**other, "labels": labels}, drop)
        MaskWithinBudget(share=1.0).run(model, ctx)
        right = (run(model, other)["y"].argmax(-1) == labels).mean()
        assert right >= 1 - drop
        found[drop] = masked(model)
    assert found[0.2] > found[0.01]


def test_without_inputs_nothing_is_masked_and_it_says_so() -> None:
    model, ctx = network(), context("onnx", inputs())
    assert MaskWithinBudget().run(model, ctx) == 0
    assert masked(model) == 0
    assert any("--inputs" in n for n in ctx.notes)


@pytest.mark.parametrize("share", [0.0, 1.5])
def test_shares_that_are_none_are_refused(share: float) -> None:
    with pytest.raises(ValueError, match="share="):
        MaskWithinBudget(share=share)
    assert find_pass("mask-within-budget{share=0.3,of=bytes}") == MaskWithinBudget(0.3, "bytes")


def compiled(level: str, **options: object) -> edgec.compiler.compilation.Compilation:  # type: ignore[name-defined]
    return edgec.compile(network(), level=level, target="onnx", latency=False, **options)  # type: ignore[arg-type]


def test_levels_spend_the_budget_and_keep_it() -> None:
    sizes = {}
    for level in ("O2", "O3", "Os"):
        with compiled(level, inputs=inputs(), min_snr=20.0) as found:
            assert found.proof is not None
            assert found.proof.loss is not None
            assert found.proof.loss.snr_db >= 20
            assert all(p.status != "undone" for p in found.report.passes)
            sizes[level] = found.report.after.weight_bytes
            parameters = found.report.after.parameters
            assert (parameters < found.report.before.parameters) == (level != "O2")
    assert max(sizes["O3"], sizes["Os"]) < 0.6 * sizes["O2"]


def test_without_inputs_and_budget_they_do_what_the_usual_level_does() -> None:
    sizes, said = {}, {}
    for level in ("O2", "O3", "Os"):
        with compiled(level) as found:
            sizes[level] = found.report.after.weight_bytes
            said[level] = [n for p in found.report.passes for n in p.notes if "--inputs" in n]
    assert sizes["O2"] == sizes["O3"] == sizes["Os"]
    assert len(said["O3"]) == len(said["Os"]) == 2
    assert not said["O2"]


def test_every_level_is_made_of_passes_that_there_are() -> None:
    for level in pipelines.LEVELS:
        for target in ("ios15", "ios18", "onnx"):
            where = find_target(target)
            assert pipelines.build(pipelines.pipeline(level, where, "fp16"))


def test_a_compilation_is_resumed(tmp_path: Path) -> None:
    path = tmp_path / "measured"
    made = []
    for _ in range(2):
        with compiled("Os", inputs=inputs(), min_snr=20.0, resume=path) as found:
            (record,) = (p for p in found.report.passes if p.tradeoff is not None)
            made.append((record.tradeoff, found.path.read_bytes()))
    assert made[0] == made[1]
    assert any("measurements of an earlier search" in n for n in record.notes)
