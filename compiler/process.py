"""What kind of process this is: edgec's own command line, or somebody's program that uses edgec as a library."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator

command_line = False
"""Set by the command line. Only there may an import keep other packages out: a user's process stays as it is."""


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Hold back interrupts, in the command line, until the end of the block: an import of C code may die of them."""
    if not command_line:
        yield
        return
    held = {signal.SIGINT, signal.SIGTERM}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, held)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
