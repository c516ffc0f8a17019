"""The same work for many things, on several cores at once."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def cores(wanted: int = 0) -> int:
    """How many cores to use: so many as wanted; for 0, those that this process may."""
    if wanted > 0:
        return wanted
    allowed = getattr(os, "sched_getaffinity", None)
    return len(allowed(0)) if allowed is not None else os.cpu_count() or 1


def each(work: Callable[[T], R], items: Iterable[T], jobs: int) -> Iterator[R]:
    """What `work` makes of each item, in the order of the items, on so many threads.

    Items are taken as workers become free, so no more than a few of them exist at a time. Threads are enough: nearly
    all of the time goes by inside of onnxruntime and numpy, which let other threads run, and nothing is copied.
    """
    if jobs == 1:
        yield from map(work, items)
        return
    import joblib  # late: most compilations never measure on several cores

    pool = joblib.Parallel(n_jobs=jobs, prefer="threads", pre_dispatch="n_jobs", batch_size=1, return_as="generator")
    yield from pool(joblib.delayed(work)(item) for item in items)


def on_cores(work: Callable[[T], R], pieces: Iterable[T]) -> list[R]:
    """What `work` gives for each piece, in their order; numpy works on several at once. All pieces exist at a time."""
    pieces = list(pieces)
    threads = min(cores(), len(pieces), 8)
    if threads < 2:
        return [work(p) for p in pieces]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(work, pieces))
