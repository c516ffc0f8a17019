"""Any network, any options: only numbers change, nothing that stays is touched, and what was masked can be removed."""

from __future__ import annotations

import numpy as np
from channelnets import IMAGE, TOKENS, build
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import passcheck
from edgec.compiler import checks
from edgec.compiler.channels.width import WIDTHS
from edgec.compiler.session import Session
from edgec.compiler.synthesis import synthesise
from edgec.passes.mask_channels import BY, GRAINS, OF, MaskChannels
from edgec.passes.remove_channels import RemoveChannels

STEPS = st.lists(st.sampled_from(sorted({*IMAGE, *TOKENS})), min_size=1, max_size=10)
NETS = st.builds(build, STEPS, st.integers(0, 10_000), st.booleans())
OPTIONS = st.fixed_dictionaries({
    "ratio": st.floats(0.05, 0.9), "of": st.sampled_from(OF), "by": st.sampled_from(BY), "align": st.integers(1, 8),
    "grain": st.sampled_from(GRAINS), "spread": st.sampled_from(["local", "global"]), "most": st.floats(0.1, 1.0),
    "compensate": st.booleans(), "width": st.sampled_from(WIDTHS),
})  # fmt: skip
SLOW = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)


@SLOW
@given(NETS, OPTIONS)
def test_any_network_any_options(net, options):
    model = passcheck.load(net)
    feeds = synthesise(model)
    interface = checks.Interface.of(model)
    nodes = [(n.name, n.op_type, [o.name for o in n.outputs]) for n in model.graph]
    before = {v.name: np.array(v.const_value.numpy()) for v in model.graph.initializers.values()}
    count = MaskChannels(**options).run(model, passcheck.context("onnx", feeds))
    checks.check_structure(model, interface)
    assert [(n.name, n.op_type, [o.name for o in n.outputs]) for n in model.graph] == nodes
    after = {v.name: v.const_value.numpy() for v in model.graph.initializers.values()}
    same = all(np.array_equal(after[name], array) for name, array in before.items() if name in after)
    assert same or count > 0, "it counted nothing and changed something"
    if not options["compensate"] and options["width"] == "none":
        for name, array in before.items():
            if name in after:
                assert ((after[name] == array) | (after[name] == 0)).all(), f"{name}: other numbers than zeros"
    wanted = Session(model).run(feeds)
    assert all(np.isfinite(a).all() for a in wanted.values())
    passcheck.check_pass(model, RemoveChannels(), seeds=1, rtol=1e-4)
