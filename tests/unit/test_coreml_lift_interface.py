"""Inputs, outputs and functions of a lifted package: names, types, open dimensions, shared values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from edgec.frontends import coreml


def convert(ct: Any, program: Any, target: str, path: Path, **options: Any) -> Path:
    model = ct.convert(
        program, source="milinternal", minimum_deployment_target=ct.target[target], skip_model_load=True, **options
    )
    model.save(str(path))
    return path


def run(model: ir.Model, feeds: dict[str, Any]) -> dict[str, Any]:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), options)
    return dict(zip([o.name for o in session.get_outputs()], session.run(None, feeds), strict=True))


def test_float16_inputs_and_outputs_keep_their_type(tmp_path: Path) -> None:
    import coremltools as ct
    from coremltools.converters.mil.mil import Builder as mb
    from coremltools.converters.mil.mil import types

    spec = mb.TensorSpec((3,), dtype=types.fp16)
    program = mb.program(input_specs=[spec], opset_version=ct.target.iOS17)(
        lambda x: mb.mul(x=x, y=np.float16(0.1), name="y")
    )
    path = convert(ct, program, "iOS17", tmp_path / "m.mlpackage", pass_pipeline=ct.PassPipeline.EMPTY)
    model = coreml.load(path)
    assert [(v.name, v.dtype) for v in model.graph.inputs] == [("x", ir.DataType.FLOAT16)]
    assert [(v.name, v.dtype) for v in model.graph.outputs] == [("y", ir.DataType.FLOAT16)]
    x = np.array([1.5, -3.0, 1000.0], np.float16)
    assert np.array_equal(run(model, {"x": x})["y"], x * np.float16(0.1))
    computed = [n for n in model.graph if n.op_type == "Mul"]
    assert [v.dtype for n in computed for v in (*n.inputs, *n.outputs)] == [ir.DataType.FLOAT] * 3


def test_one_value_may_be_several_outputs_and_an_input_may_be_returned(tmp_path: Path) -> None:
    import coremltools as ct
    from coremltools.converters.mil.mil import Builder as mb

    spec = mb.TensorSpec((4,))

    @mb.program(input_specs=[spec], opset_version=ct.target.iOS16)
    def program(x: Any) -> Any:
        y = mb.relu(x=x, name="y")
        return y, mb.identity(x=y, name="again"), mb.identity(x=x, name="same")

    path = convert(ct, program, "iOS16", tmp_path / "m.mlpackage", pass_pipeline=ct.PassPipeline.EMPTY)
    x = np.array([-1, 2, -3, 4], np.float32)
    outputs = run(coreml.load(path), {"x": x})
    assert list(outputs) == ["y", "again", "same"]
    assert np.array_equal(outputs["same"], x)
    assert np.array_equal(outputs["again"], outputs["y"]) and np.array_equal(outputs["y"], np.maximum(x, 0))


def test_open_dimensions_are_named_after_their_input(tmp_path: Path) -> None:
    import coremltools as ct
    from coremltools.converters.mil.mil import Builder as mb
    from coremltools.converters.mil.mil import get_new_symbol

    rows = get_new_symbol()
    program = mb.program(input_specs=[mb.TensorSpec((rows, 4))], opset_version=ct.target.iOS16)(
        lambda x: mb.reshape(x=mb.linear(x=x, weight=np.ones((6, 4), np.float32)), shape=[-1, 3], name="y")
    )
    inputs = [ct.TensorType("x", shape=(ct.RangeDim(1, 8), 4))]
    path = convert(ct, program, "iOS16", tmp_path / "m.mlpackage", inputs=inputs,
                   compute_precision=ct.precision.FLOAT32)
    model = coreml.load(path)
    assert [str(d) for d in model.graph.inputs[0].shape or ()] == ["x_0", "4"]
    for count in (1, 5):
        x = np.ones((count, 4), np.float32)
        assert np.array_equal(run(model, {"x": x})["y"], np.full((2 * count, 3), 4, np.float32))


def test_the_default_function_of_several_is_lifted(tmp_path: Path) -> None:
    import coremltools as ct
    from coremltools.converters.mil.mil import Builder as mb

    def save(factor: float) -> Path:
        program = mb.program(input_specs=[mb.TensorSpec((2,))], opset_version=ct.target.iOS18)(
            lambda x: mb.mul(x=x, y=np.float32(factor), name="y")
        )
        options = {"compute_precision": ct.precision.FLOAT32}
        return convert(ct, program, "iOS18", tmp_path / f"{factor}.mlpackage", **options)

    paths = [save(2.0), save(3.0)]
    both = ct.utils.MultiFunctionDescriptor()
    for path, name in zip(paths, ("double", "triple"), strict=True):
        both.add_function(str(path), "main", name)
    both.default_function_name = "triple"
    ct.utils.save_multifunction(both, str(tmp_path / "both.mlpackage"))
    model = coreml.load(tmp_path / "both.mlpackage")
    assert run(model, {"x": np.array([1, 2], np.float32)})["y"].tolist() == [3.0, 6.0]


def test_lifted_models_pass_onnx_checker(tmp_path: Path) -> None:
    """Nested blocks, several outputs and rounding give a model that onnx's full checker accepts."""
    import coremltools as ct
    import onnx
    from coremltools.converters.mil.mil import Builder as mb
    from coremltools.converters.mil.mil import types

    specs = [mb.TensorSpec((2, 3)), mb.TensorSpec((1,), dtype=types.int32)]

    @mb.program(input_specs=specs, opset_version=ct.target.iOS17)
    def program(x: Any, n: Any) -> Any:
        half = mb.cast(x=x, dtype="fp16")
        count = mb.squeeze(x=n)
        grown, _ = mb.while_loop(
            _cond=lambda v, k: mb.greater(x=k, y=0),
            _body=lambda v, k: (mb.mul(x=v, y=np.float16(2)), mb.sub(x=k, y=1)),
            loop_vars=(half, count),
        )
        chosen = mb.cond(
            pred=mb.less(x=count, y=3), _true_fn=lambda: mb.relu(x=grown), _false_fn=lambda: mb.tanh(x=grown)
        )
        return mb.cast(x=chosen, dtype="fp32", name="y")

    path = convert(ct, program, "iOS17", tmp_path / "m.mlpackage", pass_pipeline=ct.PassPipeline.EMPTY)
    model = coreml.load(path)
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    x = np.array([[1, -2, 0.5], [0.25, -1, 3]], np.float32)
    assert np.array_equal(run(model, {"x": x, "n": np.array([2], np.int32)})["y"], np.maximum(4 * x, 0))
    grown = np.tanh(8 * x).astype(np.float16).astype(np.float32)
    assert np.allclose(run(model, {"x": x, "n": np.array([3], np.int32)})["y"], grown, atol=1e-3)
