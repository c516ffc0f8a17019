"""What kind of process this is: edgec's own command line, or somebody's program that uses edgec as a library."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from typing import Any

command_line = False
"""Set by the command line. Only there may an import keep other packages out: a user's process stays as it is."""


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Around imports, in the command line: interrupts wait, as C code that is imported may die of them.

    And what edgec needs little of runs late, see `late`.
    """
    if not command_line:
        yield
        return
    from . import late

    late.install()
    held = {signal.SIGINT, signal.SIGTERM}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, held)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def onnxruntime() -> Any:
    """The package. In the command line it sends no usage events, which it does by default from 1.32 on."""
    import onnxruntime

    if command_line and hasattr(onnxruntime, "disable_telemetry_events"):
        onnxruntime.disable_telemetry_events()
    return onnxruntime
