"""Inputs to measure with, where the user gave none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from .graph import shape


def synthesise(
    model: ir.Model, seed: int = 0, shapes: Mapping[str, Sequence[int]] | None = None
) -> dict[str, np.ndarray]:
    """Seeded inputs for every model input. `shapes` overrides the shape of the named ones."""
    rng = np.random.default_rng(seed)
    symbols: dict[str, int] = {}
    found = {}
    for value in model.graph.inputs:
        assert value.name is not None
        dims = list((shapes or {}).get(value.name, ())) or [
            d if isinstance(d, int) else symbols.setdefault(str(d), 2) for d in shape(value) or ()
        ]
        dtype = (value.dtype or ir.DataType.FLOAT).numpy()
        if dtype.kind == "b":
            found[value.name] = rng.random(dims) < 0.7
        elif dtype.kind in "iu":
            found[value.name] = rng.integers(0, 2, dims).astype(dtype)
        else:
            found[value.name] = rng.standard_normal(dims).astype(dtype)
    return found
