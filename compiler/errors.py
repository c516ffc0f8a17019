"""Every error that edgec raises on purpose. Each prints as one clear message, never as a traceback."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


class EdgecError(Exception):
    """The model or the proof failed. The message names file, node and remedy. Exit code 1."""

    exit_code = 1


class UsageError(EdgecError):
    """The call is wrong: an unknown option, target, pass, file or input name. Exit code 2."""

    exit_code = 2


class ModelError(EdgecError):
    """The model is not readable or not valid: corrupt protobuf, missing weights, inconsistent shapes, NaN weights."""


@dataclass(frozen=True)
class Missing:
    """One thing that a target can't express, or that a model needs: an operator, a type, a fixed dimension.

    `wanting`: a flag gives it (--shape).
    """

    node: str
    op: str
    why: str
    wanting: bool = False

    def __str__(self) -> str:
        return f"{self.op} (node '{self.node}'): {self.why}" if self.node else f"{self.op}: {self.why}"


class UnsupportedOp(EdgecError):
    """A backend or frontend met operators that it can't express. All of them are listed at once."""

    def __init__(self, headline: str, missing: Sequence[Missing], remedy: str = "") -> None:
        self.missing = list(missing)
        lines = [headline, *(f"  - {m}" for m in self.missing)]
        super().__init__("\n".join([*lines, remedy] if remedy else lines))


class PassFailed(EdgecError):
    """A pass broke its promise (changed the function, or made an invalid model) and --strict is on."""


class VerifyFailed(EdgecError):
    """What was written does not compute what the model computes, within the tolerance. `report` says all about it."""

    def __init__(self, message: str, report: Any = None) -> None:
        self.report = report
        super().__init__(message)
