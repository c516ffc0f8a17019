"""Masked weights are written when they are read, and what is asked of them before that is what is read then."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgec.compiler.channels import masked as masked_weights
from edgec.compiler.channels.coupling import Hold
from edgec.compiler.channels.grids import Grid
from edgec.compiler.channels.masked import Masked
from edgec.compiler.channels.means import Mean
from edgec.compiler.channels.zeros import alive
from edgec.compiler.passbase import Context
from edgec.compiler.plugins import find_pass
from edgec.compiler.targets import find_target
from edgec.compiler.weights import Deferred, Scratch

VIEWS = [((6, 8), (6, 8)), ((6, 8), (2, 3, 8)), ((6, 8), (6, 2, 4)), ((4, 5, 3, 3),) * 2, ((3, 4, 5),) * 2]


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(masked_weights, "SPOOL", 0)
    monkeypatch.setattr("edgec.compiler.weights.SPOOL", 0)


def made(scratch: Scratch, seed: int) -> tuple[Masked, Deferred]:
    """A weight, some of it zero before, and a mask of it: slices, rows of grids that lose others each, and means."""
    rng = np.random.default_rng(seed)
    shape, view = VIEWS[seed % len(VIEWS)]
    array = rng.integers(1, 9, shape).astype(np.float32) * (rng.random(shape) < rng.choice([0.3, 1.0]))
    array[rng.random(shape[0]) < 0.2] = 0
    free, cuts = list(rng.permutation(len(view))), []
    while free and rng.random() < 0.8:
        axes, free = tuple(map(int, free[: rng.integers(1, 3)])), free[2:]
        gone = rng.random([view[a] for a in axes]) < rng.choice([0.2, 0.6, 1.0], p=[0.5, 0.4, 0.1])
        cuts.append((Hold(view, Grid(np.zeros(gone.shape, np.int64), axes)), gone))
    means = []
    if view == shape and rng.random() < 0.5:
        axis = int(rng.integers(len(shape)))
        gone = rng.permutation(shape[axis]) < rng.integers(1, shape[axis])
        means.append(Mean(axis, gone, rng.random(shape[axis]) + 1 if rng.random() < 0.5 else None))
    found = Masked(scratch.tensor(array, "w"), cuts, means)
    later = found.later(scratch, "w")
    assert later is not None
    return found, later


@given(st.integers(0, 1 << 30))
@settings(max_examples=300, deadline=None)
def test_what_is_known_before_it_is_written_is_what_is_read_then(seed: int) -> None:
    with Scratch() as scratch:
        found, later = made(scratch, seed)
        whole = found()
        for view in {tuple(whole.shape), found._view}:
            every = [axes for k in (1, 2) for axes in itertools.permutations(range(len(view)), k)]
            for axes in every:
                known = found.alive(axes, view)
                assert known is None or np.array_equal(known, alive(whole.reshape(view), axes)), (axes, view)
        for axis, k in itertools.product(range(whole.ndim), (0, 1)):
            numbers, rows = found.numbers(axis, k), np.moveaxis(whole, axis, 0).reshape(whole.shape[axis], -1)
            assert numbers is None or (rows == numbers[:, None]).any(1).all()
            alike = found.filled(axis)
            assert alike is None or (rows[alike] == rows[alike][:1]).all()
        assert not later._written
        assert np.array_equal(later.numpy(), whole) and later.tobytes() == whole.tobytes() and later._written


def test_most_is_told_without_reading_everything() -> None:
    with Scratch() as scratch:
        told = [found.alive((0,), found._view) for found, _ in (made(scratch, k) for k in range(100))]
    assert sum(t is not None for t in told) > 80


def test_it_is_taken_from_what_it_was_where_all_that_is_masked_goes() -> None:
    with Scratch() as scratch:
        gone = np.zeros(20, bool)
        gone[[3, 12]] = True
        rows, columns = (
            Hold((6, 8), Grid(np.arange(1, 7), (0,))),
            Hold((6, 8), Grid(np.arange(7, 15), (1,))),
        )
        tensor = scratch.tensor(np.ones((6, 8), np.float32), "w")
        found = Masked(tensor, [(rows, gone[rows.grid.ids]), (columns, gone[columns.grid.ids])])
        assert found.survives([rows, columns], gone)
        assert not found.survives([rows], gone)
        less = gone.copy()
        less[12] = False
        assert not found.survives([rows, columns], less)
        filled = Masked(tensor, [(rows, gone[rows.grid.ids])], [Mean(1, gone[columns.grid.ids])])
        assert filled.survives([rows, columns], gone) and not filled.survives([rows, columns], less)
        assert filled.fills(Mean(1, gone[columns.grid.ids])) and not filled.fills(Mean(1, less[columns.grid.ids]))


def test_others_find_the_numbers_wherever_they_look(tmp_path: Path) -> None:
    with Scratch() as scratch:
        for seed in range(8):
            found, later = made(scratch, seed)
            if seed % 2:
                raw = Path(later.path).read_bytes()[later.offset or 0 :][: later.nbytes]
                assert raw == found().tobytes()
            with (tmp_path / "w").open("wb") as f:
                later.tofile(f)
            assert (tmp_path / "w").read_bytes() == found().tobytes()


def mlp() -> ir.Model:
    rng = np.random.default_rng(0)
    nodes, x = [], ir.val("x", ir.DataType.FLOAT, ["n", 32])
    given_x, weights = x, []
    for k, (n, m) in enumerate(((32, 64), (64, 64), (64, 16))):
        w = ir.Value(name=f"w{k}", const_value=ir.tensor(rng.standard_normal((n, m)).astype(np.float32)))
        w.shape, w.type = ir.Shape((n, m)), ir.TensorType(ir.DataType.FLOAT)
        weights.append(w)
        nodes.append(ir.node("MatMul", [x, w]))
        x = nodes[-1].outputs[0]
        x.shape, x.type = ir.Shape(["n", m]), ir.TensorType(ir.DataType.FLOAT)
    x.name = "y"
    graph = ir.Graph([given_x], [x], nodes=nodes, initializers=weights, opset_imports={"": 25}, name="g")
    return ir.Model(graph, ir_version=13)


def test_nothing_is_written_that_is_cut_out_again() -> None:
    with Scratch() as scratch:
        model, ctx = mlp(), Context(find_target("onnx"), scratch)
        for value in model.graph.initializers.values():
            assert value.const_value is not None
            value.const_value = scratch.tensor(value.const_value.numpy(), value.name or "")
        again = model.clone()
        find_pass("mask-channels{ratio=0.5,of=channels,align=1}").run(model, ctx)
        deferred = [v.const_value for v in model.graph.initializers.values()]
        assert all(isinstance(t, Deferred) and not t._written for t in deferred)
        find_pass("remove-channels").run(model, ctx)
        assert not any(t._written for t in deferred if isinstance(t, Deferred))
        find_pass("mask-channels{ratio=0.5,of=channels,align=1}").run(again, ctx)
        for value in again.graph.initializers.values():
            assert value.const_value is not None and value.const_value.numpy() is not None
        find_pass("remove-channels").run(again, ctx)
        for name, value in model.graph.initializers.items():
            other = again.graph.initializers[name].const_value
            assert value.const_value is not None and other is not None
            assert np.array_equal(value.const_value.numpy(), other.numpy())
            assert value.const_value.shape[1] == {"w0": 32, "w1": 32, "w2": 16}[name]
