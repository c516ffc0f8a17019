"""What asks the command line to stop, and when it listens."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Iterator

INTERRUPTS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
"""Ctrl-C, `kill`, a terminal that was closed."""


class _Interrupt:
    """Raises KeyboardInterrupt, once a second: a key that is hammered must not disturb the clean-up."""

    def __init__(self) -> None:
        self._last = -1.0

    def __call__(self, *_: object) -> None:
        now = time.monotonic()
        if now - self._last > 1:
            self._last = now
            raise KeyboardInterrupt


def listen() -> None:
    """From now on these signals raise KeyboardInterrupt; what a shell had us ignore (`nohup`) stays ignored."""
    handler = _Interrupt()
    for number in INTERRUPTS:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, handler)


@contextlib.contextmanager
def held_back() -> Iterator[None]:
    """Let interrupts wait until the end of the block."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, INTERRUPTS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
