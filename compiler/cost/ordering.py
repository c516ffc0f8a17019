"""In which order to run operators so that the least memory is live at once.

The problem is NP-hard (Sethi, "Complete register allocation problems", 1975), so three things work together: the graph
is cut where every order passes through the same state, and each piece is ordered on its own; greedy orders; and an
exhaustive search over the sets of operators that may have run, as far as a budget reaches. Only what is proven is
called optimal.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence

from .problem import Problem, steps
from .search import Search

BUDGET = 300_000
"""Operators looked at by the exhaustive search, all pieces together: about a third of a second."""


def least_memory(p: Problem, given: Sequence[int], budget: int = BUDGET) -> tuple[list[int], bool]:
    """The best order found, `given` where none is better, and whether it is proven that no order has a lower peak."""
    order, peaks, cuts = list(given), steps(p, given), _pieces(p, given)
    floor = max((_footprint(p, op) for op in given), default=0)
    floor = max([floor, *(peaks[a] for a, b in cuts if b - a == 1)])
    heap = [(-max(peaks[a:b]), False, a, b) for a, b in cuts]
    heapq.heapify(heap)
    pieces: _Pieces | None = None
    while heap:
        negative, proven, a, b = heap[0]
        if -negative <= floor or proven:
            break
        pieces = pieces or _Pieces(p, given)
        local, ops = pieces.cut(a, b)
        floor = max(floor, local.base + max(_footprint(local, i) for i in range(len(ops))))
        found, peak, proven, used = _order_piece(local, floor, budget)
        budget -= used
        order[a:b] = [ops[i] for i in found]
        if not proven:
            return order, False
        heapq.heapreplace(heap, (-peak, True, a, b))
    return order, True


def _footprint(p: Problem, op: int) -> int:
    """What must be live while `op` runs, whatever the order."""
    own = set(p.reads[op]) | set(p.makes[op])
    return sum(p.size[b] for b in own) + p.inside[op]


def _pieces(p: Problem, order: Sequence[int]) -> list[tuple[int, int]]:
    """Ranges of positions, each of operators that keep that range in every order.

    An operator has the same position in all orders if all before it are its ancestors and all behind it its
    descendants: no successor is skipped over from before, no predecessor from behind.
    """
    n = len(order)
    place = {op: i for i, op in enumerate(order)}
    first = [n] * n  # the position of each one's first successor
    last = [-1] * n  # and of its last predecessor
    for i, op in enumerate(order):
        for before in p.after[op]:
            j = place[before]
            if j > last[i]:
                last[i] = j
            if i < first[j]:
                first[j] = i
    behind = [n] * (n + 1)
    for i in reversed(range(n)):
        behind[i] = last[i] if last[i] < behind[i + 1] else behind[i + 1]
    pieces: list[tuple[int, int]] = []
    begin, reach = 0, -1
    for i in range(n):
        if reach <= i <= behind[i + 1]:
            if begin < i:
                pieces.append((begin, i))
            pieces.append((i, i + 1))
            begin = i + 1
        if first[i] > reach:
            reach = first[i]
    return [*pieces, (begin, n)] if begin < n else pieces


class _Pieces:
    """Cuts pieces out of a problem. What is live at their ends doesn't depend on the order inside them."""

    def __init__(self, p: Problem, order: Sequence[int]) -> None:
        self.p, self.order = p, order
        self.made = [len(order)] * len(p.size)  # position of each buffer's maker
        self.read = [-1] * len(p.size)  # and of its last reader
        for b in p.start:
            self.made[b] = -1
        for i, op in enumerate(order):
            for b in p.makes[op]:
                self.made[b] = i
            for b in p.reads[op]:
                self.read[b] = i
        self.live = [p.base] * (len(order) + 1)  # bytes between two positions
        change = [0] * (len(order) + 2)
        for b, size in enumerate(p.size):
            if p.kept[b] or self.read[b] > self.made[b]:
                change[self.made[b] + 1] += size
                change[len(order) + 1 if p.kept[b] else self.read[b] + 1] -= size
        total = 0
        for i in range(len(order) + 1):
            total += change[i]
            self.live[i] += total

    def cut(self, a: int, b: int) -> tuple[Problem, list[int]]:
        """The operators at positions `a` to `b` as a problem of their own, and what its numbers stand for."""
        p, ops = self.p, list(self.order[a:b])
        number = {op: i for i, op in enumerate(ops)}
        used = sorted({buffer for op in ops for buffer in (*p.reads[op], *p.makes[op])})
        short = {buffer: i for i, buffer in enumerate(used)}
        start = [x for x in used if self.made[x] < a]
        return Problem(
            after=[[number[x] for x in p.after[op] if x in number] for op in ops],
            reads=[[short[x] for x in p.reads[op]] for op in ops],
            makes=[[short[x] for x in p.makes[op]] for op in ops],
            inside=[p.inside[op] for op in ops],
            size=[p.size[x] for x in used],
            start=[short[x] for x in start],
            kept=[p.kept[x] or self.read[x] >= b for x in used],
            base=self.live[a] - sum(p.size[x] for x in start),
        ), ops


