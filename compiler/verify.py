"""Do two models compute the same? Both are run, and every output is compared."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from .errors import ModelError
from .numerics import Difference, compare
from .session import Session
from .weights import release

if TYPE_CHECKING:
    from .guard.task import Score

EXACT_TOLERANCE = 1e-5
"""Relative error allowed to exact passes, rounding stripped from both sides.

Equal graphs that associate sums differently agree to 1.3e-6, the wrong mode of one GELU in a ViT shows at 3e-4.
"""


@dataclass(frozen=True)
class Comparison:
    """How far all outputs of two models are apart. The figures are the worst over the outputs.

    Attributes:
        outputs: the figures of each output; see `numerics.Difference` for what they mean.
        score: how well both do their task, where somebody asked.
    """

    outputs: Mapping[str, Difference] = field(default_factory=dict)
    score: Score | None = None

    @property
    def max_abs(self) -> float:
        """Largest absolute error, in the output's unit."""
        return max((d.max_abs for d in self.outputs.values()), default=0.0)

    @property
    def max_rel(self) -> float:
        """Largest error relative to the largest value of its output."""
        return max((d.max_rel for d in self.outputs.values()), default=0.0)

    @property
    def snr_db(self) -> float:
        """Smallest signal-to-noise ratio, in decibels."""
        return min((d.snr_db for d in self.outputs.values()), default=math.inf)

    @property
    def cosine(self) -> float:
        """Smallest cosine between an output and its reference."""
        return min((d.cosine for d in self.outputs.values()), default=1.0)

    @property
    def top1(self) -> float | None:
        """Smallest share of rows with the same winner; None where no output looks like logits."""
        return min((d.top1 for d in self.outputs.values() if d.top1 is not None), default=None)

    @property
    def worst(self) -> str:
        """The name of the output with the largest relative error."""
        return max(self.outputs, key=lambda n: self.outputs[n].max_rel, default="")

    def within(self, max_rel: float) -> bool:
        """Whether no output is off by more than `max_rel` of its largest value, and all can be compared."""
        return all(d.mismatch is None and d.max_rel <= max_rel for d in self.outputs.values())

    def worst_line(self) -> str:
        """The worst output in a line, for a message."""
        if not self.outputs:
            return "there are no outputs"
        d = self.outputs[self.worst]
        what = d.mismatch or f"relative error {d.max_rel:.2g}, {d.snr_db:.1f} dB"
        return f"output '{self.worst}': {what}"

    def rows(self) -> Iterator[tuple[str, ...]]:
        """A table row per output: name, max abs, max rel, SNR in dB, cosine, top-1 agreement, any mismatch."""
        for name, d in self.outputs.items():
            figures = f"{d.max_abs:.3g}", f"{d.max_rel:.3g}", f"{d.snr_db:.1f}", f"{d.cosine:.6f}"
            yield name, *figures, "" if d.top1 is None else f"{d.top1:.1%}", d.mismatch or ""


def outputs_of(
    model: ir.Model, inputs: Mapping[str, np.ndarray], *others: Mapping[str, np.ndarray], exact: bool = False
) -> dict[str, np.ndarray]:
    """What `model` computes from `inputs`; with `exact`, as if nothing were rounded. Raises ModelError.

    What it computes from inputs of `others` sizes is in there as well, see `named_by_size`.
    """
    session = Session(model, exact=exact)
    found = session.run(inputs)
    for feeds in others:
        found |= named_by_size(session.run(feeds), feeds)
    release(model)
    return found


def named_by_size(outputs: Mapping[str, np.ndarray], inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Outputs under names that say for inputs of which sizes they are."""
    sizes = ", ".join(f"{n} {'×'.join(map(str, a.shape)) or 'scalar'}" for n, a in inputs.items())
    return {f"{n} (for {sizes})": a for n, a in outputs.items()}


@dataclass(frozen=True)
class OtherSizes:
    """A second set of inputs of a model with free dimensions, of other sizes, and what the original makes of them."""

    inputs: Mapping[str, np.ndarray]
    outputs: Mapping[str, np.ndarray]

    def named(self) -> dict[str, np.ndarray]:
        """The outputs as `outputs_of` names them."""
        return named_by_size(self.outputs, self.inputs)

    def check(self, found: Mapping[str, np.ndarray]) -> None:
        """Raise ModelError where `found`, outputs of a rewritten model, lacks one or has another shape."""
        for name, wanted in self.named().items():
            if found[name].shape != wanted.shape:
                raise ModelError(
                    f"a free dimension is fixed: output '{name}' has shape {list(found[name].shape)} "
                    f"instead of {list(wanted.shape)}"
                )


ORIGINAL = "edgec.original"
"""Key of `Model.meta` under which a frontend keeps the model as its file has it, before it was brought to our opset."""

PERTURBATION = 1e-6
"""Relative change of the inputs by which sensitivity is measured: a few times float32's own precision."""
MOST_TOLERANCE = 0.02
"""However sensitive a model is on its inputs, two runs that are further apart than this prove nothing."""


def tolerance(
    model: ir.Model, runs: Sequence[Mapping[str, np.ndarray]], reference: Mapping[str, np.ndarray], base: float
) -> float:
    """The relative error to allow between two exact forms of `model`: `base`, or more where the model itself is shaky.

    Some outputs hang on the last bits of the inputs (the far tail of a sigmoid, a difference of almost equal numbers).
    Re-association can't do better than four times the error that a change of the inputs by 1e-6 makes.
    """
    changed = [
        {
            n: a * a.dtype.type(1 + PERTURBATION) if isinstance(a, np.ndarray) and a.dtype.kind == "f" else a
            for n, a in inputs.items()
        }
        for inputs in runs
    ]
    moved = compare_outputs(reference, outputs_of(model, *changed, exact=True)).max_rel
    return min(max(base, 4 * moved), max(base, MOST_TOLERANCE)) if math.isfinite(moved) else base


def compare_outputs(
    ref: Mapping[str, np.ndarray], got: Mapping[str, np.ndarray], model: ir.Model | None = None
) -> Comparison:
    """How far the outputs `got` are from `ref`; names and types must agree.

    With `model`, two exact forms of it are compared: what a Sigmoid makes is then measured by `SHARE` at least.
    """
    found = compare(ref, got)
    for base in shares(model) if model is not None else ():
        for name in (n for n in found if n == base or n.startswith(f"{base} (for ")):
            d = found[name]
            if d.mismatch is None:
                found[name] = replace(d, max_rel=min(d.max_rel, d.max_abs / SHARE))
    return Comparison(found)


SHARE = 2.0**-6
"""A Sigmoid's results are shares of 1, and onnxruntime errs by 1e-7 of it anywhere: where all of them are small, as at
a masked detector that sees nothing, an error relative to the largest would be nothing but that."""
SAME_NUMBERS = ("Cast", "Flatten", "Gather", "Identity", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze")


def shares(model: ir.Model) -> list[str]:
    """The names of outputs that a Sigmoid makes."""
    found = []
    for output in model.graph.outputs:
        node = output.producer()
        while node is not None and node.op_type in SAME_NUMBERS and not node.domain and node.inputs[0] is not None:
            node = node.inputs[0].producer()
        if node is not None and node.op_type == "Sigmoid" and not node.domain:
            found.append(output.name or "")
    return found
