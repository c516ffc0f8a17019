"""What `edgec analyze` prints: the tree of modules, totals, warnings, two models side by side."""

from __future__ import annotations

import csv
import io
import json
import sys
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest
from reports import NASTY
from rich.console import Console

import edgec
from analyses import WIDTH, blocks_macs, made, run_analyze, save_blocks
from edgec.compiler.analysis import comparison, document, terminal, tree
from edgec.compiler.cost.devices import DEVICES, device
from edgec.compiler.cost.records import Analysis, Layer
from edgec.compiler.cost.roofline import roofline

SCHEMA = json.loads(document.SCHEMA.read_text())


@pytest.fixture(scope="module")
def blocks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_blocks(tmp_path_factory.mktemp("blocks") / "blocks.onnx")


# --- the tree --------------------------------------------------------------------------------------------------------


def test_a_tree_s_parts_sum_up_to_the_whole(blocks: Path) -> None:
    analysis = edgec.analyze(blocks)
    root = tree.tree(analysis, {"T": 9})
    assert root.figures["macs"] == blocks_macs(9) and root.figures["layers"] == len(analysis.layers)
    stack = [root]
    while stack:
        node = stack.pop()
        for name in tree.FIGURES if node.parts else ():
            assert node.figures[name] == sum(m.figures[name] for m in node.parts.values())
        stack += node.parts.values()


@pytest.mark.parametrize("top", [1, 4, 11, 1000])
def test_rows_show_the_costliest_and_sum_up_the_rest(blocks: Path, top: int) -> None:
    root = tree.tree(edgec.analyze(blocks), {"T": 64})
    shown = tree.rows(root, "macs", top)
    named = [r for r in shown if r.module is not None]
    assert len(named) == top + 1 or (top == 1000 and len(named) <= top)
    for i, row in enumerate(shown):
        inside = []
        for later in shown[i + 1 :]:
            if later.depth <= row.depth:
                break
            if later.depth == row.depth + 1:
                inside.append(later.figures["macs"])
        assert not inside or sum(inside) == row.figures["macs"]


def test_depth_bounds_the_tree(blocks: Path) -> None:
    shown = tree.rows(tree.tree(edgec.analyze(blocks), {"T": 64}), "macs", 1000, depth=1)
    assert {r.depth for r in shown} == {0, 1}


def test_a_module_with_nothing_but_another_shares_its_line() -> None:
    root = tree.tree(made(layers=1), {"T": 2})
    assert [m.name for m in root.parts.values()] == ["part.0"]


@pytest.mark.parametrize(
    ("name", "path", "short"),
    [("/a/attn/MatMul_3", ("a", "attn"), "MatMul_3"), ("getitem/Conv", (), "getitem/Conv"), ("", (), "Relu")],
)
def test_a_name_is_shown_without_the_module_that_stands_beside_it(name: str, path: tuple[str, ...], short: str) -> None:
    assert tree.short_name(Layer(name, "Relu", path)) == short


# --- the terminal ----------------------------------------------------------------------------------------------------


def printed(analysis: Analysis, width: int = 80, **options: Any) -> str:
    console = Console(file=io.StringIO(), width=width, highlight=False)
    stream = io.StringIO()
    before, sys.stdout = sys.stdout, stream
    try:
        terminal.print_analysis(analysis, console, document.sizes(analysis), **options)
    finally:
        sys.stdout = before
    return stream.getvalue() + console.file.getvalue()  # type: ignore[attr-defined]


@pytest.mark.parametrize("by", sorted(terminal.METRICS.keys() - {"bound"}))
def test_the_table_fits_80_columns_whatever_it_shows(by: str) -> None:
    for flat in (False, True):
        text = printed(made("a_module_with_quite_a_long_name", 60), by=by, flat=flat)
        assert max(map(len, text.splitlines())) <= 80
        assert f"share of {terminal.METRICS[by].head}" in text


def test_totals_are_told_as_polynomials_and_at_a_size(blocks: Path) -> None:
    text = printed(edgec.analyze(blocks))
    assert "figures at T = 128" in text and "·T²" in text and f"{blocks_macs(128) / 1e6:.3g}" in text


def test_unknown_operators_are_a_visible_warning(tmp_path: Path) -> None:
    done = run_analyze(save_blocks(tmp_path / "odd.onnx", odd=True), cwd=tmp_path)
    assert done.returncode == 0 and done.stderr == ""
    assert "counted as zero" in done.stdout and "/neck/Mystery (my.domain::Mystery)" in done.stdout


