"""Gradients of operators that move, take and resize."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from gradientcheck import check
from hypothesis import given, settings
from hypothesis import strategies as st

RNG = np.random.default_rng(2)


def normal(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape)


def ints(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int64)


VIEWS: list[tuple[str, dict[str, np.ndarray], dict[str, Any]]] = [
    ("Reshape", {"x": normal(2, 6), "s": ints(3, -1)}, {}),
    ("Squeeze", {"x": normal(2, 1, 3), "s": ints(1)}, {"consts": ["s"]}),
    ("Unsqueeze", {"x": normal(2, 3), "s": ints(1, 0)}, {"consts": ["s"]}),
    ("Flatten", {"x": normal(2, 3, 2)}, {}),
    ("Transpose", {"x": normal(2, 3, 4)}, {}),
    ("Transpose", {"x": normal(2, 3, 4)}, {"attributes": {"perm": [1, 2, 0]}}),
    ("Expand", {"x": normal(3, 1), "s": ints(2, 3, 4)}, {}),
    ("Tile", {"x": normal(3, 2), "s": ints(2, 3)}, {"consts": ["s"]}),
    ("Concat", {"a": normal(2, 3), "b": normal(2, 2)}, {"attributes": {"axis": -1}}),
    ("Concat", {"a": normal(2, 3)}, {"attributes": {"axis": 0}}),
    ("Split", {"x": normal(2, 5), "s": ints(2, 3)}, {"consts": ["s"], "attributes": {"axis": 1}, "outputs": 2}),
    ("DepthToSpace", {"x": normal(1, 8, 2, 1)}, {"attributes": {"blocksize": 2}}),
    ("DepthToSpace", {"x": normal(2, 8, 1, 3)}, {"attributes": {"blocksize": 2, "mode": "CRD"}, "free": (False,)}),
    ("SpaceToDepth", {"x": normal(1, 2, 4, 2)}, {"attributes": {"blocksize": 2}}),
    ("Trilu", {"x": normal(3, 3)}, {}),
    ("Trilu", {"x": normal(3, 3), "k": np.array(1)}, {"attributes": {"upper": 0}}),
    ("Pad", {"x": normal(3, 4), "p": ints(1, -1, 0, 2)}, {"by": "onnxruntime"}),
    ("Pad", {"x": normal(3, 4), "p": ints(2, 1), "c": np.array(0.5), "a": ints(1)},
     {"wrt": ["x"], "consts": ["a"], "by": "onnxruntime"}),
    ("Pad", {"x": normal(3, 4), "p": ints(1, 2, 2, 0)}, {"consts": ["p"], "attributes": {"mode": "reflect"}}),
    ("Pad", {"x": normal(3, 4), "p": ints(1, 2, 2, 0)}, {"consts": ["p"], "attributes": {"mode": "edge"}}),
    ("Slice", {"x": normal(5, 4), "s": ints(1), "e": ints(-1)}, {"fixed": ["s"]}),
    ("Gather", {"x": normal(5, 3), "i": ints(1, 1, -1)}, {}),
    ("Gather", {"x": normal(2, 5, 3), "i": np.array([[0, 4], [4, 4]])}, {"attributes": {"axis": 1}}),
    ("Gather", {"x": normal(2, 5), "i": np.array(2)}, {"attributes": {"axis": 1}}),
    ("GatherElements", {"x": normal(3, 2), "i": np.array([[0, 0], [2, -1]])}, {}),
    ("GatherND", {"x": normal(3, 2, 2), "i": np.array([[0, 1], [2, 1], [0, 1]])}, {}),
    ("TopK", {"x": normal(3, 5), "k": ints(2)}, {"outputs": 2}),
    ("Compress", {"x": normal(4, 3), "c": np.array([True, False, True])}, {"attributes": {"axis": 0}}),
    ("ScatterElements", {"x": normal(3, 2), "i": np.array([[0, 1], [2, 0]]), "u": normal(2, 2)}, {}),
    ("ScatterND", {"x": normal(4, 2), "i": np.array([[1], [3]]), "u": normal(2, 2)}, {}),
    ("ScatterND", {"x": normal(4, 2), "i": np.array([[1], [1]]), "u": normal(2, 2)},
     {"attributes": {"reduction": "add"}}),
]  # fmt: skip


@pytest.mark.parametrize(("op", "inputs", "options"), VIEWS, ids=[f"{op}{i}" for i, (op, *_) in enumerate(VIEWS)])
def test_what_moves(op: str, inputs: dict[str, np.ndarray], options: dict[str, Any]) -> None:
    check(op, inputs, **options)


ENDS = st.integers(-8, 8)


@settings(max_examples=20, deadline=None)
@given(
    starts=st.tuples(ENDS, ENDS), ends=st.tuples(ENDS, ENDS), free=st.booleans(),
    steps=st.tuples(st.sampled_from([-2, -1, 1, 2, 3]), st.sampled_from([-1, 1])),
)  # fmt: skip
def test_slices(starts: tuple[int, int], ends: tuple[int, int], steps: tuple[int, int], free: bool) -> None:
    """Any bounds, beyond the ends and empty ones included."""
    inputs = {"x": normal(5, 2, 4), "s": ints(*starts), "e": ints(*ends), "a": ints(0, -1), "t": ints(*steps)}
    check("Slice", inputs, consts=["a"], free=(free,), by="onnxruntime")


@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
@pytest.mark.parametrize("where", ["half_pixel", "align_corners", "asymmetric", "pytorch_half_pixel"])
def test_resize(mode: str, where: str) -> None:
    attributes = {"mode": mode, "coordinate_transformation_mode": where}
    scales = {"x": normal(1, 2, 3, 4), "_r": normal(), "s": np.array([1, 1, 2, 1.5], np.float32)}
    check("Resize", scales, consts=["s"], attributes=attributes, by="onnxruntime")
    sizes = {"x": normal(1, 2, 3, 4), "_r": normal(), "_s": normal(), "z": ints(1, 2, 5, 3)}
    check("Resize", sizes, consts=["z"], attributes=attributes, by="onnxruntime")
