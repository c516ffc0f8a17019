"""Helpers for tests of mixed bits: models whose weights matter unequally, inputs with few causes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from layercases import build

from edgec.compiler.graph import const
from edgec.compiler.passbase import Context
from edgec.compiler.quantization import grids
from edgec.compiler.verify import Comparison, compare_outputs
from passcheck import context, run

WIDTH = 64
UNEQUAL = (1.0, 0.03, 0.3, 0.01, 0.1, 0.003)
MIX = np.random.default_rng(3).normal(size=(8, WIDTH))


def branches(gains: Sequence[float], rank: int = 3) -> ir.Model:
    """A sum of products with matrices, each times its gain: so much do the outputs suffer from its errors."""
    dims = "N,5,64" if rank == 3 else "N,64"
    lines = [f"p{k} = MatMul(x, w{k}) q{k} = Mul(p{k}, g{k})" for k in range(len(gains))]
    names = ", ".join(f"q{k}" for k in range(len(gains)))
    rng = np.random.default_rng(0)
    weights = {f"w{k}": rng.normal(size=(WIDTH, WIDTH)) / 8 for k in range(len(gains))}
    scales = {f"g{k}": np.array([g]) for k, g in enumerate(gains)}
    return build(
        f"(float[{dims}] x) => (float[{dims}] y) {{ {' '.join(lines)} y = Sum({names}) }}", **weights, **scales
    )


def network() -> ir.Model:
    """Layers with biases."""
    text = f"""(float[N,{WIDTH}] x) => (float[N,{WIDTH}] y) {{
        p = Gemm(x, w0, b0) q = Relu(p) r = Gemm(q, w1, b1) s = Relu(r) y = Gemm(s, w2)
    }}"""
    rng = np.random.default_rng(1)
    weights = {f"w{k}": rng.normal(size=(WIDTH, WIDTH)) / 8 for k in range(3)}
    return build(text, **weights, b0=rng.normal(size=WIDTH), b1=rng.normal(size=WIDTH))


def samples(count: int, seed: int) -> np.ndarray:
    """Inputs with few common causes, whose mean is not 0."""
    rng = np.random.default_rng(seed)
    return ((rng.normal(size=(count, 8)) + 1) @ MIX + 0.2 * rng.normal(size=(count, WIDTH))).astype(np.float32)


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    """Normal numbers."""
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def damage(model: ir.Model, original: ir.Model, x: np.ndarray) -> Comparison:
    """How far the outputs are from the original's."""
    return compare_outputs(run(original, {"x": x}), run(model, {"x": x}))


def bits_of(model: ir.Model) -> dict[str, int]:
    """The bits of each weight that lies on a grid, which the array confirms."""
    found = {}
    for name, value in model.graph.initializers.items():
        grid = grids.read(value)
        if grid is not None:
            assert grid.indices(np.asarray(const(value))) is not None
            found[name] = grid.bits  # type: ignore[union-attr]
    return found


def given(x: np.ndarray) -> Context:
    """A context in which the user has given these inputs."""
    plain = context("onnx")
    return Context(plain.target, plain.scratch, {"x": x}, True, runs=[{"x": x}])
