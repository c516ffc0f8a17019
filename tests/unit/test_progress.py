"""Long measurements show on a terminal how far they are; a pipe stays quiet. An interrupt loses nothing."""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from layercases import chain

WIDTH = 64
COMMAND = (sys.executable, "-m", "edgec")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    ir.save(chain(6, WIDTH), tmp_path / "m.onnx")
    x = np.random.default_rng(0).normal(size=(64, WIDTH)).astype(np.float32)
    np.savez(tmp_path / "x.npz", h0=x)
    return tmp_path


def arguments(folder: Path) -> list[str]:
    options = ["--target", "onnx", "--inputs", "x.npz", "-o", "out.onnx", "--resume", "measured", "--no-latency"]
    return [*COMMAND, str(folder / "m.onnx"), "-Os", *options]


def test_a_terminal_shows_how_far_it_is(model: Path) -> None:
    ours, theirs = pty.openpty()
    done = subprocess.Popen(arguments(model), cwd=model, stdout=subprocess.DEVNULL, stderr=theirs)
    os.close(theirs)
    shown = bytearray()
    while True:
        try:
            part = os.read(ours, 1 << 16)
        except OSError:  # Linux says so when the other end is closed.
            break
        if not part:
            break
        shown += part
    os.close(ours)
    assert done.wait() == 0
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\s+", " ", shown.decode(errors="replace"))
    assert re.search(r"pass \d+ of \d+: quantize", text)
    assert re.search(r"(rounding weights to all widths|measuring weights one by one), \d of 6", text), text[-2000:]


def test_a_pipe_is_quiet(model: Path) -> None:
    done = subprocess.run(arguments(model), cwd=model, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert "measuring weights" not in done.stdout
    assert "Bits" in done.stdout


def test_an_interrupt_loses_no_measurement(model: Path) -> None:
    """Ctrl-C once the first weights are measured: the same command goes on, and writes what it would have written."""
    subprocess.run(arguments(model), cwd=model, capture_output=True, check=True)
    wanted = (model / "out.onnx").read_bytes()
    for name in ("out.onnx", "measured"):
        (model / name).unlink()
    kept = model / "measured"
    for _ in range(5):  # On a fast machine it may be done before it hears of the interrupt.
        started = subprocess.Popen(
            arguments(model), cwd=model, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # A job in the background ignores it.
        )  # fmt: skip
        while started.poll() is None and not (kept.exists() and len(kept.read_text().splitlines()) > 3):
            time.sleep(0.002)
        started.send_signal(signal.SIGINT)
        _, said = started.communicate()
        if started.returncode:
            break
        for name in ("out.onnx", "measured"):
            (model / name).unlink()
    assert (started.returncode, "interrupted" in said.decode()) == (130, True)
    assert not (model / "out.onnx").exists()
    before = kept.read_text().splitlines()
    assert len(before) > 3
    subprocess.run(arguments(model), cwd=model, capture_output=True, check=True)
    assert kept.read_text().splitlines()[: len(before) - 1] == before[:-1]
    assert (model / "out.onnx").read_bytes() == wanted
