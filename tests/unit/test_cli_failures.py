"""What fails while the command line runs: a pass, a proof, the disk, a stream, or somebody presses Ctrl-C."""

from __future__ import annotations

import fcntl
import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from commandline import contents, conv_model, refuse, run, saved, tensor
from onnx import helper, numpy_helper


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return saved(tmp_path)


def test_a_pass_that_was_undone_is_named_even_when_quiet(model: Path, tmp_path: Path) -> None:
    (tmp_path / "odd.py").write_text(
        "from dataclasses import dataclass\nfrom edgec import Pass\n\n\n"
        "@dataclass(frozen=True)\nclass Odd(Pass):\n    name = 'odd'\n\n"
        "    def run(self, model, ctx):\n        raise KeyError('boom')\n"
    )
    done = run("net.onnx", "--target", "onnx", "-o", "o.onnx", "-O0", "-q", "--pass", "./odd.py:Odd", cwd=tmp_path)
    assert done.returncode == 0 and done.stdout == ""
    assert done.stderr == "edgec: pass odd was undone: KeyError: 'boom'; see edgec-reproduce-odd\n"


def test_a_budget_that_can_not_be_kept_writes_nothing(model: Path, tmp_path: Path) -> None:
    done = run("net.onnx", "--verify", "end", "--max-error", "0", cwd=tmp_path)
    refuse(done, 1, "Nothing was written", tmp_path, "net.onnx")


def test_a_failed_proof_is_still_reported(model: Path, tmp_path: Path) -> None:
    done = run("net.onnx", "--max-error", "1e-9", "--verify", "end", "--report", "r.json", cwd=tmp_path)
    refuse(done, 1, "more than allowed", tmp_path, "net.onnx", "r.json")
    assert json.loads((tmp_path / "r.json").read_text())["proof"]["ok"] is False and "not proven" in done.stdout.lower()


def test_a_fault_that_nobody_foresaw_is_one_message(model: Path, tmp_path: Path) -> None:
    (tmp_path / "odd.py").write_text(
        "from dataclasses import dataclass\nfrom edgec import Pass\n\n\n"
        "@dataclass(frozen=True)\nclass Odd(Pass):\n    name = 'odd'\n\n"
        "    def run(self, model, ctx):\n        raise SystemError('never mind')\n"
    )
    done = run("net.onnx", "--pass", "./odd.py:Odd", "--verify", "off", cwd=tmp_path)
    assert done.returncode == 1 and "SystemError: never mind" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "net.mlpackage").exists()


