"""Plug-ins come in through entry points, `module:attr` and `./file.py:Class`; the built-ins use the same door."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

import edgec
from edgec.compiler.errors import UsageError
from edgec.compiler.plugins import PASSES, entries, find_pass

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The test plug-in, installed by pip from its source folder, as a user would."""
    folder = tmp_path_factory.mktemp("plugin")
    source = folder / "source"
    subprocess.run(["cp", "-r", ROOT / "tests" / "plugin", source], check=True)
    target = folder / "site"
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", target, source]
    subprocess.run(command, check=True, capture_output=True)
    return target


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 3])],
    )
    path = tmp_path_factory.mktemp("model") / "relu.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def edgec_command(*arguments: object, site: Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(site)}
    command = [sys.executable, "-m", "edgec", *map(str, arguments)]
    return subprocess.run(command, env=env, cwd=cwd, capture_output=True, text=True, check=False)


def compile_with(spec: str, model: Path, site: Path, cwd: Path, *more: str) -> subprocess.CompletedProcess[str]:
    return edgec_command(model, "-O1", "--target", "onnx", "--pass", spec, "--json", *more, site=site, cwd=cwd)


def test_an_installed_plugin_adds_a_pass(installed: Path, model: Path, tmp_path: Path) -> None:
    listed = edgec_command("passes", "--json", site=installed, cwd=tmp_path)
    rows = {row["name"]: row for row in json.loads(listed.stdout)["passes"]}
    assert rows["negate-twice"]["package"] == "edgec-test-plugin"
    done = compile_with("negate-twice{times=2}", model, installed, tmp_path)
    assert done.returncode == 0, done.stderr
    last = json.loads(done.stdout)["passes"][-1]
    assert (last["spec"], last["status"], last["rewrites"]) == ("negate-twice{times=2}", "ok", 2)
    assert [n.op_type for n in onnx.load(tmp_path / "relu.onnx").graph.node] == ["Relu", "Neg", "Neg", "Neg", "Neg"]


def test_a_pass_of_a_module_that_breaks_its_promise_is_undone(installed: Path, model: Path, tmp_path: Path) -> None:
    done = compile_with("edgec_plugin:Scale{factor=1.5}", model, installed, tmp_path)
    assert done.returncode == 0, done.stderr
    last = json.loads(done.stdout)["passes"][-1]
    assert last["status"] == "undone" and "changed the function" in last["why"]
    assert (Path(tmp_path) / last["reproducer"] / "command.txt").is_file()
    assert [n.op_type for n in onnx.load(tmp_path / "relu.onnx").graph.node] == ["Relu"]


def test_strict_makes_it_an_error_and_writes_nothing(installed: Path, model: Path, tmp_path: Path) -> None:
    done = compile_with("edgec_plugin:Scale", model, installed, tmp_path, "--strict")
    assert done.returncode == 1 and "scale-output broke its promise" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "relu.onnx").exists()


def test_a_pass_in_a_file(installed: Path, model: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text((ROOT / "tests/plugin/edgec_plugin/__init__.py").read_text())
    done = compile_with("./mine.py:NegateTwice", model, tmp_path, tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["passes"][-1]["rewrites"] == 1


def test_a_copied_plugin_that_claims_a_taken_name_is_refused(installed: Path, model: Path, tmp_path: Path) -> None:
    info = tmp_path / "other-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: other\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[edgec.passes]\nremove-dead-code = other:Pass\n")
    done = edgec_command("passes", site=tmp_path, cwd=tmp_path)
    assert done.returncode == 2 and "two packages register 'remove-dead-code'" in done.stderr


def test_every_builtin_pass_is_registered_and_documented() -> None:
    names = entries(PASSES)
    assert {"canonicalize", "fold-constants", "fuse-attention", "round-weights", "pack-weights"} <= set(names)
    for name in names:
        made = find_pass(name)
        doc = type(made).__doc__ or ""
        assert made.name == name
        assert "before" in doc.lower() and "after" in doc.lower(), f"{name}: its docstring shows no before and after"


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("fold-constnats", "unknown pass 'fold-constnats'. Did you mean 'fold-constants'"),
        ("nowhere.at_all:Pass", "can't load 'nowhere.at_all:Pass'"),
        ("./nowhere.py:Pass", "no such file: nowhere.py"),
        ("os:path", "must be a subclass of edgec.Pass"),
    ],
)
def test_what_can_not_be_found_is_named(spec: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        find_pass(spec)


def test_public_names_exist() -> None:
    for name in edgec.__all__:
        assert getattr(edgec, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nope'"):
        _ = edgec.nope


def test_a_file_that_was_changed_is_read_again(tmp_path: Path) -> None:
    """As in a notebook, where the process lives on."""
    text = "from edgec import Pass\nclass Mine(Pass):\n    name = '{}'\n    def run(self, model, ctx): return 0\n"
    for name in ("first", "another"):
        (tmp_path / "mine.py").write_text(text.format(name))
        assert find_pass(f"{tmp_path}/mine.py:Mine").name == name
        assert type(find_pass(f"{tmp_path}/mine.py:Mine")) is type(find_pass(f"{tmp_path}/mine.py:Mine"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def (", "invalid syntax"),
        ("raise KeyError('boom')", "KeyError: 'boom'"),
        ("import sys; sys.exit(3)", "SystemExit: 3"),
        ("", "mine.py has no 'Mine'"),
        ("class Mine: pass", "is not a pass"),
        ("from edgec import Pass\nclass Mine(Pass): pass", "has no name"),
    ],
)
def test_files_that_hold_no_pass(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(text)
    with pytest.raises(UsageError, match=re.escape(message)):
        find_pass(f"{tmp_path}/mine.py:Mine")
