"""Grids: rounding twice is rounding once, indices tell the numbers bit for bit, and grids chosen without data fit."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgec.compiler.errors import EdgecError
from edgec.compiler.quantization import grids, points
from edgec.compiler.quantization.gridfit import GridSpec, fit
from edgec.compiler.quantization.grids import Affine, Grid, NumberFormat, Sparse, Table
from edgec.compiler.quantization.points import FORMATS
from edgec.compiler.quantization.scales import Unreachable

PER = ("tensor", "channel", "block")
SPECS = [
    *(GridSpec("affine", b, s, p, 5) for b in (2, 3, 4, 5, 6, 7, 8) for s in (True, False) for p in PER),
    *(GridSpec("table", b, per=p, group=g) for b in (1, 2, 3, 4, 6, 8) for p in PER[:2] for g in (0, 4)),
    *(GridSpec("table", 3, per=p, group=g, vector=v) for p in PER[:2] for g in (0, 4) for v in (2, 4)),
    *(GridSpec(name, per=p, block=5) for name in ("ternary", *FORMATS) for p in PER),
    *(GridSpec("binary", per=p) for p in PER[:2]),
]
SPECS += [replace(spec, search=False) for spec in SPECS if spec.scheme == "affine" and spec.bits in (2, 8)]
HARD = {
    "zero": 0.0, "constant": -0.37, "denormal": 1e-41, "below float16": 1e-9, "large": 6e4, "one large": None,
}  # fmt: skip


def weight(shape: tuple[int, ...], axis: int, seed: int = 0, hard: bool = True) -> np.ndarray:
    """Channels of different sizes; the first are hard ones."""
    rng = np.random.default_rng(seed)
    w = rng.standard_t(4, size=shape) * np.exp(rng.normal(size=[n if a == axis else 1 for a, n in enumerate(shape)]))
    rows = np.moveaxis(w, axis, 0)
    for i, number in enumerate(HARD.values() if hard else ()):
        if i < len(rows):
            rows[i] = (
                number
                if number is not None
                else np.where(np.arange(rows[i].size) == 0, 1e4, 1e-4).reshape(rows[i].shape)
            )
    return w.astype(np.float32)


def bits_of(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array).view(np.uint32)


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from(SPECS),
    st.sampled_from(
        [((8, 13), 0), ((13, 8), 1), ((12, 7, 3, 3), 0), ((7, 12, 3, 1), 1), ((2, 8, 11), 1), ((3, 11, 8), 2)]
    ),
    st.booleans(),
    st.booleans(),
)
def test_rounding_twice_is_rounding_once(
    spec: GridSpec, place: tuple[tuple[int, ...], int], hard: bool, important: bool
) -> None:
    shape, axis = place
    w = weight(shape, axis, hard=hard)
    inputs = (2 if axis == 1 else 1,) if len(shape) == 3 else ()
    importance = np.linspace(0, 2, shape[-1], dtype=np.float32) if important and axis != len(shape) - 1 else None
    grid = fit(w, axis, spec, importance, inputs)
    rounded = grid.round(w)
    assert rounded.dtype == np.float32 and np.isfinite(rounded).all()
    codes = grid.nearest(w)
    assert np.array_equal(bits_of(grid.decode(codes)), bits_of(rounded))
    found = grid.indices(rounded)
    assert found is not None and found.dtype == grid.codes
    assert np.array_equal(bits_of(grid.decode(found)), bits_of(rounded))
    assert np.array_equal(bits_of(grid.round(rounded)), bits_of(rounded))
    assert np.array_equal(bits_of(fit(w, axis, spec, importance, inputs).round(w)), bits_of(rounded)), (
        "not deterministic"
    )
    if grid.bits < 16:
        assert grid.indices(w) is None
        assert codes.min() >= getattr(grid, "low", 0) and codes.max() < (1 << grid.bits)
    mask = np.random.default_rng(1).random(shape) < 0.5
    if getattr(grid, "vector", 1) == 1:
        both = Sparse(grid).indices(np.where(mask, rounded, np.float32(0)))
        assert both is not None and np.array_equal(both[0], mask & (rounded != 0))
        assert np.array_equal(Sparse(grid).decode(*both), np.where(mask, rounded, np.float32(0)))


@pytest.mark.parametrize("shape, axis", [((48, 40), 0), ((40, 48), 1), ((16, 8, 3, 3), 0)])
def test_more_bits_and_more_scales_are_nearer(shape: tuple[int, ...], axis: int) -> None:
    w = weight(shape, axis, hard=False)

    def error(**options: object) -> float:
        return float(np.square(fit(w, axis, GridSpec(**options)).round(w) - w, dtype=np.float64).sum())  # type: ignore[arg-type]

    for scheme in ("affine", "table"):
        by_bits = [error(scheme=scheme, bits=b) for b in (2, 3, 4, 6, 8)]
        assert all(b < a / 2 for a, b in pairwise(by_bits))
    for symmetric in (True, False):
        by_scale = [error(bits=4, per=p, block=4, symmetric=symmetric) for p in PER]
        assert by_scale[0] > by_scale[1] > by_scale[2]
        assert error(bits=3, symmetric=symmetric) < error(bits=3, symmetric=symmetric, search=False)
    assert error(bits=4, symmetric=False) < error(bits=4)
    assert error(scheme="table", bits=4, per="tensor") < error(bits=4, per="tensor", symmetric=False)
    assert error(scheme="table", bits=4, per="tensor", group=4) < error(scheme="table", bits=4, per="tensor")
    assert error(scheme="float8e4m3") < error(scheme="float8e5m2") / 2 < error(scheme="float4")
    assert error(scheme="table", bits=2) < error(scheme="ternary") < error(scheme="binary")


def test_scales_are_nearly_the_best_of_hundreds() -> None:
    rng = np.random.default_rng(0)
    w = rng.normal(size=(3, 4000)).astype(np.float32)
    weights = rng.uniform(0, 2, w.shape).astype(np.float32)
    for bits, worse in ((2, 1.02), (4, 1.02), (8, 1.02)):
        grid = fit(w, 0, GridSpec("affine", bits), weights)
        assert isinstance(grid, Affine)
        found = (weights * np.square(grid.round(w) - w)).sum(1)
        top = np.abs(w).max(1) / grid.high
        tried = [replace(grid, axis=0, scales=(top * s).astype(np.float16)) for s in np.linspace(0.1, 1.1, 200)]
        best = np.min([(weights * np.square(g.round(w) - w)).sum(1) for g in tried], 0)
        assert (found <= best * worse).all()


def test_importance_moves_the_grid_towards_what_counts() -> None:
    w = weight((32, 64), 0, hard=False)
    heavy = np.where(np.arange(64) < 8, np.float32(100), np.float32(0.01))
    for spec in (GridSpec("affine", 3), GridSpec("table", 3), GridSpec("table", 3, per="tensor"), GridSpec("nf4")):
        lost = [np.square(fit(w, 0, spec, m).round(w) - w)[:, :8].sum() for m in (None, heavy)]
        assert lost[1] < lost[0] * 0.95, spec


def test_blocks_may_end_short_and_lie_along_any_input() -> None:
    rng = np.random.default_rng(0)
    w = rng.normal(size=(6, 10, 3, 3)).astype(np.float32)
    w[:, 4:8] *= 100
    grid = fit(w, 0, GridSpec("affine", 8, per="block", block=4))
    assert isinstance(grid, Affine) and grid.scales.shape == (6, 3, 1, 1) and (grid.axis, grid.block) == (1, 4)
    assert np.abs(grid.round(w) - w)[:, 8:].max() < 0.02
    stack = w.reshape(6, 10, 9)
    stacked = fit(stack, 2, GridSpec("affine", 8, per="block", block=4), inputs=(1,))
    assert isinstance(stacked, Affine) and stacked.scales.shape == (6, 3, 9), "each matrix of a stack has its own"


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    "spec", [GridSpec("affine"), GridSpec("table", 4), GridSpec("float8e4m3"), GridSpec("bfloat16")]
)
def test_what_is_no_number_is_refused(spec: GridSpec, bad: float) -> None:
    w = weight((8, 16), 0)
    w[3, 5] = bad
    with pytest.raises(EdgecError, match="NaN" if np.isnan(bad) else "infinit"):
        fit(w, 0, spec)


def test_what_float16_scales_do_not_reach_is_refused() -> None:
    w = weight((8, 16), 0)
    w[3, 5] = 1e30
    for spec in (GridSpec("affine", 4), GridSpec("table", 4), GridSpec("table", 4, per="tensor"), GridSpec("nf4")):
        with pytest.raises(Unreachable, match="float16"):
            fit(w, 0, spec)


@pytest.mark.parametrize("name", FORMATS)
def test_number_formats_are_those_of_the_standard(name: str) -> None:
    """Sign, exponent and fraction spelt out: every finite number, and no other."""
    bits, exponent, fraction, bias, special = {
        "float16": (16, 5, 10, 15, True), "bfloat16": (16, 8, 7, 127, True), "float8e5m2": (8, 5, 2, 15, True),
        "float8e4m3": (8, 4, 3, 7, False), "float4": (4, 2, 1, 1, False), "nf4": (4, 0, 0, 0, False),
    }[name]  # fmt: skip
    codes = np.arange(1 << bits)
    if name == "nf4":
        expected = np.array(points.NF4, np.float32)
        assert expected[0] == -1 and expected[7] == 0 and expected[15] == 1 and (np.diff(expected) > 0).all()
    else:
        e, f = (codes >> fraction) & ((1 << exponent) - 1), codes & ((1 << fraction) - 1)
        size = np.where(e > 0, 2.0 ** (e - bias) * (1 + f / 2**fraction), 2.0 ** (1 - bias) * f / 2**fraction)
        expected = np.where(codes >> (bits - 1), -size, size)
        finite = ~((e == (1 << exponent) - 1) & ((f == (1 << fraction) - 1) if name == "float8e4m3" else special))
        codes, expected = codes[finite], expected[finite].astype(np.float32)
    grid = NumberFormat(name)
    assert np.array_equal(grid.decode(codes.astype(grid.codes)), expected)
    found = grid.indices(expected)
    assert found is not None and np.array_equal(grid.decode(found), expected) and grid.largest == expected.max()
    assert grid.round(np.array([1e38 if name != "bfloat16" else 3.4e38], np.float32))[0] == expected.max()


def test_grids_of_several_tables_and_vectors_say_where_they_do_not_fit() -> None:
    grid = Table(2, np.arange(8, dtype=np.float16).reshape(1, 4, 2), axis=0)
    assert grid.indices(np.zeros((3, 4), np.float32)) is None, "three channels are no pairs"
    pair = np.array([[0, 6], [1, 7]], np.float32)
    found = grid.indices(pair)
    assert found is not None and np.array_equal(found, [[0, 3]]) and np.array_equal(grid.decode(found), pair)
    assert Sparse(grid).indices(np.array([[2, 0], [3, 0]], np.float32)) is None


def test_pieces_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    w = weight((24, 10, 3), 0, hard=False)
    for axis, spec in (
        (0, GridSpec("table", 3, group=8, vector=2)),
        (1, GridSpec("affine", 4)),
        (0, GridSpec("nf4", per="block", block=4)),
    ):
        grid = fit(w, axis, spec)
        whole = grid.round(w)
        monkeypatch.setattr(points, "BLOCK", 40)
        assert np.array_equal(grid.round(w), whole) and np.array_equal(grid.decode(grid.nearest(w)), whole)
        assert np.array_equal(grid.indices(whole), grid.nearest(w))  # type: ignore[arg-type]
        monkeypatch.undo()


def test_a_value_says_which_grid_it_lies_on() -> None:
    value, grid = ir.Value(name="w"), Affine(8, np.ones((), np.float16))
    assert grids.read(value) is None
    grids.write(value, grid)
    assert grids.read(value) is grid and isinstance(grid, Grid)
