"""The report's JSON document: schema, documentation, writing."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st
from reports import NASTY, compiled, full

from edgec.compiler import figures, report
from edgec.compiler.errors import EdgecError, UsageError
from edgec.compiler.records import Report

ROOT = Path(__file__).parents[2]
SCHEMA = json.loads(report.SCHEMA.read_text())
"""Of the document that this release writes. It is closed, so that no field goes undescribed."""


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Report:
    return compiled(tmp_path_factory.mktemp("real"))


def strict(document: Any) -> Any:
    """Through text and back, as another program would read it."""
    return json.loads(json.dumps(document, allow_nan=False))


def properties(schema: dict[str, Any]) -> set[str]:
    """The name of every field that the schema defines."""
    found = set(schema.get("properties", ()))
    for part in [*schema.get("properties", {}).values(), *schema.get("$defs", {}).values(), *schema.get("anyOf", ())]:
        found |= properties(part)
    return found


def test_the_schema_is_a_schema_that_allows_no_field_it_does_not_describe() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    objects = [SCHEMA, *(d for d in SCHEMA["$defs"].values() if "properties" in d)]
    assert all(o["additionalProperties"] is False and set(o["required"]) == set(o["properties"]) for o in objects)


@pytest.mark.parametrize("sample", [full(), full(NASTY), Report()])
def test_samples_follow_the_schema(sample: Report) -> None:
    jsonschema.validate(strict(report.to_json(sample)), SCHEMA)


def test_a_real_report_follows_the_schema_and_tells_what_happened(real: Report) -> None:
    document = strict(report.to_json(real))
    jsonschema.validate(document, SCHEMA)
    status = {p["spec"]: p["status"] for p in document["passes"]}
    assert status["remove-no-ops"] == "ok"
    assert status["lie"] == "undone"
    lie = next(p for p in document["passes"] if p["spec"] == "lie")
    assert "changed the function" in lie["why"]
    assert lie["notes"] == ["rewrote what should have been left"]
    assert Path(lie["reproducer"], "model.onnx").is_file()
    assert document["before"]["nodes"] > document["after"]["nodes"] == 2
    assert document["before"]["macs"] == document["after"]["macs"] == 12
    assert document["before"]["parameters"] == 12
    rounded = next(p for p in document["passes"] if p["spec"].startswith("half"))
    assert 0 < rounded["loss"]["max_rel"] < 1e-2
    assert document["proof"]["ok"] and set(document["proof"]["loss"]["outputs"]) == {"logits"}


def test_keys_come_in_the_order_of_the_schema(real: Report) -> None:
    document = report.to_json(real)
    assert list(document) == SCHEMA["required"]
    assert list(document["passes"][0]) == SCHEMA["$defs"]["pass"]["required"]
    assert list(document["proof"]) == SCHEMA["$defs"]["proof"]["required"]
    assert list(document["before"]) == SCHEMA["$defs"]["stats"]["required"]


def test_every_field_is_documented() -> None:
    text = (ROOT / "docs" / "report.md").read_text()
    documented = set(re.findall(r"`(\w+)`", text))
    assert properties(SCHEMA) - documented == set()


def test_what_json_has_no_number_for_is_a_string() -> None:
    passes = report.to_json(full())["passes"]
    assert passes[0]["exact"]["snr_db"] == "inf"
    broken = passes[4]["exact"]["outputs"]["logits"]
    assert (broken["max_rel"], broken["snr_db"]) == ("inf", "-inf")
    assert float(broken["snr_db"]) == -math.inf


def test_a_new_name_is_told_once() -> None:
    lines = report.interface_lines({"a:0": "a_0", "b": "var_b"}, ["input 'a:0' is called 'a_0'", "'b' is int32"])
    assert lines == ["'b' is called 'var_b' in the file", "input 'a:0' is called 'a_0'", "'b' is int32"]


def test_writing_picks_the_form_by_the_suffix(tmp_path: Path, real: Report) -> None:
    report.write(real, tmp_path / "r.json")
    report.write(real, tmp_path / "R.HTML")
    assert json.loads((tmp_path / "r.json").read_text()) == strict(report.to_json(real))
    assert (tmp_path / "R.HTML").read_text().startswith("<!doctype html>")
    with pytest.raises(UsageError, match=r"\.json or \.html"):
        report.write(real, tmp_path / "r.pdf")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["R.HTML", "r.json"]


def test_a_report_that_can_not_be_written_leaves_the_old_one_and_nothing_else(tmp_path: Path) -> None:
    with pytest.raises(EdgecError, match="can't write the report"):
        report.write(full(), tmp_path / "no" / "folder.json")
    (tmp_path / "old.json").mkdir()
    with pytest.raises(EdgecError, match=r"old\.json"):
        report.write(full(), tmp_path / "old.json")
    assert [p.name for p in tmp_path.iterdir()] == ["old.json"]


# --- figures ---------------------------------------------------------------------------------------------------------

UNITS = {"k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15}


@given(st.integers(0, 10**17))
def test_a_count_says_the_number_to_three_digits(n: int) -> None:
    number, _, unit = figures.count(n).partition(" ")
    assert float(number.replace(",", "")) * UNITS.get(unit, 1) == pytest.approx(n, rel=0.0051)
    assert len(number) <= 5


@given(st.floats(1e-4, 1e5))
def test_a_duration_says_the_time_to_one_digit_at_least(seconds: float) -> None:
    units = {"ms": 1e-3, "s": 1.0, "min": 60.0}
    words = figures.duration(seconds).split()
    said = sum(float(n) * units[u] for n, u in zip(words[::2], words[1::2], strict=True))
    assert said == pytest.approx(seconds, rel=0.051, abs=6e-5)


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        (100, 25, "4.0× less"), (100, 71, "29% less"), (1000, 995, "0.5% less"), (10**6, 10**6 - 1, "<0.1% less"),
        (5, 5, "same"), (10, 11, "10% more"), (10, 40, "4.0× more"), (10, 0, "gone"), (0, 10, ""), (None, 3, ""),
    ],
)  # fmt: skip
def test_changes_in_words(before: int | None, after: int | None, words: str) -> None:
    assert figures.change(before, after) == words


def test_nothing_is_called_whole_or_equal_that_is_not() -> None:
    assert figures.share(0.99999) != figures.share(1.0) == "100%"
    assert figures.cosine(1 - 1e-12) != figures.cosine(1.0) == "1"
    assert figures.error(1e-300) != figures.error(0.0) == "0"
    assert figures.decibels(math.inf) == "equal"
    assert figures.size(999) == "999 B" and figures.size(46_824_400) == "46.8 MB" and figures.size(0) == "-"
