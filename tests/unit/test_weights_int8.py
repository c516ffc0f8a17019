"""round-weights makes the grid, pack-weights stores it: right axis, exact, shared weights once."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgec.compiler import rounding
from edgec.compiler.graph import nodes, users
from edgec.compiler.numerics import difference
from edgec.passes import weight_grid as grid
from edgec.passes.pack_weights import PackWeights
from edgec.passes.round_activations import RoundActivations
from edgec.passes.round_weights import RoundWeights
from passcheck import check_pass, context, load, ops, run

HEAD = '<ir_version: 10, opset_import: ["" : 25]>\n'
LOSS = 0.05  # of the output's scale: 8 bits per channel, a single layer


def weight(*shape: int, seed: int = 0) -> np.ndarray:
    """Channels of very different size, so that a wrong axis shows."""
    rng = np.random.default_rng(seed)
    w = rng.normal(size=shape)
    for axis in range(len(shape)):
        w *= 10.0 ** rng.uniform(-1, 0.5, [n if a == axis else 1 for a, n in enumerate(shape)])
    return w.astype(np.float32)


def model(text: str, **constants: np.ndarray) -> ir.Model:
    """The model of the text, with these names (inputs of the text) made constants."""
    m = ir.from_onnx_text(HEAD + text)
    for name, array in constants.items():
        value = next(v for v in m.graph.inputs if v.name == name)
        m.graph.inputs.remove(value)
        value.const_value = ir.Tensor(array, name=name)
        m.graph.register_initializer(value)
    return load(m)


CASES = {
    # operator: (the model, shape of the weight, its channel axis)
    "Conv": (
        "agraph (float[1,16,8,8] x, float[24,16,3,3] w) => (float[1,24,6,6] y) { y = Conv(x, w) }", (24, 16, 3, 3), 0),
    "grouped Conv": (
        "agraph (float[1,32,8,8] x, float[64,8,3,3] w) => (float[1,64,6,6] y) { y = Conv<group=4>(x, w) }",
        (64, 8, 3, 3), 0),
    "ConvTranspose": (
        "agraph (float[1,16,5,5] x, float[16,24,3,3] w) => (float[1,24,7,7] y) { y = ConvTranspose(x, w) }",
        (16, 24, 3, 3), 1),
    "Gemm": ("agraph (float[2,64] x, float[64,48] w) => (float[2,48] y) { y = Gemm(x, w) }", (64, 48), 1),
    "Gemm, transposed": (
        "agraph (float[2,64] x, float[48,64] w) => (float[2,48] y) { y = Gemm<transB=1>(x, w) }", (48, 64), 0),
    "Gemm, weight first": ("agraph (float[64,2] x, float[48,64] w) => (float[48,2] y) { y = Gemm(w, x) }", (48, 64), 0),
    "MatMul": ("agraph (float[2,3,64] x, float[64,48] w) => (float[2,3,48] y) { y = MatMul(x, w) }", (64, 48), 1),
    "MatMul, weight first": (
        "agraph (float[64,3] x, float[48,64] w) => (float[48,3] y) { y = MatMul(w, x) }", (48, 64), 0),
    "MatMul, batched": (
        "agraph (float[4,3,32] x, float[4,32,24] w) => (float[4,3,24] y) { y = MatMul(x, w) }", (4, 32, 24), 2),
    "Gather": ("agraph (int64[7] x, float[50,64] w) => (float[7,64] y) { y = Gather(w, x) }", (50, 64), 0),
    "LSTM": (
        """agraph (float[3,1,16] x, float[1,80,16] w, float[1,80,20] r) => (float[3,1,1,20] y)
        { y = LSTM<hidden_size=20>(x, w, r) }""", (1, 80, 16), 1),
}  # fmt: skip


def case(name: str) -> tuple[ir.Model, int, tuple[int, ...]]:
    text, shape, axis = CASES[name]
    constants = {"w": weight(*shape)}
    if name == "LSTM":
        constants = {"w": constants["w"] * 0.01, "r": weight(1, 80, 20, seed=1) * np.float32(0.01)}
    return model(text, **constants), axis, shape


@pytest.mark.parametrize("name", CASES)
def test_rounding_and_packing(name: str) -> None:
    m, axis, shape = case(name)
    count = 2 if name == "LSTM" else 1
    rounded = check_pass(m, RoundWeights(min_size=1000), rewrites=count, rtol=LOSS)
    assert ops(rounded) == ops(m), "a lossy pass changes numbers only"
    original = m.graph.initializers["w"].const_value.numpy()  # type: ignore[union-attr]
    found = next(v for v in rounded.graph.initializers.values() if v.shape == shape).const_value.numpy()  # type: ignore[union-attr]
    others = tuple(a for a in range(len(shape)) if a != axis)
    top = np.abs(original).max(others, keepdims=True)
    # Half a step of each channel's own grid, and the scale rounded to float16.
    assert (np.abs(found - original) <= top / 127 * (0.5 + 127 * 2**-10)).all()

    packed = check_pass(rounded, PackWeights(min_size=1000), rewrites=count, rtol=0)
    assert ops(packed)["DequantizeLinear"] == count
    for node in nodes(packed, "DequantizeLinear"):
        q, scale = (v.const_value.numpy() for v in node.inputs)  # type: ignore[union-attr]
        assert q.dtype == np.int8 and node.attributes["axis"].as_int() == axis and scale.shape == (shape[axis],)
        assert np.array_equal(scale, scale.astype(np.float16).astype(np.float32)), "the scale must fit float16"
    assert not any(v.shape == shape and v.dtype == ir.DataType.FLOAT for v in packed.graph.initializers.values())

    half = check_pass(packed, RoundActivations(), rtol=LOSS)
    readers = list(nodes(half, "Conv", "ConvTranspose", "Gemm", "MatMul", "LSTM"))
    assert all(rounding.is_rounded(value) for n in readers for value in n.inputs if value is not None)


def test_a_dense_weight_is_not_packed() -> None:
    check_pass(case("Conv")[0], PackWeights(min_size=1000), rewrites=0)


def test_small_weights_and_other_targets_are_left() -> None:
    m, _, _ = case("Conv")
    check_pass(m, RoundWeights(min_size=24 * 16 * 9 + 1), rewrites=0)
    ctx = context("ios15")
    check_pass(m, RoundWeights(), rewrites=0, ctx=ctx)
    assert "ios15 stores no 8-bit weights" in ctx.notes[0]
    rounded = check_pass(m, RoundWeights(), rewrites=1, rtol=LOSS)
    check_pass(rounded, PackWeights(), rewrites=0, target="ios15")


def test_a_shared_weight_is_rounded_and_stored_once() -> None:
    text = """agraph (float[2,64] x, int64[3] i, float[64,64] w) => (float[2,64] y, float[3,64] z)
    { y = Gemm<transB=1>(x, w) z = Gather(w, i) }"""
    m = check_pass(model(text, w=weight(64, 64)), RoundWeights(), rewrites=1, rtol=LOSS)
    m = check_pass(m, PackWeights(), rewrites=1, rtol=0)
    assert ops(m) == {"Gemm": 1, "Gather": 1, "DequantizeLinear": 1}


TIED = """agraph (float[2,64] x, int64[3] i, float[50,64] w) => (float[3,64] z, float[2,50] y)
{ z = Gather(w, i) t = Transpose<perm=[1,0]>(w) y = MatMul(x, t) }"""


def test_an_embedding_that_is_also_the_last_matrix_has_a_scale_for_each_word() -> None:
    m = check_pass(model(TIED, w=weight(50, 64)), RoundWeights(), rewrites=1, rtol=LOSS)
    m = check_pass(m, PackWeights(), rewrites=1, rtol=0)
    assert ops(m) == {"Gather": 1, "Transpose": 1, "MatMul": 1, "DequantizeLinear": 1}
    (node,) = nodes(m, "DequantizeLinear")
    assert node.attributes["axis"].as_int() == 0 and node.inputs[1] is not None and node.inputs[1].shape == (50,)
    assert {n.op_type for n in users(node.outputs[0])} == {"Gather", "Transpose"}


@pytest.mark.parametrize(
    ("perm", "shape", "axis"),
    [("<perm=[1,2,0]>", (24, 4, 32), 0), ("<perm=[2,0,1]>", (32, 24, 4), 1), ("", (24, 32, 4), 0)],
)
def test_a_weight_behind_a_transpose_has_its_channels_where_the_transpose_takes_them_from(
    perm: str, shape: tuple[int, ...], axis: int
) -> None:
    text = f"""agraph (float[4,3,32] x, float[{",".join(map(str, shape))}] w) => (float[4,3,24] y)
    {{ t = Transpose{perm}(w) y = MatMul(x, t) }}"""
    m = model(text, w=weight(*shape))
    assert [(w.value.name, w.axis) for w in grid.weights(m, 1000)] == [("w", axis)]
    check_pass(check_pass(m, RoundWeights(), rewrites=1, rtol=LOSS), PackWeights(), rewrites=1, rtol=0)


@pytest.mark.parametrize(
    "text",
    [
        TIED.replace("Gather(w, i)", "Gather<axis=1>(w, i)").replace("float[3,64] z", "float[50,3] z"),
        TIED.replace("(x, t)", "(x, t) u = Relu(t)").replace("[2,50] y", "[2,50] y, float[64,50] u"),
        TIED.replace("[2,50] y", "[2,50] y, float[64,50] t"),
    ],
    ids=["another axis", "no weight", "an output"],
)
def test_what_else_reads_the_transpose_counts(text: str) -> None:
    assert [w.axis for w in grid.weights(model(text, w=weight(50, 64)), 1000)] == [None]


@pytest.mark.parametrize("other", ["z = MatMul(i, w)", "z = Add(i, w)"])
def test_readers_that_disagree_leave_a_weight_alone(other: str) -> None:
    text = f"""agraph (float[64,64] x, float[64,64] i, float[64,64] w) => (float[64,64] y, float[64,64] z)
    {{ y = Gemm<transB=1>(x, w) {other} }}"""
    ctx = context()
    check_pass(model(text, w=weight(64, 64)), RoundWeights(), rewrites=0, ctx=ctx)
    assert "'w'" in ctx.notes[0] and "disagree" in ctx.notes[0]


def test_integer_weights_are_left() -> None:
    text = """agraph (float[2,64] x, int8[64,48] q) => (float[2,48] y) <float s = {0.01}>
    { w = DequantizeLinear(q, s) y = MatMul(x, w) }"""
    m = model(text, q=np.random.default_rng(0).integers(-127, 128, (64, 48), dtype=np.int8))
    check_pass(m, RoundWeights(), rewrites=0)
    check_pass(m, PackWeights(), rewrites=0)


def test_a_weight_read_in_branches_is_dequantised_there() -> None:
    text = """agraph (float[2,64] x, bool c, float[64,64] w) => (float[2,64] y)
    { y = If(c) <then_branch = g () => (float[2,64] a) { a = MatMul(x, w) },
                 else_branch = h () => (float[2,64] b) { t = MatMul(x, w) b = Neg(t) }> }"""
    m = check_pass(model(text, w=weight(64, 64)), RoundWeights(), rewrites=1, rtol=LOSS)
    m = check_pass(m, PackWeights(), rewrites=1, rtol=0)
    assert ops(m)["DequantizeLinear"] == 2
    assert sum(v.dtype == ir.DataType.INT8 for v in m.graph.initializers.values()) == 1


def test_a_weight_that_costs_the_outputs_most_is_left_and_named() -> None:
    """One column of the input is always zero and its weights are huge: a grid that reaches them holds nothing else."""
    rng = np.random.default_rng(0)
    layers = {f"w{i}": (rng.normal(size=(64, 64)) / 8).astype(np.float32) for i in range(8)}
    layers["w5"][0] = 1000
    names = ", ".join(f"float[64,64] {n}" for n in layers)
    body = " ".join(f"h{i} = MatMul(x{i}, w{i}) r{i} = Relu(h{i}) x{i + 1} = Mul(r{i}, hole)" for i in range(8))
    text = f"agraph (float[4,64] x0, float[64] hole, {names}) => (float[4,64] x8) {{ {body} }}"
    hole = np.ones(64, np.float32)
    hole[0] = 0
    m = model(text, hole=hole, **layers)
    inputs = {"x0": np.abs(rng.normal(size=(4, 64))).astype(np.float32)}
    ctx = context(inputs=inputs)
    check_pass(m, RoundWeights(), rewrites=7, inputs=inputs, rtol=0.06, ctx=ctx)
    assert len(ctx.notes) == 1 and "not rounded: 'w5'" in ctx.notes[0] and "dB" in ctx.notes[0]
    harsh = context(inputs=inputs)
    check_pass(m, RoundWeights(min_snr=80), rewrites=0, inputs=inputs, ctx=harsh)
    assert "no weight is rounded" in harsh.notes[0] and "80 dB" in harsh.notes[0] and len(harsh.notes) == 1


WEIGHTS = hnp.arrays(
    np.float32, hnp.array_shapes(min_dims=2, max_dims=3, max_side=6), elements=st.floats(-1e6, 1e6, width=32)
)


@given(WEIGHTS, st.data())
def test_any_weight_that_was_rounded_is_recovered_exactly(array: np.ndarray, data: st.DataObject) -> None:
    axis = data.draw(st.integers(0, array.ndim - 1))
    scale = grid.scales(grid.peaks(array, axis))
    assert np.isfinite(scale).all() and (scale > 0).all()
    s = scale.reshape([-1 if a == axis else 1 for a in range(array.ndim)])
    on_grid = grid.steps(array, s) * s
    assert (np.abs(on_grid - array) <= s * 0.5001).all()
    found = grid.recover(on_grid, axis)
    assert found is not None
    f = found.reshape(s.shape)
    assert np.array_equal(grid.steps(on_grid, f) * f, on_grid)
    assert np.array_equal(found, found.astype(np.float16).astype(np.float32))


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    w = weight(50, 7, 3)
    for axis in range(3):
        whole = grid.peaks(w, axis)
        monkeypatch.setattr(grid, "BLOCK", 20)
        assert np.array_equal(grid.peaks(w, axis), whole)
        s = grid.scales(whole).reshape([-1 if a == axis else 1 for a in range(3)])
        assert np.array_equal(grid.recover(grid.steps(w, s) * s, axis), s.reshape(-1))  # type: ignore[arg-type]
        monkeypatch.undo()


def test_weights_too_large_for_float16_scales_are_named() -> None:
    w = weight(64, 48)
    w[3, 5] = 1e8
    m = model("agraph (float[2,64] x, float[64,48] w) => (float[2,48] y) { y = MatMul(x, w) }", w=w)
    ctx = context()
    check_pass(m, RoundWeights(), rewrites=0, ctx=ctx)
    assert "'w'" in ctx.notes[0]


def test_zero_channels_and_a_zero_weight() -> None:
    w = weight(64, 48)
    w[:, 3] = 0
    m = model("agraph (float[2,64] x, float[64,48] w) => (float[2,48] y) { y = MatMul(x, w) }", w=w)
    rounded = check_pass(m, RoundWeights(), rewrites=1, rtol=LOSS)
    packed = check_pass(rounded, PackWeights(), rewrites=1, rtol=0)
    x = {"x": np.ones((2, 64), np.float32)}
    assert not run(packed, x)["y"][:, 3].any()
    assert difference(run(m, x)["y"], run(packed, x)["y"]).snr_db > 25
    zero = model("agraph (float[2,64] x, float[64,48] w) => (float[2,48] y) { y = MatMul(x, w) }", w=w * 0)
    check_pass(zero, PackWeights(), rewrites=1, rtol=0)
