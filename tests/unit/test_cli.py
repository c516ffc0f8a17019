"""The command line as a user meets it: a process of its own, its output, its exit code, what is on disk afterwards."""

from __future__ import annotations

import fcntl
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

RNG = np.random.default_rng(0)


def run(*arguments: object, cwd: Path, limit: Callable[[], None] | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "edgec", *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False, preexec_fn=limit)


def tensor(*shape: int) -> np.ndarray:
    return (RNG.standard_normal(shape) * 0.2).astype(np.float32)


def conv_model(batch: int | str = 1, weight: np.ndarray | None = None, op: str = "Relu") -> onnx.ModelProto:
    weights = {"w": tensor(8, 3, 3, 3) if weight is None else weight, "b": tensor(8), "f": tensor(8 * 16 * 16, 10)}
    nodes = [
        helper.make_node("Conv", ["image", "w", "b"], ["c"], "conv", pads=[1, 1, 1, 1]),
        helper.make_node(op, ["c"], ["r"], "act", domain="" if op == "Relu" else "my.domain"),
        helper.make_node("Flatten", ["r"], ["v"], "flat"),
        helper.make_node("MatMul", ["v", "f"], ["logits"], "fc"),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [batch, 3, 16, 16])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, 10])],
        [numpy_helper.from_array(a, n) for n, a in weights.items()],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("my.domain", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "net.onnx"
    onnx.save(conv_model(), path)
    return path


def contents(package: Path) -> dict[Path, bytes]:
    """Every file of a package."""
    return {p.relative_to(package): p.read_bytes() for p in package.rglob("*") if p.is_file()}


def refuse(done: subprocess.CompletedProcess[str], code: int, message: str, folder: Path, *left: str) -> None:
    """One clear message, the right exit code, nothing half-written."""
    assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
    assert message in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert sorted(p.name for p in folder.iterdir()) == sorted(left)


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


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"labels": np.zeros(6, int)}, "'labels' is int64 of shape [6]; it must hold a whole number for each of the 7"),
        ({"labels": np.zeros((7, 1), int)}, "of shape [7, 1]"),
        ({"labels": np.full(7, 1.5)}, "'labels' is float64"),
        ({"image": np.full((7, 3, 16, 16), 1e300)}, "array 'image' holds numbers that float32 has no room for"),
    ],
)
def test_inputs_that_do_not_fit(arrays: dict[str, np.ndarray], message: str, model: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "i.npz", **{"image": tensor(7, 3, 16, 16), **arrays})  # type: ignore[arg-type]
    refuse(run("net.onnx", "--inputs", "i.npz", cwd=tmp_path), 2, message, tmp_path, "i.npz", "net.onnx")


# --- what can go wrong ------------------------------------------------------------------------------------------------


def test_no_such_file(tmp_path: Path) -> None:
    refuse(run("nothing.onnx", cwd=tmp_path), 2, "no such file: nothing.onnx", tmp_path)


def test_not_a_model(tmp_path: Path) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"\x93NUMPY\x01\x00")
    refuse(run("bad.onnx", cwd=tmp_path), 1, "bad.onnx", tmp_path, "bad.onnx")


@pytest.mark.parametrize(
    ("name", "message"), [("", "which model?"), (".", "load '.'"), ("/dev/null", "load '/dev/null'")]
)
def test_what_is_no_model_at_all(name: str, message: str, tmp_path: Path) -> None:
    refuse(run(name, cwd=tmp_path), 2, message, tmp_path)


def test_an_unknown_kind_of_file(tmp_path: Path) -> None:
    (tmp_path / "model.xyz").write_bytes(b"hello")
    refuse(run("model.xyz", cwd=tmp_path), 2, "don't know how to load", tmp_path, "model.xyz")


def test_unknown_operators_are_all_listed_with_their_nodes(tmp_path: Path) -> None:
    onnx.save(conv_model(op="Zap"), tmp_path / "z.onnx")
    done = run("z.onnx", cwd=tmp_path)
    refuse(done, 1, "Zap", tmp_path, "z.onnx")
    assert "act" in done.stderr
    dry = run("z.onnx", "--dry-run", cwd=tmp_path)
    assert dry.returncode == 1 and "Zap" in dry.stdout + dry.stderr


