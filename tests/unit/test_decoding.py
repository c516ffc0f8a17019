"""Packed weights are decoded before a session runs: the same bits as from the functions' bodies, or left to these."""

from __future__ import annotations

import time

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from packedforms import FORMS, weight

from coremlpack import parse
from edgec.compiler import functions, shapes
from edgec.compiler.protos import PLACE, bare_proto
from edgec.compiler.quantization import grids, packed, predecoded
from edgec.compiler.quantization.bits import pack_bits
from edgec.compiler.quantization.grids import Table
from edgec.compiler.session import Session
from edgec.passes.pack_weights import PackWeights
from passcheck import context

INTEGERS = {2: (ir.DataType.UINT2, ir.DataType.INT2), 4: (ir.DataType.UINT4, ir.DataType.INT4),
            8: (ir.DataType.UINT8, ir.DataType.INT8)}  # fmt: skip
X = {"x": np.ones(1, np.float32)}


class Building:
    """A model whose output is 1 times what functions make of constants."""

    def __init__(self) -> None:
        self.model = parse("g (float[1] x) => (float y) { y = Mul(x, w) }", {"w": np.ones(1, np.float32)})
        self.graph = self.model.graph
        self.product = next(iter(self.graph))

    def constant(self, array: np.ndarray, kind: ir.DataType | None = None) -> ir.Value:
        name = f"c{len(self.graph.initializers)}"
        kind = kind or ir.DataType.from_numpy(array.dtype)
        if kind.bitwidth < 8:
            tensor: ir.TensorProtocol = ir.PackedTensor(
                pack_bits(array & ((1 << kind.bitwidth) - 1), kind.bitwidth), kind, shape=array.shape, name=name
            )
        else:
            tensor = ir.Tensor(array, dtype=kind, name=name)
        value = ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(kind), const_value=tensor)
        self.graph.register_initializer(value)
        return value

    def call(self, op: str, *inputs: ir.Value, **attributes: object) -> ir.Value:
        functions.declare(self.model, op)
        node = ir.node(op, inputs, attributes, domain=functions.DOMAIN)  # type: ignore[arg-type]
        self.graph.insert_before(self.product, node)
        node.outputs[0].name = f"v{len(self.graph)}"
        return node.outputs[0]

    def check(self, weight: ir.Value) -> None:
        self.product.replace_input_with(1, weight)
        del self.graph.initializers["w"]
        shapes.infer(self.model)
        proto, tensors = bare_proto(self.model)
        predecoded.predecode(self.model, proto, tensors, PLACE)
        assert [n.op_type for n in proto.graph.node] == ["Mul"], "decoded, and nothing is left over"
        assert {v for n in proto.graph.node for v in n.input} == {"x", *(t.name for t in proto.graph.initializer)}
        ours, theirs = Session(self.model).run(X)["y"], Session(self.model, bodies=True).run(X)["y"]
        assert ours.dtype == theirs.dtype and ours.shape == theirs.shape
        assert np.array_equal(ours, theirs, equal_nan=True), "the same bits but for signs of zeros, which Where loses"


