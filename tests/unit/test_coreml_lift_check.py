"""The structural check: sound programs pass, each kind of fault is named; and what the lifter refuses."""

from __future__ import annotations

import importlib.util
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgec.compiler.errors import EdgecError, ModelError, UnsupportedOp
from edgec.formats import coremlproto
from edgec.formats.mlpackage import Package, open_package
from edgec.frontends import coreml
from edgec.frontends.coreml.check import check, signature, signatures

ROOT = Path(coreml.__file__).resolve().parents[2]
WEIGHT = np.linspace(-1, 1, 64, dtype=np.float32).reshape(8, 8)


def convert(program: Any, target: str, path: Path, **options: Any) -> Path:
    import coremltools as ct

    model = ct.convert(
        program, source="milinternal", minimum_deployment_target=ct.target[target], skip_model_load=True,
        compute_units=ct.ComputeUnit.CPU_ONLY, **options,
    )
    model.save(str(path))
    return path


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two operators and a weight file; CoreML7."""
    import coremltools as ct
    from coremltools.converters.mil.mil import Builder as mb

    spec = mb.TensorSpec((2, 8))
    program = mb.program(input_specs=[spec], opset_version=ct.target.iOS17)(
        lambda x: mb.relu(x=mb.linear(x=x, weight=WEIGHT), name="y")
    )
    options = {"compute_precision": ct.precision.FLOAT32}
    return convert(program, "iOS17", tmp_path_factory.mktemp("check") / "m.mlpackage", **options)


def block(package: Package) -> Any:
    function = package.spec.mlProgram.functions["main"]
    return function.block_specializations[function.opset]


def operation(package: Package, kind: str) -> Any:
    return next(op for op in block(package).operations if op.type == kind)


def test_a_sound_program_has_no_problems(package: Path) -> None:
    assert check(open_package(package)) == []


def _rename_output(p: Package, new: str) -> None:
    old = operation(p, "linear").outputs[0].name
    operation(p, "linear").outputs[0].name = new
    operation(p, "relu").inputs["x"].arguments[0].name = new
    assert old != new


def _drop(p: Package, kind: str, parameter: str) -> None:
    del operation(p, kind).inputs[parameter]


def _set_type(p: Package, kind: str, name: str) -> None:
    operation(p, kind).outputs[0].type.tensorType.dataType = coremlproto.mil_pb2().DataType.Value(name)


def _move_blob(p: Package, offset: int) -> None:
    for op in block(p).operations:
        if op.type == "const" and op.attributes["val"].WhichOneof("value") == "blobFileValue":
            op.attributes["val"].blobFileValue.offset = offset


def _retype_blob(p: Package) -> None:
    for op in block(p).operations:
        if op.type == "const" and op.attributes["val"].WhichOneof("value") == "blobFileValue":
            op.attributes["val"].type.tensorType.dataType = coremlproto.mil_pb2().DataType.Value("FLOAT16")


def _move_to_opset(p: Package, opset: str) -> None:
    function = p.spec.mlProgram.functions["main"]
    function.block_specializations[opset].CopyFrom(function.block_specializations[function.opset])
    function.opset = opset


FAULTS: dict[str, tuple[Callable[[Package], Any], str]] = {
    "illegal name": (lambda p: _rename_output(p, "a/b"), "'a/b', defined by linear 'a/b', is not a legal name"),
    "name starts with a digit": (lambda p: _rename_output(p, "1a"), "is not a legal name"),
    "second definition": (lambda p: _rename_output(p, "x"), "'x' is defined a second time"),
    "use before definition": (
        lambda p: setattr(operation(p, "linear").inputs["x"].arguments[0], "name", "y"),
        "'y', which is not defined before"),
    "unknown operator": (lambda p: setattr(operation(p, "relu"), "type", "relu7"), "relu7 'y': is unknown"),
    "operator of a later opset": (
        lambda p: setattr(operation(p, "relu"), "type", "slice_update"), "slice_update 'y': needs opset CoreML8"),
    "missing input": (lambda p: _drop(p, "linear", "weight"), "its required input 'weight' is missing"),
    "unknown input": (
        lambda p: operation(p, "relu").inputs["alpha"].CopyFrom(operation(p, "relu").inputs["x"]),
        "relu 'y': has no input 'alpha' in CoreML7"),
    "two values for one input": (
        lambda p: operation(p, "relu").inputs["x"].arguments.add(name="x"), "its input 'x' takes one value and got 2"),
    "not a constant": (
        lambda p: operation(p, "linear").inputs["weight"].CopyFrom(operation(p, "linear").inputs["x"]),
        "its input 'weight' must be a constant"),
    "type that the operator lacks": (lambda p: _set_type(p, "linear", "INT32"), "its input 'x' is int32, allowed are"),
    "output that does not exist": (lambda p: block(p).outputs.append("z"), "the block output 'z' is never defined"),
    "output type": (lambda p: _set_type(p, "relu", "FLOAT16"), "output 'y' is FLOAT32 in the description and fp16"),
    "input shape": (
        lambda p: p.spec.description.input[0].type.multiArrayType.shape.append(1),
        "input 'x' is [2, 8, 1] in the description"),
    "input that is not described": (lambda p: p.spec.description.input.pop(), "the program has an input 'x' that the"),
    "output that is not there": (
        lambda p: setattr(p.spec.description.output.add(), "name", "q"), "the description has an output 'q'"),
    "specification too old": (
        lambda p: setattr(p.spec, "specificationVersion", 6), "specificationVersion 6 is too old for CoreML7"),
    "unknown opset": (lambda p: _move_to_opset(p, "CoreML4"), "for opset 'CoreML4'; known are CoreML5 to CoreML9"),
    "blob offset": (lambda p: _move_blob(p, 1 << 40), "lies outside the file"),
    "blob offset into data": (lambda p: _move_blob(p, 128), "has no valid metadata"),
    "blob of another type": (_retype_blob, "is declared as fp16[8, 8] (128 bytes), but the constant at offset"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_every_fault_is_named(package: Path, name: str) -> None:
    damage, expected = FAULTS[name]
    opened = open_package(package)
    damage(opened)
    problems = check(opened)
    assert any(expected in p for p in problems), problems


def test_load_refuses_and_lists_all_problems(package: Path, tmp_path: Path) -> None:
    import shutil

    copy = Path(shutil.copytree(package, tmp_path / "bad.mlpackage"))
    opened = open_package(copy)
    _rename_output(opened, "a/b")
    opened.spec.specificationVersion = 6
    opened.spec_path.write_bytes(opened.spec.SerializeToString())
    with pytest.raises(ModelError) as caught:
        coreml.load(copy)
    message = str(caught.value)
    assert "bad.mlpackage does not hold a valid program" in message
    assert "a/b" in message and "specificationVersion 6" in message


def test_a_declared_shape_that_the_operator_does_not_give_is_refused(package: Path, tmp_path: Path) -> None:
    import shutil

    copy = Path(shutil.copytree(package, tmp_path / "bad.mlpackage"))
    opened = open_package(copy)
    operation(opened, "linear").outputs[0].type.tensorType.dimensions[1].constant.size = 7
    opened.spec_path.write_bytes(opened.spec.SerializeToString())
    with pytest.raises(ModelError, match=r"linear '.*' is declared as \[2, 7\], but gives \[2, 8\]"):
        coreml.load(copy)


def _mutate(package: Package, rng: random.Random) -> None:
    """Change one thing in a program: a constant, an argument, or a declared shape."""
    operations = list(block(package).operations)
    kind = rng.randrange(4)
    if kind == 0:
        constants = [op for op in operations if op.type == "const"]
        values = rng.choice(constants).attributes["val"].immediateValue.tensor.ints.values
        if values and rng.random() < 0.5:
            values[rng.randrange(len(values))] = rng.choice([-5, -1, 0, 1, 7, 1000, -(2**31)])
        elif values:
            values.pop()
    elif kind == 3:
        tensor = rng.choice(operations).outputs[0].type.tensorType
        if tensor.dimensions:
            tensor.dimensions[rng.randrange(len(tensor.dimensions))].constant.size = rng.choice([0, 1, 3, 10**6])
    else:
        inputs = rng.choice([op for op in operations if op.inputs]).inputs
        parameter = rng.choice(sorted(inputs))
        if kind == 1:
            del inputs[parameter]
        else:
            inputs[parameter].arguments[0].name = rng.choice(operations).outputs[0].name


def test_a_mutated_program_is_lifted_or_refused_with_one_message(tmp_path: Path) -> None:
    import shutil

    import coremltools as ct
    from coremltools.converters.mil.mil import Builder as mb

    spec = mb.TensorSpec((1, 3, 9, 9))

    @mb.program(input_specs=[spec], opset_version=ct.target.iOS17)
    def program(x: Any) -> Any:
        kernel = np.ones((4, 3, 3, 3), np.float32)
        x = mb.conv(x=x, weight=kernel, strides=[2, 2], pad_type="custom", pad=[1, 1, 0, 0], dilations=[1, 1])
        x = mb.avg_pool(x=x, kernel_sizes=[2, 2], strides=[1, 1], pad_type="custom", pad=[1, 1, 1, 1], ceil_mode=True)
        x = mb.slice_by_index(x=mb.transpose(x=x, perm=[0, 2, 3, 1]), begin=[0, 1, 0, 0], end=[1, 3, 2, 4])
        return mb.reduce_mean(x=mb.reshape(x=x, shape=[2, -1]), axes=[1], keep_dims=True, name="y")

    path = convert(program, "iOS17", tmp_path / "m.mlpackage", pass_pipeline=ct.PassPipeline.EMPTY)
    coreml.load(path)
    copy = Path(shutil.copytree(path, tmp_path / "copy.mlpackage"))
    rng = random.Random(0)
    refused = 0
    for _ in range(120):
        mutant = open_package(path)
        _mutate(mutant, rng)
        (copy / "Data/com.apple.CoreML/model.mlmodel").write_bytes(mutant.spec.SerializeToString())
        try:
            coreml.load(copy)
        except EdgecError as error:
            refused += 1
            assert "copy.mlpackage" in str(error)
    assert refused > 60


def test_the_old_lookup_table_signature_is_caught_under_a_new_opset(tmp_path: Path) -> None:
    """coremltools writes a program built for iOS 16 as CoreML8 without complaint, with the inputs of iOS 16."""
    import coremltools as ct
    from coremltools.converters.mil.mil import Builder as mb

    spec = mb.TensorSpec((4, 4))

    @mb.program(input_specs=[spec], opset_version=ct.target.iOS16)
    def program(x: Any) -> Any:
        table = mb.constexpr_lut_to_dense(
            indices=np.array([0b11100100] * 4, np.uint8), lut=np.arange(4, dtype=np.float32),
            shape=np.array([4, 4], np.uint32),
        )
        return mb.add(x=x, y=table)

    path = convert(program, "iOS18", tmp_path / "m.mlpackage", pass_pipeline=ct.PassPipeline.EMPTY)
    assert any("constexpr_lut_to_dense" in p and "no input 'shape' in CoreML8" in p for p in check(open_package(path)))
    with pytest.raises(ModelError, match="no input 'shape' in CoreML8"):
        coreml.load(path)


def test_colliding_names_that_an_empty_pipeline_leaves_are_caught(tmp_path: Path) -> None:
    import coremltools as ct
    from coremltools.converters.mil.mil import Builder as mb

    spec = mb.TensorSpec((4,))
    program = mb.program(input_specs=[spec], opset_version=ct.target.iOS16)(
        lambda x: mb.add(x=mb.relu(x=x, name="/a.b"), y=mb.tanh(x=x, name="_a_b"), name="out")
    )
    path = convert(program, "iOS16", tmp_path / "m.mlpackage", pass_pipeline=ct.PassPipeline.EMPTY)
    assert any("'_a_b' is defined a second time" in p for p in check(open_package(path)))


def test_all_unsupported_operators_are_listed_at_once(tmp_path: Path) -> None:
    import coremltools as ct
    from coremltools.converters.mil.mil import Builder as mb

    spec = mb.TensorSpec((1, 4, 4, 4))

    @mb.program(input_specs=[spec], opset_version=ct.target.iOS16)
    def program(x: Any) -> Any:
        noise = mb.random_normal(shape=[1, 4, 4, 4], name="noise")
        normal = mb.local_response_norm(x=mb.add(x=x, y=noise), size=2, name="even")
        return mb.add(x=normal, y=mb.random_uniform(shape=[4, 4], name="more"))

    path = convert(program, "iOS16", tmp_path / "m.mlpackage", pass_pipeline=ct.PassPipeline.EMPTY)
    with pytest.raises(UnsupportedOp) as caught:
        coreml.load(path)
    assert [(m.op, m.node) for m in caught.value.missing] == [("random_normal", "noise"), ("random_uniform", "more")]
    assert "random_normal (node 'noise')" in str(caught.value)


def test_a_neural_network_is_refused_with_a_remedy(tmp_path: Path) -> None:
    import coremltools as ct
    from coremltools.converters.mil.mil import Builder as mb

    spec = mb.TensorSpec((1, 4))
    program = mb.program(input_specs=[spec])(lambda x: mb.relu(x=x))
    model = ct.convert(program, source="milinternal", convert_to="neuralnetwork")
    path = tmp_path / "n.mlpackage"
    ct.models.utils.save_spec(model.get_spec(), str(path))
    with pytest.raises(ModelError, match=r"holds a model of type 'neuralNetwork', not an ML Program\. .*mlprogram"):
        coreml.load(path)


def test_signatures_are_those_of_the_installed_coremltools(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("mil_signatures", ROOT / "tools" / "mil_signatures.py")
    assert spec is not None and spec.loader is not None
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    assert tool.render(tool.signatures()) == (ROOT / "frontends" / "coreml" / "signatures.json").read_text()


def test_signatures_follow_the_opset() -> None:
    assert signature("constexpr_lut_to_dense", 5) is None
    old, new = signature("constexpr_lut_to_dense", 7), signature("constexpr_lut_to_dense", 9)
    assert old is not None and "shape" in old["inputs"]
    assert new is not None and "shape" not in new["inputs"]
    assert len(signatures()) > 160


def test_checking_and_lifting_import_no_coremltools(package: Path) -> None:
    script = (
        "import sys\n"
        "from edgec.frontends.coreml import load\n"
        f"model = load({str(package)!r})\n"
        "assert 'coremltools' not in sys.modules, 'coremltools was imported'\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_large_weights_stay_in_the_weight_file(tmp_path: Path) -> None:
    import coremltools as ct
    import onnx_ir as ir
    from coremltools.converters.mil.mil import Builder as mb

    weight = np.random.default_rng(0).normal(size=(32, 64)).astype(np.float32)
    spec = mb.TensorSpec((2, 64))
    program = mb.program(input_specs=[spec], opset_version=ct.target.iOS16)(lambda x: mb.linear(x=x, weight=weight))
    path = convert(program, "iOS16", tmp_path / "m.mlpackage")
    model = coreml.load(path)
    mapped = [v.const_value for v in model.graph.initializers.values() if isinstance(v.const_value, ir.ExternalTensor)]
    assert [(t.dtype, tuple(t.shape)) for t in mapped] == [(ir.DataType.FLOAT16, (32, 64))]
    assert Path(mapped[0].path) == path / "Data/com.apple.CoreML/weights/weight.bin"
    assert np.array_equal(mapped[0].numpy(), weight.astype(np.float16))
