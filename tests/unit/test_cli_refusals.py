"""What the command line refuses: one message that names the remedy, an exit code, nothing written."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from commandline import conv_model, refuse, run, saved, tensor
from onnx import helper, numpy_helper


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return saved(tmp_path)


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


def test_a_folder_that_is_no_package_is_not_replaced(model: Path, tmp_path: Path) -> None:
    (tmp_path / "net.mlpackage").mkdir()
    (tmp_path / "net.mlpackage" / "thesis.txt").write_text("years of work")
    refuse(run("net.onnx", cwd=tmp_path), 2, "holds something else", tmp_path, "net.mlpackage", "net.onnx")
    assert (tmp_path / "net.mlpackage" / "thesis.txt").exists()


def test_names_that_are_no_unicode_are_refused(model: Path, tmp_path: Path) -> None:
    """Neither protobuf nor Core ML's library can hold them."""
    name = os.fsdecode(b"caf\xe9.onnx")
    refuse(run("net.onnx", "--target", "onnx", "-o", name, cwd=tmp_path), 2, "is no UTF-8", tmp_path, "net.onnx")
    (tmp_path / "net.onnx").rename(tmp_path / name)
    for arguments in ([name], [name, "--dry-run"], ["verify", name, name]):
        refuse(run(*arguments, cwd=tmp_path), 2, "caf\\udce9.onnx is no UTF-8", tmp_path, name)
