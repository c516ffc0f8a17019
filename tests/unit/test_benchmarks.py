"""Benchmarks are not run by the tests; what they import from edgec and from each other must be there all the same."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

import pytest

SCRIPTS = sorted((Path(__file__).parents[2] / "benchmarks").glob("*.py"))


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda p: p.stem)
def test_every_imported_name_of_ours_exists(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.level or (node.module or "").startswith(("edgec", "tests"))):
            where = f"benchmarks.{node.module}" if node.level and node.module else node.module or "benchmarks"
            module = importlib.import_module(where)
            for alias in node.names:
                if not hasattr(module, alias.name):
                    importlib.import_module(f"{where}.{alias.name}")
