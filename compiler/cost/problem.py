"""What is to be ordered: operators that read and make buffers, as numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass
class Problem:
    """Operators are numbered, and so are buffers.

    Attributes:
        after: for each operator, those that must have run before it.
        reads, makes: for each operator, the buffers that it reads and those that it allocates; no buffer twice.
        inside: for each operator, bytes live inside it while it runs.
        size: the bytes of each buffer.
        start: buffers that are live before the first operator.
        kept: for each buffer, whether it stays when all its readers have run.
        base: bytes that are live all the time.
    """

    after: list[list[int]]
    reads: list[list[int]]
    makes: list[list[int]]
    inside: list[int]
    size: list[int]
    start: list[int]
    kept: list[bool]
    base: int = 0

    def readers(self) -> list[int]:
        """How many operators read each buffer."""
        found = [0] * len(self.size)
        for reads in self.reads:
            for b in reads:
                found[b] += 1
        return found


def live_start(p: Problem, left: Sequence[int]) -> int:
    """Bytes live before the first operator; what nobody reads and nobody keeps is not held."""
    return p.base + sum(p.size[b] for b in p.start if left[b] or p.kept[b])


def steps(p: Problem, order: Sequence[int]) -> list[int]:
    """Bytes that are live while each operator of `order` runs: what it reads, what it makes, and all else in use."""
    left = p.readers()
    live, found = live_start(p, left), []
    for op in order:
        live += sum(p.size[b] for b in p.makes[op])
        found.append(live + p.inside[op])
        for b in p.reads[op]:
            left[b] -= 1
            if not left[b] and not p.kept[b]:
                live -= p.size[b]
        live -= sum(p.size[b] for b in p.makes[op] if not left[b] and not p.kept[b])
    return found
