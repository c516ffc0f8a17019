"""Symbolic sizes, evaluated, are the shapes that onnxruntime makes, at whatever sizes the model runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import numpy as np
import onnx
import onnx.numpy_helper
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx.backend.test.case.node import collect_testcases
from sizecheck import check_sizes

from edgec.compiler.cost.polynomial import evaluate, symbols, text
from edgec.compiler.cost.sizes import Sizes
from passcheck import load

HEAD = '<ir_version: 10, opset_import: ["" : 25]> agraph '


def check(source: str, *sizes: Mapping[str, int]) -> Sizes:
    """The sizes of a model, each compared with the tensors of a run at each of the given sizes."""
    return check_sizes(load(source), *sizes)


def output(source: str) -> str:
    """The dimensions of the first output."""
    model = load(source)
    return ", ".join(text(x) for x in Sizes(model).dims(model.graph.outputs[0]) or ())


# --- all operators ---------------------------------------------------------------------------------------------------

SIZED_BY_VALUE = {"BlackmanWindow", "ConstantOfShape", "HammingWindow", "HannWindow", "MelWeightMatrix", "Range"}
"""Operators whose first input says how large the result is."""
DATA_DECIDE = {"Compress", "ImageDecoder", "Loop", "NonMaxSuppression", "NonZero", "StringSplit", "Unique"}
"""Operators whose results are as large as the data say."""


def symbolic(case: onnx.ModelProto, arrays: list[object]) -> tuple[ir.Model, dict[str, int]]:
    """A test model of onnx with every axis of its inputs free, and what these are in the test.

    Small vectors of numbers become constants, as shapes and axes are in models; the first input stays one.
    """
    proto = onnx.ModelProto()
    proto.CopyFrom(case)
    at: dict[str, int] = {}
    kept = []
    first = 0 if case.graph.node[0].op_type in SIZED_BY_VALUE else 1
    for i, (port, given_array) in enumerate(zip(case.graph.input, arrays, strict=False)):
        array = np.asarray(given_array) if isinstance(given_array, np.ndarray | np.generic) else None
        value = proto.graph.input[i]
        if array is not None and array.size <= 64 and array.ndim < 2 and i >= first and array.dtype.kind in "iufb":
            proto.graph.initializer.append(onnx.numpy_helper.from_array(array, port.name))
            continue
        kept.append(value)
        if array is not None and value.type.HasField("tensor_type"):
            del value.type.tensor_type.shape.dim[:]
            value.type.tensor_type.shape.SetInParent()
            vector = array.dtype.kind in "iu" and array.ndim < 2
            for axis, size in enumerate(array.shape):
                if size and not vector:
                    at[f"{port.name}{axis}"] = size
                    value.type.tensor_type.shape.dim.add(dim_param=f"{port.name}{axis}")
                else:
                    value.type.tensor_type.shape.dim.add(dim_value=size)
    inputs = [onnx.ValueInfoProto.FromString(v.SerializeToString()) for v in kept]
    del proto.graph.input[:]
    proto.graph.input.extend(inputs)
    for port in proto.graph.output:
        port.type.tensor_type.ClearField("shape")
    return ir.from_proto(onnx.shape_inference.infer_shapes(proto)), at


def test_every_operator_test_of_onnx_with_all_axes_free() -> None:
    """What the rules tell is never wrong; what they leave to a run depends on data, or is newer than the IR's opset."""
    told: Counter[str] = Counter()
    left: Counter[str] = Counter()
    for case in collect_testcases(None):
        arrays, outputs = case.data_sets[0]
        model, at = symbolic(case.model, arrays)
        found = Sizes(model)
        for value, array in zip(model.graph.outputs, outputs, strict=False):
            dims = found.dims(value)
            maker = value.producer()
            if not isinstance(array, np.ndarray | np.generic) or maker is None:
                continue
            if dims is None or any(s.startswith("#") for x in dims for s in symbols(x)):
                left[maker.op_type] += 1
                continue
            told[maker.op_type] += 1
            assert [evaluate(x, at) for x in dims] == list(np.shape(array)), (case.name, [text(x) for x in dims])
    assert sum(told.values()) > 15 * sum(left.values())
    assert set(left) - set(told) <= DATA_DECIDE | {"ArrayFeatureExtractor", "GatherND"}
    assert set(told) > {"Conv", "ConvTranspose", "Einsum", "MaxPool", "Range", "Resize", "STFT", "Scan", "Slice"}


