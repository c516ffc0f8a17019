"""Store weights that lie on a grid as integers, indices into tables, short floats, or without their zeros."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from ..compiler.graph import const_tensor, graphs, nodes
from ..compiler.passbase import Context, Pass
from ..compiler.quantization import grids
from ..compiler.targets import TARGETS, Target
from ..compiler.weights import release_tensor
from . import weight_grid as linear
from .grid_search import MANY, search, zero_share
from .stored_forms import fits, store
from .weight_forms import Emitter, Form, Leaf

KINDS = ("integers", "table", "float", "sparse")
"""What a form is called in the option `forms`."""


@dataclass(frozen=True)
class PackWeights(Pass):
    """Store weights that lie exactly on a grid in the smallest form that the target has.

    Before:  `y = Conv(x, w)`, w = q · scale[channel] in float32

    After:   `y = Conv(x, DequantizeLinear(q, scale))`, q in int8, a quarter of the bytes

    Or one of the others: integers of 2 to 8 bits, with a zero point, in blocks; tables of numbers, for all, for groups
    of channels, of vectors, with scales; short floats; a bitmap and what is not zero, as floats, integers or indices.
    A rounding pass says which grid a weight lies on; else it is looked for in the numbers. What is stored dequantises
    to the same numbers bit for bit (but for the sign of zeros), or it is not stored. See docs/storage.md.

    Options:
        min_size: elements from which a weight is packed.
        forms: which forms may be chosen: integers, table, float, sparse; joined by +.
    """

    name: ClassVar[str] = "pack-weights"
    min_size: int = 2048
    forms: tuple[str, ...] = KINDS

    def __post_init__(self) -> None:
        unknown = sorted(set(self.forms) - set(KINDS))
        if unknown:
            raise ValueError(f"forms={'+'.join(self.forms)}: '{unknown[0]}' is none of {', '.join(KINDS)}")

    def run(self, model: ir.Model, ctx: Context) -> int:
        """See the class. One weight is in memory at a time."""
        count = 0
        order = {node: i for i, node in enumerate(nodes(model))}
        lacking: Counter[str] = Counter()
        for value, axes in _weights(model, self.min_size):
            tensor = value.const_value
            assert tensor is not None
            form = smallest(tensor.numpy(), grids.read(value), axes, ctx.target, self.forms, lacking)
            if form is not None:
                replace(model, value, form, order, ctx)
                count += 1
            release_tensor(tensor)
        for first, number in lacking.items():
            what = "weight is" if number == 1 else "weights are"
            ctx.note(f"{number} {what} on a grid that {ctx.target.name} does not store; {first} is the first that does")
        return count


def smallest(
    array: np.ndarray,
    hint: grids.Grid | grids.Sparse | None,
    axes: list[int],
    target: Target,
    kinds: tuple[str, ...] = KINDS,
    lacking: Counter[str] | None = None,
) -> Form | None:
    """The form of a weight with the fewest bytes, if these are fewer than it takes up as it is.

    Args:
        array: the float32 weight.
        hint: the grid that it was rounded to.
        axes: the axes that may have a scale or a table for each slice.
        target: where it is stored.
        kinds: see `KINDS`.
        lacking: counts the first targets that store hints which this one does not.
    """
    storage = target.storage
    best, limit = None, array.size * (2 if target.float16 else 4)
    for source in (_hinted(hint, array, target, lacking), search(array, axes, storage)):
        for grid in source:
            form = store(grid, array, storage)
            if form is not None and form.kind in kinds and (size := _bytes(form, target)) < limit:
                best, limit = form, size
        if best is not None and not _widened(hint, target):
            break
    return best


def _bytes(form: Form, target: Target) -> int:
    """What a form takes up where weights as they are take two bytes: the floats of a sparse one then do as well."""
    if not target.float16 or form.op != "SparseWeight":
        return form.nbytes
    floats = [v for v in form.inputs if isinstance(v, Leaf) and v.dtype == ir.DataType.FLOAT]
    return form.nbytes - sum(v.nbytes // 2 for v in floats)


def _widened(hint: grids.Grid | grids.Sparse | None, target: Target) -> bool:
    """Whether the target has no integers of so few bits, but may have a table of that few numbers."""
    return isinstance(hint, grids.Affine) and hint.axis is None and hint.bits not in target.storage.integers


def _hinted(
    hint: grids.Grid | grids.Sparse | None, array: np.ndarray, target: Target, lacking: Counter[str] | None
) -> Iterator[grids.Grid | grids.Sparse]:
    """The hint, with and without a bitmap of its zeros."""
    if hint is None:
        return
    if not fits(hint, array.shape, target.storage):
        if lacking is not None and (first := first_with(hint, array.shape)) is not None:
            lacking[first] += 1
        if isinstance(hint, grids.Sparse) and hint.inner is not None:
            yield hint.inner  # The nearest, if 0 is one of its numbers.
        return
    yield hint
    if isinstance(hint, grids.Sparse):
        if hint.inner is not None:
            yield hint.inner
    elif target.storage.joint and zero_share(array) >= MANY:
        yield grids.Sparse(hint)


def first_with(grid: grids.Grid | grids.Sparse, shape: tuple[int, ...]) -> str | None:
    """The oldest Core ML target that stores weights of this shape on such a grid; None if none does."""
    return next((t.name for t in TARGETS.values() if t.version and fits(grid, shape, t.storage)), None)


def _weights(model: ir.Model, min_size: int) -> Iterator[tuple[ir.Value, list[int]]]:
    """Float32 weights and the axes of their channels: what linear operators read, and what a grid is known of."""
    found: dict[ir.Value, list[int]] = {}
    for weight in linear.weights(model, min_size):
        n = len(weight.value.shape or ())
        found[weight.value] = list(range(min(n, 2))) if weight.axis is None else [weight.axis]
    for graph in graphs(model):
        for value in graph.initializers.values():
            if grids.read(value) is not None and value not in found:
                found[value] = list(range(min(2, len(value.shape or ()))))
    for value, axes in found.items():
        tensor = const_tensor(value)
        if tensor is None or tensor.dtype != ir.DataType.FLOAT or value.is_graph_output() or not value.uses():
            continue
        if tensor.size >= min_size and len(tensor.shape) > 0:
            yield value, axes


def replace(model: ir.Model, old: ir.Value, form: Form, order: dict[ir.Node, int], ctx: Context) -> None:
    """Make all readers of a weight read the form.

    The main graph and every branch dequantise for themselves: a branch that is not taken costs nothing.
    """
    emitter = Emitter(model, old, ctx.scratch)
    dense: dict[int, ir.Value] = {}
    for node, i in sorted(old.uses(), key=lambda use: order.get(use[0], -1)):
        if id(node.graph) not in dense:
            dense[id(node.graph)] = emitter.value(form, node, old)
        node.replace_input_with(i, dense[id(node.graph)])
    graph = old.graph
    assert isinstance(graph, ir.Graph)
    graph.initializers.pop(old.name or "")
