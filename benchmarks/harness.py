"""Time and peak memory of other programs, a process per measurement, in rounds so that all tools see the same machine.

Only the standard library is imported: a child's peak starts at its parent's resident size, so this process stays small.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Row = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """One process: wall seconds, processor seconds (user and system), peak resident MB, exit code, last lines printed.

    The peak is that of the process or of its largest child.
    """

    seconds: float
    cpu: float
    peak_mb: float
    code: int
    tail: str

    @property
    def reason(self) -> str:
        """The last line that was printed, cut to 160 characters; empty if the process succeeded."""
        return "" if self.code == 0 else (self.tail.strip().splitlines() or [f"exit {self.code}"])[-1][:160]


def run(command: Sequence[str], cwd: Path | None = None, timeout: float = 1800) -> Run:
    """Run one command to its end, in the folder `cwd`.

    A command that takes longer than `timeout` seconds is ended and counts as failed. Python may keep compiled modules,
    as it does for installed packages: a checkout would be compiled again in every run where the environment forbids it.
    """
    settings = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    with tempfile.TemporaryFile() as output:
        start = time.perf_counter()
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, cwd=cwd, env=settings
        )
        while True:
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)
            seconds = time.perf_counter() - start
            if pid:
                break
            if seconds > timeout:
                process.kill()
            time.sleep(0.002)
        process.returncode = os.waitstatus_to_exitcode(status)
        output.seek(max(0, output.tell() - 4000))
        tail = output.read().decode(errors="replace")
    unit = 1e6 if platform.system() == "Darwin" else 1e3  # bytes there, kilobytes elsewhere
    return Run(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / unit, process.returncode, tail)


def measure(jobs: Mapping[str, Sequence[str]], repeats: int, cwd: Path | None = None) -> dict[str, list[Run]]:
    """Run every job `repeats` times, round after round; a job that failed is not run again."""
    runs: dict[str, list[Run]] = {name: [] for name in jobs}
    for _ in range(repeats):
        for name, command in jobs.items():
            if all(r.code == 0 for r in runs[name]):
                runs[name].append(run(command, cwd))
    return runs


def summary(runs: Sequence[Run]) -> Row:
    """Median wall and processor seconds and peak MB of the runs, the spread of the seconds, or why it failed."""
    if failed := next((r for r in runs if r.code), None):
        return {"s": None, "MB": None, "failed": failed.reason}
    seconds = [r.seconds for r in runs]
    return {
        "s": round(statistics.median(seconds), 2),
        "min-max s": f"{min(seconds):.2f}-{max(seconds):.2f}",
        "CPU s": round(statistics.median(r.cpu for r in runs), 2),
        "MB": round(statistics.median(r.peak_mb for r in runs)),
    }


def versions(python: str, packages: Sequence[str]) -> dict[str, str]:
    """Installed versions of `packages` as that interpreter sees them; absent ones are left out."""
    code = (
        "import importlib.metadata as m, json, platform, sys\n"
        "found = {d.metadata['Name'].lower(): d.version for d in m.distributions()}\n"
        "print(json.dumps({'python': platform.python_version()} | {p: found[p] for p in sys.argv[1:] if p in found}))"
    )
    done = subprocess.run([python, "-c", code, *packages], capture_output=True, text=True, check=True)
    return dict(json.loads(done.stdout))


def machine() -> str:
    """Cores, memory and load of this machine, for the head of a result."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{os.cpu_count()} cores, {memory:.0f} GB, load {os.getloadavg()[0]:.1f}, {platform.system()}"


def markdown(rows: Sequence[Row]) -> str:
    """The rows as a table; columns in the order of their first appearance, an absent value is empty."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
    for row in rows:
        cells = ["" if row.get(c) is None else str(row[c]).replace("|", "/") for c in columns]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def report(title: str, rows: Sequence[Row], tools: Mapping[str, Mapping[str, str]], out: Path | None) -> None:
    """Print the result as markdown, and write it with .md and .json beside each other if `out` is given."""
    head = [f"# {title}", "", machine(), ""]
    head += [f"- {name}: " + ", ".join(f"{p} {v}" for p, v in found.items()) for name, found in tools.items()]
    text = "\n".join([*head, "", markdown(rows), ""])
    print(text)
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.with_suffix(".md").write_text(text)
        result = {"title": title, "machine": machine(), "tools": tools, "rows": list(rows)}
        out.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
