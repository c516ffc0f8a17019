"""What the README shows was run: its pass works as printed, its commands and files exist."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import onnx
import onnx.parser

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def test_the_pass_in_the_readme_runs_and_is_accepted(tmp_path: Path) -> None:
    code = next(block for block in re.findall(r"```python\n(.*?)```", README, re.S) if "class ReluToClip" in block)
    (tmp_path / "mine.py").write_text(code)
    text = '<ir_version: 8, opset_import: ["" : 17]> g (float[2,3] x) => (float[2,3] y) { a = Relu(x) y = Tanh(a) }'
    onnx.save(onnx.parser.parse_model(text), tmp_path / "model.onnx")
    command = [sys.executable, "-m", "edgec", "model.onnx", "--target", "onnx", "-O0", "-o", "out.onnx"]
    command += ["--pass", "./mine.py:ReluToClip{most=3}", "--print-after-change"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "// relu-to-clip" in done.stdout and "Clip(" in done.stdout


def test_every_option_that_the_readme_names_exists() -> None:
    commands: tuple[list[str], ...] = ([], ["analyze"])
    helps = [[sys.executable, "-m", "edgec", *command, "--help"] for command in commands]
    known = "".join(subprocess.run(c, capture_output=True, text=True, check=True).stdout for c in helps)
    used = set(re.findall(r"(?<![\w-])(--[a-z][a-z-]+)", README)) - {"--strict", "--help"}
    assert len(used) > 10
    assert not [o for o in used if o not in known]


def test_every_file_that_the_readme_links_exists() -> None:
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", README) if "://" not in link]
    assert len(links) > 5
    assert not [link for link in links if not (ROOT / link).exists()]
