"""What a compilation ran in: packages and memory, for the report."""

from __future__ import annotations

import resource
import sys


def peak_bytes() -> int:
    """Peak resident memory of this process, in bytes (getrusage: kilobytes on Linux, bytes on macOS)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def versions() -> dict[str, str]:
    """Versions of what the result depends on."""
    import importlib.metadata as metadata

    names = ("edgec", "onnx", "onnx-ir", "onnxruntime", "coremltools", "numpy")
    return {"python": sys.version.split()[0], **{n: metadata.version(n) for n in names}}
