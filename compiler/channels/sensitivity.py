"""What the loss has to say about a channel: first-order Taylor and Fisher scores, from gradients by onnxruntime.

Every slice that goes together gets one gate, a factor of 1, where it is read for the last time; the derivative of the
loss by the gate is the sum of activation times gradient over all these places. Its absolute value is the change that a
first-order expansion predicts (Molchanov et al., "Importance estimation for neural network pruning", 2019), the mean
of its square the diagonal of the Fisher information, a second-order one (Theis et al., "Faster gaze prediction with
dense networks and Fisher pruning", 2018; with coupled channels Liu et al., "Group Fisher pruning", 2021).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ..freeze import fix
from ..gradients.likelihood import TARGET, Head, attach, given, heads, labelled
from ..gradients.recurrent import GATES
from ..gradients.reverse import SUFFIX, gradient, is_float
from ..gradients.rules import stops
from ..gradients.terms import Tape
from ..graph import attr, rank, shape
from ..session import Session
from .coupling import Coupling
from .grids import Grid
from .solve import Solution

Feeds = Mapping[str, np.ndarray]
DRAWS = 16
"""Targets that are drawn at least, all samples together."""
AT_ONCE = 16
"""Samples that go through together where every gate keeps them apart."""


@dataclass(frozen=True, eq=False)
class Gate:
    """A place where slices are read that don't go on from there: input `index` of the node at `at`.

    Attributes:
        grid: over axes of the value that is read.
        classes: per id of the grid, its class; 0 of those that go on.
        rank: the number of the value's dimensions.
        leading: the first of them, unless the grid lies over it.
    """

    at: int
    index: int
    grid: Grid
    classes: np.ndarray
    rank: int
    leading: int | str | None = None

    def others(self, apart: bool) -> list[int]:
        """The axes that are summed over; not the first where that keeps samples apart."""
        return [a for a in range(int(apart), self.rank) if a not in self.grid.axes]

    def add(self, total: np.ndarray, found: np.ndarray) -> None:
        """Add what was summed over all other axes to each class."""
        ids, axes = self.grid.ids, sorted(self.grid.axes)
        found = found.transpose([axes.index(a) for a in self.grid.axes])
        # An axis of free size has the ids of its last part, the same throughout.
        parts = [(n // k, k) for n, k in zip(found.shape, ids.shape, strict=True)]
        found = found.reshape([n for p in parts for n in p]).sum(tuple(range(0, 2 * ids.ndim, 2)))
        np.add.at(total, self.classes.reshape(-1), found.reshape(-1))


def gates(model: ir.Model, coupling: Coupling, found: Solution) -> list[Gate]:
    """Where each class is read for the last time, in the main graph, in the order in which it runs."""
    made = []
    for at, node in enumerate(model.graph):
        if stops(node):
            continue
        labels = [g for out in node.outputs for g in coupling.labels.get(out, ())]
        on = np.unique(np.concatenate([found.of[g.ids].reshape(-1) for g in labels])) if labels else np.zeros(0, int)
        for index, value in enumerate(node.inputs):
            dims = shape(value)
            if value is None or not is_float(value) or dims is None:
                continue
            summed = contracted(node, index)
            for grid in coupling.labels.get(value, ()):
                # Behind a product another slice may be of the same class, tied to it by a residual.
                classes = found.of[grid.ids]
                ending = classes if summed & set(grid.axes) else np.where(np.isin(classes, on), 0, classes)
                if ending.any():
                    made.append(Gate(at, index, grid, ending, len(dims), None if 0 in grid.axes else dims[0]))
    return made


def contracted(node: ir.Node, index: int) -> set[int]:
    """The axes of an input over which a product sums: nothing of them goes on."""
    rule = None if node.domain else CONTRACTED.get(node.op_type)
    return set() if rule is None or node.inputs[index] is None else set(rule(node, index))


def _convolution(node: ir.Node, index: int) -> tuple[int, ...]:
    """The channels, but for a filter that sees one alone."""
    weight, groups = shape(node.inputs[1]), attr(node, "group", 1)
    alone = weight is not None and (weight[1] == 1 if node.op_type == "Conv" else weight[0] == groups) and groups > 1
    return (1,) if index == 0 and not alone else ()


def _matmul(node: ir.Node, index: int) -> tuple[int, ...]:
    n = rank(node.inputs[index]) or 0
    return (n - 1 if index == 0 else max(n - 2, 0),)


def _gemm(node: ir.Node, index: int) -> tuple[int, ...]:
    return (() if index == 2 else (int(not attr(node, "transA", 0)),) if index == 0 else (attr(node, "transB", 0),))


def _einsum(node: ir.Node, index: int) -> tuple[int, ...]:
    terms, arrow, output = str(attr(node, "equation")).replace(" ", "").partition("->")
    own = terms.split(",")[index]
    return tuple(i for i, c in enumerate(own) if c not in output) if arrow and "." not in terms else ()


CONTRACTED: dict[str, Callable[[ir.Node, int], tuple[int, ...]]] = {
    "Conv": _convolution, "ConvTranspose": _convolution, "Einsum": _einsum, "Gemm": _gemm, "MatMul": _matmul,
    **dict.fromkeys(("GRU", "LSTM", "RNN"), lambda node, index: (2,) if index == 0 else ()),
}  # fmt: skip


def gradient_scores(
    model: ir.Model,
    coupling: Coupling,
    found: Solution,
    kind: str,
    runs: Sequence[Feeds],
    labels: np.ndarray | None,
    seed: int,
    note: Callable[[str], None],
) -> np.ndarray:
    """Per class, `taylor` or `fisher`: the mean of |d| or of d squared over samples, d the derivative by its gate.

    The loss is the cross entropy of the labels. Without labels: for Fisher, targets drawn from what the model's
    outputs say; for Taylor, the likeliest ones. Where the leading dimension is fixed,
    all samples of a run count as one. Raises UnsupportedOp where the model can't be differentiated.
    """
    places = gates(model, coupling, found)
    if not places:
        return np.zeros(found.count)
    model = _of_one_length(model, runs)
    every = heads(model)
    how = "given" if labels is not None else "likeliest" if kind == "taylor" else "drawn"
    forward = Session(model)
    first, _ = next(samples(model, runs, labels))
    used = [labelled(every, forward.run(first))] if labels is not None else every
    if labels is None:
        note(f"by={kind}: no labels were given, so the loss is that of {_words(used, how)}")
    apart = _keep_apart(model, places)
    session, names = _measuring(model, places, used, apart)
    each = list(samples(model, runs, labels, AT_ONCE if apart else 1))
    random = how == "drawn" or any(h.kind == "numbers" for h in used)
    draws = math.ceil(DRAWS / len(each)) if random and labels is None else 1
    rng = np.random.default_rng(seed)
    total, count = np.zeros(found.count), 0
    for feeds, right in each:
        outputs = forward.run(feeds, [h.output for h in used])
        for _ in range(draws):
            targets = {h.output + TARGET: _target(h, outputs[h.output], right, how, rng) for h in used}
            amounts = session.run({**feeds, **targets}, names)
            rows = len(amounts[names[0]]) if apart else 1
            by_gate = np.zeros((rows, found.count))
            for gate, name in zip(places, names, strict=True):
                for row, sums in zip(by_gate, amounts[name] if apart else [amounts[name]], strict=True):
                    gate.add(row, sums.astype(np.float64))
            total += (np.abs(by_gate) if kind == "taylor" else np.square(by_gate)).sum(0)
            count += rows
    total[0] = 0
    return total / count


def _of_one_length(model: ir.Model, runs: Sequence[Feeds]) -> ir.Model:
    """A copy with the sizes of the inputs where a recurrent layer needs a length, and all runs have the same."""
    lengths = {(shape(n.inputs[0]) or (None,))[0] for n in model.graph if n.op_type in GATES and not n.domain}
    if all(isinstance(n, int) for n in lengths):
        return model
    found: dict[str, set[int]] = {}
    for feeds in runs:
        for value in model.graph.inputs:
            for d, n in zip(shape(value) or (), feeds[str(value.name)].shape, strict=True):
                if isinstance(d, str):
                    found.setdefault(d, set()).add(n)
    # A length that is worked out from several sizes takes all of them.
    wanted = {n for n in lengths if isinstance(n, str)} if lengths <= {*found} else {*found}
    if any(len(found[d]) > 1 for d in wanted):
        return model
    made = model.clone()
    fix(made, {d: found[d].copy().pop() for d in wanted})
    return made


def _words(used: Sequence[Head], how: str) -> str:
    kinds = {h.kind for h in used}
    classes = "the class it finds likeliest" if how == "likeliest" else "classes drawn from them"
    parts = [classes, "random projections of what are no probabilities"]
    return " and ".join(p for p, said in zip(parts, (kinds - {"numbers"}, "numbers" in kinds), strict=True) if said)


def _target(head: Head, found: np.ndarray, right: np.ndarray | None, how: str, rng: np.random.Generator) -> np.ndarray:
    made = given(head, found.shape, right) if right is not None else head.target(found, how, rng)
    return made.astype(found.dtype)


def _keep_apart(model: ir.Model, places: Sequence[Gate]) -> bool:
    """Whether the leading dimension of every gate is that of all inputs: then sums are worked out for each sample."""
    batch = {(shape(v) or (None,))[0] for v in model.graph.inputs}
    return len(batch) == 1 and isinstance(next(iter(batch)), str) and all({p.leading} == batch for p in places)


def samples(
    model: ir.Model, runs: Sequence[Feeds], labels: np.ndarray | None, most: int = 1
) -> Iterator[tuple[Feeds, np.ndarray | None]]:
    """Inputs and labels, up to `most` samples where inputs and an output share a free leading dimension, else a run."""
    leading = {str(v.name): (shape(v) or (0,))[0] for v in model.graph.inputs}
    free = {n for n, d in leading.items() if not isinstance(d, int)}
    shared = {leading[n] for n in free} & {(shape(v) or (0,))[0] for v in model.graph.outputs}
    split = bool(free) and (labels is not None or bool(shared - {None}))
    at = 0
    for feeds in runs:
        rows = max((len(feeds[n]) for n in (free if split else leading) if feeds[n].ndim), default=1)
        right = None if labels is None else labels[at : at + rows]
        at += rows
        if not split:
            yield feeds, right
            continue
        for i in range(0, rows, most):
            one = {n: a[i : i + most] if n in free else a for n, a in feeds.items()}
            yield one, None if right is None else right[i : i + most]


def _measuring(
    model: ir.Model, places: Sequence[Gate], used: Sequence[Head], apart: bool
) -> tuple[Session, list[str]]:
    """A session that gives, for each gate, the sums of activation times gradient over all axes but the grid's."""
    made = model.clone()
    nodes = list(made.graph)
    gated: dict[tuple[int, int], str] = {}
    for place in places:
        if (place.at, place.index) in gated:
            continue
        node = nodes[place.at]
        value = node.inputs[place.index]
        assert value is not None
        gate = ir.node("Identity", [value])
        gate.outputs[0].name = gated[place.at, place.index] = f"gate.{len(gated)}"
        gate.outputs[0].type, gate.outputs[0].shape = value.type, value.shape
        made.graph.insert_before(node, gate)
        node.replace_input_with(place.index, gate.outputs[0])
    loss = attach(made, used)
    back = gradient(made, [loss], list(gated.values()), keep=list(gated.values()))
    tape = Tape(back.graph)
    values = {v.name: tape.term(v) for n in back.graph for v in n.outputs}
    back.graph.outputs.clear()
    names = []
    for place in places:
        name = gated[place.at, place.index]
        total = (values[name] * values[name + SUFFIX]).sum(place.others(apart), keep=False)
        back.graph.outputs.append(total.value)
        names.append(str(total.value.name))
    return Session(back), names