def _order_piece(p: Problem, floor: int, budget: int) -> tuple[list[int], int, bool, int]:
    """The best order found, its peak, whether it is proven to be the lowest (not below `floor`), the budget used."""
    given = list(range(len(p.after)))
    best, peak = given, max(steps(p, given))
    for key in GREEDY:
        if peak <= floor:
            return best, peak, True, 0
        tried = _greedy(p, key)
        if (reached := max(steps(p, tried))) < peak:
            best, peak = tried, reached
    if peak <= floor:
        return best, peak, True, 0
    found, proven, used = Search(p, floor, peak, budget).run()
    return (found, max(steps(p, found)), True, used) if found is not None else (best, peak, proven, used)


# --- greedy orders ---------------------------------------------------------------------------------------------------

Key = Callable[[int, int, int, int], tuple[int, ...]]
"""(growth of what is live, bytes while it runs beyond what was live, turn in which it became ready, number) → order."""

GREEDY: tuple[Key, ...] = (
    lambda growth, extra, turn, op: (growth, extra, -turn, op),
    lambda growth, extra, turn, op: (growth > 0, -turn, growth, op),
    lambda growth, extra, turn, op: (max(growth, 0), extra, op, 0),
)
"""The least growth first; depth first unless something shrinks; what shrinks, then the smallest while it runs."""


def _greedy(p: Problem, key: Key) -> list[int]:
    n = len(p.after)
    readers: list[list[int]] = [[] for _ in p.size]
    then: list[list[int]] = [[] for _ in range(n)]
    for op in range(n):
        for b in p.reads[op]:
            readers[b].append(op)
        for before in p.after[op]:
            then[before].append(op)
    left, waits = [len(r) for r in readers], [len(a) for a in p.after]
    made = [sum(p.size[b] for b in m) + inside for m, inside in zip(p.makes, p.inside, strict=True)]
    stays = [sum(p.size[b] for b in m if left[b] or p.kept[b]) for m in p.makes]
    turn, done, order = [0] * n, [False] * n, []
    heap: list[tuple[tuple[int, ...], int]] = []

    def push(op: int) -> None:
        growth = stays[op]
        for b in p.reads[op]:
            if left[b] == 1 and not p.kept[b]:
                growth -= p.size[b]
        heapq.heappush(heap, (key(growth, made[op], turn[op], op), op))

    for op in range(n):
        if not waits[op]:
            push(op)
    while heap:
        _, op = heapq.heappop(heap)
        if done[op]:
            continue  # pushed again since, when it had become the last reader of something
        done[op] = True
        order.append(op)
        for b in p.reads[op]:
            left[b] -= 1
            if left[b] == 1 and not p.kept[b]:
                last = next(r for r in readers[b] if not done[r])
                if not waits[last]:
                    push(last)
        for after in then[op]:
            waits[after] -= 1
            if not waits[after]:
                turn[after] = len(order)
                push(after)
    return order