def test_free_dimensions_name_the_flag(tmp_path: Path) -> None:
    onnx.save(conv_model("N"), tmp_path / "n.onnx")
    refuse(run("n.onnx", cwd=tmp_path), 2, "--shape image:1,3,16,16", tmp_path, "n.onnx")
    assert run("n.onnx", "--shape", "image:1,3,16,16", cwd=tmp_path).returncode == 0
    assert run("n.onnx", "--shape", "N:2", cwd=tmp_path).returncode == 0


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ("image", "is not a shape"),
        ("image:1,3", "2 dimensions given, the model has 4"),
        ("picture:1,3,16,16", "no such input or free dimension"),
        ("image:1,4,16,16", "contradicts"),
        ("image:0,3,16,16", "must be at least 1"),
    ],
)
def test_wrong_shapes(shape: str, message: str, model: Path, tmp_path: Path) -> None:
    refuse(run("net.onnx", "--shape", shape, cwd=tmp_path), 2, message, tmp_path, "net.onnx")


@pytest.mark.parametrize("held", ["initializer", "Constant"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_weights_that_are_no_numbers(bad: float, held: str, tmp_path: Path) -> None:
    weight = tensor(8, 3, 3, 3)
    weight[3, 1, 0, 0] = bad
    proto = conv_model(weight=weight)
    if held == "Constant":
        kept = [t for t in proto.graph.initializer if t.name != "w"]
        proto.graph.node.insert(0, helper.make_node("Constant", [], ["w"], value=numpy_helper.from_array(weight)))
        del proto.graph.initializer[:]
        proto.graph.initializer.extend(kept)
    onnx.save(proto, tmp_path / "nan.onnx")
    refuse(run("nan.onnx", cwd=tmp_path), 1, "nan.onnx: weight 'w' of Conv 'conv'", tmp_path, "nan.onnx")


def test_what_onnxruntime_refuses_is_said_with_the_file(tmp_path: Path) -> None:
    proto = conv_model()
    proto.graph.node[1].attribute.append(helper.make_attribute("bogus", 3))
    onnx.save(proto, tmp_path / "odd.onnx")
    refuse(run("odd.onnx", cwd=tmp_path), 1, "odd.onnx: ", tmp_path, "odd.onnx")


def test_a_pass_that_was_undone_is_named_even_when_quiet(model: Path, tmp_path: Path) -> None:
    (tmp_path / "odd.py").write_text(
        "from dataclasses import dataclass\nfrom edgec import Pass\n\n\n"
        "@dataclass(frozen=True)\nclass Odd(Pass):\n    name = 'odd'\n\n"
        "    def run(self, model, ctx):\n        raise KeyError('boom')\n"
    )
    done = run("net.onnx", "--target", "onnx", "-o", "o.onnx", "-O0", "-q", "--pass", "./odd.py:Odd", cwd=tmp_path)
    assert done.returncode == 0 and done.stdout == ""
    assert done.stderr == "edgec: pass odd was undone: KeyError: 'boom'; see edgec-reproduce-odd\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--target", "android"], "unknown target 'android'"),
        (["--pass", "nope"], "unknown pass 'nope'"),
        (["--passes", "fold-constants{x=1}"], "has no option 'x'"),
        (["-o", "missing/net.mlpackage"], "there is no folder missing"),
        (["-o", "net.txt"], "must end in .mlpackage"),
        (["--target", "onnx", "-o", "net.onnx"], "is the model itself"),
        (["--report", "r.pdf"], "must end in .html or .json"),
        (["--inputs", "nothing.npz"], "nothing.npz"),
        (["--max-error", "nan"], "NaN is no limit"),
        (["--max-error", "-0.1"], "below 0"),
        (["--min-snr", "nan"], "NaN is no limit"),
        (["--bisect-limit", "-1"], "'-1' is not 0, 1, 2"),
        (["--target", "onnx", "-o", ".onnx"], "needs a name before .onnx"),
        (["--save-temps", "net.onnx"], "is not a folder"),
        (["--print-pipeline", "--pass", "nope"], "unknown pass 'nope'"),
        (["--print-pipeline", "--passes", "fold-constants{"], "is not a pass spec"),
        (["--frobnicate"], "unrecognized arguments: --frobnicate"),
    ],
)
def test_wrong_use(arguments: list[str], message: str, model: Path, tmp_path: Path) -> None:
    refuse(run("net.onnx", *arguments, cwd=tmp_path), 2, message, tmp_path, "net.onnx")


