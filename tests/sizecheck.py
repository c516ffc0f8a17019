"""One helper for symbolic sizes: evaluated, they are the shapes of all tensors of a run, at whatever sizes."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from edgec.compiler.cost.polynomial import evaluate, symbols
from edgec.compiler.cost.sizes import Sizes
from edgec.compiler.session import Session
from edgec.compiler.synthesis import synthesise

AT_ONCE = 150
"""Tensors that are fetched from one run: all of a network's together would take its memory."""


def check_sizes(model: ir.Model, *sizes: Mapping[str, int]) -> Sizes:
    """The sizes of a model: all known, in the symbols of its inputs, and right in a run at each of `sizes`.

    The model's outputs are other ones afterwards.
    """
    found = Sizes(model)
    values = [o for node in model.graph for o in node.outputs if o.name]
    known = {v.name: found.dims(v) for v in values}
    assert None not in known.values(), found.why
    used = {s for dims in known.values() for x in dims or () for s in symbols(x)}
    assert not [s for s in used if s.startswith("#")], found.symbols
    shapes = {v.name or "": found.dims(v) or [] for v in model.graph.inputs}
    feeds = [synthesise(model, 0, {n: tuple(evaluate(x, at) for x in s) for n, s in shapes.items()}) for at in sizes]
    for start in range(0, len(values), AT_ONCE):
        part = values[start : start + AT_ONCE]
        model.graph.outputs[:] = part
        session = Session(model, threads=1)
        for at, feed in zip(sizes, feeds, strict=True):
            for name, array in session.run(feed).items():
                wanted = [evaluate(x, at) for x in known[name] or ()]
                assert wanted == list(array.shape), f"{name} at {at}: {wanted}, not {array.shape}"
    return found
