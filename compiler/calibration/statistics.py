"""Second moments of the inputs of linear layers, streamed: what calibration needs to know, in bounded memory.

The error that a change D of a weight makes in its layer's outputs is tr(D H D'), H = E[x x'] over the inputs x that the
layer sees. So H, and the mean of x, are all that rounding, pruning and low-rank approximation want from samples.

    for found in moments(model, linear_layers(model), runs):
        weight, matrix = found.weight, found.layer.matrix(array)      # groups x outputs x inputs
        error = found.held.loss(matrix - changed)                     # on samples that were held out
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import onnx_ir as ir

from ..errors import UsageError
from .batching import HELD_OUT, WIDEST, batches, free, parts, probed, samples
from .layer_rows import Fetched
from .linear_layers import Layer
from .streaming import Feeds, Fetcher, Runs, places
from .sums import Running, Sums

PLACES = (1024, 8192, 16384)
"""Places at which a layer's inputs are looked at, all samples together: 64 for each input, at least the first number
and at most the second; 8 for each where that is more, up to the third; 2 for each at least."""
CHUNK = 1 << 24
"""Numbers that are laid out as rows of inputs at once."""

Progress = Callable[[int, int], None]
"""Called with runs of the model that are done, and all of them."""


@dataclass(frozen=True)
class Moments:
    """What is known of the inputs of one weight.

    Attributes:
        layer: the layer that the weight is in; the first, where several read it in the same way.
        fit: moments over the samples to choose numbers by.
        held: moments over samples that were held out; None where there was only one.
        shared: whether other layers read the weight in another way (an embedding that is also the last matrix).
        part: whether those that were held out are not to be known: they are to judge what comes of it.
    """

    layer: Layer
    fit: Sums
    held: Sums | None = None
    shared: bool = False
    part: bool = False

    @property
    def weight(self) -> ir.Value:
        """The initializer."""
        return self.layer.weight

    @cached_property
    def whole(self) -> Sums:
        """Moments over all samples that may be known."""
        return self.fit if self.part else self.fit + self.held

    def trial(self) -> Moments:
        """The same without what is known from the samples that were held out, but for measuring."""
        return self if self.held is None else replace(self, part=True)


def moments(
    model: ir.Model,
    layers: Sequence[Layer],
    runs: Runs,
    *,
    held_out: float = HELD_OUT,
    per_layer: int | None = None,
    reference: tuple[ir.Model, Sequence[Layer]] | None = None,
    squares: bool = False,
    most: int = 1 << 30,
    seed: int = 0,
    progress: Progress | None = None,
) -> Iterator[Moments]:
    """The moments of the inputs of each layer's weight, in the order of `layers`, a few layers at a time.

    Of a part of the layers, the inputs are fetched for one batch after another and summed; then they are yielded, and
    the next part runs. So what the caller changes in `model` meanwhile is seen by later parts: with `most` (layers in a
    part) small, each layer is seen with the inputs that the changed ones before it give.

    The last `held_out` of the samples are kept apart (whole samples, not places: neighbours are alike). Places that an
    input named like `attention_mask` sets to 0 are left out. Of each layer, `per_layer` places are looked at, by
    default as many as its inputs need (`PLACES`).
    `reference` is another model and its layers, in the same order: cross moments with their inputs are summed, too.
    With `squares`, no products of different inputs are: `gram` is None.

    Raises UsageError when inputs of a layer are not finite.
    """
    if not layers or not runs:
        return
    sizes = free(model, layers, runs)
    cut = batches(model, runs, held_out, sizes)
    largest = max((feeds for feeds, _ in cut), key=samples)
    sizes = {v: n * samples(largest) for v, n in sizes.items()} or probed(model, layers, largest)
    partner = dict(zip(layers, reference[1], strict=True)) if reference else {}
    pieces = list(parts(layers, sizes, len({h for _, h in cut}), most))
    done, every = 0, len(pieces) * len(cut)
    total = sum(samples(feeds) for feeds, _ in cut)
    for part in pieces:
        sources = [Fetcher(model, [v for layer in part for v in layer.reads])]
        if reference:
            sources.append(Fetcher(reference[0], [v for layer in part for v in partner[layer].reads]))
        sums: dict[tuple[tuple[object, ...], bool], Running] = {}
        for k, (feeds, held) in enumerate(cut):
            own = samples(feeds)
            got = [s.run(feeds) for s in sources]
            for layer in {x.key: x for x in part}.values():
                running = sums.setdefault((layer.key, held), Running(squares or layer.sizes[2] > WIDEST))
                count = per_layer or _enough(layer.sizes[2])
                pick = _Picker(feeds, -(-count * own // total), (seed, k))
                _add(running, layer, partner.get(layer), got, pick)
            done += 1
            if progress is not None:
                progress(done, every)
        del sources
        yield from _finished(part, sums)


def _enough(inputs: int) -> int:
    least, usual, most = PLACES
    return max(least, min(64 * inputs, usual), min(8 * inputs, most), 2 * inputs)


def _add(running: Running, layer: Layer, partner: Layer | None, got: Sequence[Fetched], pick: _Picker) -> None:
    if layer.counted:
        running.read(layer.rows(got[0], pick), layer.sizes[2])
        return
    for at in pick.chunks(layer, got[0]):
        x = layer.rows(got[0], lambda _, at=at: at)  # type: ignore[misc]
        other = None if partner is None else partner.rows(got[1], lambda _, at=at: at)  # type: ignore[misc]
        running.rows(x, other)
        if not running.finite:
            raise UsageError(
                f"inputs of {layer.node.op_type} '{layer.node.name}' are not finite for the given samples; "
                "leave out the samples that overflow (--inputs)"
            )


@dataclass
class _Picker:
    """Chooses places of a layer's input: those of no padding, `count` of them."""

    feeds: Feeds
    count: int
    seed: tuple[int, int]

    def __call__(self, shape: tuple[int, ...]) -> np.ndarray:
        total = int(np.prod(shape, dtype=np.int64))
        real = _real(self.feeds, shape)
        chosen = places(total if real is None else len(real), self.count, (*self.seed, total))
        return chosen if real is None else real[chosen]

    def chunks(self, layer: Layer, got: Fetched) -> Iterator[np.ndarray]:
        """The chosen places in parts that are small when laid out."""
        shapes: list[tuple[int, ...]] = []

        def none(shape: tuple[int, ...]) -> np.ndarray:
            shapes.append(shape)
            return np.zeros(0, np.int64)

        empty = layer.rows(got, none)
        chosen = self(shapes[0])
        step = max(1, CHUNK // max(1, empty.shape[0] * empty.shape[2]))
        for i in range(0, len(chosen), step):
            yield chosen[i : i + step]


def _real(feeds: Feeds, shape: tuple[int, ...]) -> np.ndarray | None:
    """The flat indices of the places that are no padding; None where nothing says which are."""
    for name, mask in feeds.items():
        if "attention_mask" in name and mask.ndim == 2 and mask.dtype.kind in "iub":
            squeezed = tuple(s for s in shape if s != 1)
            if squeezed in (tuple(s for s in mask.shape if s != 1), (mask.size,)) and (mask <= 1).all():
                return np.flatnonzero(mask)
    return None


def _finished(part: Sequence[Layer], sums: Mapping[tuple[tuple[object, ...], bool], Running]) -> Iterator[Moments]:
    """The moments of each weight in a part; one for each way in which it is read."""
    done = {key: running.result() for key, running in sums.items()}
    views: dict[ir.Value, dict[tuple[object, ...], list[Layer]]] = {}
    for layer in part:
        views.setdefault(layer.weight, {}).setdefault((layer.counted, layer.split, layer.perm), []).append(layer)
    for ways in views.values():
        for alike in ways.values():
            fit, held = (_added([done[x.key, h] for x in alike if (x.key, h) in done]) for h in (False, True))
            assert fit is not None
            yield Moments(alike[0], fit, held, len(ways) > 1)


def _added(sums: Sequence[Sums]) -> Sums | None:
    total: Sums | None = None
    for each in sums:
        total = each + total
    return total
