"""Floating-point and integer operations of one node."""

from __future__ import annotations

from typing import NamedTuple

from ..dims import Dim
from .node import Op, times


class Work(NamedTuple):
    """Operations of one run: floating-point ones, transcendental functions, operations on integers."""

    flops: Dim = 0
    special: Dim = 0
    int_ops: Dim = 0


def work(op: Op, macs: Dim) -> Work:
    """What `op` computes."""
    return Work(times(2, macs))
