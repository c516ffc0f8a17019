"""Zeros and few bits together: masked weights stay masked when they are rounded, and both are stored, bit for bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from coremlpack import parse
from edgec.compiler import shapes
from edgec.compiler.cli import main
from edgec.compiler.graph import nodes
from edgec.compiler.passbase import Context
from edgec.compiler.quantization import grids, packed
from edgec.compiler.quantization.gridfit import GridSpec, fit
from edgec.compiler.quantization.grids import Sparse, Table
from edgec.compiler.session import Session
from edgec.formats.mlpackage import open_package
from edgec.frontends.coreml import load as load_package
from edgec.frontends.coreml.lifter import main_function
from edgec.frontends.onnx import load as load_onnx
from edgec.passes.mask_weights import MaskWeights
from edgec.passes.pack_weights import PackWeights
from edgec.passes.round_weights import RoundWeights
from passcheck import context, ops

DIGITS = Path(__file__).parents[2] / "examples" / "digits"
SHAPE = (64, 48, 3, 3)
MASKS = {
    "unstructured": MaskWeights(ratio=0.6),
    "2:4": MaskWeights(pattern="2:4"),
    "blocks": MaskWeights(ratio=0.5, block=4),
}
ROUNDINGS = {
    "table": RoundWeights(bits=4),
    "tables of 16 channels": RoundWeights(bits=3, group=16),
    "int8": RoundWeights(bits=8, min_snr=0),
    "int4 in blocks": RoundWeights(bits=4, block=16),
    "uint4": RoundWeights(bits=4, symmetric=False),
    "nf4": RoundWeights(scheme="nf4", min_snr=0),
    "ternary": RoundWeights(scheme="ternary"),
    "binary": RoundWeights(scheme="binary"),
}


def masked(mask: MaskWeights, ctx: Context) -> tuple[ir.Model, np.ndarray]:
    rng = np.random.default_rng(0)
    w = rng.standard_t(5, SHAPE).astype(np.float32) * np.exp(rng.normal(size=(64, 1, 1, 1))).astype(np.float32)
    model = parse("g (float[1,48,5,5] x) => (float y) { y = Conv(x, w) }", {"w": w})
    assert mask.run(model, ctx) == 1
    return model, weight(model)


def weight(model: ir.Model) -> np.ndarray:
    (tensor,) = (v.const_value for v in model.graph.initializers.values() if v.const_value is not None)
    return np.array(tensor.numpy())


def stored(model: ir.Model) -> int:
    return sum(v.const_value.nbytes for v in model.graph.initializers.values())  # type: ignore[union-attr]


@pytest.mark.parametrize("target", ["onnx", "ios18", "ios17"])
@pytest.mark.parametrize("pattern", MASKS)
@pytest.mark.parametrize("scheme", ROUNDINGS)
def test_zeros_stay_and_both_are_stored(scheme: str, pattern: str, target: str) -> None:
    """The same zeros before and after; the packed weight is the rounded one; a zero takes a bit where that pays."""
    ctx = context(target)
    model, before = masked(MASKS[pattern], ctx)
    rounding = ROUNDINGS[scheme]
    if not rounding.run(model, ctx):
        assert target == "ios17" and scheme in ("nf4", "ternary", "binary"), "what it has no integers or scales for"
        return
    after = weight(model)
    zero = before == 0
    assert (after[zero] == 0).all() and not np.array_equal(after, before)
    assert np.square(after - before).sum() < np.square(before).sum() * {"binary": 0.6, "ternary": 0.5}.get(scheme, 0.1)
    hint = grids.read(model.graph.initializers["w"])
    assert isinstance(hint, Sparse) and hint.indices(after) is not None
    assert np.array_equal(hint.round(after), after), "rounding twice is rounding once"
    assert PackWeights().run(model, ctx) == 1
    shapes.infer(model)
    ((value, chain),) = packed.roots(model)
    assert np.array_equal(packed.dense(model, value, chain), after)
    assert not packed.lacks(chain, ctx.target.storage)
    bits = {"int8": 8, "tables of 16 channels": 3, "ternary": 2, "binary": 1}.get(scheme, 4)
    share = (after != 0).mean()
    if target == "ios17":
        assert any("ios17 does not store" in n and "ios18" in n for n in ctx.notes) and "SparseWeight" not in ops(model)
    else:
        apart = 1 + share * bits
        extra = 64 * 48 // 16 * 9 * 2 if scheme == "int4 in blocks" else 64 * 27 * 4 if scheme == "nf4" else 1200
        assert stored(model) <= min(apart, bits if scheme != "binary" else 9) * after.size / 8 + extra
        assert (ops(model)["edgec::SparseWeight"] == 1) == (apart < bits or scheme == "binary")


def test_a_table_is_fitted_to_what_is_not_zero() -> None:
    """With zeros among its numbers a table would spend an entry on them, and more where they are many."""
    rng = np.random.default_rng(0)
    w = np.where(rng.random((64, 96)) < 0.3, rng.normal(size=(64, 96)), 0).astype(np.float32)
    for per in ("tensor", "channel"):
        grid = fit(w, 0, GridSpec("table", 2, per=per, zeros="apart"))
        assert isinstance(grid, Sparse) and isinstance(grid.inner, Table) and grid.inner.tables.all()
        plain, within = (fit(w, 0, GridSpec("table", 2, per=per, zeros=z)) for z in ("", "within"))  # type: ignore[arg-type]
        lost = [float(np.square(g.round(w) - w).sum()) for g in (grid, within, plain)]
        assert lost[0] < 0.95 * lost[2] <= 0.95 * lost[1] and lost[1] < lost[2] * 1.1
        assert isinstance(within, Sparse) and isinstance(within.inner, Table) and not within.inner.tables.all()
        kept = within.round(w)
        assert (kept[w == 0] == 0).all() and within.inner.indices(kept) is not None
    empty = np.zeros((8, 16), np.float32)
    for zeros in ("apart", "within"):
        assert not fit(empty, 0, GridSpec("table", 3, zeros=zeros)).round(empty).any()  # type: ignore[arg-type]


def test_feedback_keeps_zeros() -> None:
    """Errors of other inputs are fed to weights that are not zero, and never to those that are."""
    rng = np.random.default_rng(0)
    w = rng.normal(size=(64, 48)).astype(np.float32)
    w[rng.random(w.shape) < 0.5] = 0
    mixed = rng.normal(size=(64, 64)).astype(np.float32)
    model = parse("g (float[64,64] x) => (float y) { y = MatMul(x, w) }", {"w": w})
    runs = [{"x": (rng.normal(size=(64, 64)) @ mixed).astype(np.float32)} for _ in range(8)]
    expected = Session(model).run(runs[-1])["y"]
    noise = {}
    for by in ("feedback", "mse"):
        ctx = context("ios18")
        ctx.inputs, ctx.runs, ctx.given = runs[0], runs, True
        trial = model.clone()
        assert RoundWeights(bits=3, by=by, min_size=1).run(trial, ctx) == 1  # type: ignore[arg-type]
        assert (weight(trial)[w == 0] == 0).all()
        noise[by] = np.square(Session(trial).run(runs[-1])["y"] - expected).sum()
        assert PackWeights(min_size=1).run(trial, ctx) == 1
        assert ops(trial)["edgec::SparseWeight"] == 1
    assert noise["feedback"] < 0.85 * noise["mse"]


CASES = {
    # round-weights; what stores it for ios18, from what is stored to dense; for ios17
    "bits=4": ({"lut_to_sparse", "sparse_blockwise_shift_scale", "sparse_to_dense"}, {"lut_to_dense"}),
    "bits=4,per=tensor": ({"lut_to_sparse", "sparse_to_dense"}, {"lut_to_dense"}),
    "bits=8,min_snr=0": ({"sparse_blockwise_shift_scale", "sparse_to_dense"}, {"affine_dequantize"}),
}


@pytest.mark.parametrize("options", CASES)
@pytest.mark.parametrize("target", ["ios18", "ios17", "onnx"])
def test_from_the_command_line(options: str, target: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A trained model: the file that was written holds the joint form, proven, smaller than without a mask."""
    mask = "mask-weights{ratio=0.6,spread=global}"
    sizes = []
    for name, passes in (("joint", (mask, f"round-weights{{{options}}}", "pack-weights")),
                         ("plain", (f"round-weights{{{options}}}", "pack-weights"))):  # fmt: skip
        out = tmp_path / (f"{name}.onnx" if target == "onnx" else f"{name}.mlpackage")
        arguments = [str(DIGITS / "digits.onnx"), "-O1", "--target", target, "--shape", "N:1", "-v", "-o", str(out)]
        assert main([*arguments, *(f"--pass={p}" for p in passes)]) == 0
        sizes.append(sum(f.stat().st_size for f in out.rglob("*")) if out.is_dir() else out.stat().st_size)
    text = capsys.readouterr().out
    assert text.count("proven") == 2
    out = tmp_path / ("joint.onnx" if target == "onnx" else "joint.mlpackage")
    if target == "onnx":
        model = load_onnx(out)
        assert any(n.op_type == "SparseWeight" for n in nodes(model))
    else:
        model = load_package(out)
        found = {o.type for o in main_function(open_package(out))[2].operations if o.type.startswith("constexpr_")}
        assert found == {f"constexpr_{n}" for n in CASES[options][target == "ios17"]}
    shapes.infer(model)
    zeros = [(packed.dense(model, *root) == 0).mean() for root in packed.roots(model)]
    assert len(zeros) >= 3 and np.mean(zeros) > 0.4
    assert sizes[0] < sizes[1] * (1.02 if target == "ios17" else 0.95)
    if target == "ios17":
        assert "ios17 does not store" in " ".join(text.split())
