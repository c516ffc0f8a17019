"""Loading .onnx files: weights stay on disk, what is wrong is said once and clearly."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

import edgec
from edgec.compiler.errors import ModelError, PassFailed, UnsupportedOp, UsageError
from edgec.compiler.session import Session
from edgec.frontends import onnx as frontend
from edgec.frontends.onnx import load

RNG = np.random.default_rng(0)
WEIGHT = RNG.standard_normal((64, 32)).astype(np.float32)
BIAS = RNG.standard_normal(32).astype(np.float32)


def make_model(opset: int = 17, weight: onnx.TensorProto | None = None) -> onnx.ModelProto:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Add", ["h", "b"], ["y"])]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 32])],
        [weight or numpy_helper.from_array(WEIGHT, "w"), numpy_helper.from_array(BIAS, "b")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def saved(proto: onnx.ModelProto, path: Path) -> Path:
    path.write_bytes(proto.SerializeToString())
    return path


def run(path: Path) -> np.ndarray:
    x = RNG.standard_normal((3, 64)).astype(np.float32)
    (y,) = Session(load(path)).run({"x": x}).values()
    np.testing.assert_allclose(y, x @ WEIGHT + BIAS, rtol=1e-4, atol=1e-4)
    return y


def test_weights_are_mapped_from_the_file_itself(tmp_path: Path) -> None:
    model = load(saved(make_model(), tmp_path / "m.onnx"))
    tensor = model.graph.initializers["w"].const_value
    assert isinstance(tensor, ir.ExternalTensor) and Path(tensor.path) == tmp_path / "m.onnx"
    assert np.array_equal(tensor.numpy(), WEIGHT)
    run(tmp_path / "m.onnx")


def test_packed_float_data_is_mapped_too(tmp_path: Path) -> None:
    weight = helper.make_tensor("w", TensorProto.FLOAT, WEIGHT.shape, WEIGHT.ravel().tolist())
    assert not weight.raw_data
    model = load(saved(make_model(weight=weight), tmp_path / "m.onnx"))
    assert isinstance(model.graph.initializers["w"].const_value, ir.ExternalTensor)
    run(tmp_path / "m.onnx")


@pytest.mark.parametrize("opset", [7, 9, 11, 13, 17, 21, 25])
def test_any_opset_from_seven_arrives_at_the_pinned_one(opset: int, tmp_path: Path) -> None:
    model = load(saved(make_model(opset), tmp_path / "m.onnx"))
    assert model.opset_imports[""] == 25
    run(tmp_path / "m.onnx")


def test_an_older_opset_is_refused_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"m\.onnx: opset 6 is older than 7; export again"):
        load(saved(make_model(6), tmp_path / "m.onnx"))


def test_a_big_constant_node_becomes_an_initializer(tmp_path: Path) -> None:
    proto = make_model()
    proto.graph.initializer.pop(0)
    constant = helper.make_node("Constant", [], ["w"], value=numpy_helper.from_array(WEIGHT, "anything"))
    proto.graph.node.insert(0, constant)
    model = load(saved(proto, tmp_path / "m.onnx"))
    assert isinstance(model.graph.initializers["w"].const_value, ir.ExternalTensor)
    run(tmp_path / "m.onnx")


def test_initializers_that_are_inputs_become_constants(tmp_path: Path) -> None:
    proto = make_model()
    proto.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, WEIGHT.shape))
    model = load(saved(proto, tmp_path / "m.onnx"))
    assert [v.name for v in model.graph.inputs] == ["x"]
    run(tmp_path / "m.onnx")


def external(tmp_path: Path, location: str = "w.bin", data: bytes | None = None, offset: int = 0) -> Path:
    weight = TensorProto(name="w", dims=WEIGHT.shape, data_type=TensorProto.FLOAT)
    weight.data_location = TensorProto.EXTERNAL
    entries = (("location", location), ("offset", str(offset)), ("length", str(WEIGHT.nbytes)))
    for key, value in entries:
        weight.external_data.add(key=key, value=value)
    if data is not None:
        (tmp_path / location).write_bytes(data)
    return saved(make_model(weight=weight), tmp_path / "m.onnx")


def test_external_data_is_found_beside_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = external(tmp_path, data=b"\0" * 64 + WEIGHT.tobytes(), offset=64)
    monkeypatch.chdir("/")
    run(path)


@pytest.mark.parametrize("route", ["../models/m.onnx", "../there/../models/m.onnx", "./m.onnx"])
def test_a_path_with_dots_leads_to_the_model(route: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own folder stays its own folder; `there` is a link elsewhere, so that `..` behind it is not textual."""
    folder, elsewhere = tmp_path / "models", tmp_path / "deep" / "er"
    folder.mkdir()
    elsewhere.mkdir(parents=True)
    (tmp_path / "there").symlink_to(elsewhere)
    (tmp_path / "deep" / "models").symlink_to(folder)
    external(folder, data=WEIGHT.tobytes())
    monkeypatch.chdir(folder)
    run(Path(route))
    saved(make_model(), folder / "m.onnx")
    run(Path(route))


