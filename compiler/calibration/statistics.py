"""Second moments of the inputs of linear layers, streamed: what calibration needs to know, in bounded memory.

The error that a change D of a weight makes in its layer's outputs is tr(D H D'), H = E[x x'] over the inputs x that the
layer sees. So H, and the mean of x, are all that rounding, pruning and low-rank approximation want from samples.

    for found in moments(model, linear_layers(model), runs):
        weight, matrix = found.weight, found.layer.matrix(array)      # groups x outputs x inputs
        error = found.held.loss(matrix - changed)                     # on samples that were held out
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from ..errors import UsageError
from .batching import PRECISE, WIDEST, batches, free, parts, probed, samples
from .linear_layers import Fetched, Layer
from .streaming import Feeds, Fetcher, Runs, places

PLACES = (1024, 8192, 16384)
"""Places at which a layer's inputs are looked at, all samples together: 64 for each input, at least the first number
and at most the second; 8 for each where that is more, up to the third; 2 for each at least."""
CHUNK = 1 << 24
"""Numbers that are laid out as rows of inputs at once."""

Progress = Callable[[int, int], None]
"""Called with runs of the model that are done, and all of them."""


@dataclass
class Sums:
    """Moments of the inputs of a layer over some samples.

    Attributes:
        count: places that were looked at.
        gram: E[x x'], groups (or 1: the same for all) x inputs x inputs; None for wide layers and tables.
        diagonal: E[x²], groups x inputs. For a table: how often each row was read, over all that were.
        mean: E[x], groups x inputs.
        cross: E[x x_reference'], where a reference model was given; rows are the model's own inputs.
        reference_mean: E[x_reference], likewise.
    """

    count: int
    diagonal: np.ndarray
    mean: np.ndarray
    gram: np.ndarray | None = None
    cross: np.ndarray | None = None
    reference_mean: np.ndarray | None = None

    def loss(self, change: np.ndarray) -> float:
        """The mean square that this change of a matrix (groups x outputs x inputs) makes in the outputs, summed."""
        if self.gram is None:
            return float(np.einsum("goi,gi->", np.square(change), np.broadcast_to(self.diagonal, _like(change))))
        gram = self.gram.astype(change.dtype, copy=False)
        return float(np.einsum("goi,goi->", change @ gram, change, dtype=np.float64))

    def __add__(self, other: Sums | None) -> Sums:
        """The moments over both."""
        if other is None:
            return self
        n = self.count + other.count
        a, b = (self.count / n, other.count / n) if n else (0.5, 0.5)

        def mixed(x: np.ndarray | None, y: np.ndarray | None) -> np.ndarray | None:
            return None if x is None or y is None else np.asarray(x * x.dtype.type(a) + y * y.dtype.type(b))

        pairs = {k: mixed(getattr(self, k), getattr(other, k)) for k in _FIELDS}
        return Sums(n, **pairs)  # type: ignore[arg-type]


_FIELDS = ("diagonal", "mean", "gram", "cross", "reference_mean")


def _like(change: np.ndarray) -> tuple[int, int]:
    return change.shape[0], change.shape[2]


@dataclass(frozen=True)
class Moments:
    """What is known of the inputs of one weight.

    Attributes:
        layer: the layer that the weight is in; the first, where several read it in the same way.
        fit: moments over the samples to choose numbers by.
        held: moments over samples that were held out; None where there was only one.
        shared: whether other layers read the weight in another way (an embedding that is also the last matrix).
    """

    layer: Layer
    fit: Sums
    held: Sums | None = None
    shared: bool = False

    @property
    def weight(self) -> ir.Value:
        """The initializer."""
        return self.layer.weight

    @property
    def whole(self) -> Sums:
        """Moments over all samples."""
        return self.fit + self.held


@dataclass
class _Running:
    """Sums that grow."""

    wide: bool
    counted: int = 0
    count: int = 0
    sums: dict[str, np.ndarray] = field(default_factory=dict)

    def add(self, name: str, amount: np.ndarray) -> None:
        if name in self.sums:
            self.sums[name] += amount
        else:
            own = np.float32 if amount.shape[-1] > PRECISE and amount.ndim == 3 else np.float64
            self.sums[name] = amount.astype(own)

    def rows(self, x: np.ndarray, reference: np.ndarray | None) -> None:
        """Add rows of inputs: groups x places x inputs."""
        self.count += x.shape[1]
        with np.errstate(over="ignore", invalid="ignore"):
            self.add("mean", x.sum(1, dtype=np.float64))
            if self.wide:
                self.add("diagonal", np.square(x).sum(1, dtype=np.float64))
            else:
                self.add("gram", _products(x, x))
        if reference is not None:
            self.add("reference_mean", reference.sum(1, dtype=np.float64))
            self.add("cross", _products(x, reference))

    def read(self, indices: np.ndarray, size: int) -> None:
        self.count += len(indices)
        self.add("diagonal", np.bincount(indices, minlength=size).astype(np.float64)[None])

    def result(self) -> Sums:
        n = max(1, self.count)
        found = {k: np.divide(v, n, out=v) for k, v in self.sums.items()}
        if "gram" in found:
            found["diagonal"] = np.einsum("gii->gi", found["gram"]).copy()
        found.setdefault("mean", found["diagonal"])
        return Sums(self.count, **found)


def _products(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    if len(x) == 1:
        return np.asarray(x[0].T @ y[0])[None]
    return np.asarray(x.transpose(0, 2, 1) @ y)


def moments(
    model: ir.Model,
    layers: Sequence[Layer],
    runs: Runs,
    *,
    held_out: float = 0.2,
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
        sums: dict[tuple[tuple[object, ...], bool], _Running] = {}
        for k, (feeds, held) in enumerate(cut):
            own = samples(feeds)
            got = [s.run(feeds) for s in sources]
            for layer in {x.key: x for x in part}.values():
                running = sums.setdefault((layer.key, held), _Running(squares or layer.sizes[2] > WIDEST))
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


def _add(running: _Running, layer: Layer, partner: Layer | None, got: Sequence[Fetched], pick: _Picker) -> None:
    if layer.counted:
        running.read(layer.rows(got[0], pick), layer.sizes[2])
        return
    for at in pick.chunks(layer, got[0]):
        x = layer.rows(got[0], lambda _, at=at: at)  # type: ignore[misc]
        other = None if partner is None else partner.rows(got[1], lambda _, at=at: at)  # type: ignore[misc]
        running.rows(x, other)
        if not np.isfinite(running.sums["diagonal" if running.wide else "gram"]).all():
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


def _finished(part: Sequence[Layer], sums: Mapping[tuple[tuple[object, ...], bool], _Running]) -> Iterator[Moments]:
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