def floats(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Numbers of all sizes, zeros of both signs and denormals; float16 or float32."""
    found = rng.normal(size=shape) * np.exp(2 * rng.normal(size=shape).clip(-3, 3))
    found.reshape(-1)[: found.size // 4] = rng.choice([0.0, -0.0, 6e-8, -6e-8, 6e4], found.size // 4)
    return found.astype(rng.choice([np.float16, np.float32]))


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.integers(1, 9), min_size=1, max_size=4).map(tuple), st.integers(0, 2**32 - 1))
def test_the_same_bits_as_the_bodies(shape: tuple[int, ...], seed: int) -> None:
    """Chains of all six functions over any shapes, axes, groups, vectors, blocks, remainders and types."""
    rng = np.random.default_rng(seed)
    b, bits, axis = Building(), int(rng.choice([1, 2, 3, 4, 6, 8])), int(rng.integers(len(shape)))
    sparse, signed = bool(rng.integers(2)), bool(rng.integers(2))
    looked_up = bool(rng.integers(2))
    flags = rng.random(shape) < 0.4
    if sparse and not flags.any():
        flags.reshape(-1)[0] = True
    low = -(1 << (bits - 1)) if signed and not looked_up else 0
    own = rng.integers(low, low + (1 << bits), int(flags.sum()) if sparse else shape)
    own = own.astype(np.int8 if low else np.uint8)
    kind = ir.DataType.INT8 if low else ir.DataType.UINT8
    if bits in INTEGERS and rng.integers(2):
        value = b.constant(own, INTEGERS[bits][bool(low)])
    elif bits == 8:
        value = b.constant(own)
    else:
        stored = b.constant(pack_bits(own, bits, low))
        value = b.call("UnpackBits", stored, bits=bits, shape=list(own.shape), low=low, to=int(kind))
    if sparse:
        mask = b.constant(np.packbits(flags.reshape(-1), bitorder="little"))
        value = b.call("SparseWeight", mask, value, shape=list(shape), to=int(kind))
    dense = shape
    if looked_up:
        vector, along = int(rng.integers(1, 4)), int(rng.integers(len(shape)))
        group = int(rng.integers(0, shape[axis] + 1))
        groups = -(-shape[axis] // group) if group else 1
        tables = b.constant(floats(rng, (groups, 1 << bits, vector)))
        dense = tuple(n * vector if a == along else n for a, n in enumerate(shape))
        value = b.call("LookupWeight", value, tables, shape=list(dense), axis=axis, group=group, vector_axis=along)
    if not looked_up or rng.integers(2):
        block = int(rng.integers(1, dense[axis] + 1))
        one = rng.integers(2, size=len(dense))
        sizes = tuple(-(-n // block) if a == axis else 1 if one[a] else n for a, n in enumerate(dense))
        scale = b.constant(floats(rng, sizes))
        zero = [b.constant(rng.integers(0, 100, sizes).astype(np.uint8))] if rng.integers(2) else []
        value = b.call("ShiftScaleWeight" if zero else "ScaleWeight", value, scale, *zero, axis=axis, block=block)
    if rng.integers(2):
        whole = b.constant(np.packbits(rng.random(dense).reshape(-1) < 0.7, bitorder="little"))
        value = b.call("MaskWeight", whole, value, shape=list(dense))
    b.check(value)


def packed_model(name: str) -> ir.Model:
    grid = FORMS[name][0]
    model = parse("g (float[1] x) => (float y) { y = Mul(x, w) }", {"w": weight(grid)})
    grids.write(model.graph.initializers["w"], grid)
    PackWeights(min_size=1).run(model, context("onnx"))
    shapes.infer(model)
    return model


@pytest.mark.parametrize("name", FORMS)
def test_every_form_that_is_stored(name: str) -> None:
    model = packed_model(name)
    ours, theirs = (Session(model, bodies=b).run(X)["y"] for b in (False, True))
    assert np.array_equal(ours, theirs)
    for value, chain in packed.roots(model):
        alone = packed.dense(model, value, chain)
        assert np.array_equal(X["x"] * alone.astype(np.float32), ours)


def test_another_body_is_run_as_it_is() -> None:
    """A file may define the function otherwise: then that counts."""
    model = packed_model("4-bit table")
    expected = Session(model).run(X)["y"]
    proto = ir.to_proto(model)
    (body,) = (f for f in proto.functions if f.name == "LookupWeight")
    (last,) = (n for n in body.node if "weight" in n.output)
    last.output[0] = "half"
    body.node.append(onnx.helper.make_node("Add", ["half", "half"], ["weight"]))
    other = ir.from_proto(proto)
    got = Session(other).run(X)["y"]
    assert np.array_equal(got, 2 * expected)
    (root,) = packed.roots(other)
    assert np.array_equal(X["x"] * packed.dense(other, *root), got)
    assert onnxruntime.InferenceSession(proto.SerializeToString()).run(None, X)[0].shape == got.shape


def test_what_is_too_big_is_left_to_onnxruntime(monkeypatch: pytest.MonkeyPatch) -> None:
    """The memory of decoded weights is bounded."""
    model = packed_model("sparse tables")
    expected = Session(model).run(X)["y"]
    size = expected.nbytes
    for most, decoded in ((size, True), (size - 1, False)):
        monkeypatch.setattr(predecoded, "MOST", most)
        proto, tensors = bare_proto(model)
        predecoded.predecode(model, proto, tensors, PLACE)
        assert (len(proto.graph.node) == 1) == decoded
        assert np.array_equal(Session(model).run(X)["y"], expected)


def test_bytes_that_do_not_fit_are_an_error_of_onnxruntime() -> None:
    from edgec.compiler.errors import ModelError

    b = Building()
    mask = b.constant(np.packbits(np.ones(16, bool), bitorder="little"))
    value = b.call("SparseWeight", mask, b.constant(np.ones(15, np.float32)), shape=[16])
    b.product.replace_input_with(1, value)
    with pytest.raises(ModelError, match="onnxruntime"):
        Session(b.model).run(X)


def test_a_weight_that_is_an_output_and_one_that_a_branch_reads() -> None:
    """They have no place as initializers; the result is the same."""
    b = Building()
    indices = b.constant(np.arange(16, dtype=np.uint8).reshape(4, 4))
    tables = b.constant(np.linspace(-1, 1, 16, dtype=np.float32).reshape(1, 16, 1))
    weight = b.call("LookupWeight", indices, tables, shape=[4, 4])
    weight.type, weight.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape([4, 4])
    b.product.replace_input_with(1, weight)
    b.graph.outputs.append(weight)
    ours, theirs = (Session(b.model, bodies=x).run(X) for x in (False, True))
    assert all(np.array_equal(ours[n], theirs[n]) for n in theirs)


def test_decoding_a_million_indices_takes_milliseconds() -> None:
    """Less than half of what the bodies take, the session included: what the proof waits for."""
    rng = np.random.default_rng(0)
    grid = Table(3, rng.normal(size=(1, 8, 1)).astype(np.float16), 0, 0, np.ones(1024, np.float16))
    array = grid.decode(rng.integers(0, 8, (1024, 1024)).astype(np.uint8))
    model = parse("g (float[1] x) => (float y) { y = Mul(x, w) }", {"w": array})
    grids.write(model.graph.initializers["w"], grid)
    PackWeights().run(model, context("onnx"))
    shapes.infer(model)
    ((_, chain),) = packed.roots(model)
    assert [n.op_type for n in chain] == ["UnpackBits", "LookupWeight", "ScaleWeight"]

    def seconds(bodies: bool) -> float:
        start = time.process_time()
        Session(model, threads=1, bodies=bodies).run(X)
        return time.process_time() - start

    assert min(seconds(False) for _ in range(3)) < min(seconds(True) for _ in range(3)) / 2
