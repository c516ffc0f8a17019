"""Rooflines: every figure has a source, and the least time is what the definition says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgec.compiler.cost.analyze import analyze
from edgec.compiler.cost.devices import DEVICES, Device, Source, described, device, rows
from edgec.compiler.cost.roofline import roofline
from edgec.compiler.errors import UsageError
from passcheck import load

HEAD = '<ir_version: 10, opset_import: ["" : 25]>\n'
MODEL = (
    HEAD
    + """g (float[B,64] x) => (float[B,32] y) <float[64,32] w> {
    h = MatMul(x, w) f = Relu(h) y = Reshape(f, s)
}""".replace("w>", "w = {" + ", ".join(["1"] * 2048) + "}, int64[2] s = {-1, 32}>")
)


@pytest.mark.parametrize("found", DEVICES.values(), ids=lambda d: d.name)
def test_no_figure_without_a_source_that_says_it(found: Device) -> None:
    assert found.ops is not None or found.bandwidth is not None
    assert all(s.url.startswith("https://") for s in found.sources)
    said = " ".join(s.says for s in found.sources).replace(",", "")
    for figure, unit in ((found.ops, 1e12), (found.bandwidth, 1e9)):
        assert figure is None or f"{figure / unit:g}" in said, f"{found.name}: no source says {figure / unit:g}"


def test_the_documentation_shows_the_table_as_it_is() -> None:
    text = (Path(__file__).parents[2] / "docs" / "devices.md").read_text()
    assert described() in text


def test_unknown_devices_are_refused_with_a_list() -> None:
    with pytest.raises(UsageError, match=r"'a99'.*a17-pro"):
        device("a99")
    assert json.loads(json.dumps(rows()))[0]["name"] == device("a14").name


def test_each_layer_waits_for_the_longer_of_arithmetic_and_bytes() -> None:
    fast = Device("fast", "", 1e9, 1e6, "", (Source("https://example.com", ""),))
    found = roofline(analyze(load(MODEL)), fast, {"B": 2})
    product, relu, view = found.layers
    assert product.compute == 2 * 2 * 64 * 32 / 1e9
    assert product.memory == 4 * (2 * 64 + 64 * 32 + 2 * 32) / 1e6
    assert (product.seconds, product.bound) == (product.memory, "memory")
    assert product.intensity == pytest.approx(2 * 2 * 64 * 32 / (4 * (2 * 64 + 64 * 32 + 2 * 32)))
    assert (relu.compute, relu.memory, relu.bound) == (0, 4 * 2 * 64 / 1e6, "memory")
    assert (view.seconds, view.bound, view.intensity) == (0, "", None)
    assert found.seconds == product.seconds + relu.seconds
    assert found.floor == 4 * 64 * 32 / 1e6 < found.seconds
    assert (found.compute_bound, found.memory_bound, found.ridge) == (0, 2, 1000)


def test_a_batch_turns_a_product_from_memory_bound_to_compute_bound() -> None:
    analysis = analyze(load(MODEL))
    slow = Device("slow", "", 1e9, 1e8, "", (Source("https://example.com", ""),))
    bounds = [roofline(analysis, slow, {"B": b}).layers[0].bound for b in (1, 10_000)]
    assert bounds == ["memory", "compute"]


def test_without_a_published_bandwidth_there_is_no_memory_roof_and_the_notes_say_so() -> None:
    found = roofline(analyze(load(MODEL)), device("a17-pro"), {"B": 2})
    assert found.layers[0].memory is None and found.layers[0].bound == "compute" and found.memory_bound == 0
    assert found.ridge is None and any("no memory bandwidth" in n for n in found.notes)
    assert any("not stated" in n for n in found.notes)
    only = roofline(analyze(load(MODEL)), device("m5"), {"B": 2})
    assert only.layers[0].compute is None and only.layers[0].bound == "memory"
    assert any("no compute roof" in n for n in only.notes)


def test_a_size_that_is_missing_is_asked_for() -> None:
    with pytest.raises(UsageError, match="--shape B:"):
        roofline(analyze(load(MODEL)), device("m2"))
