"""`of=time`: the share of the roofline's time that is asked for goes, counted as `edgec analyze --device` counts."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from channelcheck import Case
from channelnets import IMAGE, TOKENS, build
from corpus import exports
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import passcheck
from edgec.compiler import driver, shapes
from edgec.compiler.channels.clock import Clock, device_of
from edgec.compiler.channels.price import Price
from edgec.compiler.channels.shrink import Shrinking
from edgec.compiler.cost.analyze import analyze
from edgec.compiler.cost.devices import device
from edgec.compiler.cost.roofline import roofline
from edgec.compiler.errors import UsageError
from edgec.passes.mask_channels import MaskChannels
from edgec.passes.remove_channels import RemoveChannels

BOTH_ROOFS = ("m4", "snapdragon-x-elite")
PLAIN = "canonicalize,fold-constants,fold-shapes,remove-dead-code"


def seconds(model: ir.Model, name: str, at: dict[str, int] | None = None) -> float:
    found = analyze(model)
    return roofline(found, device(name), {**dict.fromkeys(found.symbols, 1), **(at or {})}).seconds


def exported(name: str, mode: str) -> ir.Model:
    path = exports.export(name, mode, tiny=True)
    with driver.compile(str(path), level="O1", target="onnx", verify="off", passes=PLAIN) as compiled:
        return compiled.model.clone()


STEPS = st.lists(st.sampled_from(sorted({*IMAGE, *TOKENS})), min_size=1, max_size=8)


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(st.builds(build, STEPS, st.integers(0, 10_000), st.booleans()), st.sampled_from(["a15", "m3-pro", "m4"]))
def test_what_is_foretold_is_what_is_left(net, name):
    """From labels alone, on a device with one roof or both: the time of the model that removal then makes."""
    case = Case.of(passcheck.load(net))
    clock = Clock(case.model, device(name))
    assert clock.seconds == pytest.approx(seconds(case.model, name)) == pytest.approx(clock.each.sum())
    dead = case.dead(0.5)
    if case.found.fault(dead) is not None or not clock.seconds:
        return
    left = Price(case.model, case.coupling, clock).left(dead[case.found.of])["time"]
    smaller = case.model.clone()
    of = Case.of(smaller)
    Shrinking(smaller, of.coupling, dead[case.found.of]).run()
    shapes.infer(smaller)
    assert left == pytest.approx(seconds(smaller, name) / clock.seconds, rel=0.02)


@pytest.mark.parametrize("name", BOTH_ROOFS)
@pytest.mark.parametrize("net", ["resnet18", "vit_b_16"])
def test_the_ratio_is_reached(net: str, name: str) -> None:
    model = exported(net, "dynamo")
    before, ctx = seconds(model, name), passcheck.context("onnx")
    MaskChannels(ratio=0.3, of="time", device=name, align=1).run(model, ctx)
    RemoveChannels().run(model, ctx)
    shapes.infer(model)
    assert 1 - seconds(model, name) / before == pytest.approx(0.3, abs=0.03), ctx.notes
    assert any("of time" in n for n in ctx.notes)


def test_free_sizes_are_those_of_the_inputs() -> None:
    """A long sequence takes longer: its length is read off the inputs, not taken for 1."""
    model = exported("gpt", "dynamo_dyn")
    short, long = (Clock(model, device("m4"), {"ids": np.zeros((1, t), np.int64)}) for t in (1, 64))
    assert long.seconds > 1.5 * short.seconds
    assert long.seconds == pytest.approx(seconds(model, "m4", {"B": 1, "T": 64}))


def test_devices() -> None:
    ios, anything = (device_of("", passcheck.context(t).target) for t in ("ios18", "onnx"))
    assert all(d.ops and d.bandwidth for d in (ios, anything)), "of both, both roofs are known"
    with pytest.raises(UsageError, match="abacus"):
        device_of("abacus", passcheck.context("onnx").target)
