"""Numbers as people read them: three significant digits, a unit, no false precision. For the terminal and the page."""

from __future__ import annotations

import math

_BIG = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def count(n: int | None) -> str:
    """`11.7 M`; small numbers in full, with thousands separated; `?` for an unknown one."""
    if n is None:
        return "?"
    if abs(n) < 10_000:
        return f"{n:,}"
    return _scaled(n)


def size(n: int | None) -> str:
    """Bytes in decimal units, `46.8 MB`; `-` for none."""
    if n is None or n <= 0:
        return "-"
    return f"{n} B" if n < 1000 else f"{_scaled(n)}B"


def _scaled(n: float) -> str:
    unit, letter = next((u, c) for u, c in _BIG if abs(n) >= u * 0.9995)
    return f"{digits(n / unit)} {letter}"


def digits(x: float) -> str:
    """Three significant digits without an exponent: 1.81, 46.8, 347."""
    return f"{x:.0f}" if abs(x) >= 99.95 else f"{x:.1f}" if abs(x) >= 9.995 else f"{x:.2f}"


def duration(seconds: float) -> str:
    """`12 ms`, `3.4 s`, `2 min 5 s`."""
    if seconds >= 100:
        return f"{int(seconds) // 60} min {int(seconds) % 60} s"
    if seconds >= 1:
        return f"{seconds:.1f} s"
    return f"{seconds * 1000:.0f} ms" if seconds >= 0.00995 else f"{seconds * 1000:.1f} ms"


def change(before: int | None, after: int | None) -> str:
    """What became of a number that should shrink: `4.0× less`, `12% less`, `same`, `3% more`; nothing when unknown."""
    if before is None or after is None or before < 0 or after < 0:
        return ""
    if before == after:
        return "same"
    if not before or not after:
        return "gone" if before else ""
    less = after < before
    factor = max(before, after) / min(before, after)
    if factor >= 1.995:
        return (
            f"{factor:.1f}× {'less' if less else 'more'}"
            if factor < 99.5
            else f"{factor:,.0f}× {'less' if less else 'more'}"
        )
    share = abs(before - after) / before * 100
    text = f"{share:.0f}%" if share >= 0.95 else f"{share:.1f}%" if share >= 0.095 else "<0.1%"
    return f"{text} {'less' if less else 'more'}"


def speed(before: float, after: float) -> str:
    """What became of a time: `1.83× faster`, `5% slower`, `as fast` within a few percent."""
    factor = max(before, after) / max(min(before, after), 1e-9)
    if factor < 1.03:
        return "as fast"
    text = f"{digits(factor)}×" if factor >= 1.095 else f"{100 * (factor - 1):.0f}%"
    return f"{text} {'faster' if after < before else 'slower'}"


def error(x: float) -> str:
    """An error: `1.2e-07`, `0` when there is none at all."""
    return "0" if x == 0 else f"{x:.1e}" if math.isfinite(x) else f"{x}"


def score(x: float) -> str:
    """A metric, of four digits: `0.9937`, `12.31`."""
    return f"{x:.4g}"


def decibels(x: float) -> str:
    """A signal-to-noise ratio: `118.2 dB`; `equal` where there is no noise."""
    if x == math.inf:
        return "equal"
    return "none" if x == -math.inf or math.isnan(x) else f"{x:.1f} dB"


def share(x: float | None) -> str:
    """`98.2%`, and 100% only when it is all; nothing when unknown."""
    if x is None:
        return ""
    return "100%" if x == 1 else f"{math.floor(x * 10_000) / 100:.2f}%" if x > 0.99 else f"{x:.1%}"


def cosine(x: float) -> str:
    """Enough digits to see what is missing to 1."""
    return "1" if x == 1 else f"{x:.7f}" if x < 0.99999995 else ">0.9999999"
