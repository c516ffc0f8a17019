"""Types of command-line arguments that argparse has not."""

from __future__ import annotations

import argparse
import math


def limit(text: str) -> float:
    """A limit: any number that a measurement can be compared with, so no NaN. Used by argparse."""
    value = _number(text)
    if math.isnan(value):
        raise argparse.ArgumentTypeError("NaN is no limit")
    return value


def error_limit(text: str) -> float:
    """A limit of an error: no error is below 0. Used by argparse."""
    value = limit(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} is below 0, which no error can be")
    return value


def count(text: str) -> int:
    """A whole number, 0 or more. Used by argparse."""
    try:
        value = int(text)
    except ValueError:
        value = -1
    if value < 0:
        raise argparse.ArgumentTypeError(f"'{text}' is not 0, 1, 2, …")
    return value


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number") from None
