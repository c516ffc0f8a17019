"""The oracle of structured pruning: what is left after removing equals what was masked, at every value of the graph.

    from channelcheck import Case, check_removal

    case = Case.of(model)
    removed = check_removal(case, case.dead(ratio=0.5, seed=1))

Outputs alone are a weak oracle: half a detector's channels gone, it outputs zeros either way. So all values that
survive are compared, those of the masked model cut to what is left.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgec.compiler import checks, shapes
from edgec.compiler.channels import masking, shrink
from edgec.compiler.channels.coupling import Coupling
from edgec.compiler.channels.gates import renumbered
from edgec.compiler.channels.grids import Grid
from edgec.compiler.channels.solve import Flags, Solution, Units, solve, units
from edgec.compiler.channels.width import coupled
from edgec.compiler.session import Session
from edgec.compiler.synthesis import synthesise

Arrays = Mapping[str, np.ndarray]


@dataclass
class Case:
    """A model, what is coupled in it, and everything that can go by itself; `width` as in `coupled`."""

    model: ir.Model
    coupling: Coupling
    found: Solution
    units: Units
    width: str = "none"

    @classmethod
    def of(cls, model: ir.Model, width: str = "none") -> Case:
        coupling = coupled(model, width)
        found = solve(coupling)
        return cls(model, coupling, found, units(coupling, found), width)

    def dead(self, ratio: float, seed: int = 0, rows: bool = True) -> Flags:
        """The classes of random units: this share of each family, but never all of it."""
        rng = np.random.default_rng(seed)
        dead = np.zeros(self.found.count, bool)
        for family in np.unique(self.units.family):
            inside = np.flatnonzero(self.units.family == family)
            if rows or not self.units.rows[inside[0]]:
                count = min(round(len(inside) * ratio), len(inside) - 1)
                dead[self.units.classes(rng.permutation(inside)[:count])] = True
        return self.found.close(dead)


def check_removal(
    case: Case, dead: Flags, feeds: Arrays | None = None, rtol: float = 1e-4, atol: float = 0.0
) -> ir.Model:
    """Mask a clone, remove from another, run both; the model that is left.

    Where normalisations become narrower, from a clone of the masked one: their scales depend on what is masked.

    Asserts that both run, that the smaller one passes the checkers, that its inputs and outputs are as before, that
    shapes are those that removal said, and that every value is equal within `rtol` of its own largest magnitude.
    `atol` comes on top for models whose activations collapse: onnxruntime's sigmoid errs by 1e-7 anywhere.
    """
    assert not dead[0], "the frozen class is dead"
    assert case.found.fault(dead) is None, "the classes leave a grid that is no array"
    masked = case.model.clone()
    before = coupled(masked, case.width)
    solve(before)
    masking.mask(masked, before, case.found, dead)
    removed = (masked if before.streams else case.model).clone()
    smaller = coupled(removed, case.width)
    assert np.array_equal(solve(smaller).of, case.found.of), "coupling a clone gave other classes"
    shrinking = shrink.Shrinking(removed, smaller, dead[case.found.of])
    names = [str(v.name) for v in smaller.returned]
    shrinking.run()
    said = {v.name: v.shape for v in smaller.labels}
    feeds = feeds if feeds is not None else synthesise(case.model)
    interface = checks.Interface.of(case.model)
    for v in smaller.labels:
        if not v.is_graph_output():
            v.shape = None
    shapes.infer(removed)
    checks.check_structure(removed, interface)
    expected, got = dict(everything(masked, feeds)), everything(removed, feeds)
    cuts = {v.name: label for v, label in case.coupling.labels.items()}
    for name, v in zip(names, smaller.returned, strict=True):
        if str(v.name) != name:  # what has lost channels has another name; the output has zeros where they were
            expected[str(v.name)], cuts[v.name] = expected[name], cuts.pop(name)
    factors = _factors(smaller, shrinking)
    counted = {v.name: ids for v, ids in case.coupling.positions.items()}
    for name, array in got.items():
        if name not in expected:
            continue
        want = cut(expected[name], cuts.get(name, ()), shrinking)
        if name in counted:
            want = renumbered(shrinking.gone, counted[name], want)
        want = want * np.asarray(factors.get(name, 1), want.dtype)
        assert want.shape == array.shape, f"{name}: {array.shape} is left, not {want.shape} of {expected[name].shape}"
        if name in said and said[name] is not None:
            known = [n if isinstance(n, int) else m for n, m in zip(said[name], array.shape, strict=True)]
            assert known == list(array.shape), f"{name}: removal said {said[name]}, it is {array.shape}"
        assert_equal(name, want, array, rtol, atol)
    return removed


def _factors(coupling: Coupling, shrinking: shrink.Shrinking) -> dict[str, float]:
    """By how much values inside of normalisations that are written out differ: theirs is the mean of fewer squares."""
    found = {}
    for stream in coupling.streams:
        for norm in stream.norms:
            gone = shrinking.gone[coupling.opened[norm.looks[0]]]
            for value, power in norm.powers.items():
                found[str(value.name)] = float((gone.size / (~gone).sum()) ** power)
    return found


def everything(model: ir.Model, feeds: Arrays) -> dict[str, np.ndarray]:
    """Every value of the main graph that has a type, by name."""
    seen = model.clone()
    outputs = {v.name for v in seen.graph.outputs}
    for node in seen.graph:
        for v in node.outputs:
            if v.name and v.dtype is not None and v.name not in outputs and not isinstance(v.type, ir.SequenceType):
                seen.graph.outputs.append(v)
    return Session(seen, threads=1).run(feeds)


def cut(array: np.ndarray, label: tuple[Grid, ...], shrinking: shrink.Shrinking) -> np.ndarray:
    """What is left of a value under its label: rows of a grid may each lose other columns."""
    for g in label:
        free = next((a for d, a in enumerate(g.axes) if array.shape[a] != g.ids.shape[d]), None)
        if free is not None:
            # An axis of free size, whose ids repeat: the part that they are for as an axis of its own.
            shape, n = array.shape, g.ids.shape[g.at(free)]
            parts = array.reshape(*shape[:free], shape[free] // n, n, *shape[free + 1 :])
            inner = Grid(g.ids, tuple(a + (a >= free) for a in g.axes), g.zero)
            parts = cut(parts, (inner,), shrinking)
            array = parts.reshape(*parts.shape[:free], -1, *parts.shape[free + 2 :])
            continue
        keeps, last = shrinking.left(g.ids)
        for axis, positions in zip(g.axes, keeps, strict=False):
            array = array.take(positions, axis)
        front = np.moveaxis(array, g.axes, range(len(g.axes)))
        index = last.reshape(*last.shape, *([1] * (front.ndim - last.ndim)))
        array = np.moveaxis(np.take_along_axis(front, index, len(g.axes) - 1), range(len(g.axes)), g.axes)
    return array


def assert_equal(name: str, want: np.ndarray, got: np.ndarray, rtol: float, atol: float = 0.0) -> None:
    """Equal to float error, relative to the largest magnitude; what isn't finite is at the same places."""
    if want.dtype.kind not in "fc":
        assert (want == got).all(), f"{name}: {(want != got).sum()} of {want.size} differ"
        return
    finite = np.isfinite(want)
    assert (finite == np.isfinite(got)).all(), f"{name}: infinities or NaN at other places"
    if finite.any():
        error = np.abs(want[finite].astype(np.float64) - got[finite]).max()
        largest = float(np.abs(want[finite]).max())
        assert error <= rtol * largest + atol, f"{name}: differs by {error:.2g}, of {largest:.2g}"
