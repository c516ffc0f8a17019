"""Which channels may be multiplied by a factor where they are made, and divided by it where they are read.

Every channel that a linear operator or a normalisation makes gets an id. Ids go along with the numbers, through
operators of which f(s · x) = s · f(x) for s > 0, down to what reads them by a weight of its own. There the factor goes
back out, so that the outputs stay as they are. What meets in a sum has one factor; what an operator without a rule
reads has the factor 1 (`FIXED`). An id with its sign changed stands for the inverse factor.

Ids over a value are an array of its rank: as long as the value on the axes along which factors differ, 1 on others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import onnx_ir as ir

from ..compiler import graph as g
from ..compiler.channels.components import components
from ..compiler.channels.shrink import replace_tensor
from ..compiler.passbase import Context
from ..compiler.quantization import grids
from ..compiler.weights import SMALL, SPOOL, release_tensor
from .folding import swap

FIXED = 0
"""The id of factors that are 1."""
FAR = 1 << 22
"""Ids over one value beyond which it is left alone."""
SAME = 0.05
"""Octaves from 1 within which a factor is not worth writing."""
Role = Literal["made", "read", "shift"]

Ids = np.ndarray


class Unscalable(Exception):
    """A rule found a form in which factors can't pass: whatever the node reads and makes is fixed."""


@dataclass(frozen=True)
class Use:
    """A constant that factors go into.

    Attributes:
        node, at: which input it is.
        view: the shape in which ids are over it.
        ids: broadcast to `view`; negative where the constant divides what it reads.
        role: of a weight, whether ids are those of what it makes or of what it reads; shift: it is only added.
        data: what is read, with the ids.
    """

    node: ir.Node
    at: int
    view: tuple[int, ...]
    ids: Ids
    role: Role
    data: ir.Value | None = None

    @property
    def constant(self) -> ir.Value:
        value = self.node.inputs[self.at]
        assert value is not None
        return value


@dataclass
class Trace:
    """The walk through a graph: ids over its values, what is tied to what, and the constants that factors go into."""

    ctx: Context
    labels: dict[ir.Value, Ids] = field(default_factory=dict)
    uses: list[Use] = field(default_factory=list)
    count: int = 1
    _ties: list[tuple[Ids, Ids]] = field(default_factory=list)

    def ids(self, value: ir.Value | None) -> Ids:
        """The ids over a value; fixed where nothing is known."""
        found = None if value is None else self.labels.get(value)
        return np.zeros((1,) * (g.rank(value) or 0), np.int64) if found is None else found

    def fresh(self, count: int) -> Ids:
        """Ids of channels that are made."""
        self.count += count
        return np.arange(self.count - count, self.count)

    def tie(self, a: Ids, b: Ids) -> None:
        """Let these have equal factors; they broadcast against each other."""
        x, y = np.broadcast_arrays(a, b)
        different = x != y
        if different.any():
            self._ties.append((x[different], y[different]))

    def fix(self, ids: Ids) -> None:
        """Let these factors be 1."""
        self.tie(ids, np.zeros((), np.int64))

    def use(
        self,
        node: ir.Node,
        at: int,
        ids: Ids,
        role: Role,
        view: tuple[int, ...] | None = None,
        data: ir.Value | None = None,
    ) -> None:
        """Multiply a constant by the factors of `ids`; these are fixed where it can't be written."""
        value = node.inputs[at] if at < len(node.inputs) else None
        if value is None or not ids.any():
            return
        tensor = g.const_tensor(value)
        shape = () if tensor is None else tuple(tensor.shape.numpy())
        if tensor is None or not self._writable(value, tensor) or (view is None and _beyond(ids, shape)):
            self.fix(ids)
        elif role != "shift" or tensor.nbytes > SPOOL or tensor.numpy().any():
            self.uses.append(Use(node, at, view or shape, ids, role, data))

    def _writable(self, value: ir.Value, tensor: ir.TensorProtocol) -> bool:
        if grids.read(value) is not None:
            self.ctx.note(f"weight '{value.name}' lies on a grid already, and keeps it: equalise before rounding")
            return False
        # A small one that others read is copied; a big one would make the model grow.
        return tensor.dtype == ir.DataType.FLOAT and (tensor.nbytes <= SMALL or g.used_once(value))

    def classes(self) -> Ids:
        """By id the number of its factor, 0 for fixed ones and negative for the inverse; from 1 on without gaps."""
        a, b = (np.concatenate([t[k] for t in self._ties] or [np.zeros(0, np.int64)]) for k in (0, 1))
        left, right = np.concatenate([_node(a), _node(-a)]), np.concatenate([_node(b), _node(-b)])
        of = components(left, right, 2 * self.count)
        plus, minus = of[0::2], of[1::2]
        first = np.minimum(plus, minus)
        first[(plus == of[0]) | (plus == minus)] = -1
        _, number = np.unique(np.append(first, -1), return_inverse=True)
        return np.asarray(number[:-1] * np.where(plus <= minus, 1, -1))


def _beyond(ids: Ids, shape: tuple[int, ...]) -> bool:
    """Whether several ids are over one number of a constant."""
    try:
        return np.broadcast_shapes(ids.shape, shape) != shape
    except ValueError:
        return True


def _node(ids: Ids) -> Ids:
    """Two points for each id, of the factor and of its inverse; one for what is fixed."""
    return np.where(ids == FIXED, 0, 2 * np.abs(ids) + (ids < 0))


@dataclass(frozen=True)
class Network:
    """What factors there are in a graph.

    Attributes:
        uses: the constants that factors go into, in the order in which they are read; ids are numbers of factors.
        count: one more than the number of factors.
        labels: the factors of values.
    """

    uses: tuple[Use, ...]
    count: int
    labels: Mapping[ir.Value, Ids]

    def write(self, factors: np.ndarray, ctx: Context) -> int:
        """Put factors (by number; that of 0 is 1) into the constants; returns how many of these changed."""
        factors = np.where(np.abs(np.log2(factors)) < SAME, 1.0, factors)
        by_place: dict[tuple[ir.Node, int], list[Use]] = {}
        for use in self.uses:
            if (of_ids(use.ids, factors) != 1).any():
                by_place.setdefault((use.node, use.at), []).append(use)
        for (node, at), together in by_place.items():
            value = together[0].constant
            array = _scaled(value, [(use.view, of_ids(use.ids, factors)) for use in together])
            if g.used_once(value):
                replace_tensor(value, array, ctx.scratch)
            else:
                assert isinstance(node.graph, ir.Graph)
                swap(node, at, g.initializer(node.graph, array, f"{value.name}_scaled", ctx.scratch))
        return len(by_place)


def _scaled(value: ir.Value, by: list[tuple[tuple[int, ...], np.ndarray]]) -> np.ndarray:
    """A constant times factors over a view of it, computed in float64 and rounded once."""
    array, tensor = g.const(value), g.const_tensor(value)
    assert array is not None and tensor is not None
    view = by[0][0]
    assert all(each == view for each, _ in by)
    out = array.reshape(view) * by[0][1].astype(np.float64) if len(by) > 1 else array.reshape(view)
    found = np.empty(view, array.dtype)
    np.multiply(out, by[-1][1], out=found, dtype=np.float64, casting="same_kind")
    release_tensor(tensor)
    return found.reshape(array.shape)


def of_ids(ids: Ids, factors: np.ndarray) -> np.ndarray:
    """The factors of ids, inverse where these are negative."""
    found = factors[np.abs(ids)]
    return np.asarray(np.where(ids < 0, 1 / found, found))


Rule = Callable[[Trace, ir.Node], Ids | list[Ids]]