def test_external_data_behind_links_of_a_model_hub_is_found(tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshot"
    blobs.mkdir()
    snapshot.mkdir()
    external(blobs, data=WEIGHT.tobytes())
    for name in ("m.onnx", "w.bin"):
        (blobs / name).rename(blobs / f"{name}-sha")
        (snapshot / name).symlink_to(blobs / f"{name}-sha")
    run(snapshot / "m.onnx")


@pytest.mark.parametrize("location", ["../w.bin", "/etc/passwd", "a/../../w.bin", "", "w\0", ".."])
def test_external_data_outside_the_folder_is_refused(location: str, tmp_path: Path) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    (tmp_path / "w.bin").write_bytes(WEIGHT.tobytes())
    with pytest.raises(ModelError, match=r"initializer 'w' points (outside|to)"):
        load(external(inside, location))


def test_a_link_that_leads_outside_is_refused(tmp_path: Path) -> None:
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    inside.mkdir()
    outside.mkdir()
    (outside / "secret").write_bytes(WEIGHT.tobytes())
    (inside / "w.bin").symlink_to(outside / "secret")
    with pytest.raises(ModelError, match="outside the model's folder"):
        load(external(inside))


def test_missing_and_cut_off_external_data(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"weights file 'w\.bin' is missing \(initializer 'w'\)"):
        load(external(tmp_path))
    with pytest.raises(ModelError, match=r"needs 8,192 bytes at offset 0 of 'w\.bin', which holds 100"):
        load(external(tmp_path, data=b"x" * 100))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n", "not an ONNX file|cut off"),
        (b"\x00\x01\x02\x03" * 50, "not an ONNX file|cut off"),
        (b"\x08\x08", "holds no ONNX graph"),
    ],
)
def test_what_is_not_a_model_is_named(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=message) as error:
        load(path)
    assert "bad.onnx" in str(error.value)


@pytest.mark.parametrize("part", [0.1, 0.5, 0.9, 0.999])
def test_a_cut_off_file_is_named(part: float, tmp_path: Path) -> None:
    data = make_model().SerializeToString()
    path = tmp_path / "cut.onnx"
    path.write_bytes(data[: int(len(data) * part)])
    with pytest.raises(ModelError, match=r"cut\.onnx"):
        load(path)


def test_a_graph_without_outputs_is_named(tmp_path: Path) -> None:
    proto = make_model()
    del proto.graph.output[:]
    with pytest.raises(ModelError, match=r"m\.onnx: the graph has no output"):
        load(saved(proto, tmp_path / "m.onnx"))


def test_a_value_that_is_computed_twice_is_named(tmp_path: Path) -> None:
    proto = make_model()
    node, twin = proto.graph.node[-1], proto.graph.node.add()
    twin.CopyFrom(node)
    with pytest.raises(ModelError, match=rf"m\.onnx: .*'{node.output[0]}'"):
        load(saved(proto, tmp_path / "m.onnx"))