# --- windows and slices, at random -----------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_convolutions_and_pools_of_any_window(data: st.DataObject) -> None:
    def pick(low: int, high: int) -> int:
        return data.draw(st.integers(low, high))

    kernel, stride, dilation = pick(1, 5), pick(1, 4), pick(1, 3)
    reach = (kernel - 1) * dilation + 1
    before, after = pick(0, kernel - 1), pick(0, kernel - 1)
    op = data.draw(st.sampled_from(["Conv", "MaxPool", "AveragePool", "ConvTranspose"]))
    attributes = f"kernel_shape=[{kernel}], strides=[{stride}], dilations=[{dilation}]"
    auto = data.draw(st.sampled_from(["NOTSET", "SAME_UPPER", "VALID"])) if dilation == 1 else "NOTSET"
    attributes += f", pads=[{before},{after}]" if auto == "NOTSET" else f', auto_pad="{auto}"'
    weight = f"<float[4,4,{kernel}] w = {{{','.join(['0.5'] * (16 * kernel))}}}>" if "Conv" in op else ""
    if "Pool" in op:
        attributes += f", ceil_mode={pick(0, 1)}"
    sizes = [{"B": pick(1, 2), "H": pick(reach, 30)} for _ in range(2)]
    call = f"{op}<{attributes}>(x{', w' if weight else ''})"
    check(HEAD + f"(float[B,4,H] x) => (float[a,b,c] y) {weight} {{ y = {call} }}", *sizes)


@settings(max_examples=80, deadline=None)
@given(
    start=st.integers(-12, 12), end=st.integers(-12, 12) | st.sampled_from([2**31 - 1, 2**63 - 1, -(2**63)]),
    step=st.integers(-4, 4).filter(bool), sizes=st.lists(st.integers(1, 15), min_size=3, max_size=3),
)  # fmt: skip
def test_slices_of_any_bounds(start: int, end: int, step: int, sizes: list[int]) -> None:
    constants = f"int64[1] s = {{{start}}}, int64[1] e = {{{end}}}, int64[1] a = {{1}}, int64[1] t = {{{step}}}"
    found = load(HEAD + f"(float[2,T] x) => (float[m,n] y) <{constants}> {{ y = Slice(x, s, e, a, t) }}")
    dims = Sizes(found).dims(found.graph.outputs[0])
    assert dims is not None
    for size in sizes:
        assert evaluate(dims[1], {"T": size}) == len(range(size)[start:end:step])


@settings(max_examples=40, deadline=None)
@given(scale=st.sampled_from([0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 1 / 3, 0.1]), size=st.integers(8, 70))
def test_resizes_by_a_factor(scale: float, size: int) -> None:
    body = f'<float[4] s = {{1, 1, {scale}, {scale}}}> {{ y = Resize<mode="nearest">(x, , s) }}'
    check(HEAD + "(float[1,2,H,W] x) => (float[a,b,c,d] y) " + body, {"H": size, "W": size + 3})


# --- shapes that are computed ----------------------------------------------------------------------------------------


def test_networks_that_halve_and_come_back() -> None:
    weights = ", ".join(f"float[2,2,3,3] w{i} = {{{','.join(['0.1'] * 36)}}}" for i in range(3))
    halve = " ".join(
        f"h{i} = Conv<strides=[2,2], pads=[1,1,1,1]>({'x' if not i else f'h{i - 1}'}, w{i})" for i in range(3)
    )
    body = f"""(float[B,2,H,W] x) => (float[a,b,c,d] y) <{weights}, float[4] two = {{1, 1, 2, 2}}> {{ {halve}
        up = Resize<mode="nearest", coordinate_transformation_mode="asymmetric">(h2, , two) y = Add(up, h1) }}"""
    check(HEAD + body, {"B": 1, "H": 32, "W": 40}, {"B": 2, "H": 64, "W": 24})
    # Where the sum can be computed at all, ⌈H/4⌉ and 2·⌈H/8⌉ are equal.
    assert output(HEAD + body) == "B, 2, 2·⌈H/8⌉, 2·⌈W/8⌉"


