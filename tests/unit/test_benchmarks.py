"""Benchmarks are not run by the tests; what they import from edgec and from each other must be there all the same."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted((ROOT / "benchmarks").glob("*.py"))


def names(module: str) -> set[str]:
    """What a module of ours defines or imports at its top level, and what lies in a package."""
    path = ROOT.joinpath(*module.removeprefix("edgec").strip(".").split("."))
    inside = {p.stem for p in path.glob("*")} if path.is_dir() else set()
    source = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    found = ast.parse(source.read_text()).body if source.is_file() else []
    return inside | {n.id for s in found for n in ast.walk(s) if isinstance(n, ast.Name)} | {
        a.asname or a.name for s in found if isinstance(s, ast.Import | ast.ImportFrom) for a in s.names
    } | {s.name for s in found if isinstance(s, ast.FunctionDef | ast.ClassDef)}  # fmt: skip


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda p: p.stem)
def test_every_imported_name_of_ours_exists(path: Path) -> None:
    """Those of benchmarks and tests are read, not imported: some import libraries that only their peers need."""
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.ImportFrom):
            continue
        module = f"benchmarks.{node.module or ''}" if node.level else node.module or ""
        wanted = {a.name for a in node.names}
        if module.startswith("edgec"):
            found = importlib.import_module(module)
            there = {name for name in wanted if hasattr(found, name)} | names(module)
        elif module.startswith(("benchmarks", "tests")):
            there = names(module)
        else:
            continue
        assert wanted <= there, f"{module} lacks {wanted - there}"
