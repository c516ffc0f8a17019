"""Why a node can't be lowered: said by the lowering, by a node that it follows, or by coremltools."""

from __future__ import annotations

import traceback


class Unlowered(Exception):
    """The node can't be expressed; carries why. Collected by the lowering, so that all are reported at once."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why


class Follows(Exception):
    """The node reads what could not be made: reported where it began."""


def refused(error: BaseException) -> bool:
    """Whether coremltools raised `error`, or what it called: then it is its word on the model, else a bug of ours."""
    ours, theirs = __name__.partition(".")[0], "coremltools"
    frames = [f.f_globals.get("__name__", "").partition(".")[0] for f, _ in traceback.walk_tb(error.__traceback__)]
    return next((name for name in reversed(frames) if name in (ours, theirs)), ours) == theirs
