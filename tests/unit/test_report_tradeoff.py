"""The plot of bytes over noise, and the line in the terminal: they show the figures that they are given."""

from __future__ import annotations

import re
from dataclasses import replace
from xml.etree import ElementTree

import pytest
from reports import full, tradeoff

from edgec.compiler import report
from edgec.compiler.report_tradeoff import line, ticks, to_html, to_json
from edgec.compiler.tradeoff import Choice, Point, Tradeoff


def page(found: Tradeoff) -> ElementTree.Element:
    (html,) = to_html({"passes": [{"spec": "quantize", "tradeoff": to_json(found)}, {"spec": "x", "tradeoff": None}]})
    return ElementTree.fromstring(html)


def circles(found: Tradeoff) -> dict[str, tuple[float, float]]:
    """Where each point lies, by its name."""
    places = {}
    for c in page(found).iter("circle"):
        (hint,) = (t.text or "" for t in c.iter("title"))
        places[hint.partition(":")[0]] = (float(c.attrib["cx"]), float(c.attrib["cy"]))
    return places


def test_points_lie_where_their_figures_are() -> None:
    same = tuple(Point(100 * b, 10**-b, 10 ** (-0.1 * 6 * b), b) for b in (2, 4, 8))
    at = circles(replace(tradeoff(), uniform=same, chosen=Point(400, 1e-4, 10**-2.8)))
    assert set(at) == {"2 bits", "4 bits", "8 bits", "chosen"}
    assert at["chosen"][0] == at["4 bits"][0]
    assert at["chosen"][1] < at["4 bits"][1]
    step = (at["4 bits"][0] - at["2 bits"][0]) / 2, (at["4 bits"][1] - at["2 bits"][1]) / 2
    assert at["8 bits"] == pytest.approx((at["4 bits"][0] + 4 * step[0], at["4 bits"][1] + 4 * step[1]), abs=0.3)
    # 28 dB where 24 and 48 are: four of the six decibels of a bit.
    assert at["chosen"][1] == pytest.approx(at["4 bits"][1] + 4 / 6 * step[1], abs=0.3)


def test_what_breaks_the_outputs_or_was_not_measured_is_in_the_table_only() -> None:
    found = tradeoff()
    assert set(circles(found)) == {"4 bits", "chosen"}
    names = [row[0].text for row in page(found).iter("tr") if row[0].tag == "td"]
    assert names[:4] == ["2 bits everywhere", "4 bits everywhere", "8 bits everywhere", "chosen"]


def test_the_frontier_stays_inside_of_the_plot() -> None:
    (path,) = (p.attrib["d"] for p in page(tradeoff()).iter("path"))
    numbers = [float(n) for n in re.findall(r"[\d.]+", path)]
    assert len(numbers) > 2
    assert all(0 <= x <= 760 for x in numbers[::2])
    assert all(0 <= y <= 340 for y in numbers[1::2])


def test_a_long_frontier_is_thinned_out_and_keeps_its_ends() -> None:
    long = tuple(Point(k, 1 / k) for k in range(1, 1002))
    kept = to_json(replace(tradeoff(), frontier=long))["frontier"]
    assert len(kept) <= 202
    assert (kept[0]["weight_bytes"], kept[-1]["weight_bytes"]) == (1, 1001)


def test_the_terminal_names_the_bits_and_what_the_same_everywhere_would_do() -> None:
    found = replace(tradeoff(), weights=(*tradeoff().weights, Choice("b", 4, 100, 400, 0.1)))
    text = line(found).plain
    assert "2 of 4 bits, 1 as they are" in text
    assert "26.8 dB" in text
    assert "4 bits everywhere" in line(replace(found, chosen=Point(800, 0.002, 0.0021))).plain


def test_it_is_in_the_document_of_the_pass_that_searched() -> None:
    document = report.to_json(full())
    assert [p["spec"] for p in document["passes"] if p["tradeoff"] is not None] == ["round-weights{bits=8}"]


@pytest.mark.parametrize("low, high", [(0.0, 1.0), (-3.2, 47.0), (1.5e6, 9e6), (0.1, 0.13)])
def test_ticks_are_a_few_and_inside(low: float, high: float) -> None:
    found = ticks(low, high)
    assert 3 <= len(found) <= 8
    assert all(low <= t <= high for t in found)