def test_shapes_computed_by_arithmetic() -> None:
    body = (
        HEAD
        + """(float[B,T,96] x) => (float[a,b,c,d] y) <int64 i0 = {0}, int64 i1 = {1}, int64[1] a0 = {0},
            int64 half = {2}, int64[1] minus = {-1}, int64[1] heads = {12}> {
        s = Shape(x) b = Gather(s, i0) t = Gather(s, i1) u = Div(t, half) zero = Sub(a0, a0) one = Sub(i1, i0)
        ub = Unsqueeze(b, a0) uu = Unsqueeze(u, a0) a1 = Add(a0, one) first = Slice(x, zero, uu, a1)
        target = Concat<axis=0>(ub, heads, uu, minus) y = Reshape(first, target) }"""
    )
    assert output(body) == "B, 12, ⌊T/2⌋, 8"
    check(body, {"B": 2, "T": 9}, {"B": 1, "T": 16})


def test_padding_to_a_multiple() -> None:
    """What a windowed attention does: pad to a multiple of 7, cut into windows."""
    body = (
        HEAD
        + """(float[B,T,8] x) => (float[a,b,c,d] y) <int64 i0 = {0}, int64 i1 = {1}, int64[1] a0 = {0},
            int64 seven = {7}, int64[1] seven1 = {7}, int64[4] none = {0, 0, 0, 0}, int64[1] zero = {0},
            int64[1] minus = {-1}, int64[1] eight = {8}> {
        s = Shape(x) b = Gather(s, i0) t = Gather(s, i1) r = Mod(t, seven) left = Sub(seven, r) more = Mod(left, seven)
        um = Unsqueeze(more, a0) pads = Concat<axis=0>(none, um, zero) p = Pad(x, pads)
        ub = Unsqueeze(b, a0) target = Concat<axis=0>(ub, minus, seven1, eight) y = Reshape(p, target) }"""
    )
    assert output(body) == "B, ⌈T/7⌉, 7, 8"
    check(body, {"B": 2, "T": 7}, {"B": 1, "T": 13}, {"B": 1, "T": 1})


# --- graphs inside graphs --------------------------------------------------------------------------------------------


def test_what_only_a_run_can_tell_has_a_name_and_a_limit() -> None:
    model = load(HEAD + "(bool[B,T] x) => (int64[two,n] y) { y = NonZero(x) }")
    found = Sizes(model)
    assert output(HEAD + "(bool[B,T] x) => (int64[two,n] y) { y = NonZero(x) }") == "2, #y[1]"
    assert found.symbols["#y[1]"] == "how many elements NonZero 'node' finds"
    assert {name: text(limit) for name, limit in found.limits.items()} == {"#y[1]": "B·T"}


@pytest.mark.parametrize(("other", "size", "limit"), [("Relu(x)", "#y[1]", "2·T"), ("Tile(x, twice)", "2·T", None)])
def test_branches(other: str, size: str, limit: str | None) -> None:
    body = (
        HEAD
        + f"""(bool c, float[B,T] x) => (float[a,b] y) <int64[2] twice = {{1, 2}}> {{
        y = If(c) <then_branch = left () => (float[p,q] l) {{ l = Concat<axis=1>(x, x) }},
                   else_branch = right () => (float[r,s] o) {{ o = {other} }}> }}"""
    )
    assert output(body) == f"B, {size}"
    assert [text(x) for x in Sizes(load(body)).limits.values()] == ([limit] if limit else [])


def test_loops() -> None:
    body = (
        HEAD
        + """(float[B,T] x) => (float[a,b] y, float[c,d,e] rows) <int64 n = {5}, bool yes = {1}> {
        y, rows = Loop(n, yes, x) <body = one
            (int64 i, bool go, float[p,q] s) => (bool on, float[p2,q2] t, float[p3,q3] r)
            { on = Identity(go) t = Relu(s) r = Concat<axis=1>(s, t) }> }"""
    )
    model = load(body)
    found = Sizes(model)
    assert [text(x) for v in model.graph.outputs for x in found.dims(v) or ()] == ["B", "T", "5", "B", "2·T"]
    check(body, {"B": 2, "T": 3})
    longer = body.replace("t = Relu(s) r = Concat<axis=1>(s, t)", "t = Concat<axis=1>(s, s) r = Relu(s)")
    assert output(longer).startswith("B, #")
