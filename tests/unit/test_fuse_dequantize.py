from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto

from edgec.passes.fuse_dequantize import FuseDequantize
from linearmodels import Node, Weights, build
from passcheck import check_pass, context, ops

CAST = {"to": TensorProto.FLOAT}


def model(w: Weights, zero: bool, left: bool = False) -> list[Node]:
    nodes: list[Node] = [("Cast", "q", "f", CAST)]
    nodes += [("Sub", "f z", "d")] if zero else []
    data = "d" if zero else "f"
    return [*nodes, ("Mul", f"s {data}" if left else f"{data} s", "w"), ("MatMul", "x w", "y")]


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16])
@pytest.mark.parametrize("dims", [(), (1,), (1, 5), (4, 1), (5,)])
@pytest.mark.parametrize("zero", [None, "number", "slices"])
def test_scale_and_zero_point(dtype: type, dims: tuple[int, ...], zero: str | None) -> None:
    w = Weights()
    w["q"] = w.rng.integers(0, 100, (4, 5)).astype(dtype)
    w.add("s", *dims, low=0.01)
    if zero:
        w["z"] = w.rng.integers(0, 9, dims if zero == "slices" else ()).astype(np.float32)
    source = build(model(w, bool(zero), left=zero is None), {"x": [2, 4]}, w)
    out = check_pass(source, FuseDequantize(), rewrites=1, rtol=0)
    assert ops(out) == {"DequantizeLinear": 1, "MatMul": 1}


@pytest.mark.parametrize(
    ("scale", "zero"), [((4, 5), None), ((1, 5), 0.5), ((1, 5), -1.0), ((1, 5), 256.0), ((1, 5), (4, 1))]
)
def test_what_dequantize_linear_cannot_say_stays_and_is_noted(
    scale: tuple[int, ...], zero: float | tuple[int, ...] | None
) -> None:
    w = Weights()
    w["q"] = w.rng.integers(0, 100, (4, 5)).astype(np.uint8)
    w.add("s", *scale, low=0.01)
    if zero is not None:
        w["z"] = np.ones(zero, np.float32) if isinstance(zero, tuple) else np.float32(zero)
    ctx = context()
    check_pass(build(model(w, zero is not None), {"x": [2, 4]}, w), FuseDequantize(), rewrites=0, ctx=ctx)
    assert any("Mul_w" in note and "q" in note for note in ctx.notes)


def test_other_integers_stay() -> None:
    """A table of indices in int64, and a value that is not constant."""
    w = Weights()
    w["q"], w["s"] = np.arange(20).reshape(4, 5), np.float32(0.5)
    check_pass(build(model(w, False), {"x": [2, 4]}, w), FuseDequantize(), rewrites=0)
    nodes = [("Cast", "x", "i", {"to": TensorProto.INT8}), ("Cast", "i", "f", CAST), ("Mul", "f s", "y")]
    check_pass(build(nodes, {"x": [2, 4]}, {"s": w["s"]}), FuseDequantize(), rewrites=0)