def test_an_opset_from_the_future_is_named(tmp_path: Path) -> None:
    proto = make_model()
    proto.opset_import[0].version = 99
    with pytest.raises(ModelError, match=r"m\.onnx: opset 99 is newer than what onnx .* knows"):
        load(saved(proto, tmp_path / "m.onnx"))


def test_unknown_operators_are_all_listed(tmp_path: Path) -> None:
    """Before onnx's converter meets the first one: it would name that one alone, and no node."""
    proto = make_model()
    proto.graph.node.add(op_type="Foo", name="n1", input=["x"], output=["o1"])
    proto.graph.node.add(op_type="Bar", name="n2", domain="com.acme", input=["x"], output=["o2"])
    with pytest.raises(UnsupportedOp, match=r"m\.onnx: 2 nodes of 2 kinds are unknown") as error:
        load(saved(proto, tmp_path / "m.onnx"))
    assert [(m.node, m.op) for m in error.value.missing] == [("n1", "Foo"), ("n2", "Bar")]


def test_no_such_file() -> None:
    with pytest.raises(UsageError, match="no such file: nowhere"):
        load("nowhere/m.onnx")


def test_inconsistent_shapes_are_named(tmp_path: Path) -> None:
    weight = numpy_helper.from_array(np.zeros((63, 32), np.float32), "w")
    with pytest.raises(ModelError, match=r"m\.onnx: .*MatMul"):
        load(saved(make_model(weight=weight), tmp_path / "m.onnx"))


def test_wrong_declared_shapes_inside_are_forgiven(tmp_path: Path) -> None:
    proto = make_model()
    proto.graph.value_info.append(helper.make_tensor_value_info("h", TensorProto.FLOAT, ["N", 99]))
    run(saved(proto, tmp_path / "m.onnx"))


@pytest.mark.parametrize("how", [{}, {"dim_param": "?"}, {"dim_value": -1}], ids=["absent", "paddle's", "tf2onnx's"])
def test_free_dimensions_get_names(tmp_path: Path, how: dict[str, str | int]) -> None:
    """Each its own: two question marks need not be the same number."""
    proto = make_model()
    proto.graph.input[0].type.tensor_type.shape.dim[0].CopyFrom(onnx.TensorShapeProto.Dimension(**how))  # type: ignore[arg-type]
    model = load(saved(proto, tmp_path / "m.onnx"))
    assert [getattr(d, "value", d) for d in model.graph.inputs[0].shape or ()] == ["x_0", 64]


def test_loading_a_big_model_reads_no_weight(tmp_path: Path) -> None:
    """600 MB of weights are loaded within 100 MB above what an empty process with these imports needs."""
    size = 150_000_000
    tensor = TensorProto(name="w", dims=[size], data_type=TensorProto.FLOAT, data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="big.bin")
    with (tmp_path / "big.bin").open("wb") as f:
        f.truncate(4 * size)
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [size])],
        [tensor],
    )
    path = saved(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "m.onnx"
    )
    code = (
        "import sys\nfrom edgec.compiler.environment import peak_bytes\n"
        "from edgec.frontends.onnx import load\nfrom edgec.compiler.session import Session\n"
        "import onnxruntime\nbase = peak_bytes()\n"
        "m = load(sys.argv[1]); s = Session(m)\n"
        "print(peak_bytes() - base)"
    )
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 100e6


def test_a_conversion_that_changes_the_function_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What everything is measured against is the file at its own opset, not what the converter made of it."""
    right = frontend.to_pinned_opset

    def wrong(proto: onnx.ModelProto, opset: int) -> ir.Model:
        model = right(proto, opset)
        next(n for n in model.graph if n.op_type == "Add").op_type = "Sub"
        return model

    monkeypatch.setattr(frontend, "to_pinned_opset", wrong)
    path = saved(make_model(13), tmp_path / "m.onnx")
    with pytest.raises(ModelError, match="converter to opset 25 changed what the model computes"):
        edgec.compile(path, target="onnx", level="O0")
    with pytest.raises(PassFailed, match="changed the function"):
        edgec.compile(path, target="onnx", level="O1", verify="end")
