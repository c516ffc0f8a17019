"""Strided slices of an image, stacked as channels: YOLO's "focus", in all orders and spellings."""

import itertools

import numpy as np
import pytest

from edgec.compiler import graph
from edgec.passes.fuse_depth_to_space import FuseDepthToSpace
from passcheck import check_pass, ops

ORDER = [(0, 0), (1, 0), (0, 1), (1, 1)]
HEAD = '<ir_version: 10, opset_import: ["" : 25]>'


def focus(starts: list[tuple[int, int]], tail: str, batch: object = 2, channels: int = 16, split: bool = False) -> str:
    """Slices of [batch, 3, 6, 10] at these starts with stride 2, a Concat `c`, and what reads it."""
    constants = ["int64[2] end = {6, 9223372036854775807}", "int64[2] hw = {2, 3}", "int64[2] two = {2, 2}"]
    constants += ["int64[1] one_end = {100}", "int64[1] h = {2}", "int64[1] w = {-1}", "int64[1] one_two = {2}"]
    body = []
    for k, (i, j) in enumerate(starts):
        constants.append(f"int64[2] s{k} = {{{i}, {j}}}")
        constants += [f"int64[1] i{k} = {{{i}}}", f"int64[1] j{k} = {{{j}}}"]
        if split:
            body.append(f"r{k} = Slice(x, i{k}, one_end, h, one_two) p{k} = Slice(r{k}, j{k}, one_end, w, one_two)")
        else:
            body.append(f"p{k} = Slice(x, s{k}, end, hw, two)")
    body.append(f"c = Concat<axis = 1>({', '.join(f'p{k}' for k in range(len(starts)))})")
    weight = f"float[{channels}, {3 * len(starts)}, 1, 1] weight"
    return (
        f"{HEAD} m (float[{batch}, 3, 6, 10] x, {weight}) => (float[{batch}, N, 3, 5] y) "
        f"<{', '.join(constants)}> {{ {' '.join(body)} {tail} }}"
    )


def constant_weight(text: str) -> str:
    """The weight as an initializer of random numbers, so that it can take another order."""
    numbers = np.random.default_rng(0).normal(size=16 * 12).round(3)
    text = text.replace(", float[16, 12, 1, 1] weight)", ")")
    listed = ", ".join(map(str, numbers))
    return text.replace("<int64[2] end", f"<float[16, 12, 1, 1] weight = {{{listed}}}, int64[2] end")


@pytest.mark.parametrize("starts", [list(p) for p in itertools.permutations(ORDER)][::5], ids=str)
@pytest.mark.parametrize("split", [False, True])
def test_a_convolution_takes_the_new_order(starts: list[tuple[int, int]], split: bool) -> None:
    text = constant_weight(focus(starts, "y = Conv(c, weight)", split=split))
    assert ops(check_pass(text, FuseDepthToSpace(), rewrites=1)) == {"SpaceToDepth": 1, "Conv": 1}


@pytest.mark.parametrize("batch", [2, "B"])
def test_another_reader_sees_the_old_order(batch: object) -> None:
    text = constant_weight(focus(ORDER, "y = Relu(c)", batch=batch))
    assert ops(check_pass(text, FuseDepthToSpace(), rewrites=1)) == {"SpaceToDepth": 1, "Gather": 1, "Relu": 1}


def test_the_order_that_the_operator_has_needs_no_gather() -> None:
    text = constant_weight(focus(sorted(ORDER), "y = Relu(c)"))
    assert ops(check_pass(text, FuseDepthToSpace(), rewrites=1)) == {"SpaceToDepth": 1, "Relu": 1}


def test_a_computed_weight_keeps_its_order() -> None:
    fused = check_pass(focus(ORDER, "y = Conv(c, weight)"), FuseDepthToSpace(), rewrites=1)
    assert ops(fused) == {"SpaceToDepth": 1, "Gather": 1, "Conv": 1}


@pytest.mark.parametrize(
    "starts", [[*ORDER[:3], ORDER[2]], ORDER[:3], [*ORDER, ORDER[0]]], ids=["twice", "three", "five"]
)
def test_patches_that_do_not_cover_the_image_once_stay(starts: list[tuple[int, int]]) -> None:
    found = check_pass(focus(starts, "y = Relu(c)"), FuseDepthToSpace(), rewrites=0)
    assert len(list(graph.nodes(found, "Slice"))) == len(starts)
