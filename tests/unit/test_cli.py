"""The command line as a user meets it: a process of its own, its output, its exit code, what is on disk afterwards."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from commandline import RNG, contents, conv_model, refuse, run, saved, tensor
from onnx import TensorProto, helper


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return saved(tmp_path)


@pytest.mark.parametrize("argument", ["--help", "--version"])
def test_help_and_version_answer_at_once(argument: str, tmp_path: Path) -> None:
    # Processor time: a busy machine must not fail the test, and nothing in there waits.
    times = []
    for _ in range(5):
        start = os.times()
        done = run(argument, cwd=tmp_path)
        end = os.times()
        times.append(end.children_user + end.children_system - start.children_user - start.children_system)
        assert done.returncode == 0 and "edgec" in done.stdout
    assert min(times) < 0.3


def test_nothing_heavy_is_imported_for_help(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom edgec.compiler.cli import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        "print(sorted({'numpy', 'onnx', 'onnxruntime', 'coremltools', 'rich'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout.splitlines()[-1] == "[]"


def test_a_model_becomes_a_package_in_the_working_directory(model: Path, tmp_path: Path) -> None:
    done = run("net.onnx", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "Failed to load" not in done.stdout and "Traceback" not in done.stdout
    assert "net.mlpackage" in done.stdout
    assert sorted(p.name for p in tmp_path.iterdir()) == ["net.mlpackage", "net.onnx"]


def test_two_runs_write_the_same_bytes(model: Path, tmp_path: Path) -> None:
    for out in ("a.mlpackage", "b.mlpackage"):
        done = run("net.onnx", "-o", out, "-q", cwd=tmp_path)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert contents(tmp_path / "a.mlpackage") == contents(tmp_path / "b.mlpackage")


def test_json_goes_to_stdout_and_is_all_there(model: Path, tmp_path: Path) -> None:
    done = run("net.onnx", "--target", "onnx", "-o", "out.onnx", "--json", cwd=tmp_path)
    found = json.loads(done.stdout)
    assert found["version"] == 1 and found["proof"]["ok"] is True and done.stderr == ""


def test_reports_are_written(model: Path, tmp_path: Path) -> None:
    done = run("net.onnx", "--report", "r.html", "--report", "r.json", "-q", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "r.json").read_text())["version"] == 1
    assert "<html" in (tmp_path / "r.html").read_text()


def test_verify_compares_a_package_with_its_model(model: Path, tmp_path: Path) -> None:
    assert run("net.onnx", "-O1", cwd=tmp_path).returncode == 0
    same = run("verify", "net.onnx", "net.mlpackage", cwd=tmp_path)
    assert same.returncode == 0 and "compute the same" in same.stdout, same.stdout + same.stderr
    other = tmp_path / "other.onnx"
    onnx.save(conv_model(weight=tensor(8, 3, 3, 3)), other)
    differ = run("verify", "other.onnx", "net.mlpackage", cwd=tmp_path)
    assert differ.returncode == 1 and "differ" in differ.stdout
    loose = run("verify", "other.onnx", "net.mlpackage", "--max-error", "1e9", "--json", cwd=tmp_path)
    assert loose.returncode == 0 and json.loads(loose.stdout)["same"] is True


@pytest.mark.parametrize("command", ["passes", "targets", "ops"])
def test_tables_and_their_json(command: str, tmp_path: Path) -> None:
    table = run(command, cwd=tmp_path)
    assert table.returncode == 0 and table.stdout.strip(), table.stderr
    assert max(map(len, table.stdout.splitlines())) <= 80
    assert json.loads(run(command, "--json", cwd=tmp_path).stdout)[command]


def test_inputs_that_core_ml_has_no_type_for(tmp_path: Path) -> None:
    """A scalar has no free dimension; int64, bool and double are carried by what Core ML has."""
    kinds = {"i": TensorProto.INT64, "b": TensorProto.BOOL, "d": TensorProto.DOUBLE}
    casts = [helper.make_node("Cast", [n], [f"{n}f"], to=TensorProto.FLOAT) for n in kinds]
    nodes = [*casts, helper.make_node("Sum", ["if", "bf", "df", "scalar"], ["y"])]
    inputs = [helper.make_tensor_value_info(n, kind, [1, 4]) for n, kind in kinds.items()]
    inputs.append(helper.make_tensor_value_info("scalar", TensorProto.FLOAT, []))
    graph = helper.make_graph(nodes, "g", inputs, [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4])])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "k.onnx")
    done = run("k.onnx", "--target", "ios15", "--json", cwd=tmp_path)
    assert done.returncode == 0 and json.loads(done.stdout)["proof"]["ok"], done.stderr


def test_questions_that_need_no_model(tmp_path: Path) -> None:
    assert "fuse-gelu" in run("--list-passes", cwd=tmp_path).stdout
    assert run("-O1", "--print-pipeline", cwd=tmp_path).stdout.startswith("canonicalize\n")
    refuse(run("-O1", cwd=tmp_path), 2, "which model?", tmp_path)


def test_models_that_can_not_be_compared(model: Path, tmp_path: Path) -> None:
    flat = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 7])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 7])],
    )
    proto = helper.make_model(flat, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(proto, tmp_path / "flat.onnx")
    done = run("verify", "net.onnx", "flat.onnx", cwd=tmp_path)
    refuse(done, 1, "'image' is [1,3,16,16], 'x' of the other is [1,7]", tmp_path, "net.onnx", "flat.onnx")


def assert_diff_against_the_loaded_model(printed: str) -> None:
    """The first pass that changed something is shown as its change, not as a whole model that came from nowhere."""
    first = printed.split("// canonicalize")[1].split("\n//")[0]
    lines = first.splitlines()[1:]
    assert any(line.startswith("-") for line in lines) and any(line.startswith("+") for line in lines)


def test_a_narrow_terminal_loses_nothing(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "30")
    done = run("net.onnx", "--target", "onnx", "-o", "o.onnx", "-O0", "--time-passes", cwd=tmp_path)
    assert "remove-dead-code" in done.stdout and "rewrites" in done.stdout and "outputs" in done.stdout


def test_quiet_prints_what_was_asked_for_by_name(model: Path, tmp_path: Path) -> None:
    done = run("net.onnx", "--target", "onnx", "-o", "o.onnx", "-O1", "-q", "--time-passes", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    # In 80 columns, too, a pass is called by its whole name.
    names = run("-O1", "--target", "onnx", "--print-pipeline", cwd=tmp_path).stdout.split()
    rows = [line.split() for line in done.stdout.splitlines()]
    assert [r[0] for r in rows if r and r[0] in names] == names
    assert "MACs" not in done.stdout and max(map(len, done.stdout.splitlines())) <= 80


def test_pipeline_flags(model: Path, tmp_path: Path) -> None:
    specs = run("net.onnx", "-O2", "--print-pipeline", cwd=tmp_path).stdout.split()
    assert specs[0] == "canonicalize" and "fuse-attention" in specs and specs[-1] == "round-activations"
    to_onnx = ("net.onnx", "--target", "onnx", "-o", "o.onnx", "-O1")
    done = run(*to_onnx, "--print-after-change", "--save-temps", "t", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert_diff_against_the_loaded_model(done.stdout)
    assert any(p.suffix == ".onnx" for p in (tmp_path / "t").iterdir())
    done = run(*to_onnx, "--bisect-limit", "2", "--json", "--print-after-all", cwd=tmp_path)
    statuses = [p["status"] for p in json.loads(done.stdout)["passes"]]
    assert "// after canonicalize" in done.stderr
    assert "skipped" not in statuses[:2] and set(statuses[2:]) == {"skipped"}


def test_what_prunes_comes_before_what_packs(model: Path, tmp_path: Path) -> None:
    """Of weights that are packed or half nothing could be masked. What a user adds behind rounding stays behind it."""

    def order(*arguments: str) -> list[str]:
        return run("net.onnx", *arguments, "--print-pipeline", cwd=tmp_path).stdout.split()

    added = (
        "--pass",
        "fuse-normalization",
        "--pass",
        "mask-channels{ratio=0.25},remove-channels",
        "--pass",
        "pack-weights",
    )
    specs = order("-O2", "--target", "ios18", *added)
    assert specs.index("mask-channels{ratio=0.25}") < specs.index("round-weights") < specs.index("round-activations")
    assert specs[specs.index("mask-channels{ratio=0.25}") - 1] == "fuse-normalization"
    assert specs[-1] == "round-activations" and specs.index("unpack-weights") > specs.index("pack-weights")
    assert specs[specs.index("unpack-weights") - 1] == "pack-weights"
    plain = order("-O0", "--target", "onnx")
    assert order("-O0", "--target", "onnx", *added)[: len(plain)] == plain
    late = order("-O1", "--target", "ios18", "--pass", "round-weights", "--pass", "mask-channels")
    assert late[-1] == "mask-channels" and late.index("round-weights") < late.index("unpack-weights")
    half = ("-O1", "--target", "ios18", "--precision", "fp16", "--pass", "round-weights", "--pass", "remove-no-ops")
    specs = order(*half)
    assert specs.index("round-weights") < specs.index("legalize") < specs.index("round-activations")
    assert specs[-1] == "remove-no-ops"
    command = (
        "net.onnx",
        "-O2",
        "--target",
        "ios18",
        "--pass",
        "mask-channels{ratio=0.5,align=1}",
        "--pass",
        "remove-channels",
    )
    done = run(*command, "--json", cwd=tmp_path)
    report = json.loads(done.stdout)
    assert report["after"]["macs"] < 0.6 * report["before"]["macs"], done.stdout


def test_dry_run_says_what_is_missing_and_writes_nothing(model: Path, tmp_path: Path) -> None:
    done = run("net.onnx", "--dry-run", cwd=tmp_path)
    assert done.returncode == 0 and "would compile" in done.stdout, done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["net.onnx"]
    onnx.save(conv_model("N"), tmp_path / "net.onnx")
    done = run("net.onnx", "--dry-run", cwd=tmp_path)
    assert done.returncode == 2 == run("net.onnx", cwd=tmp_path).returncode
    assert "--shape image:1,3,16,16" in done.stdout


def test_labelled_inputs_give_accuracy(model: Path, tmp_path: Path) -> None:
    labels = RNG.integers(0, 10, 7)
    np.savez(tmp_path / "i.npz", image=tensor(7, 3, 16, 16), labels=labels)
    done = run("net.onnx", "--inputs", "i.npz", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)["accuracy"]
    assert 0 <= found["before"] <= 1 and abs(found["before"] - found["after"]) <= 1 / 7 + 1e-9
    assert found["samples"] == 7