@pytest.mark.parametrize(
    ("given", "code", "said"), [("'no more'", 1, "edgec: error: no more\n"), ("3", 3, ""), ("", 0, "")]
)
def test_a_pass_that_leaves_the_process(given: str, code: int, said: str, model: Path, tmp_path: Path) -> None:
    (tmp_path / "odd.py").write_text(
        "import sys\nfrom dataclasses import dataclass\nfrom edgec import Pass\n\n\n"
        "@dataclass(frozen=True)\nclass Odd(Pass):\n    name = 'odd'\n\n"
        f"    def run(self, model, ctx):\n        sys.exit({given})\n"
    )
    done = run("net.onnx", "--target", "onnx", "-o", "o.onnx", "-O0", "-q", "--pass", "./odd.py:Odd", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (code, said)
    assert not (tmp_path / "o.onnx").exists()


def test_an_output_folder_without_permission(model: Path, tmp_path: Path) -> None:
    if os.geteuid() == 0:
        target = Path("/proc/net.mlpackage")
    else:
        (tmp_path / "locked").mkdir(mode=0o500)
        target = tmp_path / "locked" / "net.mlpackage"
    done = run("net.onnx", "-o", target, cwd=tmp_path)
    assert done.returncode in (1, 2) and str(target.parent) in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("limit", [10_000, 500_000])
@pytest.mark.parametrize(
    "arguments", [["-O2"], ["-O1", "--verify", "off"], ["-O1", "--target", "onnx", "-o", "o.onnx"]]
)
def test_a_full_disk(limit: int, arguments: list[str], tmp_path: Path) -> None:
    """The smaller limit is met by the package, the greater one by weights that a pass makes."""
    proto = conv_model()
    big = [t for t in proto.graph.initializer if t.name != "f"] + [numpy_helper.from_array(tensor(2048, 300), "f")]
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(big)
    proto.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 300
    proto.graph.node.append(helper.make_node("Mul", ["raw", "two"], ["logits"]))
    proto.graph.node[3].output[0] = "raw"
    proto.graph.initializer.append(numpy_helper.from_array(np.full(1, 2, np.float32), "two"))
    onnx.save(proto, tmp_path / "net.onnx")

    def small_files() -> None:
        # No file may grow beyond the limit: writing fails as it does on a full disk.
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    done = run("net.onnx", *arguments, cwd=tmp_path, limit=small_files)
    refuse(done, 1, "nothing was written", tmp_path, "net.onnx")
    assert "requested" not in done.stderr


def test_an_old_package_survives_a_failed_run(model: Path, tmp_path: Path) -> None:
    assert run("net.onnx", cwd=tmp_path).returncode == 0
    before = contents(tmp_path / "net.mlpackage")
    assert run("net.onnx", "--max-error", "0", "--verify", "end", cwd=tmp_path).returncode == 1
    assert before == contents(tmp_path / "net.mlpackage")


def test_a_report_that_can_not_be_written_does_not_hide_the_model(model: Path, tmp_path: Path) -> None:
    (tmp_path / "late.py").write_text(
        "from dataclasses import dataclass\nfrom pathlib import Path\nfrom edgec import Pass\n\n\n"
        "@dataclass(frozen=True)\nclass Late(Pass):\n    name = 'late'\n\n"
        "    def run(self, model, ctx):\n        Path('r.json').mkdir()\n        return 0\n"
    )
    reports = ("--report", "r.json", "--report", "r.html")
    done = run("net.onnx", "--pass", "./late.py:Late", *reports, cwd=tmp_path)
    assert done.returncode == 1 and "MACs" in done.stdout
    assert done.stderr.splitlines() == [
        "edgec: error: can't write the report r.json: Is a directory",
        "edgec: net.mlpackage, r.html were written",
    ]
    assert (tmp_path / "net.mlpackage").is_dir() and (tmp_path / "r.html").is_file()


@pytest.mark.parametrize("command", [["passes"], ["net.onnx", "--target", "onnx", "-o", "o.onnx"]])
def test_a_reader_that_goes_away(command: list[str], model: Path, tmp_path: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([sys.executable, "-m", "edgec", *command], cwd=tmp_path, stdout=write, stderr=subprocess.PIPE)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, b"")


def test_closed_streams(model: Path, tmp_path: Path) -> None:
    command = f"{sys.executable} -m edgec net.onnx --target onnx -o o.onnx >&- 2>&-"
    assert subprocess.run(command, cwd=tmp_path, shell=True, check=False).returncode == 0
    assert (tmp_path / "o.onnx").is_file()
    done = run("targets", cwd=tmp_path, limit=lambda: os.dup2(os.open("/dev/full", os.O_WRONLY), 1))
    assert done.returncode == 1 and "No space left" in done.stderr and "Traceback" not in done.stderr


def interruptible() -> None:
    """Where the tests run in the background, interrupts are ignored, and children would inherit that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_an_interrupt_while_the_command_line_is_imported(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys, time\n"
        "class Interrupts:\n"
        "    def find_spec(self, name, path, target=None):\n"
        "        if name == 'edgec.compiler.cli':\n"
        "            os.kill(os.getpid(), signal.SIGINT)\n"
        "            time.sleep(10)\n"
        "from edgec.__main__ import main\n"
        "sys.meta_path.insert(0, Interrupts())\n"
        "sys.exit(main())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, preexec_fn=interruptible)
    assert (done.returncode, done.stderr) == (130, "edgec: interrupted; nothing was written\n")


def test_an_interrupt_after_the_model_was_written_says_so(model: Path, tmp_path: Path) -> None:
    read, write = os.pipe()
    # A pipe that is full and that nobody reads: the summary comes after the model, and waits.
    os.write(write, b"x" * fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, 4096))
    process = subprocess.Popen(
        [sys.executable, "-m", "edgec", "net.onnx"],
        cwd=tmp_path, stdout=write, stderr=subprocess.PIPE, text=True, preexec_fn=interruptible,
    )  # fmt: skip
    while not (tmp_path / "net.mlpackage").exists():
        assert process.poll() is None
        time.sleep(0.1)
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=30)
    os.close(read), os.close(write)
    assert (process.returncode, stderr) == (130, "edgec: interrupted; net.mlpackage was written\n")


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("after", [0.3, 1.0])
def test_an_interrupt_leaves_nothing(sent: signal.Signals, after: float, model: Path, tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(
        "import time\nfrom dataclasses import dataclass\nfrom edgec import Pass\n\n\n"
        "@dataclass(frozen=True)\nclass Slow(Pass):\n    name = 'slow'\n\n"
        "    def run(self, model, ctx):\n        print('sleeping', flush=True)\n        time.sleep(60)\n"
        "        return 0\n"
    )
    command = [sys.executable, "-m", "edgec", "net.onnx", "--pass", "./slow.py:Slow"]
    process = subprocess.Popen(
        command,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=interruptible,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "sleeping\n"
    time.sleep(after)
    process.send_signal(sent)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == 130 and "interrupted" in stderr and "Traceback" not in stderr
    left = {p.name for p in tmp_path.iterdir()} - {"__pycache__"}
    assert left == {"net.onnx", "slow.py"}
