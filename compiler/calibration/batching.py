"""Cutting samples and layers into pieces, so that what is fetched and summed at once fits into memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import TypeVar

import onnx_ir as ir

from ..errors import ModelError
from .linear_layers import Layer
from .streaming import Feeds, Fetcher, Runs

T = TypeVar("T")

WIDEST = 8192
"""Inputs of a layer up to which all products are summed; of more, their squares only."""
ACTIVATIONS = 1 << 28
"""Bytes of activations that are fetched at once."""
SUMS = 1 << 29
"""Bytes of sums that are held at once."""
BATCH = 64
"""Samples in a run, where the model leaves the number open."""
HELD_OUT = 0.2
"""Share of the samples that are kept apart: what is chosen by the others is judged by these."""
PRECISE = 1024
"""Inputs up to which sums are kept in float64; wider ones in float32, whose error is far below that of sampling."""


def samples(feeds: Feeds) -> int:
    return max((a.shape[0] for a in feeds.values() if a.ndim), default=1)


def spread(runs: Runs, most: int) -> Runs:
    """Runs of about `most` samples, evenly spread."""
    return runs[:: max(1, -(-sum(samples(feeds) for feeds in runs) // most))]


def batches(model: ir.Model, runs: Runs, held_out: float, sizes: Mapping[ir.Value, int]) -> list[tuple[Feeds, bool]]:
    """The runs, cut into batches that are small enough, and whether each is held out; `sizes` of one sample."""
    counts = [samples(feeds) for feeds in runs] if sizes else [1] * len(runs)
    first = sum(counts) - _held(sum(counts), held_out)
    batch = max(1, min(BATCH, ACTIVATIONS // max(1, *sizes.values()))) if sizes else 1
    cut: list[tuple[Feeds, bool]] = []
    start = 0
    for feeds, n in zip(runs, counts, strict=True):
        for a, b in pairwise(sorted({0, n, max(0, min(n, first - start))})):
            for i in range(a, b, batch):
                some = {k: v[i : min(b, i + batch)] for k, v in feeds.items()} if sizes else feeds
                cut.append((some, start + i >= first))
        start += n
    return cut


def held_out(model: ir.Model, layers: Sequence[Layer], runs: Runs, share: float = HELD_OUT) -> Runs:
    """The samples that `statistics.moments` keeps apart, in batches."""
    return [feeds for feeds, held in batches(model, runs, share, free(model, layers, runs)) if held]


def _held(samples: int, share: float) -> int:
    return min(samples - 1, max(1, round(samples * share))) if share and samples > 1 else 0


def free(model: ir.Model, layers: Sequence[Layer], runs: Runs) -> dict[ir.Value, int]:
    """The bytes of what layers read for one sample; nothing where the runs can't be cut into samples."""
    return one_sample(model, [v for layer in layers for v in layer.reads], runs)


def one_sample(model: ir.Model, values: Sequence[ir.Value], runs: Runs) -> dict[ir.Value, int]:
    """The bytes of each value for one sample; nothing where the runs can't be cut into samples."""
    fixed = any(v.shape is None or not len(v.shape) or isinstance(v.shape[0], int) for v in model.graph.inputs)
    if fixed or any(len({a.shape[0] for a in feeds.values()}) != 1 for feeds in runs):
        return {}
    try:
        return _bytes(model, values, {n: a[:1] for n, a in runs[0].items()})
    except ModelError:  # the first dimension is declared to be free and isn't
        return {}


def probed(model: ir.Model, layers: Sequence[Layer], feeds: Feeds) -> dict[ir.Value, int]:
    """The bytes of each value that layers read, in a run."""
    return _bytes(model, [v for layer in layers for v in layer.reads], feeds)


def _bytes(model: ir.Model, values: Sequence[ir.Value], feeds: Feeds) -> dict[ir.Value, int]:
    return {v: a.nbytes for v, a in Fetcher(model, values).run(feeds).items()}


def parts(layers: Sequence[Layer], sizes: Mapping[ir.Value, int], sets: int, most: int) -> Iterator[list[Layer]]:
    """The layers in order, in parts whose activations and sums fit into memory together; `most` at once.

    Layers that share a weight are in one part.
    """
    groups: dict[ir.Value, list[Layer]] = {}
    for layer in layers:
        groups.setdefault(layer.weight, []).append(layer)
    part: list[Layer] = []
    needs: dict[object, tuple[int, int]] = {}
    for group in groups.values():
        new = {**needs, **_needs(group, sizes, sets)}
        held, summed = (sum(each) for each in zip(*new.values(), strict=True))
        if part and (held > ACTIVATIONS or summed > SUMS or len(part) + len(group) > most):
            yield part
            part, new = [], _needs(group, sizes, sets)
        part, needs = part + group, new
    if part:
        yield part


def _needs(layers: Sequence[Layer], sizes: Mapping[ir.Value, int], sets: int) -> dict[object, tuple[int, int]]:
    """The bytes of activations and of sums that these layers need, by what needs them."""
    found: dict[object, tuple[int, int]] = {v: (sizes[v], 0) for layer in layers for v in layer.reads}
    for layer in layers:
        groups, _, inputs = layer.sizes
        wide = 1 if layer.counted or inputs > WIDEST else inputs
        found[layer.key] = (0, sets * groups * wide * inputs * (8 if inputs <= PRECISE else 4))
    return found


def portions(sizes: Iterable[tuple[T, int]], limit: int, most: int = 1 << 30) -> Iterator[list[T]]:
    """Things with their sizes, in order, in lists of at most `limit` together and `most` things, or one larger one."""
    part: list[T] = []
    held = 0
    for thing, size in sizes:
        if part and (held + size > limit or len(part) >= most):
            yield part
            part, held = [], 0
        part.append(thing)
        held += size
    if part:
        yield part
