"""Peak activation memory: what is live at once, in the best order of the main graph's nodes that was found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx_ir as ir

from ..dims import Dim
from .bounds import maximum
from .lifetimes import Builder, Lifetimes, Numbers, most, outer_reads, walk
from .node import plus
from .ordering import least_memory
from .polynomial import symbols
from .records import Memory
from .sizes import Sizes
from .walk import Liveness

TYPICAL_SIDE, TYPICAL_LENGTH = 224, 128
"""Sizes at which an order is chosen where a free dimension is not given: of an image's side, and of a sequence."""

COMPARED = 64
"""Steps of different sizes up to which the peak is worked out for all sizes of the symbols; pairs are compared."""


def memory(model: ir.Model, sizes: Sizes, at: Mapping[str, int] | None = None, live: Liveness | None = None) -> Memory:
    """The live activations of one run of `model`, by liveness over an order of its nodes.

    A value is live from the node that makes it to the last one that reads it; an input from the start, an output to
    the end. While a node runs, its inputs and its results are live, and so is the most that the graphs inside it hold:
    nothing is computed in place. Weights are not counted.

    Args:
        sizes: of the model's values.
        at: sizes of symbols. The order is chosen for these, and for typical ones where they leave some out; the
            figures are polynomials in the symbols all the same.
        live: which nodes run, where that is known already.

    Returns:
        Peaks in bytes, `optimal` where no order of the nodes has a lower peak at these sizes.
    """
    numbers = Numbers(typical(model, sizes) | dict(at or {}))
    found = Builder(model.graph, sizes, numbers, live or Liveness(model, sizes)).build()
    given = list(range(len(found.ops)))
    order, optimal = least_memory(found.problem, given)
    used = {name for b in found.buffers for name in symbols(b.bytes)}
    result = Memory(optimal=optimal, at={s: numbers.at[s] for s in sorted(used)}, unsized=found.unsized)
    if not order:
        held = plus(*(found.buffers[b].bytes for b in found.problem.start if found.problem.kept[b]))
        result.peak = result.peak_given = held
        result.order, result.live = list(range(len(found.nodes))), [held] * len(found.nodes)
        return result
    alive = walk(found, order)
    worst = _worst([numbers(size) for size in alive])
    result.peak, result.at_peak = _peak(alive, worst), _at(found, order, worst)
    result.peak_given = result.peak if order == given else most(found, numbers)
    result.order, result.live = _nodes(found, order, alive)
    return result


def typical(model: ir.Model, sizes: Sizes) -> dict[str, int]:
    """A size for every symbol: 1 for what is read off a leading axis, else that of an image or of a sequence."""
    found: dict[str, int] = {}
    for value in model.graph.inputs:
        dims = sizes.dims(value) or []
        for i, dim in enumerate(dims):
            for name in symbols(dim):
                found.setdefault(name, 1 if i == 0 else TYPICAL_SIDE if len(dims) > 3 else TYPICAL_LENGTH)
    return found


def _peak(alive: Sequence[Dim], worst: int) -> Dim:
    """The largest at every size of the symbols; where too many differ, what is largest at the sizes looked at."""
    different = set(alive)
    return maximum(different) if len(different) <= COMPARED else alive[worst]


def _worst(live: Sequence[int]) -> int:
    return max(range(len(live)), key=lambda i: live[i])


def _at(found: Lifetimes, order: Sequence[int], step: int) -> list[str]:
    """Names of what is live at a step, the largest first."""
    p, left = found.problem, found.problem.readers()
    live = {b for b in p.start if left[b] or p.kept[b]}
    for op in order[:step]:
        live.update(p.makes[op])
        for b in p.reads[op]:
            left[b] -= 1
        live -= {b for b in (*p.reads[op], *p.makes[op]) if not left[b] and not p.kept[b]}
    live.update(p.makes[order[step]])
    ranked = sorted(live, key=lambda b: (-p.size[b], b))
    return [found.buffers[b].value.name or "" for b in ranked if p.size[b]]


def _nodes(found: Lifetimes, order: Sequence[int], live: Sequence[Dim]) -> tuple[list[int], list[Dim]]:
    """All nodes in the order of these operators, the others as late as possible, and what is live at each."""
    place = {node: i for i, node in enumerate(found.nodes)}
    running = set(found.ops)
    result: list[int] = []
    alive: list[Dim] = []
    done: set[int] = set()
    now: Dim = 0

    def emit(i: int, size: Dim) -> None:
        done.add(i)
        result.append(i)
        alive.append(size)

    if list(order) == sorted(order):  # the model's own order, then, whole
        at = dict(zip(found.ops, live, strict=True))
        for i in range(len(found.nodes)):
            now = at.get(i, now)
            emit(i, now)
        return result, alive
    for op, size in zip(order, live, strict=True):
        for i in _waiting(found, place, found.ops[op], done, running):
            emit(i, now)
        emit(found.ops[op], size)
        now = size
    for i in range(len(found.nodes)):
        if i not in done:
            emit(i, now)
    return result, alive


def _waiting(found: Lifetimes, place: Mapping[ir.Node, int], op: int, done: set[int], running: set[int]) -> list[int]:
    """The nodes that don't run but come before `op`, not yet listed, in the model's order."""
    needed: set[int] = set()
    stack = [op]
    while stack:
        for value in outer_reads(found.nodes[stack.pop()]):
            maker = value.producer()
            i = place.get(maker, -1) if maker is not None else -1
            if i >= 0 and i not in done and i not in running and i not in needed:
                needed.add(i)
                stack.append(i)
    return sorted(needed)
