"""The lifter against the values that Apple expects of the Core ML runtime, from coremltools' installed operator tests.

The tests run in a process of their own with the plugin coreml_apple_oracle.py (see there for how to run more of them).
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import edgec.frontends.coreml  # noqa: F401  fills RULES
from edgec.frontends.coreml.call import RULES

TESTS = "coremltools.converters.mil.mil.ops.tests"
KNOWN = {
    "TestResample": "one nearest sample lies exactly between two pixels, where no rounding is documented",
    "TestTopK": "with sort=False the order of the results is not documented",
    "test_ios17_invalid_indices": "indices out of range: undefined in MIL, an error in onnxruntime",
}
"""Tests whose values need not be met, and why."""
ELSEWHERE = {
    "batch_norm", "conv", "conv_transpose", "gru", "instance_norm", "local_response_norm", "lstm", "rnn", "avg_pool",
    "max_pool", "l2_pool", "resize_bilinear",
}
"""Covered by test_coreml_lift_reference.py (coremltools' tests of some need torch)."""


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    log = tmp_path_factory.mktemp("oracle") / "log.jsonl"
    here = Path(__file__).parent
    environment = {
        **os.environ, "EDGEC_ORACLE_LOG": str(log), "EDGEC_ORACLE_SAMPLES": "1", "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, [str(here), str(here.parent), os.environ.get("PYTHONPATH")])),
    }
    command = [
        sys.executable, "-m", "pytest", "-p", "coreml_apple_oracle", "-q", "--tb=no", "-p", "no:cacheprovider",
        "--continue-on-collection-errors", "-k", "not Random and not TestList", "--rootdir", str(log.parent),
        "-c", os.devnull, "--pyargs", *(f"{TESTS}.iOS{version}" for version in (14, 15, 16, 17, 18)),
    ]
    done = subprocess.run(command, env=environment, cwd=log.parent, capture_output=True, text=True, check=False)
    said = f"{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    assert log.exists(), f"nothing was compared:\n{said}"
    # A file of tests that can't be imported is left out by pytest without a failure of ours; torch's are expected.
    assert not re.search(r"^ERROR ", done.stdout, re.M), f"coremltools' tests could not be collected:\n{said}"
    return [json.loads(line) for line in log.read_text().splitlines()]


def test_every_lifted_model_gives_the_values_apple_expects(records: list[dict[str, Any]]) -> None:
    failures = [
        f"{r['test']}: {r['wrong']}" for r in records
        if r["result"] in ("wrong", "error") and not any(name in r["test"] for name in KNOWN)
    ]
    assert not failures, "\n".join(failures)
    right = [r for r in records if r["result"] == "right"]
    assert len(right) >= 200, f"only {len(right)} comparisons were made"


def test_only_what_is_said_to_be_unsupported_is(records: list[dict[str, Any]]) -> None:
    """What can't be lifted is refused with a reason; these are the only operators and uses that are."""
    reasons = (
        "MIL does not say how many samples a box has", "the shape of 'x' must be fixed", "'shape' must be a constant",
        "local_response_norm", "classify",
    )
    refused = [r["wrong"] for r in records if r["result"] == "unsupported"]
    unexplained = [wrong for wrong in refused if not any(reason in wrong for reason in reasons)]
    assert not unexplained, "\n".join(unexplained)


def test_every_rule_is_checked_by_some_reference(records: list[dict[str, Any]]) -> None:
    """Operators without a value inference appear in a comparison here or in test_coreml_lift_reference.py."""
    from coremltools.converters.mil.mil import Operation
    from coremltools.converters.mil.mil.ops.registry import SSAOpRegistry

    inferred = {
        kind for kind, versions in SSAOpRegistry.core_ops.items() for c in versions.values()
        if c.value_inference is not Operation.value_inference or hasattr(c, "materialized_val_inference")
    }
    compared = {kind for r in records if r["result"] == "right" for kind in r["operators"]}
    missing = sorted(set(RULES) - (inferred - {"cond"}) - compared - ELSEWHERE)
    assert not missing, f"no independent reference for {missing}"
