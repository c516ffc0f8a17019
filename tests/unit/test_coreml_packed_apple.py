"""Packages that coremltools.optimize compresses: read right, and written by us with the same operators and bytes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from packedforms import FORMS, arrays, packed

from edgec.backends.coreml import BACKEND
from edgec.compiler import shapes
from edgec.compiler.backend import EmitOptions
from edgec.compiler.cli import main
from edgec.compiler.session import Session
from edgec.compiler.targets import find_target
from edgec.formats.mlpackage import open_package
from edgec.frontends.coreml import load
from edgec.frontends.coreml.check import check as faults
from edgec.frontends.coreml.lifter import main_function
from edgec.frontends.onnx import load as load_onnx

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def ct() -> Any:
    import coremltools
    import coremltools.optimize.coreml

    return coremltools


def program(ct: Any, target: str) -> Any:
    """A convolution and a matrix product in float16."""
    from coremltools.converters.mil.mil import Builder as mb

    rng = np.random.default_rng(0)
    conv = rng.normal(size=(32, 16, 3, 3)).astype(np.float16)
    linear = rng.normal(size=(48, 32)).astype(np.float16)
    version = getattr(ct.target, f"iOS{target.removeprefix('ios')}")
    spec = mb.TensorSpec((1, 16, 5, 5), dtype=ct.converters.mil.mil.types.fp16)

    @mb.program(input_specs=[spec], opset_version=version)  # type: ignore[untyped-decorator]
    def made(x: Any) -> Any:
        y = mb.conv(x=x, weight=conv, pad_type="valid")
        y = mb.reduce_mean(x=y, axes=[2, 3])
        return mb.linear(x=y, weight=linear)

    return ct.convert(made, minimum_deployment_target=version, skip_model_load=True)


def config(ct: Any, name: str, **options: Any) -> Any:
    cto = ct.optimize.coreml
    return cto.OptimizationConfig(global_config=getattr(cto, name)(weight_threshold=0, **options))


def palettize(ct: Any, model: Any, joint: bool = False, **options: Any) -> Any:
    """With evenly spaced tables: its k-means needs scikit-learn."""
    chosen = config(ct, "OpPalettizerConfig", mode="uniform", **options)
    return ct.optimize.coreml.palettize_weights(model, chosen, joint_compression=joint)


def vectors(ct: Any, model: Any, bits: int, dim: int, groups: int = 1) -> Any:
    """A program of its own: what coremltools chooses such tables with needs scikit-learn as well."""
    from coremltools.converters.mil.mil import Builder as mb
    from coremltools.converters.mil.mil import types

    rng, kind = np.random.default_rng(0), types.nptype_from_builtin(types.string_to_builtin(f"uint{bits}"))
    indices = rng.integers(0, 1 << bits, (32 // dim, 16, 3, 3)).astype(kind)
    lut = rng.normal(size=(groups, 1, 1, 1, 1 << bits, dim)).astype(np.float16)

    @mb.program(input_specs=[mb.TensorSpec((1, 16, 5, 5), dtype=types.fp16)], opset_version=ct.target.iOS18)  # type: ignore[untyped-decorator]
    def made(x: Any) -> Any:
        return mb.conv(x=x, weight=mb.constexpr_lut_to_dense(indices=indices, lut=lut, vector_axis=0), pad_type="valid")

    return ct.convert(made, minimum_deployment_target=ct.target.iOS18, skip_model_load=True)


def prune(ct: Any, model: Any, **options: Any) -> Any:
    return ct.optimize.coreml.prune_weights(model, config(ct, "OpMagnitudePrunerConfig", **options))


def quantize(ct: Any, model: Any, joint: bool = False, **options: Any) -> Any:
    chosen = config(ct, "OpLinearQuantizerConfig", **options)
    return ct.optimize.coreml.linear_quantize_weights(model, chosen, joint_compression=joint)


Step = tuple[Callable[..., Any], dict[str, Any]]
GROUPED = {"granularity": "per_grouped_channel", "group_size": 8}
HALF = {"target_sparsity": 0.5}
CASES: dict[str, tuple[str, list[Step]]] = {
    **{f"ios16 {n}-bit table": ("ios16", [(palettize, {"nbits": n})]) for n in (1, 2, 4, 6, 8)},
    "ios16 sparse": ("ios16", [(prune, HALF)]),
    "ios16 int8": ("ios16", [(quantize, {"dtype": "int8", "mode": "linear_symmetric"})]),
    "ios16 uint8": ("ios16", [(quantize, {"dtype": "uint8", "mode": "linear"})]),
    **{f"ios18 {n}-bit table": ("ios18", [(palettize, {"nbits": n})]) for n in (1, 2, 3, 4, 6)},
    "ios18 grouped": ("ios18", [(palettize, {"nbits": 3, **GROUPED})]),
    "ios18 grouped along inputs": ("ios18", [(palettize, {"nbits": 2, **GROUPED, "channel_axis": 1})]),
    "ios18 sparse": ("ios18", [(prune, HALF)]),
    "ios18 2:4": ("ios18", [(prune, {"n_m_ratio": (2, 4)})]),
    "ios18 int8": ("ios18", [(quantize, {"dtype": "int8", "granularity": "per_channel"})]),
    "ios18 int4 in blocks": ("ios18", [(quantize, {"dtype": "int4", "granularity": "per_block", "block_size": 8})]),
    "ios18 uint4 in blocks": (
        "ios18", [(quantize, {"dtype": "uint4", "mode": "linear", "granularity": "per_block", "block_size": 8})]),
    "ios18 int8 per tensor": ("ios18", [(quantize, {"dtype": "int8", "granularity": "per_tensor"})]),
    "ios18 sparse table": ("ios18", [(prune, HALF), (palettize, {"joint": True, "nbits": 4})]),
    "ios18 sparse grouped": ("ios18", [(prune, HALF), (palettize, {"joint": True, "nbits": 2, **GROUPED})]),
    "ios18 sparse int8": ("ios18", [(prune, HALF), (quantize, {"joint": True, "dtype": "int8"})]),
    "ios18 sparse int4": ("ios18", [(prune, HALF), (quantize, {"joint": True, "dtype": "int4"})]),
}  # fmt: skip

LIFTED: dict[str, list[Step]] = {
    "a table quantised itself": [
        (palettize, {"nbits": 4}), (quantize, {"joint": True, "dtype": "int8", "granularity": "per_tensor"})],
    "scales that coremltools moves into tables of three axes": [
        (palettize, {"nbits": 4, "enable_per_channel_scale": True})],
}  # fmt: skip
"""What we read and don't write: our table with scales is a table, and scales behind it."""