@pytest.mark.parametrize("opset", [11, 18, 25])
@pytest.mark.parametrize(("domain", "op"), [("my.domain", "Mystery"), ("", "Mystery"), ("other", "Relu")])
def test_unknown_operators_are_kept_at_any_opset_and_in_branches(
    tmp_path: Path, opset: int, domain: str, op: str
) -> None:
    text = f"""<ir_version: 8, opset_import: ["" : {opset}, "my.domain" : 1, "other" : 1]>
        g (float[2,3] x, bool c) => (float[2,5] y, float[2,3] s) <float[3,5] w> {{
            a = {domain + "." if domain else ""}{op}(x)
            b = If(c) <then_branch = t () => (float[2,3] p) {{ p = {domain + "." if domain else ""}{op}(x) }},
                       else_branch = e () => (float[2,3] q) {{ q = Neg(x) }}>
            s = Add(a, b)  m = MatMul(x, w)  y = Relu(m)
        }}"""
    proto = onnx.parser.parse_model(text)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.ones((3, 5), np.float32), "w"))
    onnx.save(proto, tmp_path / "m.onnx")
    analysis = edgec.analyze(tmp_path / "m.onnx")
    unknown = [layer.op for layer in analysis.layers if "operator is not known" in layer.unknown]
    assert unknown[0] == (f"{domain}::{op}" if domain else op) and set(unknown) == {unknown[0]}
    assert analysis.totals.macs == 2 * 3 * 5
    with pytest.raises(edgec.UnsupportedOp, match=op):
        edgec.load(tmp_path / "m.onnx")


def test_brackets_in_names_are_no_markup() -> None:
    assert "[red]x[/red]" in printed(made(NASTY), width=300)


def test_the_least_time_on_a_device_is_told_by_layer(blocks: Path) -> None:
    analysis = edgec.analyze(blocks)
    roofs = roofline(analysis, device("m2"), {"T": 128})
    text = printed(analysis, roofline=roofs, by="bound")
    assert "At least" in text and "m2" in text and "share of at least" in text
    root = tree.tree(analysis, {"T": 128}, roofs.layers)
    assert root.figures["bound"] == pytest.approx(roofs.seconds)


def test_a_range_shows_the_totals_at_each_size(tmp_path: Path, blocks: Path) -> None:
    done = run_analyze(blocks, "--range", "T=16:128", "--json", cwd=tmp_path)
    found = json.loads(done.stdout)
    jsonschema.validate(found, SCHEMA)
    rows = {row["size"]: row["totals"]["macs"] for row in found["growth"]["rows"]}
    assert rows == {n: blocks_macs(n) for n in (16, 32, 64, 128)}
    text = run_analyze(blocks, "--range", "T=16:128", cwd=tmp_path).stdout
    assert "Over T" in text and "quadratic in T" in text


def test_measuring_gives_times_in_every_form(tmp_path: Path, blocks: Path) -> None:
    done = run_analyze(blocks, "--measure", "--json", "--csv", "l.csv", cwd=tmp_path)
    found = json.loads(done.stdout)
    jsonschema.validate(found, SCHEMA)
    assert found["measured"]["at"] == found["sizes"] == {"T": 128}
    assert found["measured"]["needed"] >= 2 * blocks_macs(128) and found["measured"]["achieved"] > 0
    heavy = [layer for layer in found["layers"] if layer["op"] == "MatMul"]
    assert heavy and all(layer["seconds"] > 0 for layer in heavy)
    assert {r["seconds"] != "" for r in csv.DictReader((tmp_path / "l.csv").open()) if r["op"] == "MatMul"} == {True}
    text = run_analyze(blocks, "--measure", "--sort", "time", cwd=tmp_path).stdout
    assert "Measured" in text and "OP/s" in text and "share of time" in text and max(map(len, text.splitlines())) <= 80


def test_every_device_is_listed(tmp_path: Path) -> None:
    text = run_analyze("--device", "list", cwd=tmp_path).stdout
    assert all(name in text for name in DEVICES) and max(map(len, text.splitlines())) <= 80
    assert {
        d["name"] for d in json.loads(run_analyze("--device", "list", "--json", cwd=tmp_path).stdout)["devices"]
    } == set(DEVICES)


# --- comparing -------------------------------------------------------------------------------------------------------


def test_modules_are_matched_by_path(tmp_path: Path, blocks: Path) -> None:
    other = save_blocks(tmp_path / "odd.onnx", odd=True)
    pairs = comparison.modules(edgec.analyze(blocks), edgec.analyze(ir.load(other)), ({"T": 8}, {"T": 8}), 1)
    found = {".".join(p.path): (p.a.get("macs"), p.b.get("macs")) for p in pairs}
    assert list(found) == ["stem", "blocks", "head", "neck"]
    assert found["stem"] == (8 * 8 * WIDTH, 8 * 8 * WIDTH) and found["neck"][0] is None


def test_compare_prints_both_and_its_json_follows_the_schema(tmp_path: Path, blocks: Path) -> None:
    other = save_blocks(tmp_path / "fixed.onnx", tokens=64)
    done = run_analyze(blocks, "--compare", other, cwd=tmp_path)
    assert done.returncode == 0 and "before" in done.stdout and "stem" in done.stdout
    found = json.loads(run_analyze(blocks, "--compare", other, "--json", cwd=tmp_path).stdout)
    jsonschema.validate(found, {**SCHEMA, "$ref": "#/$defs/pair"})
    assert found["b"]["totals"]["macs"] == blocks_macs(64)
    done = run_analyze(blocks, "--compare", other, "--shape", "T:64", "--device", "m2", "--measure", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = {line.split()[0]: line for line in done.stdout.splitlines() if line.strip()}
    assert lines["MACs"].endswith("same") and lines["at"].endswith("same")
    assert "measured" in lines