def test_a_budget_that_can_not_be_kept_writes_nothing(model: Path, tmp_path: Path) -> None:
    done = run("net.onnx", "--verify", "end", "--max-error", "0", cwd=tmp_path)
    refuse(done, 1, "Nothing was written", tmp_path, "net.onnx")


def test_a_failed_proof_is_still_reported(model: Path, tmp_path: Path) -> None:
    done = run("net.onnx", "--max-error", "1e-9", "--verify", "end", "--report", "r.json", cwd=tmp_path)
    refuse(done, 1, "more than allowed", tmp_path, "net.onnx", "r.json")
    assert json.loads((tmp_path / "r.json").read_text())["proof"]["ok"] is False and "not proven" in done.stdout.lower()


def test_a_fault_that_nobody_foresaw_is_one_message(model: Path, tmp_path: Path) -> None:
    (tmp_path / "odd.py").write_text(
        "from dataclasses import dataclass\nfrom edgec import Pass\n\n\n"
        "@dataclass(frozen=True)\nclass Odd(Pass):\n    name = 'odd'\n\n"
        "    def run(self, model, ctx):\n        raise SystemError('never mind')\n"
    )
    done = run("net.onnx", "--pass", "./odd.py:Odd", "--verify", "off", cwd=tmp_path)
    assert done.returncode == 1 and "SystemError: never mind" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "net.mlpackage").exists()


def test_an_output_folder_without_permission(model: Path, tmp_path: Path) -> None:
    if os.geteuid() == 0:
        target = Path("/proc/net.mlpackage")
    else:
        (tmp_path / "locked").mkdir(mode=0o500)
        target = tmp_path / "locked" / "net.mlpackage"
    done = run("net.onnx", "-o", target, cwd=tmp_path)
    assert done.returncode in (1, 2) and str(target.parent) in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("limit", [10_000, 500_000])
@pytest.mark.parametrize(
    "arguments", [["-O2"], ["-O1", "--verify", "off"], ["-O1", "--target", "onnx", "-o", "o.onnx"]]
)
def test_a_full_disk(limit: int, arguments: list[str], tmp_path: Path) -> None:
    """The smaller limit is met by the package, the greater one by weights that a pass makes."""
    proto = conv_model()
    big = [t for t in proto.graph.initializer if t.name != "f"] + [numpy_helper.from_array(tensor(2048, 300), "f")]
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(big)
    proto.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 300
    proto.graph.node.append(helper.make_node("Mul", ["raw", "two"], ["logits"]))
    proto.graph.node[3].output[0] = "raw"
    proto.graph.initializer.append(numpy_helper.from_array(np.full(1, 2, np.float32), "two"))
    onnx.save(proto, tmp_path / "net.onnx")

    def small_files() -> None:
        # No file may grow beyond the limit: writing fails as it does on a full disk.
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    done = run("net.onnx", *arguments, cwd=tmp_path, limit=small_files)
    refuse(done, 1, "nothing was written", tmp_path, "net.onnx")
    assert "requested" not in done.stderr


def test_an_old_package_survives_a_failed_run(model: Path, tmp_path: Path) -> None:
    assert run("net.onnx", cwd=tmp_path).returncode == 0
    before = contents(tmp_path / "net.mlpackage")
    assert run("net.onnx", "--max-error", "0", "--verify", "end", cwd=tmp_path).returncode == 1
    assert before == contents(tmp_path / "net.mlpackage")


def test_a_report_that_can_not_be_written_does_not_hide_the_model(model: Path, tmp_path: Path) -> None:
    (tmp_path / "late.py").write_text(
        "from dataclasses import dataclass\nfrom pathlib import Path\nfrom edgec import Pass\n\n\n"
        "@dataclass(frozen=True)\nclass Late(Pass):\n    name = 'late'\n\n"
        "    def run(self, model, ctx):\n        Path('r.json').mkdir()\n        return 0\n"
    )
    reports = ("--report", "r.json", "--report", "r.html")
    done = run("net.onnx", "--pass", "./late.py:Late", *reports, cwd=tmp_path)
    assert done.returncode == 1 and "MACs" in done.stdout
    assert done.stderr.splitlines() == [
        "edgec: error: can't write the report r.json: Is a directory",
        "edgec: net.mlpackage, r.html were written",
    ]
    assert (tmp_path / "net.mlpackage").is_dir() and (tmp_path / "r.html").is_file()


