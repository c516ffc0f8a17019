"""The program: `edgec`, or `python -m edgec`. From its first line on, an interrupt is one line and leaves nothing."""

from __future__ import annotations

import os
import signal
import sys


def main() -> int:
    """Run the command line; returns the exit code."""
    _on_interrupt(_leave)
    from .compiler.cli import main as run

    code = run()
    # All is written and said: who interrupts now only wants Python's shutdown to be over.
    _on_interrupt(lambda *_: os._exit(code))
    return code


def _on_interrupt(handler: signal._HANDLER) -> None:
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        # What the shell had us ignore (`nohup`, `&` in a script) stays ignored.
        if number is not None and signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, handler)


def _leave(*_: object) -> None:
    """Nothing has begun yet that would have to be undone."""
    os.write(2, b"edgec: interrupted; nothing was written\n")
    os._exit(130)


if __name__ == "__main__":
    sys.exit(main())
