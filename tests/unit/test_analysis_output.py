"""What `edgec analyze` prints and writes: terminal, JSON, CSV."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
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
from analyses import DEPTH, WIDTH, blocks_macs, made, save_blocks
from edgec.compiler.analysis import comparison, document, sheet, terminal, tree
from edgec.compiler.cost import polynomial
from edgec.compiler.cost.devices import DEVICES, device
from edgec.compiler.cost.growth import growth
from edgec.compiler.cost.measure import Measured
from edgec.compiler.cost.records import Analysis
from edgec.compiler.cost.roofline import roofline

ROOT = Path(__file__).parents[2]
SCHEMA = json.loads(document.SCHEMA.read_text())


@pytest.fixture(scope="module")
def blocks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_blocks(tmp_path_factory.mktemp("blocks") / "blocks.onnx")


def run(*arguments: object, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "edgec.compiler.cli", "analyze", *map(str, arguments)]
    environment = {**os.environ, "COLUMNS": "80", **variables}
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False, env=environment)


def strict(value: Any) -> Any:
    return json.loads(json.dumps(value, allow_nan=False))


def parts(found: dict[str, Any]) -> list[tuple[dict[str, Any], str]]:
    """The objects of a document, each with the name that the schema has for it."""
    names = ("totals", "memory", "roofline", "growth", "measured")
    return [(found, "analysis"), *((found[name], name) for name in names)]


def value(count: Any, at: Mapping[str, int]) -> int:
    """A count of the document as docs/analyze.md says that it is to be read: independent of our own evaluation."""
    operations = {"floor": lambda a, b: a // b, "div": lambda a, b: int(a / b), "min": min, "max": max}
    if isinstance(count, int):
        return count
    total = 0
    for term in count["terms"]:
        product = term["factor"]
        for a in term["of"]:
            product *= at[a] if isinstance(a, str) else operations[a["op"]](*(value(x, at) for x in a["of"]))
        total += product
    return total


# --- JSON ------------------------------------------------------------------------------------------------------------


def test_the_schema_is_closed_and_every_field_is_documented() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    objects = [d for d in SCHEMA["$defs"].values() if "properties" in d]
    assert all(o["additionalProperties"] is False and set(o["required"]) == set(o["properties"]) for o in objects)
    documented = set(re.findall(r"`(\w+)`", (ROOT / "docs" / "analyze.md").read_text()))
    fields = {name for o in objects for name in o["properties"]}
    assert fields - documented - {"a", "b", "text", "terms", "op"} == set()


@pytest.mark.parametrize("analysis", [made(), made(NASTY, 9), Analysis()])
@pytest.mark.parametrize("name", ["m2", "a15", "m1-max"])
def test_samples_follow_the_schema_in_its_order(analysis: Analysis, name: str) -> None:
    at = document.sizes(analysis)
    grown = document.Growth("T", growth(analysis, "T", [1, 64], at), at) if at else document.Growth("T", [], {})
    found = strict(document.to_json(analysis, roofline(analysis, device(name), at), grown, Measured(at=at)))
    jsonschema.validate(found, SCHEMA)
    jsonschema.validate(strict(document.to_json(analysis)), SCHEMA)
    for part, name in parts(found):
        assert list(part) == SCHEMA["$defs"][name]["required"]
    assert len(found["roofline"]["layers"]) == len(found["layers"])
    assert all(list(layer) == SCHEMA["$defs"]["layer"]["required"] for layer in found["layers"])


def test_a_real_model_at_any_size(blocks: Path) -> None:
    found = strict(document.to_json(edgec.analyze(blocks)))
    jsonschema.validate(found, SCHEMA)
    assert list(found["symbols"]) == ["T"] and found["sizes"]["T"] == 128
    for tokens in (1, 7, 128, 1000):
        assert value(found["totals"]["macs"], {"T": tokens}) == blocks_macs(tokens)
        assert sum(value(layer["macs"], {"T": tokens}) for layer in found["layers"]) == blocks_macs(tokens)
    assert found["totals"]["parameters"] == 8 * WIDTH + DEPTH * 9 * WIDTH * WIDTH + 5 * WIDTH
    fixed = strict(document.to_json(edgec.analyze(blocks, shapes={"T": (7,)})))
    assert fixed["totals"]["macs"] == blocks_macs(7) and fixed["sizes"] == {}


def test_operations_in_a_polynomial_are_read_as_documented() -> None:
    analysis = made()
    for layer, shown in zip(analysis.layers, document.to_json(analysis)["layers"], strict=True):
        for t in (1, 2, 63, 128):
            assert value(shown["written"], {"T": t}) == polynomial.evaluate(layer.written, {"T": t})


@pytest.mark.parametrize("opset", [13, 18, 25])
def test_modules_noted_by_the_exporter_outlive_the_conversion_of_old_opsets(tmp_path: Path, opset: int) -> None:
    proto = onnx.parser.parse_model(
        f"""<ir_version: 8, opset_import: ["" : {opset}]> g (float[2,3] x) => (float[2,3] y) {{
            a = Relu(x)  b = Softmax(a)  y = Neg(b)
        }}"""
    )
    for node, scopes in zip(
        proto.graph.node, ("['', 'act', 'relu']", "['', 'blocks', 'blocks.0', 'softmax']", "['', 'neg']"), strict=True
    ):
        node.metadata_props.add(key="pkg.torch.onnx.name_scopes", value=scopes)
    onnx.save(proto, tmp_path / "m.onnx")
    assert [layer.path for layer in edgec.analyze(tmp_path / "m.onnx").layers] == [("act",), ("blocks", "0"), ()]


def test_each_step_of_the_memory_names_its_layer(blocks: Path) -> None:
    analysis = edgec.analyze(blocks)
    steps = analysis.memory.layers
    assert len(steps) == len(analysis.memory.live)
    assert sorted(i for i in steps if i is not None) == list(range(len(analysis.layers)))


# --- CSV -------------------------------------------------------------------------------------------------------------


def test_csv_has_a_row_per_layer_and_raw_numbers(blocks: Path) -> None:
    analysis = edgec.analyze(blocks, shapes={"T": (7,)})
    rows = list(csv.DictReader(io.StringIO(sheet.to_csv(analysis))))
    assert [r["name"] for r in rows] == [layer.name for layer in analysis.layers]
    assert sum(int(r["macs"]) for r in rows) == blocks_macs(7)
    head = next(r for r in rows if r["name"] == "/head/MatMul")
    assert (head["path"], head["inputs"], head["outputs"]) == ("head", f"1x7x{WIDTH} {WIDTH}x5", "1x7x5")


def test_csv_keeps_names_whole_and_writes_polynomials_as_text() -> None:
    rows = list(csv.DictReader(io.StringIO(sheet.to_csv(made(f'{NASTY}, "x"', 4)))))
    assert rows[0]["name"].endswith(f'{NASTY}, "x"_0') and rows[0]["macs"] == "T^2" and rows[0]["zeros"] == ""
    assert rows[0]["inputs"] == "1xTx? ?" and rows[0]["outputs"].endswith("scalar")


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
    done = run(save_blocks(tmp_path / "odd.onnx", odd=True), cwd=tmp_path)
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
    done = run(blocks, "--range", "T=16:128", "--json", cwd=tmp_path)
    found = json.loads(done.stdout)
    jsonschema.validate(found, SCHEMA)
    rows = {row["size"]: row["totals"]["macs"] for row in found["growth"]["rows"]}
    assert rows == {n: blocks_macs(n) for n in (16, 32, 64, 128)}
    text = run(blocks, "--range", "T=16:128", cwd=tmp_path).stdout
    assert "Over T" in text and "quadratic in T" in text


def test_measuring_gives_times_in_every_form(tmp_path: Path, blocks: Path) -> None:
    done = run(blocks, "--measure", "--json", "--csv", "l.csv", cwd=tmp_path)
    found = json.loads(done.stdout)
    jsonschema.validate(found, SCHEMA)
    assert found["measured"]["at"] == found["sizes"] == {"T": 128}
    assert found["measured"]["needed"] >= 2 * blocks_macs(128) and found["measured"]["achieved"] > 0
    heavy = [layer for layer in found["layers"] if layer["op"] == "MatMul"]
    assert heavy and all(layer["seconds"] > 0 for layer in heavy)
    assert {r["seconds"] != "" for r in csv.DictReader((tmp_path / "l.csv").open()) if r["op"] == "MatMul"} == {True}
    text = run(blocks, "--measure", "--sort", "time", cwd=tmp_path).stdout
    assert "Measured" in text and "OP/s" in text and "share of time" in text and max(map(len, text.splitlines())) <= 80


def test_every_device_is_listed(tmp_path: Path) -> None:
    text = run("--device", "list", cwd=tmp_path).stdout
    assert all(name in text for name in DEVICES) and max(map(len, text.splitlines())) <= 80
    assert {d["name"] for d in json.loads(run("--device", "list", "--json", cwd=tmp_path).stdout)["devices"]} == set(
        DEVICES
    )


# --- comparing -------------------------------------------------------------------------------------------------------


def test_modules_are_matched_by_path(tmp_path: Path, blocks: Path) -> None:
    other = save_blocks(tmp_path / "odd.onnx", odd=True)
    pairs = comparison.modules(edgec.analyze(blocks), edgec.analyze(ir.load(other)), ({"T": 8}, {"T": 8}), 1)
    found = {".".join(p.path): (p.a.get("macs"), p.b.get("macs")) for p in pairs}
    assert list(found) == ["stem", "blocks", "head", "neck"]
    assert found["stem"] == (8 * 8 * WIDTH, 8 * 8 * WIDTH) and found["neck"][0] is None


def test_compare_prints_both_and_its_json_follows_the_schema(tmp_path: Path, blocks: Path) -> None:
    other = save_blocks(tmp_path / "fixed.onnx", tokens=64)
    done = run(blocks, "--compare", other, cwd=tmp_path)
    assert done.returncode == 0 and "before" in done.stdout and "stem" in done.stdout
    found = json.loads(run(blocks, "--compare", other, "--json", cwd=tmp_path).stdout)
    jsonschema.validate(found, {**SCHEMA, "$ref": "#/$defs/pair"})
    assert found["b"]["totals"]["macs"] == blocks_macs(64)


# --- the command -----------------------------------------------------------------------------------------------------


def test_json_is_all_that_is_printed_with_it(tmp_path: Path, blocks: Path) -> None:
    done = run(blocks, "--json", "--shape", "T:16", cwd=tmp_path)
    found = json.loads(done.stdout)
    jsonschema.validate(found, SCHEMA)
    assert found["totals"]["macs"] == blocks_macs(16) and done.stderr == ""


def test_quiet_prints_nothing_and_files_are_written(tmp_path: Path, blocks: Path) -> None:
    done = run(blocks, "-q", "--csv", "l.csv", "--html", "p.html", cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["l.csv", "p.html"]


def test_an_encoding_without_our_signs_gets_others(tmp_path: Path, blocks: Path) -> None:
    done = run(blocks, cwd=tmp_path, PYTHONIOENCODING="ascii")
    assert (
        done.returncode == 0
        and done.stderr == ""
        and done.stdout.isascii()
        and "?" not in done.stdout
        and "*T^2" in done.stdout
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("gone.onnx",), "no such file: gone.onnx"),
        (("{}", "--csv", "x.txt"), "must end in .csv"),
        (("{}", "--html", "no/where.html"), "there is no folder no"),
        (("{}", "--shape", "Q:3"), "no such input or free dimension"),
        (("{}", "--sort", "beauty"), "invalid choice"),
        (("{}", "--top", "-3"), "is not 0, 1, 2"),
        (("{}", "--compare", "gone.onnx"), "no such file: gone.onnx"),
        (("{}", "--device", "toaster"), "no figures are known of the device 'toaster'"),
        (("{}", "--range", "T=9:3:0"), "is not a range"),
        (("{}", "--range", "Q=1:4"), "there is no free dimension 'Q'"),
        ((), "which model?"),
    ],
)
def test_wrong_use_is_one_message_and_2(tmp_path: Path, blocks: Path, arguments: tuple[str, ...], message: str) -> None:
    done = run(*(str(blocks) if a == "{}" else a for a in arguments), cwd=tmp_path)
    assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())
