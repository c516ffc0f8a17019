"""The report as a page: well-formed, self-contained, nothing in a model's names becomes markup."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import pytest
from reports import NASTY, compiled, full

from edgec.compiler import report
from edgec.compiler.html_parts import Html, tag
from edgec.compiler.report_html import to_html

VOID = {"meta", "input"}


class Page(HTMLParser):
    """Elements, attributes and text of a page; fails when tags don't match."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert not self._open, f"never closed: {self._open}"

    def handle_starttag(self, name: str, attributes: list[tuple[str, str | None]]) -> None:
        assert len({a for a, _ in attributes}) == len(attributes), f"<{name}> repeats an attribute"
        self.elements.append((name, dict(attributes)))
        if name not in VOID:
            self._open.append(name)

    def handle_endtag(self, name: str) -> None:
        assert self._open and self._open.pop() == name, f"</{name}> closes nothing"

    def handle_data(self, data: str) -> None:
        self.texts.setdefault(self._open[-1] if self._open else "", []).append(data)

    def text(self) -> str:
        return " ".join(t for where, found in self.texts.items() if where not in ("script", "style") for t in found)

    def count(self) -> Counter[str]:
        return Counter(name for name, _ in self.elements)


def page(text: str = "mobile") -> Page:
    return Page(to_html(report.to_json(full(text))))


def test_it_is_one_file_that_asks_for_no_other() -> None:
    text = to_html(report.to_json(full()))
    for name, attributes in Page(text).elements:
        assert name not in ("link", "img", "iframe", "object", "embed", "base"), name
        assert not {"src", "href", "action", "srcset", "poster"} & set(attributes), (name, attributes)
        assert not any(a.startswith("on") for a in attributes), (name, attributes)
    assert not re.search(r"url\(|@import|https?://|//[a-z]+\.[a-z]+", text)


def test_nothing_in_a_name_becomes_markup() -> None:
    plain, nasty = page(), page(NASTY)
    assert plain.count() == nasty.count()
    assert [set(a) for _, a in plain.elements] == [set(a) for _, a in nasty.elements]
    assert NASTY in nasty.text()


def test_only_the_page_s_own_script_may_run() -> None:
    found = page(NASTY)
    policy = next(a["content"] for n, a in found.elements if n == "meta" and a.get("http-equiv"))
    scripts = [a for n, a in found.elements if n == "script"]
    assert [a.get("type") for a in scripts] == ["application/json", None]
    own = "".join(found.texts["script"]).split("</", 1)[0]
    own = own[own.index('"use strict"') :]
    digest = base64.b64encode(hashlib.sha256(own.encode()).digest()).decode()
    assert policy is not None and f"script-src 'sha256-{digest}'" in policy and "default-src 'none'" in policy


@pytest.mark.parametrize("text", ["mobile", NASTY])
def test_the_document_is_in_the_page(text: str) -> None:
    document = report.to_json(full(text))
    data = re.search(r'<script type="application/json" id="report">(.*?)</script>', to_html(document), re.S)
    assert data is not None and json.loads(data.group(1)) == document


def test_it_shows_the_figures_of_a_real_compilation(tmp_path: Path) -> None:
    document = report.to_json(compiled(tmp_path))
    found = Page(to_html(document))
    text = found.text()
    for p in document["passes"]:
        assert p["spec"] in text
    for words in ("Undone", "it changed the function", "rewrote what should have been left", document["proof"]["ran"]):
        assert words in text
    rows = [a for n, a in found.elements if n == "tr" and a.get("class")]
    assert len(rows) == len(document["passes"])
    widths = [
        float(m) for _, a in found.elements if (m := (a.get("style") or "").removeprefix("width:").removesuffix("%"))
    ]
    assert widths and all(0 <= w <= 100 for w in widths)


def test_bars_are_drawn_to_scale() -> None:
    text = to_html(report.to_json(full()))
    nodes = re.search(r">Nodes</div><div><div class=\"bar\" style=\"width:([\d.]+)%\"></div>"
                      r"<div class=\"bar after\" style=\"width:([\d.]+)%\">", text)  # fmt: skip
    assert nodes is not None
    assert float(nodes.group(1)) == 100 and float(nodes.group(2)) == pytest.approx(100 * 122 / 173, abs=0.01)


def test_every_column_sorts_by_numbers_where_it_has_some() -> None:
    found = page()
    keys = [a["data-v"] for n, a in found.elements if n == "td" and "data-v" in a]
    assert keys
    for key in keys:
        float(key or "")
    save = 1
    assert found.count()["button"] == found.count()["th"] + save


def test_a_report_without_a_proof_says_so() -> None:
    sample = full()
    sample.proof = sample.accuracy = None
    assert "nothing is proven" in Page(to_html(report.to_json(sample))).text()


def test_tag_escapes_everything_but_html() -> None:
    assert tag("p", "<&>", Html("<b></b>"), class_='"x"') == '<p class="&quot;x&quot;">&lt;&amp;&gt;<b></b></p>'
    assert tag("input", id="a", checked=True, value=None) == '<input id="a" checked>'