def compressed(ct: Any, steps: list[Step], target: str, path: Path) -> np.ndarray:
    """Write what coremltools makes; what it computes, by its own decompression and our reader of dense programs."""
    model = program(ct, target)
    for step, options in steps:
        model = step(ct, model, **options)
    model.save(str(path))
    dense = ct.optimize.coreml.decompress_weights(model)
    plain = path.with_name("dense.mlpackage")
    dense.save(str(plain))
    return run(plain)


def run(path: Path) -> np.ndarray:
    model = load(path)
    (found,) = Session(model).run({model.graph.inputs[0].name or "": inputs(model)}).values()
    return found.astype(np.float32)


def inputs(model: ir.Model) -> np.ndarray:
    kind = model.graph.inputs[0].dtype
    assert kind is not None
    return np.random.default_rng(1).normal(size=(1, 16, 5, 5)).astype(kind.numpy())


def operators(path: Path) -> list[str]:
    """The constexpr operators with their inputs and attributes."""
    return sorted(
        f"{op.type}({', '.join(sorted([*op.inputs, *op.attributes]))})"
        for op in main_function(open_package(path))[2].operations
        if op.type.startswith("constexpr_")
    )


@pytest.mark.parametrize("name", CASES)
def test_the_same_operators_and_bytes(ct: Any, name: str, tmp_path: Path) -> None:
    """Lifted: the numbers of coremltools' own decompression. Written again: operators, types and bytes as read."""
    target, steps = CASES[name]
    theirs, ours = tmp_path / "theirs.mlpackage", tmp_path / "ours.mlpackage"
    expected = compressed(ct, steps, target, theirs)
    got = run(theirs)
    np.testing.assert_allclose(got, expected, atol=2e-3 * np.abs(expected).max())
    assert not faults(open_package(theirs))
    model = load(theirs)
    shapes.infer(model)
    BACKEND.emit(model, find_target(target), ours, EmitOptions(io="fp16"))
    assert not faults(open_package(ours))
    assert operators(ours) == operators(theirs)
    # coremltools stores the mask of a joint form once for each operator; we hand it on.
    twice = [a for a in arrays(theirs) if "sparse" in name and len(steps) == 2 and a[0].endswith("to_dense.mask")]
    assert sorted([*arrays(ours), *twice]) == arrays(theirs)
    np.testing.assert_array_equal(run(ours), got)


