"""What a compilation ran in: packages and memory, for the report."""

from __future__ import annotations

import resource
import sys
from pathlib import Path


def peak_bytes() -> int:
    """Peak resident memory of this program, in bytes.

    Linux hands getrusage's peak on from a parent to the program that it starts: the kernel's own count starts anew.
    Elsewhere it is getrusage's (kilobytes, bytes on macOS).
    """
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def versions() -> dict[str, str]:
    """Versions of what the result depends on."""
    import importlib.metadata as metadata

    names = ("edgec", "onnx", "onnx-ir", "onnxruntime", "coremltools", "numpy")
    return {"python": sys.version.split()[0], **{n: metadata.version(n) for n in names}}
