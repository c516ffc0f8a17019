"""A second set of inputs, of other sizes, for models with free dimensions: who froze one is right at one size only."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import onnx_ir as ir

from .errors import EdgecError
from .graph import shape
from .session import Session
from .synthesis import synthesise

Inputs = Mapping[str, np.ndarray]

_SEED = 1
_LONG = 64
_STEP = 32
"""Sides of images, which networks halve five times."""


def resized(model: ir.Model, inputs: Inputs) -> Inputs | None:
    """Inputs like `inputs`, every free dimension of another size, or the leading ones alone where that doesn't run.

    Sizes shrink where they can, so that a run takes no longer. None where no dimension is free, or no other size runs.
    """
    free = {v.name or "": shape(v) or () for v in model.graph.inputs}
    if all(isinstance(d, int) and d >= 0 for dims in free.values() for d in dims):
        return None
    session = None
    for sizes in _candidates(free, inputs):
        try:
            found = synthesise(model, _SEED, sizes)
            session = session or Session(model)
            if all(a.size for a in session.run(found).values()):
                return found
        except EdgecError:
            continue  # The model doesn't run at these sizes: they say nothing.
    return None


def _candidates(
    free: Mapping[str, tuple[int | str | None, ...]], inputs: Inputs
) -> Iterator[dict[str, tuple[int, ...]]]:
    """All free dimensions changed, then the leading ones alone, then the others alone."""
    for wanted in (lambda _: True, lambda axis: axis == 0, lambda axis: axis > 0):
        known: dict[str, int] = {}
        sizes: dict[str, tuple[int, ...]] = {}
        for name, dims in free.items():
            had = inputs[name].shape
            sizes[name] = tuple(
                d if isinstance(d, int) and d >= 0
                else known.setdefault(str(d) if d else f"{name}.{i}", _other(had[i], i) if wanted(i) else had[i])
                for i, d in enumerate(dims)
            )  # fmt: skip
        if any(inputs[name].shape != dims for name, dims in sizes.items()):
            yield sizes


def _other(size: int, axis: int) -> int:
    """Another size: a batch of two for one, half a sequence, a smaller picture."""
    if size > _LONG and size % _STEP == 0:
        return size - _STEP
    return max(2, size // 2) if size != 2 else 3
