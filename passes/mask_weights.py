"""Set single weights to zero: the least important anywhere, n of every m, or small blocks."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import onnx_ir as ir
from scipy.linalg import LinAlgError

from ..compiler.calibration.linear_layers import Layer, linear_layers
from ..compiler.calibration.statistics import moments
from ..compiler.calibration.sums import Sums
from ..compiler.channels.shrink import replace_tensor
from ..compiler.cost import parameters
from ..compiler.graph import const
from ..compiler.passbase import Context, Pass
from ..compiler.quantization.grids import Grid, Sparse
from ..compiler.weights import release_tensor
from .biases import about_mean, make_up
from .weight_masks import Pattern, counts, repaired, spread_over

BY = ("magnitude", "wanda", "sparsegpt")
DAMPING = 1e-2
"""Of the mean square of a layer's inputs, as in SparseGPT."""
ALL = 1 << 30
"""Layers that are looked at at once."""
STEPS = 16
"""How often the model is run anew on the way, so that later layers also make up for what earlier ones lost."""


@dataclass(frozen=True)
class MaskWeights(Pass):
    """Set weights of Conv, ConvTranspose, Gemm, MatMul, LSTM, GRU and RNN to zero.

    Before:  `y = MatMul(x, w)`

    After:   `y = MatMul(x, w')`, half of the weights in w' zero

    Only numbers change; what is zero is still stored, and multiplied, unless the target has a form for it. With inputs,
    a bias makes up for the mean of what the outputs lose.

    Options:
        ratio: the share of each weight (`spread=local`) or of all (`global`) that becomes zero; 0.5 if not given.
        pattern: `unstructured`, or n:m, as in 2:4: n of every m neighbouring inputs stay, at each place of a kernel.
        block: so many neighbouring outputs go together.
        by: `magnitude`; or, with inputs, `wanda`: by |weight| · |its input|, in each row; `sparsegpt`: by what the
            others can't make up for, and they do make up for it.
        spread: `local`: the same share everywhere; `global`: more where it costs less, relative to the layer.
        embeddings: whether tables that Gather reads are masked, too.
        min_size: elements from which a weight is masked.
        keep: names of weights, separated by `;`, with * and ?, that stay.
    """

    name: ClassVar[str] = "mask-weights"
    lossy: ClassVar[bool] = True
    prunes: ClassVar[bool] = True
    ratio: float | None = None
    pattern: str = "unstructured"
    block: int = 1
    by: str = "magnitude"
    spread: str = "local"
    embeddings: bool = False
    min_size: int = 2048
    keep: str = ""

    def __post_init__(self) -> None:
        if self.ratio is not None and not 0 <= self.ratio < 1:
            raise ValueError(f"ratio={self.ratio}: a share of the weights, 0 to less than 1")
        if self.block < 1:
            raise ValueError(f"block={self.block}: a number of outputs, 1 or more")
        for option, choices in (("by", BY), ("spread", ("local", "global"))):
            if getattr(self, option) not in choices:
                raise ValueError(f"{option}={getattr(self, option)}: choose one of {', '.join(choices)}")
        made = self._pattern
        if made.many > 1 and (self.ratio is not None or self.block > 1 or self.spread == "global"):
            raise ValueError(f"pattern={self.pattern} takes no ratio, block or spread=global: it says what goes")

    @property
    def _pattern(self) -> Pattern:
        ratio = 0.5 if self.ratio is None else self.ratio
        if self.pattern == "unstructured":
            return Pattern(ratio, block=self.block, rows=self.by == "wanda")
        few, colon, many = self.pattern.partition(":")
        if not (colon and few.isdecimal() and many.isdecimal() and 0 < int(few) < int(many) <= 64):
            raise ValueError(f"pattern={self.pattern}: write unstructured, or n:m such as 2:4 (m up to 64)")
        return Pattern(1 - int(few) / int(many), int(few), int(many))

    def run(self, model: ir.Model, ctx: Context) -> int:
        """See the class. One weight is in memory at a time; with inputs, second moments for a few layers."""
        layers = self._layers(model, ctx)
        if not layers:
            ctx.note("no weight that could be masked was found")
            return 0
        patterns = dict.fromkeys(layers, self._pattern)
        if self.spread == "global":
            seen = [(weight, counts(_scores(layers[weight], sums))) for weight, sums in self._seen(model, layers, ctx)]
            ratios = spread_over([bins for _, bins in seen], self._pattern.ratio)
            patterns = {w: replace(self._pattern, ratio=r) for (w, _), r in zip(seen, ratios, strict=True)}
        changed = zeros = total = 0
        for weight, sums in self._seen(model, layers, ctx, most=max(1, -(-len(layers) // STEPS))):
            before = const(weight)
            assert before is not None
            after = self._masked(layers[weight], patterns[weight], sums, ctx)
            zeros, total = zeros + after.size - int(np.count_nonzero(after)), total + after.size
            if not np.array_equal(before, after):
                if sums is not None:
                    make_up(layers[weight], before, after, sums, ctx.scratch)
                _store(weight, after, ctx)
                changed += 1
            if weight.const_value is not None:
                release_tensor(weight.const_value)
        ctx.note(f"{zeros / max(1, total):.1%} of {total:,} weights are zero ({parameters(model):,} are in the model)")
        return changed

    def _layers(self, model: ir.Model, ctx: Context) -> dict[ir.Value, Layer]:
        """The weights to mask, each with the layer that says which matrix it is; notes say why others are not."""
        found: dict[ir.Value, list[Layer]] = {}
        for layer in linear_layers(model, self.min_size, inner=True):
            found.setdefault(layer.weight, []).append(layer)
        patterns = [p for p in self.keep.split(";") if p]
        for p in patterns:
            if not any(fnmatch.fnmatchcase(str(v.name), p) for v in found):
                ctx.note(f"keep={p}: no weight has such a name")
        chosen = {}
        for weight, layers in found.items():
            if any(fnmatch.fnmatchcase(str(weight.name), p) for p in patterns):
                continue
            if any(x.counted for x in layers) and not self.embeddings:
                continue
            why = _refused(weight, layers)
            if why:
                ctx.note(f"weight '{weight.name}' is not masked: {why}")
            else:
                chosen[weight] = next((x for x in layers if not x.counted), layers[0])
        return chosen

    def _seen(
        self, model: ir.Model, layers: Mapping[ir.Value, Layer], ctx: Context, most: int = ALL
    ) -> Iterator[tuple[ir.Value, Sums | None]]:
        """Each weight, with the moments of its inputs where they are needed and known."""
        left = dict(layers)
        if self.by != "magnitude":
            runs = ctx.measured(self.name, f"by={self.by}")
            uses = [x for x in linear_layers(model, self.min_size) if x.weight in layers and not x.counted]
            simple = self.by == "wanda" or most == ALL
            for found in moments(model, uses, runs, held_out=0, squares=simple, most=most, seed=ctx.seed):
                if found.weight in left:
                    del left[found.weight]
                    yield found.weight, found.whole
            for weight in left:
                ctx.note(f"weight '{weight.name}' is masked by magnitude: its inputs can't be looked at")
        for weight in left:
            yield weight, None

    def _masked(self, layer: Layer, pattern: Pattern, sums: Sums | None, ctx: Context) -> np.ndarray:
        """The weight with zeros."""
        array = const(layer.weight)
        assert array is not None
        matrix, taps = layer.matrix(array), _taps(layer)
        if pattern.many > 1 and layer.counted:
            ctx.note(f"weight '{layer.weight.name}' is not masked: nothing is summed over in a table")
            return array
        if pattern.many > 1 and matrix.shape[2] // taps < pattern.many:
            ctx.note(f"weight '{layer.weight.name}' is not masked: a sum of {matrix.shape[2] // taps} channels each")
            return array
        gram = about_mean(layer, sums) if self.by == "sparsegpt" and sums is not None else None
        if gram is not None:
            try:
                made = repaired(np.asarray(matrix, np.float32), gram, pattern, taps, DAMPING)
                if np.isfinite(made).all():
                    return layer.shaped(made)
            except LinAlgError:
                pass
            ctx.note(f"weight '{layer.weight.name}' is masked by wanda: the moments of its inputs are singular")
        mask = replace(pattern, rows=pattern.rows and sums is not None).mask(_scores(layer, sums), taps)
        return layer.shaped(np.where(mask, np.float32(0), matrix))


def _scores(layer: Layer, sums: Sums | None) -> np.ndarray:
    """What each weight adds to its output, squared: of its own size, times the mean square of its input if known."""
    array = const(layer.weight)
    assert array is not None
    scores = np.square(layer.matrix(array))
    return np.asarray(scores if sums is None else scores * sums.diagonal[:, None].astype(np.float32))


def _taps(layer: Layer) -> int:
    """Elements of the kernel: inputs are channels x these."""
    assert layer.weight.shape is not None
    shape = layer.weight.shape.numpy()
    return int(np.prod(shape[2:])) if layer.node.op_type in ("Conv", "ConvTranspose") else 1


def _refused(weight: ir.Value, layers: Sequence[Layer]) -> str:
    """Why a weight can't be masked, or nothing."""
    linear = [x for x in layers if not x.counted] or layers
    if len({(x.split, x.perm) for x in linear}) > 1:
        return "its readers disagree on which axis is summed over"
    if weight.is_graph_output() or _uses(weight) != len(layers):
        return "something else than linear layers reads it"
    array = const(weight)
    return "" if array is not None and np.isfinite(array).all() else "it holds numbers that are not finite"


def _uses(value: ir.Value) -> int:
    """How often a weight is read, through transpositions."""
    return sum(
        _uses(use.node.outputs[0]) if use.node.op_type == "Transpose" and not use.node.domain else 1
        for use in value.uses()
    )


def _store(weight: ir.Value, array: np.ndarray, ctx: Context) -> None:
    """Replace the numbers, and say on which grid they may lie: zeros, and what they lay on before."""
    before = weight.meta.get("edgec.grid")
    inner = before.inner if isinstance(before, Sparse) else before if isinstance(before, Grid) else None
    replace_tensor(weight, array, ctx.scratch)
    weight.meta["edgec.grid"] = Sparse(inner)
