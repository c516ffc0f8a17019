"""Outputs of the model that have lost channels: zeros are put back where they were, since an output keeps its shape."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from ..graph import fresh_name, initializer, note_named
from .grids import FROZEN, Grid, Ids

if TYPE_CHECKING:
    from .coupling import Coupling
    from .shrink import Shrinking


def may_lose(coupling: Coupling, value: ir.Value) -> bool:
    """Whether an output may lose what lies over it: zeros, along axes by themselves, of numbers that have zeros."""
    label, dims = coupling.labels.get(value, ()), coupling.dims.get(value)
    if not label or not dims or value.producer() is None or value.dtype is None or value in coupling.positions:
        return False
    sizes = [isinstance(dims[a], int) for g in label for a in g.axes]
    return value.dtype.is_floating_point() and all(sizes) and all(g.zero and g.ids.ndim == 1 for g in label)


def meets(coupling: Coupling, of: Ids, value: ir.Value, classes: Ids) -> bool:
    """Whether an output has channels of these classes, that are not frozen."""
    own = [of[g.ids].reshape(-1) for g in coupling.labels.get(value, ())]
    return any(np.intersect1d(ids[ids != FROZEN], classes).size for ids in own)


def put_back(s: Shrinking) -> None:
    """After removal: `y` becomes `Gather(Pad(y), positions)`, with zeros where something is gone. Its name stays."""
    for value in s.coupling.returned:
        grids = [g for g in s.coupling.labels[value] if s.gone[g.ids].any()]
        wide = value
        for g in grids:
            wide = _widened(s, wide, g)
        if grids:
            _instead(s.model.graph, value, wide)


def _widened(s: Shrinking, narrow: ir.Value, grid: Grid) -> ir.Value:
    """One zero behind what is left is what every position reads that is gone."""
    (axis,) = grid.axes
    alive = ~s.gone[grid.ids]
    count, depth = int(alive.sum()), len(narrow.shape or ())
    ends = np.zeros(2 * depth, np.int64)
    ends[depth + axis] = 1
    one_more = _appended(s, "Pad", narrow, ends, axis, count + 1)
    return _appended(s, "Gather", one_more, np.where(alive, np.cumsum(alive) - 1, count), axis, alive.size)


def _appended(s: Shrinking, op: str, x: ir.Value, numbers: np.ndarray, axis: int, size: int) -> ir.Value:
    graph, name = s.model.graph, fresh_name(s.model.graph, f"{x.name}_{op.lower()}")
    given = initializer(graph, numbers.astype(np.int64), f"{name}_at", s.scratch)
    node = ir.node(op, [x, given], {"axis": axis} if op == "Gather" else {}, name=name)
    made = node.outputs[0]
    made.name, made.type = name, x.type
    made.shape = ir.Shape([n if a != axis else size for a, n in enumerate(x.shape or ())])
    graph.append(node)
    note_named(graph, 1)
    return made


def _instead(graph: ir.Graph, old: ir.Value, new: ir.Value) -> None:
    """Let the graph return another value, under the same name."""
    for i, output in enumerate(graph.outputs):
        if output is old:
            graph.outputs[i] = new
    name = old.name
    old.name = fresh_name(graph, f"{name}_left")
    new.name = name
