"""What `edgec analyze` prints and writes: terminal, JSON, CSV."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jsonschema
import onnx
import onnx.parser
import pytest
from reports import NASTY

import edgec
from analyses import DEPTH, WIDTH, blocks_macs, made, run_analyze, save_blocks
from edgec.compiler.analysis import document, sheet
from edgec.compiler.cost import polynomial
from edgec.compiler.cost.devices import device
from edgec.compiler.cost.growth import growth
from edgec.compiler.cost.measure import Measured
from edgec.compiler.cost.records import Analysis
from edgec.compiler.cost.roofline import roofline

ROOT = Path(__file__).parents[2]
SCHEMA = json.loads(document.SCHEMA.read_text())


@pytest.fixture(scope="module")
def blocks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_blocks(tmp_path_factory.mktemp("blocks") / "blocks.onnx")


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


# --- the command -----------------------------------------------------------------------------------------------------


def test_json_is_all_that_is_printed_with_it(tmp_path: Path, blocks: Path) -> None:
    done = run_analyze(blocks, "--json", "--shape", "T:16", cwd=tmp_path)
    found = json.loads(done.stdout)
    jsonschema.validate(found, SCHEMA)
    assert found["totals"]["macs"] == blocks_macs(16) and done.stderr == ""


def test_quiet_prints_nothing_and_files_are_written(tmp_path: Path, blocks: Path) -> None:
    done = run_analyze(blocks, "-q", "--csv", "l.csv", "--html", "p.html", cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["l.csv", "p.html"]


def test_an_encoding_without_our_signs_gets_others(tmp_path: Path, blocks: Path) -> None:
    done = run_analyze(blocks, cwd=tmp_path, PYTHONIOENCODING="ascii")
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
        (("{}", "--range", "T=1:4", "--compare", "{}"), "leave out --compare"),
        ((), "which model?"),
    ],
)
def test_wrong_use_is_one_message_and_2(tmp_path: Path, blocks: Path, arguments: tuple[str, ...], message: str) -> None:
    done = run_analyze(*(str(blocks) if a == "{}" else a for a in arguments), cwd=tmp_path)
    assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())
