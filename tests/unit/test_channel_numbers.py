"""What pruning does to the numbers of weights, block by block, against the same written plainly."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from edgec.compiler.channels import alike, importance, means
from edgec.compiler.channels.alike import first_alike, kinds
from edgec.compiler.channels.coupling import Hold
from edgec.compiler.channels.grids import Grid
from edgec.compiler.channels.masked import blank
from edgec.compiler.channels.means import Mean
from edgec.compiler.channels.zeros import alive_in

RNG = np.random.default_rng(0)


def test_kinds_are_those_of_rows_of_a_table() -> None:
    table = RNG.integers(0, 3, (200, 3)).astype(np.float64)
    found = kinds(list(table.T))
    want = (table[:, None] == table[None]).all(2)
    assert ((found[:, None] == found[None]) == want).all()


@pytest.mark.parametrize("columns", [False, True])
@pytest.mark.parametrize("block", [7, 1 << 18])
def test_equal_rows_are_found(columns: bool, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of three kinds that come often, pairs, rows that differ in one place, and equal rows of other biases."""
    monkeypatch.setattr(alike, "BLOCK", block)
    base = RNG.standard_normal((30, 11)).astype(np.float32)
    base[20:, :] = base[0]
    base[20:, 5] = np.arange(10)
    rows = base[RNG.permutation(np.repeat(np.arange(30), [20, 15, 12, *[2] * 12, *[1] * 15]))]
    bias = RNG.integers(0, 2, len(rows)).astype(np.float64)
    front = np.ascontiguousarray(rows.T).T if columns else rows
    every = np.arange(len(rows))
    first = first_alike(front, every, bias)
    same = (rows[:, None] == rows[None]).all(2) & (bias[:, None] == bias[None])
    assert (first == same.argmax(1)).all()
    some = every[::3]
    assert (first_alike(front, some, bias) == some[same[np.ix_(some, some)].argmax(1)]).all()


@pytest.mark.parametrize("shape, axis", [((40, 12), 1), ((12, 40), 0), ((12,), 0), ((12, 5, 3, 3), 0), ((3, 12, 7), 1)])
@pytest.mark.parametrize("scaled", [False, True])
def test_means_are_written_and_recognised(
    shape: tuple[int, ...], axis: int, scaled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(means, "BLOCK", 50)
    array = RNG.standard_normal(shape).astype(np.float32)
    gone = np.arange(12) % 3 == 0
    scale = RNG.uniform(0.5, 2, 12) if scaled else None
    mean = Mean(axis, gone, scale)
    made = array.copy()
    mean.write(made)
    front, want = np.moveaxis(made, axis, -1), np.moveaxis(array.astype(np.float64), axis, -1)
    assert (front[..., ~gone] == want[..., ~gone]).all()
    weight = np.ones(12) if scale is None else scale
    kept = (want * weight)[..., ~gone].mean(-1, keepdims=True)
    gave = front[..., gone] * weight[gone]
    np.testing.assert_allclose(gave, np.broadcast_to(kept, gave.shape), 1e-5, 1e-6)
    assert mean.holds(made)
    assert not mean.holds(array)
    made[np.unravel_index(0, shape)] += 0.01
    assert not mean.holds(made)


def test_no_mean_without_anything_that_stays() -> None:
    assert not Mean(0, np.ones(4, bool)).holds(np.zeros(4, np.float32))
    assert not Mean(0, np.array([True, False]), np.array([0.0, 1.0])).holds(np.zeros(2, np.float32))


@pytest.mark.parametrize(
    "view, axes",
    [((8, 6), (0,)), ((8, 6), (1,)), ((4, 5, 3, 3), (1,)), ((3, 4, 5), (0, 1)), ((3, 4, 5), (1, 0)),
     ((5, 3, 4), (2, 1)), ((3, 5, 4), (0, 2)), ((6,), (0,))],
)  # fmt: skip
@pytest.mark.parametrize("kind", [np.float32, np.float16, np.int8])
def test_slices_become_zero(view: tuple[int, ...], axes: tuple[int, ...], kind: type) -> None:
    array = RNG.integers(1, 100, view).astype(kind)
    gone = RNG.random([view[a] for a in axes]) < 0.5
    for fill in (None, np.array(7, kind)):
        hold = Hold(view, Grid(np.zeros(gone.shape, np.int64), axes), True, fill)
        made, want = array.copy(), array.copy()
        blank(made, hold, gone)
        np.moveaxis(want, axes, range(len(axes)))[gone] = 0 if fill is None else fill
        assert (made == want).all()


@pytest.mark.parametrize("shape", [(40, 30), (3, 7, 11), (1, 50, 4), (6, 5, 3, 3), (9,)])
def test_sums_over_all_other_axes(shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importance, "BLOCK", 60)
    array = RNG.standard_normal(shape).astype(np.float32)
    kept = [(0,), (len(shape) - 1,), tuple(range(len(shape)))[-2:][::-1], (0, len(shape) - 1)[: len(shape)]]
    sums = importance._summed(np.abs, array, kept)
    for axes, found in zip(kept, sums, strict=True):
        want = np.abs(array).astype(np.float64).sum(tuple(a for a in range(len(shape)) if a not in axes))
        np.testing.assert_allclose(found, want.transpose(np.argsort(np.argsort(axes))), 1e-12)


def test_what_is_known_of_a_tensor_is_known_per_view() -> None:
    array = np.ones((4, 6), np.float32)
    array[:, 2:4] = 0
    tensor = ir.tensor(array)
    assert alive_in(tensor, (1,)).tolist() == [True, True, False, False, True, True]
    assert alive_in(tensor, (1,), (4, 3, 2)).tolist() == [True, False, True]
    assert alive_in(tensor, (0,)).all()
    assert alive_in(tensor, (1,)) is alive_in(tensor, (1,))
