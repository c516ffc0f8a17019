"""Any network, any mask that is closed under coupling: what is left after removal equals what was masked, everywhere."""

from __future__ import annotations

import numpy as np
import passcheck
from channelcheck import Case, check_removal
from channelnets import IMAGE, TOKENS, build
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgec.compiler.channels.feasible import feasible

NETS = st.builds(
    build,
    st.lists(st.sampled_from(sorted({*IMAGE, *TOKENS})), min_size=1, max_size=10),
    st.integers(0, 10_000),
    st.booleans(),
)
SLOW = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)


@SLOW
@given(NETS, st.floats(0.1, 0.9), st.integers(0, 100))
def test_random_units(net, ratio, seed):
    case = Case.of(passcheck.load(net))
    dead = feasible(case.found, case.dead(ratio, seed))
    check_removal(case, dead)


@SLOW
@given(NETS, st.floats(0.1, 0.9), st.integers(0, 100))
def test_random_classes(net, ratio, seed):
    """Whatever classes are named, the part of them that can go does."""
    case = Case.of(passcheck.load(net))
    named = np.random.default_rng(seed).random(case.found.count) < ratio
    dead = feasible(case.found, named)
    assert not (dead & ~named & ~case.found.bare).any()
    check_removal(case, dead)