VECTORS: dict[str, tuple[str, list[Step]]] = {
    "ios18 vectors of 2": ("ios18", [(vectors, {"bits": 4, "dim": 2})]),
    "ios18 vectors of 4 in groups": ("ios18", [(vectors, {"bits": 3, "dim": 4, "groups": 4})]),
    "ios18 sparse 2:4 int4 in blocks": ("ios18", [
        (prune, {"n_m_ratio": (2, 4)}),
        (quantize, {"joint": True, "dtype": "int4", "granularity": "per_block", "block_size": 8})]),
}  # fmt: skip


@pytest.mark.parametrize("name", [*CASES, *LIFTED, *VECTORS])
def test_what_is_compressed_stays_so_through_the_compiler(ct: Any, name: str, tmp_path: Path) -> None:
    """From the command line: the same numbers in no more bytes of weights, as a package and as ONNX."""
    target, steps = {**CASES, **VECTORS}.get(name) or ("ios18", LIFTED[name])
    theirs = tmp_path / "theirs.mlpackage"
    compressed(ct, steps, target, theirs)
    expected, stored = run(theirs), sum(len(data) for _, _, data in arrays(theirs))
    ours = tmp_path / "ours.mlpackage"
    assert main([str(theirs), "-O1", "--target", target, "--io", "fp16", "-o", str(ours)]) == 0
    np.testing.assert_array_equal(run(ours), expected)
    last = ("to_dense", "shift_scale", "dequantize")
    assert sum(any(x in o for x in last) for o in operators(ours)) >= 1 + ("vectors" not in name)
    # A table of integers becomes one of float16.
    assert sum(len(data) for _, _, data in arrays(ours)) <= stored + 2 * 16 * (name == "a table quantised itself")
    onnx = tmp_path / "ours.onnx"
    assert main([str(theirs), "-O1", "--target", "onnx", "-o", str(onnx)]) == 0
    model = load_onnx(onnx)
    (got,) = Session(model, bodies=True).run({model.graph.inputs[0].name or "": inputs(model)}).values()
    np.testing.assert_allclose(got.astype(np.float32), expected, atol=2e-3 * np.abs(expected).max())
    weights = sum(v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value is not None)
    assert weights <= stored + 1024, "and scales in float32, a bias of zeros, shapes"


@pytest.mark.parametrize("name", LIFTED)
def test_other_forms_are_read(ct: Any, name: str, tmp_path: Path) -> None:
    theirs = tmp_path / "theirs.mlpackage"
    expected = compressed(ct, LIFTED[name], "ios18", theirs)
    np.testing.assert_allclose(run(theirs), expected, atol=2e-3 * np.abs(expected).max())


@pytest.mark.parametrize("target", ["ios18", "ios16"])
@pytest.mark.parametrize("name", FORMS)
def test_coremltools_decompresses_what_we_write(ct: Any, name: str, target: str, tmp_path: Path) -> None:
    """Its loader checks every operator's types and shapes, and its decompression gives the numbers that we meant."""
    ours, plain = tmp_path / "ours.mlpackage", tmp_path / "plain.mlpackage"
    model = packed(name, target, halved=True)
    BACKEND.emit(model, find_target(target), ours, EmitOptions())
    dense = ct.optimize.coreml.decompress_weights(ct.models.MLModel(str(ours), skip_model_load=True))
    dense.save(str(plain))
    assert not any(o.startswith("constexpr_") for o in operators(plain))
    x = {"x": np.random.default_rng(0).normal(size=(1, 8, 9, 9)).astype(np.float32)}
    (got,) = Session(load(plain)).run(x).values()
    expected = Session(model).run(x)["y"]
    np.testing.assert_allclose(got, expected, atol=2e-3 * np.abs(expected).max())
