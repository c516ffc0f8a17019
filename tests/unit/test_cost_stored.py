"""Weights as stored: what each node holds, zeros counted in blocks, effective MACs and bit operations."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgec.compiler import cost
from edgec.compiler.cost import zeros as zeros_module
from edgec.compiler.cost.analyze import analyze
from edgec.compiler.cost.records import Analysis, Layer
from edgec.compiler.cost.stored import Stored
from edgec.compiler.cost.zeros import count_zeros, zero_points
from edgec.compiler.rounding import insert_pair
from passcheck import load, run

HEAD = '<ir_version: 10, opset_import: ["" : 25, "edgec" : 1]>\n'


def with_weights(text: str, **weights: np.ndarray | ir.TensorProtocol) -> ir.Model:
    """The model in `text`, with these initializers, whose declarations in it only give the types."""
    proto = onnx.parser.parse_model(HEAD + text)
    for name, array in weights.items():
        tensor = ir.serde.serialize_tensor(
            array if isinstance(array, ir.TensorProtocol) else ir.Tensor(array, name=name)
        )
        tensor.name = name
        proto.graph.initializer.append(tensor)
        for stale in [v for v in proto.graph.value_info if v.name == name]:
            proto.graph.value_info.remove(stale)
    return load(proto)


def layers(model: ir.Model, *, zeros: bool = True) -> dict[str, Layer]:
    return {layer.op: layer for layer in analyze(model, zeros=zeros).layers}


# --- zeros -----------------------------------------------------------------------------------------------------------

FLOATS = [ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16, ir.DataType.BFLOAT16]
FLOATS += [k for k in ir.DataType if k.name.startswith("FLOAT8E") and "8E8M0" not in k.name]


@pytest.mark.parametrize("kind", FLOATS, ids=lambda k: k.name)
def test_zeros_of_both_signs_count_in_every_floating_point_type(kind: ir.DataType) -> None:
    array = np.array([0.0, -0.0, 1.0, -2.0, 0.0, np.float32(2.0**-6)], np.float32).astype(kind.numpy())
    assert count_zeros(ir.Tensor(array, dtype=kind)) == int((array.astype(np.float64) == 0).sum()) == 3


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_zeros_of_quantised_tensors_are_those_of_what_they_stand_for(
    data: st.DataObject,
) -> None:
    """For one zero point, one per index and one per block, of whole and packed types, in blocks cut anywhere."""
    kind = data.draw(st.sampled_from([ir.DataType[n] for n in ("INT8", "UINT8", "INT4", "UINT4", "INT2", "UINT2")]))
    shape = data.draw(hnp.array_shapes(min_dims=1, max_dims=3, max_side=6))
    axis = data.draw(st.integers(0, len(shape) - 1))
    block = data.draw(st.sampled_from([0, 0, 1, 2, 3]))
    low = -(1 << (kind.bitwidth - 1)) if kind.is_signed() else 0
    near = st.integers(max(low, -2), 1)
    q = data.draw(hnp.arrays(np.int64, shape, elements=near)) if kind.is_signed() else None
    q = q if q is not None else data.draw(hnp.arrays(np.int64, shape, elements=st.integers(0, 3)))
    per = (shape[axis],) if not block else (*shape[:axis], -(-shape[axis] // block), *shape[axis + 1 :])
    per = data.draw(st.sampled_from([(), per])) if not block else per
    z = data.draw(hnp.arrays(np.int64, per, elements=near if kind.is_signed() else st.integers(0, 3)))
    if not block:
        spread = z if not per else z.reshape([-1 if i == axis else 1 for i in range(len(shape))])
    else:
        spread = np.repeat(z, block, axis).take(range(shape[axis]), axis)
    points = zero_points(tensor(z, kind), shape, axis, block)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(zeros_module, "BLOCK", data.draw(st.sampled_from([4, 8, 1 << 20])))
        assert count_zeros(tensor(q, kind), points) == int((q == spread).sum())


def tensor(array: np.ndarray, kind: ir.DataType) -> ir.TensorProtocol:
    return ir.Tensor(array.astype(kind.numpy()), dtype=kind)


def test_a_tensor_on_disk_counts_like_one_in_memory(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for kind, bits in ((ir.DataType.FLOAT, 32), (ir.DataType.INT4, 4), (ir.DataType.FLOAT16, 16)):
        array = rng.integers(-2, 3, (37, 11)).astype(kind.numpy())
        inside = ir.Tensor(array, dtype=kind)
        (tmp_path / "w").write_bytes(b"junk" + inside.tobytes() + b"\1")
        place = ir.ExternalTensor(
            "w", 4, inside.nbytes, kind, shape=ir.Shape([37, 11]), name="w", base_dir=str(tmp_path)
        )
        assert bits == kind.bitwidth
        assert count_zeros(place) == count_zeros(inside) == int((array.astype(np.int64) == 0).sum()) > 0
        assert place.raw is None  # neither mapped nor loaded


# --- who holds what --------------------------------------------------------------------------------------------------

PACKED = """agraph (float[1,4] x) => (float[1,8] y) <int8[4,8] q, float16[8] s> {
    f = Cast <to = 1> (s)  w = DequantizeLinear <axis = 1> (q, f)  y = MatMul(x, w)
}"""
DECODER = """agraph (float[1,4] x) => (float[1,8] y) <uint8[4,8] i, float[4] t> {
    w = edgec.LookupWeight(i, t)
    y = MatMul(x, w)
}
<domain: "edgec", opset_import: ["" : 25]>
LookupWeight (i, t) => (w) { j = Cast <to = 6> (i) w = Gather(t, j) }"""


def test_the_node_that_computes_holds_the_weight_with_its_scales() -> None:
    found = layers(with_weights(PACKED, q=np.ones((4, 8), np.int8), s=np.ones(8, np.float16)))
    assert (found["MatMul"].parameters, found["MatMul"].weight_bits) == (32, 8 * (32 + 16))
    assert found["DequantizeLinear"].parameters == found["DequantizeLinear"].weight_bits == 0


def test_a_weight_in_a_table_has_the_bits_of_its_indices_and_the_zeros_of_its_entries() -> None:
    indices = np.array([[0, 1, 2, 3, 0, 1, 2, 3]] * 4, np.uint8)
    found = layers(with_weights(DECODER, i=indices, t=np.array([0, 1, 0, 2], np.float32)))["MatMul"]
    assert (found.parameters, found.weight_bits, found.zeros) == (32, 8 * (32 + 16), 16)
    assert (found.macs, found.effective_macs, found.bops) == (32, 16, 16 * 32 * 8)


def test_a_tied_weight_belongs_to_its_first_reader() -> None:
    text = """agraph (int64[3] ids, float[3,4] x) => (float[3,9] y) <float[9,4] w> {
        e = Gather(w, ids) a = Add(e, x) t = Transpose <perm = [1, 0]> (w) y = MatMul(a, t)
    }"""
    found = layers(with_weights(text, w=np.zeros((9, 4), np.float32)))
    assert [found[op].parameters for op in ("Gather", "MatMul")] == [36, 0]
    assert found["MatMul"].effective_macs == 0 < found["MatMul"].macs


def test_sums_over_the_layers_are_the_model_s() -> None:
    text = """agraph (float[1,3,8,8] x) => (float[1,5] y)
        <float[4,3,3,3] w, float[4] b, float[64,5] m, float e = {0.1}> {
        c = Conv <pads = [1, 1, 1, 1], strides = [2, 2]> (x, w, b) r = Relu(c) f = Flatten(r) h = MatMul(f, m)
        y = Mul(h, e)
    }"""
    rng = np.random.default_rng(1)
    arrays = {n: rng.normal(size=s).astype(np.float32) for n, s in {"w": (4, 3, 3, 3), "b": (4,), "m": (64, 5)}.items()}
    model = with_weights(text, **arrays)
    found = analyze(model, zeros=True)
    assert sum(x.parameters for x in found.layers) == cost.parameters(model) == 4 * 27 + 4 + 320
    assert sum(x.weight_bits for x in found.layers) == 8 * (cost.weight_bytes(model) - 4)  # the scalar is no parameter
    assert found.totals.zeros == 0


# --- effective MACs --------------------------------------------------------------------------------------------------


def counted(model: ir.Model, name: str) -> int:
    """How often elements of the weight `name` that are not zero take part: the sum of the outputs of a positive run."""
    weight = model.graph.initializers[name]
    ones = (weight.const_value.numpy() != 0).astype(np.float32)  # type: ignore[union-attr]
    weight.const_value = ir.Tensor(ones, name=name)
    inputs = {v.name or "": np.ones([int(n) for n in v.shape or ()], np.float32) for v in model.graph.inputs}
    return round(float(sum(y.sum() for y in run(model, inputs).values())))


@pytest.mark.parametrize(
    ("text", "shape"),
    [
        ("agraph (float[2,3,6,7] x) => (float[2,4,4,5] y) <float[4,3,3,3] w> { y = Conv(x, w) }", (4, 3, 3, 3)),
        ("agraph (float[2,6,6,7] x) => (float[2,4,2,3] y) <float[4,3,3,3] w> "
         "{ y = Conv <group = 2, strides = [2, 2]> (x, w) }", (4, 3, 3, 3)),
        ("agraph (float[2,4,3,3] x) => (float[2,6,7,7] y) <float[4,3,3,3] w> "
         "{ y = ConvTranspose <group = 2, strides = [2, 2]> (x, w) }", (4, 3, 3, 3)),
        ("agraph (float[5,4] x) => (float[5,6] y) <float[6,4] w> { y = Gemm <transB = 1> (x, w) }", (6, 4)),
        ("agraph (float[2,5,4] x) => (float[2,5,6] y) <float[4,6] w> { y = MatMul(x, w) }", (4, 6)),
        ("agraph (float[3,5,4] x) => (float[3,5,6] y) <float[3,4,6] w> { y = MatMul(x, w) }", (3, 4, 6)),
        ("agraph (float[2,5,4] x) => (float[2,6,5] y) <float[6,4] w> "
         "{ t = Transpose <perm = [0, 2, 1]> (x) y = MatMul(w, t) }", (6, 4)),
        ("agraph (float[2,5,4] x) => (float[2,5,6] y) <float[4,6] w> "
         "{ y = Einsum <equation = \"bij,jk->bik\"> (x, w) }", (4, 6)),
    ],
)  # fmt: skip
def test_effective_macs_are_the_products_that_are_not_zero(text: str, shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(2)
    weight = rng.normal(size=shape).astype(np.float32) * (rng.random(shape) < 0.4)
    model = with_weights(text, w=weight)
    [layer] = [x for x in analyze(model, zeros=True).layers if x.macs]
    assert layer.zeros == int((weight == 0).sum())
    assert counted(model, "w") == layer.effective_macs < layer.macs
    assert layer.bops == layer.effective_macs * 32 * 32
    [unread] = [x for x in analyze(model).layers if x.macs]
    assert unread.zeros is None and unread.effective_macs == layer.macs


def test_a_recurrent_cell_has_two_weights() -> None:
    text = """agraph (float[7,2,5] x) => (float[7,1,2,3] y) <float[1,12,5] w, float[1,12,3] r> {
        y = LSTM <hidden_size = 3> (x, w, r)
    }"""
    w, r = np.ones((1, 12, 5), np.float32), np.zeros((1, 12, 3), np.float32)
    found = layers(with_weights(text, w=w, r=r))["LSTM"]
    assert (found.macs, found.effective_macs) == (7 * 2 * 12 * 8, 7 * 2 * 12 * 5)


def test_integers_are_zero_where_they_are_their_zero_point() -> None:
    text = """agraph (uint8[3,4] x) => (int32[3,6] y) <uint8[4,6] w, uint8 zx = {0}, uint8[6] zw> {
        y = MatMulInteger(x, w, zx, zw)
    }"""
    w = np.tile(np.arange(6, dtype=np.uint8), (4, 1))
    found = layers(with_weights(text, w=w, zw=np.array([0, 1, 9, 9, 4, 9], np.uint8)))["MatMulInteger"]
    assert (found.zeros, found.effective_macs, found.bops) == (12, 3 * 4 * 3, 3 * 4 * 3 * 64)


def test_free_dimensions_stay_in_what_is_effective() -> None:
    text = "agraph (float[B,4] x) => (float[B,6] y) <float[4,6] w> { y = MatMul(x, w) }"
    weight = np.zeros((4, 6), np.float32)
    weight[0] = 1
    found = layers(with_weights(text, w=weight))["MatMul"]
    assert str(found.effective_macs) == str(layers(with_weights(text.replace("4", "1"), w=weight[:1]))["MatMul"].macs)


# --- bit operations --------------------------------------------------------------------------------------------------


def test_bits_are_those_of_the_stored_weight_and_of_the_rounded_activation() -> None:
    text = PACKED.replace("y = MatMul(x, w)", "a = Relu(x) y = MatMul(a, w)")
    model = with_weights(text, q=np.ones((4, 8), np.int8), s=np.ones(8, np.float16))
    assert layers(model)["MatMul"].bops == 32 * 32 * 8
    insert_pair(next(n for n in model.graph if n.op_type == "Relu").outputs[0])
    assert layers(model)["MatMul"].bops == 32 * 16 * 8


def test_what_hands_rounded_activations_on_keeps_their_bits() -> None:
    text = """agraph (float[1,4,6,6] x) => (float[1,2,2,2] y) <float[2,4,2,2] w> {
        e = Exp(x) r = Relu(e) m = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (r) c = Conv(m, w) y = Neg(c)
    }"""
    model = with_weights(text, w=np.ones((2, 4, 2, 2), np.float32))
    insert_pair(next(iter(model.graph)).outputs[0])
    assert layers(model)["Conv"].bops == layers(model)["Conv"].macs * 16 * 32  # type: ignore[operator]
    assert layers(model)["Conv"].read == 4 * 9 * 2 + 32 * 4


def test_two_activations_count_with_both_their_bits_through_views() -> None:
    model = load(
        HEAD
        + """agraph (float[2,4] x) => (float[2,2] y) {
        a = Relu(x) b = Exp(x) t = Transpose <perm = [1, 0]> (b) y = MatMul(a, t)
    }"""
    )
    for op in ("Relu", "Exp"):
        insert_pair(next(n for n in model.graph if n.op_type == op).outputs[0])
    assert layers(model)["MatMul"].bops == 16 * 16 * 16


# --- large files -----------------------------------------------------------------------------------------------------

SPARSE = """
import sys
from edgec.frontends.onnx import load
from edgec.compiler.environment import peak_bytes
from edgec.compiler.cost.analyze import analyze
found = analyze(load(sys.argv[1]), zeros=len(sys.argv) > 2)
print(found.totals.parameters, found.totals.zeros, peak_bytes() // 2**20)
"""


@pytest.mark.parametrize("zeros", [False, True])
def test_a_file_of_gigabytes_is_analysed_in_little_memory(tmp_path: Path, zeros: bool) -> None:
    """Of 7 GB, nothing is read; of 2 GB all is, to count the zeros. (The file is sparse: it takes no room on disk.)"""
    layers, side = (7, 1 << 14) if not zeros else (2, 1 << 14)
    names = [f"w{i}" for i in range(layers)]
    nodes = [
        onnx.helper.make_node("MatMul", ["x" if not i else f"h{i}", n], [f"h{i + 1}"]) for i, n in enumerate(names)
    ]
    info = [onnx.helper.make_tensor_value_info(n, 1, [1, side]) for n in ("x", f"h{layers}")]
    graph = onnx.helper.make_graph(nodes, "g", info[:1], info[1:])
    for i, name in enumerate(names):
        entry = graph.initializer.add(name=name, data_type=1, dims=[side, side])
        entry.data_location = onnx.TensorProto.EXTERNAL
        for key, value in (("location", "w.bin"), ("offset", i * 4 * side**2), ("length", 4 * side**2)):
            entry.external_data.add(key=key, value=str(value))
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 25)]), tmp_path / "m.onnx")
    with (tmp_path / "w.bin").open("wb") as file:
        file.truncate(4 * side**2 * layers)
        file.write(np.ones(100, np.float32).tobytes())
    done = subprocess.run(
        [sys.executable, "-c", SPARSE, str(tmp_path / "m.onnx"), *(["zeros"] * zeros)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    parameters, count, megabytes = done.stdout.split()
    assert int(parameters) == layers * side**2
    assert count == (str(layers * side**2 - 100) if zeros else "None")
    assert int(megabytes) < 1024


def test_nothing_is_read_unless_zeros_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    model = with_weights(PACKED, q=np.ones((4, 8), np.int8), s=np.ones(8, np.float16))
    monkeypatch.setattr(zeros_module, "_blocks", lambda tensor: pytest.fail("read a weight"))
    assert isinstance(analyze(model), Analysis)
    Stored(model)
