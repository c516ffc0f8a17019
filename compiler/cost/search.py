"""The order with the lowest peak by exhaustive search, as far as a budget reaches."""

from __future__ import annotations

import heapq
from dataclasses import dataclass

from .problem import Problem, live_start

Choice = tuple[int, int, int]
"""An operator that could run next, the bytes live while it does, and those after it."""


@dataclass
class _State:
    """Operators that have run, those that could run next (sets as the bits of a number), and bytes live in between."""

    run: int
    ready: int
    live: int


class Search:
    """Dijkstra's algorithm over sets of operators that have run, the length of a path being its peak.

    What needs no more than the path's peak so far, and leaves no more alive than before, is run at once: running it
    earlier can't hurt, for what comes in between finds no more alive than it would have. That holds for one operator,
    and for a chain of them of which no part leaves less than the whole (Liu, "An application of generalized tree
    pebbling to sparse matrix factorization", 1987, orders trees by such chains alone).
    """

    def __init__(self, p: Problem, floor: int, ceiling: int, budget: int) -> None:
        self.n = n = len(p.after)
        self.floor, self.ceiling, self.budget, self.used = floor, ceiling, budget, 0
        self.price = 1 + n // 100  # sets of many operators are long numbers
        self.after = [sum(1 << x for x in a) for a in p.after]
        self.then: list[list[int]] = [[] for _ in range(n)]
        readers = [0] * len(p.size)
        for op in range(n):
            for before in p.after[op]:
                self.then[before].append(op)
            for b in p.reads[op]:
                readers[b] |= 1 << op
        self.made = [sum(p.size[b] for b in m) + inside for m, inside in zip(p.makes, p.inside, strict=True)]
        self.stays = [sum(p.size[b] for b in m if readers[b] or p.kept[b]) for m in p.makes]
        self.frees = [[(readers[b], p.size[b]) for b in reads if not p.kept[b]] for reads in p.reads]
        self.start = live_start(p, readers)

    def run(self) -> tuple[list[int] | None, bool, int]:
        """An order with a peak below `ceiling` that is the lowest (or not above `floor`), whether that is certain, and
        the budget used. None where no order is below `ceiling`, or where the budget was used up first."""
        everything = (1 << self.n) - 1
        roots = sum(1 << op for op in range(self.n) if not self.after[op])
        # peak, -(number run), what has run, the same with what could be next and what is live, path so far, its end
        heap: list[tuple[int, int, int, int, int, int, tuple[int, ...]]]
        heap = [(self.floor, 0, 0, roots, self.start, -1, ())]
        paths: list[tuple[int, tuple[int, ...]]] = []
        seen: set[int] = set()
        while heap:
            peak, _, run, ready, live, path, end = heapq.heappop(heap)
            if run in seen:
                continue
            state = _State(run, ready, live)
            more, choices = self._run_at_once(state, peak)
            if self.used > self.budget:
                return None, False, self.used
            if state.run in seen:
                continue
            seen.add(state.run)
            paths.append((path, (*end, *more)))
            if state.run == everything:
                return _walk(paths), True, self.used
            for op, highest, left in choices:
                now = state.run | 1 << op
                if now not in seen:
                    ready = self._ready(state.ready, op, now)
                    item = (max(peak, highest), -now.bit_count(), now, ready, left, len(paths) - 1, (op,))
                    heapq.heappush(heap, item)
        return None, True, self.used

    def _look(self, op: int, run: int, live: int) -> Choice:
        now = run | 1 << op
        left = live + self.stays[op]
        for readers, size in self.frees[op]:
            if not readers & ~now:
                left -= size
        return op, live + self.made[op], left

    def _choices(self, state: _State) -> list[Choice]:
        """What could run next and stays below the ceiling."""
        found = []
        rest = state.ready
        while rest:
            bit = rest & -rest
            rest ^= bit
            choice = self._look(bit.bit_length() - 1, state.run, state.live)
            if choice[1] < self.ceiling:
                found.append(choice)
        self.used += self.price * state.ready.bit_count()
        return found

    def _run_at_once(self, state: _State, peak: int) -> tuple[list[int], list[Choice]]:
        """Run, in `state`, all that can't hurt; return it, and what could run then."""
        trail: list[int] = []
        while True:
            choices = self._choices(state)
            harmless = [c for c in choices if c[1] <= peak]
            chains = ([c] if c[2] <= state.live else self._chain(state, c, peak) for c in harmless)
            if (chain := next(filter(None, chains), None)) is None or self.used > self.budget:
                return trail, choices
            for op, _, left in chain:
                state.run |= 1 << op
                state.ready = self._ready(state.ready, op, state.run)
                state.live = left
                trail.append(op)

    def _chain(self, state: _State, first: Choice, peak: int) -> list[Choice]:
        """`first` and what it alone makes ready, up to where no more is live than before; [] if that is nowhere."""
        found, run = [first], state.run
        while found[-1][2] > state.live:
            op, _, live = found[-1]
            run |= 1 << op
            ready = [x for x in self.then[op] if not self.after[x] & ~run]
            self.used += self.price
            if len(ready) != 1:
                return []
            found.append(self._look(ready[0], run, live))
            if found[-1][1] > peak:
                return []
        return found

    def _ready(self, ready: int, op: int, run: int) -> int:
        ready &= ~(1 << op)
        for x in self.then[op]:
            if not self.after[x] & ~run:
                ready |= 1 << x
        return ready


def _walk(paths: list[tuple[int, tuple[int, ...]]]) -> list[int]:
    """The operators along the last path, from the first."""
    parts, at = [], len(paths) - 1
    while at >= 0:
        at, part = paths[at]
        parts.append(part)
    return [op for part in reversed(parts) for op in part]
