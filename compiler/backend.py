"""What a backend is. The driver finds backends by entry point (group `edgec.backends`) and knows only this protocol."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
import onnx_ir as ir

from .errors import Missing
from .targets import Target


@dataclass(frozen=True)
class EmitOptions:
    """What the user may choose about the file that is written."""

    io: str = "fp32"
    """Element type of float inputs and outputs: `fp32`, or `fp16` where the target allows it."""
    opset: int | None = None
    """ONNX only: the opset of the file that is written."""
    inputs: Mapping[str, np.ndarray] | None = None
    """What to run the model on where its form is chosen by speed; without them it is not timed."""
    budget: bool = False
    """Whether the user limited the error: passes have used that up, and integer kernels may add none."""


@dataclass
class Emitted:
    """What was written, and the contract of its inputs and outputs."""

    path: Path
    inputs: dict[str, str] = field(default_factory=dict)
    """Model input name → name in the file."""
    outputs: dict[str, str] = field(default_factory=dict)
    """Model output name → name in the file."""
    contract: list[str] = field(default_factory=list)
    """What changed at the interface, a plain sentence each (int64 → int32, names made legal, rank-0 → [1] …)."""
    warnings: list[str] = field(default_factory=list)
    values: dict[str, str] = field(default_factory=dict)
    """Intermediate value of the model → its name in the file, where both can be told; for probes of operators."""
    sidecars: list[Path] = field(default_factory=list)
    """Files that belong beside `path`: weights over 2 GB."""
    as_users_do: bool = False
    """Whether the file is for onnxruntime as its users run it: the loss is then what all its optimisations make."""
    lift: Callable[[ir.Model], object] | None = None
    """Turns what was read back into operators that rounding can be told from, in place."""
    renamed: Callable[[Path], None] | None = None
    """Writes `path` under another name, so that it names its sidecars, which are called after it, by theirs."""


class Backend(Protocol):
    """Lowers a model to a file."""

    def check(self, model: ir.Model, target: Target, options: EmitOptions) -> Sequence[Missing]:
        """Everything in `model` that `target` can't express; empty when `emit` will succeed. Fast, writes nothing."""

    def emit(self, model: ir.Model, target: Target, path: Path, options: EmitOptions) -> Emitted:
        """Write `model` to `path` (which does not exist yet). Raises UnsupportedOp with all that is missing."""
