"""The guard on the command line, with the labelled digits of the examples: budgets, metrics, and what is wrong."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgec
from edgec.compiler.cli import main

DIGITS = Path(__file__).parents[2] / "examples" / "digits"
BASE = "canonicalize,fold-constants,fold-shapes,fold-batch-norm"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model; its first 200 samples with labels, and other files that don't fit."""
    path = tmp_path_factory.mktemp("digits")
    shutil.copy(DIGITS / "digits.onnx", path)
    with np.load(DIGITS / "digits.npz") as file:
        image, labels = file["image"][:200], file["labels"][:200]
    np.savez(path / "data.npz", image=image, labels=labels)
    np.savez(path / "few.npz", image=image, labels=labels[:7])
    np.savez(path / "none.npz", image=image)
    np.savez(path / "names.npz", picture=image, labels=labels)
    (path / "mine.py").write_text(
        "import numpy as np\n"
        "def loss(outputs, data):\n"
        "    p = outputs['probabilities'][np.arange(len(data['labels'])), data['labels']]\n"
        "    return -np.log(np.maximum(p, 1e-9)).mean()\n"
        "loss.smaller_is_better = True\n"
        "def nan(outputs, data):\n    return float('nan')\n"
        "def fails(outputs, data):\n    return outputs['logits']\n"
    )
    return path


def compiled(folder: Path, capsys: pytest.CaptureFixture[str], *options: str) -> tuple[int, str, str]:
    arguments = [str(folder / "digits.onnx"), "--target", "onnx", "-o", str(folder / "out.onnx"), "--no-latency"]
    code = main([*arguments, *(o.replace("@", f"{folder}/") for o in options)])
    done = capsys.readouterr()
    assert "Traceback" not in done.out + done.err
    return code, done.out, done.err


def report(folder: Path, capsys: pytest.CaptureFixture[str], *options: str) -> dict[str, Any]:
    code, out, err = compiled(folder, capsys, "--json", *options)
    assert code == 0, err
    return json.loads(out)  # type: ignore[no-any-return]


METRIC = "--metric", "accuracy", "--data", "@data.npz"


def test_masks_that_cost_accuracy_are_taken_back_in_part(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    specs = f"{BASE},mask-weights{{ratio=0.8}},pack-weights"
    found = report(folder, capsys, "--passes", specs, *METRIC, "--max-drop", "0.02", "--report", str(folder / "r.html"))
    masked = next(p for p in found["passes"] if p["spec"].startswith("mask-weights"))
    assert masked["status"] == "ok" and masked["retreat"][0].startswith("over --max-drop 0.02: accuracy ")
    # Some tensors went back, some are masked, and behind it the model still does its task.
    changed = len(masked["layers"])
    assert changed and masked["kept"] and changed + len(masked["kept"]) >= 7
    assert masked["metric"]["drop"] <= 0.02 and masked["loss"]["max_rel"] > 0
    assert found["metric"]["samples"] == 200 and found["metric"]["drop"] <= 0.02 and found["proof"]["ok"]
    assert found["metric"]["before"] > 0.97
    page = (folder / "r.html").read_text()
    assert "Taken back in part" in page and "Where it arises" in page and masked["layers"][0]["name"] in page
    # The file, compared with the model, says the same.
    other = folder / "out.onnx"
    code = main(["verify", str(folder / "digits.onnx"), str(other), "--max-drop", "0.02", "--json", *(
        o.replace("@", f"{folder}/") for o in METRIC)])  # fmt: skip
    verified = json.loads(capsys.readouterr().out)
    assert code == 0 and verified["metric"]["after"] == found["metric"]["after"]


def test_the_summary_says_what_was_lost_and_where(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    specs = f"{BASE},round-weights{{bits=4,by=nearest,min_snr=0}}"
    code, out, _ = compiled(folder, capsys, "--passes", specs, "--metric", "@mine.py:loss", "--data", "@data.npz", "-v")
    text = " ".join(out.split())
    assert code == 0 and "Layers of round-weights" in text and "/head/head.0/Gemm" in text
    assert "smaller is better" in text and "mine.py:loss" in text and "of 200 samples" in text


def test_a_file_over_the_budget_is_not_written(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "out.onnx").unlink(missing_ok=True)
    specs = f"{BASE},mask-weights{{ratio=0.95}}"
    code, _, err = compiled(folder, capsys, "--passes", specs, *METRIC, "--max-drop", "0.02", "--verify", "end")
    assert code == 1 and "does its task worse than allowed: accuracy" in err and "--max-drop 0.02" in err
    assert not (folder / "out.onnx").exists()


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--metric", "accuracy"], 2, "give them with --data"),
        (["--max-drop", "0.1"], 2, "of which metric? Name it with --metric"),
        (["--metric", "acuracy", "--data", "@data.npz"], 2, "unknown metric 'acuracy'"),
        ([*METRIC, "--max-drop", "1"], 2, "one percent is 0.01"),
        ([*METRIC, "--max-drop", "-1"], 2, "below 0"),
        (["--metric", "accuracy", "--data", "@few.npz"], 2, "must have a row for each of the 200 samples"),
        (["--metric", "accuracy", "--data", "@none.npz"], 2, "needs an array 'labels'"),
        (["--metric", "accuracy", "--data", "@names.npz"], 2, "no array 'image'; the model's inputs: image"),
        (["--metric", "accuracy", "--data", "@nothing.npz"], 2, "can't read"),
        (["--metric", "accuracy", "--data", "@mine.py"], 2, "is no .npz"),
        (["--metric", "no_such_module:f", "--data", "@data.npz"], 2, "can't load 'no_such_module:f'"),
        (["--metric", "@mine.py:f", "--data", "@data.npz"], 2, "has no 'f'"),
        (["--metric", "@mine.py:nan", "--data", "@data.npz"], 1, "is nan: no number to compare with"),
        (["--metric", "@mine.py:fails", "--data", "@data.npz"], 1, "failed: KeyError: 'logits'"),
    ],
)
def test_what_is_wrong_is_said_in_one_message(
    folder: Path, capsys: pytest.CaptureFixture[str], options: list[str], code: int, message: str
) -> None:
    found, _, err = compiled(folder, capsys, "--passes", "canonicalize", *options)
    assert found == code and message in err and err.count("error:") == 1


