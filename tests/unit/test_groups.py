"""edgec groups: the families of slices that go together, as a table, JSON and drawings."""

from __future__ import annotations

import html.parser
import json
import re
from pathlib import Path

import pytest
from channelnets import Net, conv

import passcheck
from edgec.compiler import cli
from edgec.compiler.channels.drawing import graph, to_dot, to_html
from edgec.compiler.channels.groups import Group, Place, groups, shared

DIGITS = Path(__file__).parents[2] / "examples" / "digits" / "digits.onnx"


@pytest.fixture
def found() -> list[Group]:
    """Conv 3 → 8, residual over two of 8, conv 8 → 5, and the output's."""
    net = Net(0)
    conv(net, 8, 3)
    first = net.last
    conv(net, 12, 3)
    conv(net, 8, 3)
    net.node("Add", [first, net.last], net.shape)
    return groups(passcheck.load(net.model()))[0]


def test_a_residual_is_one_group_and_what_lies_inside_another(found: list[Group]) -> None:
    assert sorted((g.units, g.kind) for g in found) == [(8, "channel"), (12, "channel")]
    inside = next(g for g in found if g.units == 12)
    weights = {(p.shape[:2], p.axes) for p in inside.places if len(p.shape) == 4}
    assert weights == {((12, 8), (0,)), ((8, 12), (1,))}


def test_what_a_unit_costs(found: list[Group]) -> None:
    """One of 12 filters: 8 x 3 x 3 numbers where it is made, as many where it is read; 2 x 16 places each."""
    inside = next(g for g in found if g.units == 12)
    biases = sum(1 for p in inside.places if len(p.shape) == 1)
    assert inside.parameters == 2 * 8 * 9 + biases
    assert inside.macs == 2 * 8 * 9 * 2 * 16


def test_heads_and_what_is_in_them() -> None:
    """Two heads of three dimensions from one projection: rows, and dimensions of all rows together."""
    model = passcheck.load(
        """
        <ir_version: 10, opset_import: ["" : 25]>
        g (float[2,4,6] x) => (float[2,4,6] y) <float[6,6] w = {%s}, float[6,6] v = {%s},
                                                int64[4] split = {2,4,2,3}, int64[3] joined = {2,4,6}> {
            q = MatMul(x, w)
            h = Reshape(q, split)
            t = Transpose<perm = [0, 2, 1, 3]>(h)
            s = Softmax(t)
            u = Transpose<perm = [0, 2, 1, 3]>(s)
            f = Reshape(u, joined)
            y = MatMul(f, v)
        }"""
        % ((",".join(["1"] * 36),) * 2)
    )
    found, _ = groups(model)
    assert [(g.kind, g.units) for g in found] == [("row", 2)], "softmax looks along the dimensions"
    assert {p.text for p in found[0].places} == {"v[0]", "w[1]"}


def test_the_drawing_has_every_group_and_weight(found: list[Group]) -> None:
    drawn = graph(found)
    weights = shared(found)
    assert len(drawn) == len(found) + len(weights)
    assert drawn.number_of_edges() == sum(len({p.weight for p in g.places}) for g in found)
    dot = to_dot(found)
    assert len(re.findall(" -- ", dot)) == drawn.number_of_edges()
    assert dot.count("{") == dot.count("}") == 1


class Balance(html.parser.HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_whole_and_the_same_twice(found: list[Group]) -> None:
    page = to_html("<b>.onnx", found, ["a < b"])
    parser = Balance()
    parser.feed(page)
    assert parser.open == []
    assert "<b>.onnx" not in page and "a &lt; b" in page and "http" not in page
    assert page.count("<circle") == len(graph(found))
    assert page == to_html("<b>.onnx", found, ["a < b"])


def test_everything_is_drawn_however_large() -> None:
    many = tuple(Place(f"w{k}", (0,), (8,), (8,)) for k in range(3000))
    page = to_html("m", [Group("g0", "channel", 8, 1, 1.0, 1.0, many)], [])
    assert page.count("<circle") == 3001 and page.count("<line") == 3000


def test_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dot, page = tmp_path / "g.dot", tmp_path / "g.html"
    assert cli.main(["groups", str(DIGITS), "--json", "--dot", str(dot), "--html", str(page)]) == 0
    rows = json.loads(capsys.readouterr().out)["groups"]
    assert sorted(r["units"] for r in rows) == [16, 32, 32, 64, 64, 128]
    assert dot.read_text().startswith("graph groups") and page.read_text().startswith("<!doctype html>")
    assert cli.main(["groups", str(DIGITS), "--top", "2"]) == 0
    out = capsys.readouterr().out
    assert "4 more" in out and "stem" not in out


def test_wrong_files_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["groups", str(DIGITS), "--dot", str(tmp_path / "g.png")]) == 2
    assert cli.main(["groups", str(tmp_path / "none.onnx")]) == 2
    assert ".dot" in capsys.readouterr().err
