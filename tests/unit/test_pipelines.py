"""The passes of a level with those that a user adds: a user's rounding takes the place of the level's own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

import edgec
from coremlpack import parse
from edgec.compiler import cli, pipelines
from edgec.compiler.pipelines import ROUNDING, WRITING, Plan
from edgec.compiler.plugins import find_passes
from edgec.compiler.targets import find_target

TARGETS = ("ios15", "ios16", "ios17", "ios18", "ios26", "onnx", "onnxruntime")


def plan(level: str, target: str, *extra: str, passes: str | None = None) -> Plan:
    where = find_target(target)
    kind = pipelines.precision_of(level, where, None)
    return pipelines.plan(level, where, kind, passes, [p for e in extra for p in find_passes(e)])


def names(found: Plan) -> list[str]:
    return [p.name for p in found.steps]


def specs(found: Plan) -> list[str]:
    return [p.spec for p in found.steps]


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("level", ["O2", "O3", "Os"])
@pytest.mark.parametrize("own", ["round-weights{bits=4}", "quantize{bits=4.0}"])
def test_a_users_rounding_stands_where_the_levels_would(level: str, target: str, own: str) -> None:
    found = plan(level, target, own)
    assert [p.spec for p in found.steps if p.name in ROUNDING] == [own]
    at = specs(found).index(own)
    assert "pack-weights" in names(found)[at:]
    assert not WRITING & set(names(found)[:at])
    # Nothing but the level's rounding is missing, and the note says what.
    usual = [p for p in plan(level, target).steps if p.name not in ROUNDING]
    assert [p for p in found.steps if p.name not in ROUNDING] == usual
    displaced = " and ".join(p.spec for p in plan(level, target).steps if p.name in ROUNDING)
    assert found.notes == {at: f"-{level} leaves out its own {displaced}: {own} rounds the weights"}


def test_what_is_not_a_levels_own_stays() -> None:
    listed = plan("O2", "ios18", "round-weights{bits=4}", passes="round-weights,pack-weights")
    assert [s for s in specs(listed) if "weights" in s] == [
        "round-weights", "pack-weights", "round-weights{bits=4}", "unpack-weights"]  # fmt: skip
    assert not listed.notes
    exact = plan("O1", "ios18", "round-weights{bits=4}", "pack-weights")
    assert specs(exact).count("pack-weights") == 1 and not exact.notes
    assert not plan("O2", "ios18", "pack-weights", "mask-channels", "fuse-gelu").notes


def test_the_users_order_stays() -> None:
    given = ("mask-channels", "equalize-channels", "round-weights{bits=4}", "round-weights", "pack-weights")
    found = [s for s in specs(plan("O3", "onnxruntime", *given)) if s in given]
    assert found == list(given)
    # What comes behind packing comes behind the level's, which then still rounds.
    late = plan("O2", "onnx", "pack-weights", "round-weights{bits=4}")
    assert specs(late)[-4:] == ["round-weights", "pack-weights", "pack-weights", "round-weights{bits=4}"]
    assert not late.notes


def test_what_prunes_comes_before_bits_are_measured() -> None:
    found = names(plan("O3", "ios18", "mask-channels", "remove-channels"))
    assert found.index("mask-channels") < found.index("quantize") < found.index("round-weights")


def two_layers() -> ir.Model:
    rng = np.random.default_rng(0)
    weights = {"w0": rng.normal(size=(96, 128)).astype(np.float32), "w1": rng.normal(size=(128, 32)).astype(np.float32)}
    text = "g (float[4,96] x) => (float[4,32] y) { a = MatMul(x, w0) b = Relu(a) y = MatMul(b, w1) }"
    return parse(text, weights)


@pytest.mark.parametrize("target", TARGETS)
def test_the_users_bits_are_stored(target: str, tmp_path: Path) -> None:
    def stored(*extra: str) -> tuple[int, list[str]]:
        with edgec.compile(two_layers(), target=target, extra_passes=extra, latency=False, workdir=tmp_path) as done:
            assert done.report.proof is not None and done.report.proof.ok
            return done.report.after.weight_bytes, [n for p in done.report.passes for n in p.notes]

    usual, _ = stored()
    few, notes = stored("round-weights{bits=4}")
    assert notes[0] == "-O2 leaves out its own round-weights: round-weights{bits=4} rounds the weights"
    if target == "ios15":
        assert few == usual and "ios15 stores no 4-bit weights" in notes[1]
    else:
        assert few < 0.6 * usual
    # The first weight alone, then the rest to the level's eight bits.
    mixed, _ = stored("round-weights{bits=4,min_size=8192}", "round-weights")
    assert few == mixed if target == "ios15" else few < mixed < usual


def test_what_the_guard_takes_back_is_not_rounded_by_the_level(tmp_path: Path) -> None:
    """Four bits keep 15 to 20 dB: over the budget, the weights stay as they were."""
    extra = ["round-weights{bits=4,min_snr=0}"]
    with edgec.compile(two_layers(), target="onnx", extra_passes=extra, min_snr=40.0, workdir=tmp_path) as done:
        record = next(p for p in done.report.passes if p.spec.startswith("round-weights"))
        assert record.status == "undone" and "All of it is taken back" in record.why
        assert done.report.proof is not None and done.report.proof.ok
        assert done.report.after.weight_bytes == done.report.before.weight_bytes


def test_the_pipeline_that_is_printed_says_what_is_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["-O2", "--print-pipeline", "--pass", "round-weights{bits=4}"]) == 0
    printed = capsys.readouterr()
    assert printed.out.split() == specs(plan("O2", "ios", "round-weights{bits=4}"))
    assert printed.err == "edgec: -O2 leaves out its own round-weights: round-weights{bits=4} rounds the weights\n"
