"""Scratch folders go: when closed, with the process, and after a process that was killed, with the next one."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import numpy as np

from edgec.compiler.weights import Scratch

PROGRAM = """
import sys, numpy as np
from pathlib import Path
from edgec.compiler.weights import Scratch
scratch = Scratch(Path(sys.argv[1]))
scratch.tensor(np.ones(1 << 20, np.float32), "w")
print(scratch.dir, flush=True)
if len(sys.argv) > 2:
    sys.stdin.read()
"""


def start(folder: Path, *more: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", PROGRAM, str(folder), *more]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_a_folder_goes_with_its_process(tmp_path: Path) -> None:
    made, _ = start(tmp_path).communicate(timeout=120)
    assert made.strip() and not list(tmp_path.iterdir())


def test_what_a_killed_process_left_goes_with_the_next_and_what_is_in_use_stays(tmp_path: Path) -> None:
    killed, alive = start(tmp_path, "wait"), start(tmp_path, "wait")
    assert killed.stdout is not None and alive.stdout is not None
    left, used = Path(killed.stdout.readline().strip()), Path(alive.stdout.readline().strip())
    killed.send_signal(signal.SIGKILL)
    killed.wait(timeout=60)
    assert left.is_dir() and used.is_dir()
    with Scratch(tmp_path) as scratch:
        scratch.tensor(np.ones(1 << 20, np.float32), "w")
        assert not left.exists() and (used / "tensors.bin").is_file()
        others = [p.name for p in tmp_path.iterdir()]
        assert sorted(others) == sorted([used.name, scratch.dir.name])
    alive.communicate("", timeout=60)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_not_ours_stays(tmp_path: Path) -> None:
    (tmp_path / ".edgec-notes").mkdir()
    with Scratch(tmp_path) as scratch:
        assert scratch.dir.is_dir()
    assert (tmp_path / ".edgec-notes").is_dir()
