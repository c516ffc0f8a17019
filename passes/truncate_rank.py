"""Replace weights by their best approximation of a low rank; `factor-weights` then writes each as two smaller ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import onnx_ir as ir
from scipy.linalg import LinAlgError, cholesky, eigh, qr

from ..compiler.calibration.linear_layers import linear_layers
from ..compiler.calibration.statistics import Moments, moments
from ..compiler.calibration.sums import Sums
from ..compiler.channels.shrink import replace_tensor
from ..compiler.cost import parameters, weight_bytes
from ..compiler.passbase import Context, Pass
from ..compiler.weights import release_tensor
from . import rank_budget
from .biases import about_mean, make_up
from .low_rank import Candidate, Split, candidates, total_macs
from .rank_budget import Choice, Curve, Way

OF = ("macs", "parameters", "bytes")
BY = ("weights", "activations")
DAMPING = 1e-2
"""Of the mean square of a layer's inputs: what no sample has shown costs something, too."""
NOISE = 1e-11
"""A share of the energy that is no more than rounding to float32, and computing in it, makes."""
SHARE = 0.3
"""Of the model, when no option says how much shall go."""


@dataclass(frozen=True)
class TruncateRank(Pass):
    """Take the smallest singular values from the weights of Conv, Gemm and MatMul.

    Before:  `y = MatMul(x, w)`, w of full rank

    After:   `y = MatMul(x, w')`, w' the product of a tall and a wide matrix; `factor-weights` writes it as that

    Only numbers change. A convolution may be approximated in several ways (k x k then 1 x 1, k x 1 then 1 x k, …): the
    one that errs least for its cost is taken (docs/sparsity.md). A weight is only touched where two layers are cheaper.
    With inputs, a bias makes up for the mean of what the outputs lose.

    Options:
        ratio: how much of the model shall go, 0 to 1, of what `of` says; 0.3 when neither rank nor energy is given.
            It is spread so that each step costs least error, relative to the layer's output, for what it saves.
        rank: this rank for every weight for which it is cheaper.
        energy: the share of each weight's energy (the squared singular values) that stays.
        of: macs, parameters or bytes, for `ratio`.
        by: what is approximated: `weights`, or, with inputs, the layer's outputs (`activations`).
        align: ranks are multiples of this; odd ones are slower than what they save.
        min_size: elements from which a weight is touched.
        keep: names of weights, separated by `;`, with * and ?, that stay.
    """

    name: ClassVar[str] = "truncate-rank"
    lossy: ClassVar[bool] = True
    prunes: ClassVar[bool] = True
    ratio: float | None = None
    rank: int | None = None
    energy: float | None = None
    of: str = "macs"
    by: str = "weights"
    align: int = 8
    min_size: int = 4096
    keep: str = ""

    def __post_init__(self) -> None:
        given = [o for o in ("ratio", "rank", "energy") if getattr(self, o) is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)}: only one of them says how much goes")
        if self.ratio is not None and not 0 <= self.ratio < 1:
            raise ValueError(f"ratio={self.ratio}: a share of the model, 0 to less than 1")
        if self.energy is not None and not 0 < self.energy <= 1:
            raise ValueError(f"energy={self.energy}: a share of each weight's energy, above 0 to 1")
        for option in ("rank", "align"):
            if getattr(self, option) is not None and getattr(self, option) < 1:
                raise ValueError(f"{option}={getattr(self, option)}: a number of channels, 1 or more")
        for option, choices in (("of", OF), ("by", BY)):
            if getattr(self, option) not in choices:
                raise ValueError(f"{option}={getattr(self, option)}: choose one of {', '.join(choices)}")

    def run(self, model: ir.Model, ctx: Context) -> int:
        """See the class. One weight is in memory at a time; bases of what may stay are on disk meanwhile."""
        found = candidates(model, self.min_size, self.keep, ctx)
        if not found:
            ctx.note("no weight that could be written as two was found")
            return 0
        totals = {"macs": total_macs(model), "parameters": parameters(model), "bytes": weight_bytes(model)}
        folder = ctx.scratch.dir / "rank"
        folder.mkdir()
        try:
            curves = [c for c in self._curves(model, found, folder, ctx) if c.ways]
            chosen = self._chosen(curves, totals, ctx)
            changed = [c for c in chosen if _apply(c, ctx)]
        finally:
            for file in folder.iterdir():
                file.unlink()
            folder.rmdir()
        if changed:
            saved = {k: sum(c.saved(k) for c in chosen) / max(totals[k], 1) for k in ("macs", "parameters")}
            ctx.note(
                f"{len(changed)} of {len(found)} weights are of a lower rank; factor-weights will take "
                + " and ".join(f"{v:.1%} of {k}" for k, v in saved.items())
            )
        return len(changed)

    def _chosen(self, curves: Sequence[Curve], totals: dict[str, float], ctx: Context) -> list[Choice]:
        if self.rank is not None:
            return rank_budget.fixed(curves, self.rank)
        if self.energy is not None:
            return rank_budget.of_energy(curves, self.energy, self.align)
        ratio = SHARE if self.ratio is None else self.ratio
        chosen = rank_budget.of_budget(curves, ratio * totals[self.of], self.of, self.align)
        reached = sum(c.saved(self.of) for c in chosen) / max(totals[self.of], 1)
        if reached < ratio - 0.03:
            ctx.note(f"asked for {ratio:.0%} of {self.of}; the lowest ranks that can be written take {reached:.1%}")
        return chosen

    def _curves(self, model: ir.Model, found: Sequence[Candidate], folder: Path, ctx: Context) -> Iterator[Curve]:
        """What each weight loses at each rank."""
        left = {c.value: c for c in found}
        if self.by == "activations":
            runs = ctx.measured(self.name, "by=activations")
            layers = [layer for layer in linear_layers(model, self.min_size) if layer.weight in left]
            for seen in moments(model, layers, runs, held_out=0, seed=ctx.seed):
                if not seen.shared and seen.weight in left and seen.layer.sizes[0] == 1:
                    yield _curve(left.pop(seen.weight), seen, folder, ctx)
        for c in left.values():
            yield _curve(c, None, folder, ctx)