def test_a_folder_that_is_no_package_is_not_replaced(model: Path, tmp_path: Path) -> None:
    (tmp_path / "net.mlpackage").mkdir()
    (tmp_path / "net.mlpackage" / "thesis.txt").write_text("years of work")
    refuse(run("net.onnx", cwd=tmp_path), 2, "holds something else", tmp_path, "net.mlpackage", "net.onnx")
    assert (tmp_path / "net.mlpackage" / "thesis.txt").exists()


@pytest.mark.parametrize("command", [["passes"], ["net.onnx", "--target", "onnx", "-o", "o.onnx"]])
def test_a_reader_that_goes_away(command: list[str], model: Path, tmp_path: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([sys.executable, "-m", "edgec", *command], cwd=tmp_path, stdout=write, stderr=subprocess.PIPE)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, b"")


def test_closed_streams(model: Path, tmp_path: Path) -> None:
    command = f"{sys.executable} -m edgec net.onnx --target onnx -o o.onnx >&- 2>&-"
    assert subprocess.run(command, cwd=tmp_path, shell=True, check=False).returncode == 0
    assert (tmp_path / "o.onnx").is_file()
    done = run("targets", cwd=tmp_path, limit=lambda: os.dup2(os.open("/dev/full", os.O_WRONLY), 1))
    assert done.returncode == 1 and "No space left" in done.stderr and "Traceback" not in done.stderr


def test_names_that_are_no_unicode_are_refused(model: Path, tmp_path: Path) -> None:
    """Neither protobuf nor Core ML's library can hold them."""
    name = os.fsdecode(b"caf\xe9.onnx")
    refuse(run("net.onnx", "--target", "onnx", "-o", name, cwd=tmp_path), 2, "is no UTF-8", tmp_path, "net.onnx")
    (tmp_path / "net.onnx").rename(tmp_path / name)
    for arguments in ([name], [name, "--dry-run"], ["verify", name, name]):
        refuse(run(*arguments, cwd=tmp_path), 2, "caf\\udce9.onnx is no UTF-8", tmp_path, name)


def interruptible() -> None:
    """Where the tests run in the background, interrupts are ignored, and children would inherit that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_an_interrupt_while_the_command_line_is_imported(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys, time\n"
        "class Interrupts:\n"
        "    def find_spec(self, name, path, target=None):\n"
        "        if name == 'edgec.compiler.cli':\n"
        "            os.kill(os.getpid(), signal.SIGINT)\n"
        "            time.sleep(10)\n"
        "from edgec.__main__ import main\n"
        "sys.meta_path.insert(0, Interrupts())\n"
        "sys.exit(main())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, preexec_fn=interruptible)
    assert (done.returncode, done.stderr) == (130, "edgec: interrupted; nothing was written\n")


def test_an_interrupt_after_the_model_was_written_says_so(model: Path, tmp_path: Path) -> None:
    read, write = os.pipe()
    # A pipe that is full and that nobody reads: the summary comes after the model, and waits.
    os.write(write, b"x" * fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, 4096))
    process = subprocess.Popen(
        [sys.executable, "-m", "edgec", "net.onnx"],
        cwd=tmp_path, stdout=write, stderr=subprocess.PIPE, text=True, preexec_fn=interruptible,
    )  # fmt: skip
    while not (tmp_path / "net.mlpackage").exists():
        assert process.poll() is None
        time.sleep(0.1)
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=30)
    os.close(read), os.close(write)
    assert (process.returncode, stderr) == (130, "edgec: interrupted; net.mlpackage was written\n")


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("after", [0.3, 1.0])
def test_an_interrupt_leaves_nothing(sent: signal.Signals, after: float, model: Path, tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(
        "import time\nfrom dataclasses import dataclass\nfrom edgec import Pass\n\n\n"
        "@dataclass(frozen=True)\nclass Slow(Pass):\n    name = 'slow'\n\n"
        "    def run(self, model, ctx):\n        print('sleeping', flush=True)\n        time.sleep(60)\n"
        "        return 0\n"
    )
    command = [sys.executable, "-m", "edgec", "net.onnx", "--pass", "./slow.py:Slow"]
    process = subprocess.Popen(
        command,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=interruptible,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "sleeping\n"
    time.sleep(after)
    process.send_signal(sent)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == 130 and "interrupted" in stderr and "Traceback" not in stderr
    left = {p.name for p in tmp_path.iterdir()} - {"__pycache__"}
    assert left == {"net.onnx", "slow.py"}
