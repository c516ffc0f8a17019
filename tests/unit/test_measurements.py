"""Measurements outlive the process that made them, and count only for what they were made of."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from layercases import chain

from edgec.compiler.errors import UsageError
from edgec.passes.measurements import Measurements, key


def test_what_was_kept_is_there_again(tmp_path: Path) -> None:
    path = tmp_path / "found"
    first = Measurements(path, "k")
    first.put("weight", "ä/b", widths={3: [1, 2.5]}, noise=math.inf)
    first.put("plan", "3-4", snr=20.0)
    again = Measurements(path, "k")
    assert len(again) == 2
    assert not again.stale
    found = again.get("weight", "ä/b")
    assert found is not None
    assert (found["widths"], found["noise"]) == ({"3": [1, 2.5]}, math.inf)
    assert again.get("plan", "4-3") is None


def test_a_line_that_was_cut_off_is_dropped_and_the_rest_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "found"
    first = Measurements(path, "k")
    first.put("a", noise=1.0)
    first.put("b", noise=2.0)
    path.write_text(path.read_text()[:-9])
    second = Measurements(path, "k")
    assert second.get("a") is not None
    assert second.get("b") is None
    second.put("b", noise=3.0)
    third = Measurements(path, "k").get("b")
    assert third is not None
    assert third["noise"] == 3.0


def test_what_was_measured_of_something_else_does_not_count(tmp_path: Path) -> None:
    path = tmp_path / "found"
    Measurements(path, "k").put("a", noise=1.0)
    other = Measurements(path, "another")
    assert other.stale
    assert other.get("a") is None


@pytest.mark.parametrize("content", [b"a model", b"{}\n", b"[1]\n", b"\xff\xfe"])
def test_a_file_of_something_else_is_left_alone(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(UsageError, match="no file of edgec's measurements"):
        Measurements(path, "k")
    assert path.read_bytes() == content


def test_a_folder_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="can't write the measurements"):
        Measurements(tmp_path / "none" / "found", "k")


def model(factor: float = 1.0) -> ir.Model:
    """Two layers, the last weight times `factor`."""
    made = chain(2, 64)
    weight = made.graph.initializers["w1"]
    assert weight.const_value is not None
    weight.const_value = ir.Tensor(weight.const_value.numpy() * np.float32(factor), name="w1")
    return made


def test_the_key_tells_models_inputs_and_options_apart() -> None:
    x, y = ({"h0": np.full((2, 64), v, np.float32)} for v in (1, 2))
    keys = {
        key(model(), [x], "a"),
        key(model(1.001), [x], "a"),
        key(model(), [y], "a"),
        key(model(), [x, x], "a"),
        key(model(), [x], "b"),
    }
    assert len(keys) == 5
    assert key(model(), [x], "a") in keys
