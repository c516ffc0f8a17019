"""Packed weights of a file against those of the model it was written of, element by element.

One wrong element among thousands hardly moves a model's outputs: comparing outputs alone does not find it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from .packed import dense, roots

FEW = 0.5
"""Share of elements that may differ at most for two weights to be the same one, damaged. What a backend puts into
another order, or computes in another precision, differs nearly everywhere; that the outputs show."""


def differing(model: ir.Model, read: ir.Model) -> Iterator[str]:
    """A line for each packed weight of `read` that differs in places from the one of that name in `model`.

    Two weights are in memory at a time.
    """
    ours = {_plain(value.name): (value, chain) for value, chain in roots(model)}
    for value, chain in roots(read):
        known = ours.get(_plain(value.name))
        if known is None or known[0].dtype != value.dtype:
            continue
        wanted, found = dense(model, *known), dense(read, value, chain)
        if found.shape != wanted.shape:
            found = found.T
        if found.shape != wanted.shape:
            continue
        wrong = int(np.count_nonzero(found != wanted))
        if 0 < wrong <= FEW * found.size:
            yield f"weight '{known[0].name}' differs from the model's in {wrong:,} of {found.size:,} elements"


def _plain(name: str | None) -> str:
    """A name as packages write it."""
    return re.sub(r"\W", "_", name or "")