def test_what_is_taken_back_is_said_even_when_quiet(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    specs = f"{BASE},mask-weights{{ratio=0.8}}"
    code, out, err = compiled(folder, capsys, "--passes", specs, *METRIC, "--max-drop", "0.02", "-q")
    assert (
        code == 0 and not out and err.startswith("edgec: pass mask-weights{ratio=0.8} was taken back in part: over --")
    )


def test_verify_says_that_models_differ_within_the_limit(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, data = str(folder / "digits.onnx"), str(folder / "data.npz")
    assert main(["verify", model, model, "--metric", "accuracy", "--data", data, "--max-drop", "0.01"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "of 200 samples; up to 0.01 may be lost" in said
    assert "The models differ by no more than --max-drop 0.01 allows." in said


def test_verify_judges_by_the_metric_alone_where_it_is_the_only_limit(folder: Path) -> None:
    found = edgec.verify(
        folder / "digits.onnx", folder / "digits.onnx", metric="agreement", data=folder / "none.npz", max_drop=0.0
    )
    assert found.score is not None and found.score.ok and (found.score.before, found.score.after) == (1.0, 1.0)


def test_without_a_metric_labels_still_give_accuracy(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = report(folder, capsys, "--passes", "canonicalize", "--inputs", str(folder / "data.npz"))
    assert found["metric"] is None and found["accuracy"]["samples"] == 200


def test_families_of_channels_are_taken_back_whole(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What is left of the mask is closed: the channels that it holds are removed, exactly."""
    specs = f"{BASE},mask-channels{{ratio=0.5}},remove-channels"
    found = report(folder, capsys, "--passes", specs, *METRIC, "--max-drop", "0.02")
    masked = next(p for p in found["passes"] if p["spec"].startswith("mask-channels"))
    removed = next(p for p in found["passes"] if p["spec"] == "remove-channels")
    assert "families of channels keep the numbers that they had" in masked["retreat"][1] and masked["kept"]
    assert removed["status"] == "ok" and removed["rewrites"] > 0
    assert found["after"]["parameters"] < 0.9 * found["before"]["parameters"]
    assert found["metric"]["drop"] <= 0.02 and found["proof"]["ok"]


def test_a_fixed_batch_is_measured_sample_by_sample(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Where --shape fixes what the file leaves free, and in the package that is read back."""
    out, data = str(folder / "n.mlpackage"), str(folder / "data.npz")
    specs = f"{BASE},round-weights,pack-weights"
    code = main([str(folder / "digits.onnx"), "--shape", "N:1", "--passes", specs, "-o", out, "--json",
                 "--metric", "accuracy", "--data", data, "--max-drop", "0.02"])  # fmt: skip
    done = capsys.readouterr()
    found = json.loads(done.out)
    assert code == 0, done.err
    rounded = next(p for p in found["passes"] if p["spec"].startswith("round-weights"))
    assert found["metric"]["samples"] == 200 and rounded["metric"]["after"] == found["metric"]["after"] > 0.97
