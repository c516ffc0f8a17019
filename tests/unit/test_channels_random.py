"""Any network, any mask closed under coupling: what is left after removal equals what was masked, at every value."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from channelcheck import Case, check_removal
from channelnets import IMAGE, TOKENS, build
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import passcheck
from edgec.compiler.channels.feasible import feasible
from edgec.passes.remove_channels import RemoveChannels

STEPS = st.lists(st.sampled_from(sorted({*IMAGE, *TOKENS})), min_size=1, max_size=10)
NETS = st.builds(build, STEPS, st.integers(0, 10_000), st.booleans())
SLOW = settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)


@SLOW
@given(NETS, st.floats(0.1, 0.9), st.integers(0, 100))
def test_random_units(net, ratio, seed):
    case = Case.of(passcheck.load(net))
    dead = feasible(case.found, case.dead(ratio, seed))
    check_removal(case, dead)


@SLOW
@given(NETS, st.floats(0.1, 0.9), st.integers(0, 100))
def test_random_classes(net, ratio, seed):
    """Whatever classes are named, the part of them that can go does, and nothing else but what weighs nothing."""
    case = Case.of(passcheck.load(net))
    named = np.random.default_rng(seed).random(case.found.count) < ratio
    dead = feasible(case.found, named)
    assert not (dead & ~named & ~case.found.bare).any()
    assert (case.found.close(dead) == dead).all()
    check_removal(case, dead)


@SLOW
@given(NETS, st.integers(0, 100))
def test_random_zeros_and_twins(net, seed):
    """Whatever slices of weights are zero or alike: the pass keeps all outputs, and finds no more in its own result."""
    model = passcheck.load(net)
    rng = np.random.default_rng(seed)
    for value in model.graph.initializers.values():
        array = np.array(value.const_value.numpy())
        readers = {(use.node.op_type, use.idx) for use in value.uses()}
        if array.dtype == np.float32 and array.size > 1 and not readers & {("Div", 1), ("BatchNormalization", 4)}:
            axis = int(rng.integers(array.ndim))
            slices = np.moveaxis(array, axis, 0)
            slices[rng.random(len(slices)) < 0.3] = 0 if seed % 2 else slices[:1].copy()
            value.const_value = ir.tensor(array, name=value.name)
    passcheck.check_pass(model, RemoveChannels(), seeds=1)
