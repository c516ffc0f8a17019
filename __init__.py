"""edgec: a compiler for neural networks. ONNX in, a proven Core ML package out, on any machine.

    with edgec.compile("model.onnx", target="ios") as compiled:
        compiled.save("model.mlpackage")
"""

from __future__ import annotations

__version__ = "0.1.0"

TYPE_CHECKING = False  # What type checkers take for true. Importing `typing` takes longer than all of this.
if TYPE_CHECKING:
    from typing import Any

    from .compiler.compilation import Compilation
    from .compiler.cost.records import Analysis
    from .compiler.driver import analyze, compile, dry_run, load, verify
    from .compiler.errors import EdgecError, ModelError, PassFailed, UnsupportedOp, UsageError, VerifyFailed
    from .compiler.passbase import Context, Pass
    from .compiler.targets import Target, find_target
    from .compiler.verify import Comparison

# Where each public name lives. Importing edgec imports nothing heavy; the first use of a name does.
_PUBLIC = {
    "compilation": ("Compilation",),
    "cost.records": ("Analysis",),
    "driver": ("analyze", "compile", "dry_run", "load", "verify"),
    "errors": ("EdgecError", "ModelError", "PassFailed", "UnsupportedOp", "UsageError", "VerifyFailed"),
    "passbase": ("Context", "Pass"),
    "targets": ("Target", "find_target"),
    "verify": ("Comparison",),
}
_HOME = {name: module for module, names in _PUBLIC.items() for name in names}

__all__ = [
    "Analysis",
    "Comparison",
    "Compilation",
    "Context",
    "EdgecError",
    "ModelError",
    "Pass",
    "PassFailed",
    "Target",
    "UnsupportedOp",
    "UsageError",
    "VerifyFailed",
    "analyze",
    "compile",
    "dry_run",
    "find_target",
    "load",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'edgec' has no attribute '{name}'")
    from importlib import import_module

    return getattr(import_module(f".compiler.{_HOME[name]}", __name__), name)