def _curve(c: Candidate, known: Moments | None, folder: Path, ctx: Context) -> Curve:
    """The spectrum of a weight in every split, and the bases on disk."""
    seen = None if known is None else replace(known.whole, gram=about_mean(known.layer, known.whole))
    curve = Curve(c, None if known is None else (known.layer, replace(known.whole, gram=None)))
    array = c.array()
    if not np.isfinite(array).all():
        ctx.note(f"weight '{c.name}' stays: it holds numbers that are not finite")
        return curve
    torn = seen is not None and any(s.rows > 1 for s in c.splits)
    whole = _energy(array, seen) if torn and seen is not None else 0.0
    for split in c.splits:
        matrix = split.matrix(array)
        gram = None if seen is None else _gram(split, seen)
        tails, basis = _spectrum(matrix, gram, c.most(split))
        if len(tails) == 1:
            continue
        factor = 1.0
        if seen is not None and split.rows > 1:
            rank = max(1, basis.shape[1] // 2)
            error = split.weight(matrix - basis[:, :rank] @ (basis[:, :rank].T @ matrix))
            # Where a kernel is torn apart, tails leave out that the outputs of its parts are alike and add up.
            factor = _energy(error, seen) / max(whole, 1e-30) / max(float(tails[rank]), NOISE)
        path = folder / f"{len(list(folder.iterdir()))}.npy"
        np.save(path, basis)
        curve.ways.append(Way(split, tails, factor, path))
    assert c.value.const_value is not None
    release_tensor(c.value.const_value)
    return curve


def _gram(split: Split, seen: Sums) -> np.ndarray:
    """E[x x'] of what the columns of a split are multiplied with: of its own axes, summed over those of the rows.

    Its diagonal alone where a layer has so many inputs that only their squares were summed.
    """
    columns = split.order[split.rows :]
    inner = [split.dims[a] for a in range(len(split.dims)) if a != split.order[0]]
    axes = [a for a in range(len(split.dims)) if a != split.order[0]]
    if seen.gram is None:
        square = seen.diagonal[0].reshape(inner).sum(tuple(i for i, a in enumerate(axes) if a not in columns))
        diagonal = np.array(square.reshape(-1), np.float32)
        return diagonal + DAMPING * max(float(diagonal.mean()), 1e-30)
    right = [a + len(split.dims) if a in columns else a for a in axes]
    out = [*columns, *(a + len(split.dims) for a in columns)]
    gram = np.einsum(seen.gram[0].reshape(inner * 2), [*axes, *right], out).reshape(2 * [split.shape[1]])
    gram = np.array(gram, np.float32)
    gram[np.diag_indices_from(gram)] += DAMPING * max(float(np.trace(gram)) / len(gram), 1e-30)
    return gram


def _energy(weight: np.ndarray, seen: Sums) -> float:
    """The mean square of what the weight of a convolution makes of the inputs that were seen."""
    return seen.loss(weight.reshape(1, len(weight), -1))


def _spectrum(matrix: np.ndarray, gram: np.ndarray | None, most: int) -> tuple[np.ndarray, np.ndarray]:
    """The share of the energy of a matrix's outputs that is lost at each rank up to `most`; a basis of what stays.

    Of y = M x the components are the eigenvectors of E[y y'] = M H M'. L' M' M L, with L L' = H, has the same values.
    """
    m, n = matrix.shape
    seen = matrix = matrix.astype(np.float64) if gram is None else matrix
    most = min(most, m, n)
    if gram is not None and gram.ndim == 1:
        seen = matrix * np.sqrt(gram)
    elif m > n and gram is not None:
        try:
            seen = matrix @ cholesky(gram, lower=True, check_finite=False)
        except LinAlgError:
            return np.ones(1), np.zeros((m, 0), np.float32)
    if m <= n:
        products = seen @ seen.T if gram is None or gram.ndim == 1 else matrix @ (matrix @ gram).T
    else:
        products = seen.T @ seen
    size, total = len(products), float(np.trace(products))
    if not 0 < total < np.inf:
        return np.ones(1), np.zeros((m, 0), np.float32)
    top = (size - most, size - 1)
    values, vectors = eigh(products, overwrite_a=True, check_finite=False, subset_by_index=top)
    tails = 1 - np.append(0.0, np.cumsum(values[::-1].astype(np.float64))) / total
    basis = vectors[:, ::-1]
    if m > n:
        basis = qr(seen @ basis, mode="economic", overwrite_a=True, check_finite=False)[0]
    return np.maximum(tails, 0), np.ascontiguousarray(basis, np.float32)


def _apply(choice: Choice, ctx: Context) -> bool:
    """Replace the weight; whether that changed it."""
    c, way = choice.curve.candidate, choice.way
    matrix = way.split.matrix(c.array()).astype(np.float64)
    basis = qr(np.load(way.path)[:, : choice.rank].astype(np.float64), mode="economic", check_finite=False)[0]
    lower = basis @ (basis.T @ matrix)
    if np.square(matrix - lower).sum() <= NOISE * np.square(matrix).sum():
        return False
    after = way.split.weight(lower.astype(np.float32))
    if choice.curve.seen is not None:
        make_up(choice.curve.seen[0], c.array(), after, choice.curve.seen[1], ctx.scratch)
    replace_tensor(c.value, after, ctx.scratch)
    c.value.meta.pop("edgec.grid", None)
    return True
