"""Pixel shuffles in all orders, static and symbolic."""

import itertools
import math

import numpy as np
import onnx.parser
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgec.passes.fuse_depth_to_space import FuseDepthToSpace
from passcheck import check_pass, context, ops


def model(x: tuple[object, ...], cut: list[int], perm: list[int], join: list[int], out: tuple[object, ...]) -> str:
    dims = ",".join(map(str, x)), ",".join(map(str, out))
    constants = f"int64[{len(cut)}] cut = {{{str(cut)[1:-1]}}}, int64[{len(join)}] join = {{{str(join)[1:-1]}}}"
    body = f"a = Reshape(x, cut) b = Transpose<perm = {perm}>(a) y = Reshape(b, join)"
    head = f'<ir_version: 10, opset_import: ["" : 25]> m (float[{dims[0]}] x) => (float[{dims[1]}] y)'
    return f"{head} <{constants}> {{ {body} }}"


DEPTH = (2, 12, 3, 5), (2, 3, 6, 10)
FORMS = {
    "DCR": (*DEPTH, [2, 2, 2, 3, 3, 5], [0, 3, 4, 1, 5, 2], {"mode": "DCR", "blocksize": 2}),
    "CRD": (*DEPTH, [2, 3, 2, 2, 3, 5], [0, 1, 4, 2, 5, 3], {"mode": "CRD", "blocksize": 2}),
    "back": (*DEPTH[::-1], [2, 3, 3, 2, 5, 2], [0, 3, 5, 1, 2, 4], {"blocksize": 2}),
}


@pytest.mark.parametrize(("x", "out", "cut", "perm", "attributes"), FORMS.values(), ids=FORMS)
def test_forms(
    x: tuple[int, ...], out: tuple[int, ...], cut: list[int], perm: list[int], attributes: dict[str, object]
) -> None:
    fused = check_pass(model(x, cut, perm, list(out), out), FuseDepthToSpace(), rewrites=1)
    assert ops(fused) == {"DepthToSpace" if "mode" in attributes else "SpaceToDepth": 1}
    assert {k: v.value for k, v in next(iter(fused.graph)).attributes.items()} == attributes


def test_symbolic_batch() -> None:
    text = model(("N", 12, 3, 5), [-1, 3, 2, 2, 3, 5], [0, 1, 4, 2, 5, 3], [-1, 3, 6, 10], ("N", 3, 6, 10))
    assert ops(check_pass(text, FuseDepthToSpace(), rewrites=1, input_shapes={"x": (2, 12, 3, 5)})) == {
        "DepthToSpace": 1
    }


def test_pixel_unshuffle_has_no_operator() -> None:
    ctx = context()
    text = model((2, 3, 6, 10), [2, 3, 3, 2, 5, 2], [0, 1, 3, 5, 2, 4], [2, 12, 3, 5], (2, 12, 3, 5))
    check_pass(text, FuseDepthToSpace(), rewrites=0, ctx=ctx)
    assert "order that ONNX lacks" in ctx.notes[0]


def test_inner_values_that_others_read_stay() -> None:
    text = model(*DEPTH[:1], [2, 3, 2, 2, 3, 5], [0, 1, 4, 2, 5, 3], [2, 3, 6, 10], DEPTH[1])
    text = text.replace("] y) <", "] y, float[2,3,3,2,5,2] b) <")
    check_pass(text, FuseDepthToSpace(), rewrites=0)


@settings(max_examples=40, deadline=None)
@given(perm=st.permutations(range(1, 6)), seed=st.integers(0, 99))
def test_any_transpose_of_blocks_keeps_its_meaning(perm: list[int], seed: int) -> None:
    """Whatever is between the two reshapes: either it is left, or the result is the same."""
    cut = [2, 2, 2, 4, 2, 2]
    shuffled = [cut[p] for p in [0, *perm]]
    groups = next((s for s in itertools.combinations(range(2, 6), 2) if math.prod(shuffled[1 : s[0]]) > 1), (2, 4))
    out = (2, math.prod(shuffled[1 : groups[0]]), math.prod(shuffled[slice(*groups)]), math.prod(shuffled[groups[1] :]))
    text = model((2, 16, 2, 2), cut, [0, *perm], list(out), out)
    onnx.parser.parse_model(text)
    x = np.random.default_rng(seed).standard_normal((2, 16, 2, 2), np.float32)
    check_pass(text, FuseDepthToSpace(), inputs={"x": x})
