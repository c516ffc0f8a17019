"""Puts finished files in their place: all of them or none, and what is there stays until the new ones are whole."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from .disk import external_files
from .errors import EdgecError, UsageError


def place(files: Sequence[tuple[Path, Path]], *, keep: bool = False) -> None:
    """Move each file or folder to its target; with `keep`, copy it. The last one is the one that names the others.

    Everything is brought beside its target first, then renamed. Where that fails, what was there is put back.
    Raises UsageError for a missing folder, EdgecError where it can't be written (the disk is full).
    """
    for _, target in files:
        if not target.parent.is_dir():
            raise UsageError(f"can't write {target}: there is no folder {target.parent}")
    stale = _stale(files)
    alone = len(files) == 1 and not stale and not files[0][1].is_dir()  # Replaced in one step by the system.
    asides = [t.parent / f".{t.name}.edgec-{os.getpid()}" for _, t in files]
    olds: list[tuple[Path, Path]] = []
    try:
        for (made, _), aside in zip(files, asides, strict=True):
            _bring(made, aside, keep)
        for target in [*(t for _, t in files), *stale]:
            if not alone and (target.exists() or target.is_symlink()):
                olds.append((target, target.parent / f".{target.name}.old-{os.getpid()}"))
                target.rename(olds[-1][1])
        for (_, target), aside in zip(files, asides, strict=True):
            aside.replace(target)
    except BaseException as e:
        for path in asides:
            discard(path)
        for target, old in olds:
            if old.exists() or old.is_symlink():
                discard(target)
                old.rename(target)
        if isinstance(e, OSError):
            raise EdgecError(f"can't write {files[-1][1]}: {e.strerror or e}") from e
        raise
    for _, old in olds:
        discard(old)


def place_text(path: Path, text: str, what: str = "") -> None:
    """Write a text file; what is there stays until the new one is whole. Raises EdgecError when it can't be written."""
    aside = path.with_name(f".{path.name}.edgec-{os.getpid()}")
    try:
        aside.write_text(text, encoding="utf-8")
        aside.replace(path)
    except OSError as e:
        raise EdgecError(f"can't write {what}{path}: {e.strerror or e}") from e
    finally:
        aside.unlink(missing_ok=True)


def _bring(made: Path, aside: Path, keep: bool) -> None:
    if not keep:
        try:
            made.rename(aside)
            return
        except OSError:
            pass  # Another file system: copied instead.
    if made.is_dir():
        shutil.copytree(made, aside)
    else:
        shutil.copy2(made, aside)


def _stale(files: Sequence[tuple[Path, Path]]) -> list[Path]:
    """The weights beside a model that is about to be replaced, named after it, which the new one doesn't need."""
    target = files[-1][1]
    data = data_file(target)
    if not target.is_file() or not data.is_file() or any(t == data for _, t in files):
        return []
    return [data] if external_files(target) == {data.name} else []


def data_file(model: Path) -> Path:
    """Where the weights of a model lie that are too big for its own file."""
    return model.with_name(model.name + ".data")


def discard(path: Path) -> None:
    """Remove a file or folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
