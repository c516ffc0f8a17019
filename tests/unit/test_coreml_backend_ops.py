"""Every operator family, compiled for every target, read back and compared with onnxruntime on the model itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from coremlpack import TARGETS, check, parse
from edgec.backends.coreml import BACKEND
from edgec.compiler.backend import EmitOptions
from edgec.compiler.errors import UnsupportedOp
from edgec.compiler.targets import find_target

RNG = np.random.default_rng(7)


def floats(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


X = "g (float[1,4,9,8] x) => (float y) { y = "
MODELS: dict[str, tuple[str, dict[str, np.ndarray]]] = {
    "conv": ("g (float[1,4,9,8] x) => (float y) { y = Conv<pads=[1,0,2,1], strides=[2,1], dilations=[1,2], group=2>"
             "(x, w, b) }", {"w": floats(6, 2, 3, 2), "b": floats(6)}),
    "conv_same_lower": (X + 'Conv<auto_pad="SAME_LOWER", strides=[2,2]>(x, w) }', {"w": floats(3, 4, 4, 2)}),
    "conv_same_upper": (X + 'Conv<auto_pad="SAME_UPPER", strides=[2,3]>(x, w) }', {"w": floats(3, 4, 4, 2)}),
    "conv_1d": ("g (float[2,3,20] x) => (float y) { y = Conv<pads=[2,1]>(x, w) }", {"w": floats(5, 3, 4)}),
    "conv_3d": ("g (float[1,2,5,6,7] x) => (float y) { y = Conv(x, w) }", {"w": floats(3, 2, 2, 3, 2)}),
    "conv_transpose": (X + "ConvTranspose<strides=[2,2], pads=[1,1,1,0], output_padding=[1,0]>(x, w, b) }",
                       {"w": floats(4, 3, 3, 3), "b": floats(3)}),
    "conv_transpose_padded_end": (X + "ConvTranspose<strides=[2,2], output_padding=[1,1]>(x, w, b) }",
                                  {"w": floats(4, 3, 3, 3), "b": floats(3)}),
    "conv_transpose_same": (X + 'ConvTranspose<strides=[3,2], auto_pad="SAME_UPPER">(x, w) }',
                            {"w": floats(4, 3, 5, 4)}),
    "conv_transpose_group": (X + "ConvTranspose<group=2, strides=[2,1]>(x, w) }", {"w": floats(4, 3, 3, 2)}),
    "max_pool_ceil": (X + "MaxPool<kernel_shape=[3,3], strides=[2,2], ceil_mode=1, pads=[1,0,0,1]>(x) }", {}),
    "max_pool_dilated": (X + "MaxPool<kernel_shape=[3,2], dilations=[2,3], pads=[1,1,1,1]>(x) }", {}),
    "average_pool_ceil": (X + "AveragePool<kernel_shape=[3,3], strides=[2,3], ceil_mode=1>(x) }", {}),
    "average_pool_counted": (X + "AveragePool<kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1], ceil_mode=1, "
                             "count_include_pad=1>(x) }", {}),
    "average_pool_dilated": (X + "AveragePool<kernel_shape=[2,2], dilations=[3,2], pads=[1,1,0,1]>(x) }", {}),
    "global_pools": (X + "Add(a, b) a = GlobalAveragePool(x) b = GlobalMaxPool(x) }", {}),
    "batch_norm": (X + "BatchNormalization<epsilon=0.01>(x, s, b, m, v) }",
                   {"s": floats(4), "b": floats(4), "m": floats(4), "v": np.abs(floats(4))}),
    "layer_norm": ("g (float[2,5,6] x) => (float y) { y = LayerNormalization<axis=-2, epsilon=0.001>(x, s, b) }",
                   {"s": floats(5, 6), "b": floats(5, 6)}),
    "layer_norm_outputs": ("g (float[2,5,6] x) => (float y, float m, float i) "
                           "{ y, m, i = LayerNormalization<axis=-1>(x, s) }", {"s": floats(6)}),
    "instance_norm": (X + "InstanceNormalization(x, s, b) }", {"s": floats(4), "b": floats(4)}),
    "group_norm": ("g (float[1,4,9,8] x) => (float[1,4,9,8] y) { y = GroupNormalization<num_groups=2>(x, s, b) }",
                   {"s": floats(4), "b": floats(4)}),
    "rms_norm": ("g (float[2,5,6] x) => (float y) { y = RMSNormalization<axis=-1, epsilon=0.01>(x, s) }",
                 {"s": floats(6)}),
    "lrn": (X + "LRN<size=3, alpha=0.1, beta=0.6, bias=1.5>(x) }", {}),
    "gemm": ("g (float[5,3] x) => (float y) { y = Gemm<transA=1, alpha=0.5, beta=2.0>(x, w, b) }",
             {"w": floats(5, 4), "b": floats(3, 1)}),
    "gemm_bias": ("g (float[5,3] x) => (float y) { y = Gemm(x, w, b) }", {"w": floats(3, 4), "b": floats(4)}),
    "matmul_vector": ("g (float[3] x) => (float y) { y = MatMul(x, w) }", {"w": floats(2, 3, 4)}),
    "einsum": ("g (float[2,3,4] x, float[2,5,4] z) => (float y) { y = Einsum<equation=\"bij,bkj->ikb\">(x, z) }", {}),
    "gelu": (X + 'Sub(a, b) a = Gelu<approximate="tanh">(x) b = Gelu(x) }', {}),
    "activations": (X + "Sum(a, b, c, d, f, h) a = Elu<alpha=0.3>(x) b = Celu<alpha=2.0>(x) c = Selu(x) "
                    "d = Mish(x) f = LeakyRelu<alpha=0.3>(x) h = ThresholdedRelu<alpha=0.5>(x) }", {}),
    "more_activations": (X + "Sum(a, b, c, d) a = Softplus(x) b = Softsign(x) c = HardSigmoid<alpha=0.3>(x) "
                         "d = Shrink<lambd=0.5, bias=0.2>(x) }", {}),
    "prelu": (X + "PRelu(x, s) }", {"s": floats(4, 1, 1)}),
    "softmax": (X + "Sum(a, b, c) a = Softmax<axis=1>(x) b = LogSoftmax<axis=-1>(x) c = Hardmax<axis=2>(x) }", {}),
    "unary": (X + "Sum(a, b, c, d, e, f) a = Erf(x) b = Tanh(x) c = Abs(x) d = Sign(x) e = Round(x) f = Exp(x) }", {}),
    "reciprocal": (X + "Reciprocal(x) }", {}),
    "hyperbolic": ("g (float[3,4] x) => (float y) { a = Asinh(x) one = Constant<value_float=1.001>() b = Abs(x) "
                   "c = Add(b, one) d = Acosh(c) y = Add(a, d) }", {}),
    "fmod": ("g (float[3,4] x, float[4] z) => (float y) { y = Mod<fmod=1>(x, z) }", {}),
    "integer_division": ("g (int32[6] x) => (int32 y) { y = Div(x, d) }",
                         {"d": np.array([3, -3, 2, -2, 5, 7], np.int32)}),
    "where": ("g (bool[3,1] c, float[1,4] x) => (float y) { y = Where(c, x, z) }", {"z": floats(1)}),
    "clip": (X + "Clip(x, lo) }", {"lo": np.array(-0.2, np.float32)}),
    "reduce": (X + "Sum(a, b, c, d) a = ReduceMean<keepdims=0>(x, ax) b = ReduceL2<keepdims=0>(x, ax) "
               "c = ReduceLogSumExp<keepdims=0>(x, ax) d = ReduceMax<keepdims=0>(x, ax) }",
               {"ax": np.array([-1, 1], np.int64)}),
    "arg_last": ("g (int32[3,4] x) => (int64 y) { y = ArgMax<axis=1, select_last_index=1>(x) }", {}),
    "cumsum": (X + "CumSum<exclusive=1, reverse=1>(x, ax) }", {"ax": np.array(2, np.int64)}),
    "slice": (X + "Slice(x, s, e, a, t) }", {
        "s": np.array([-1, 1], np.int64), "e": np.array([-(2**63), 2**63 - 1], np.int64),
        "a": np.array([3, -2], np.int64), "t": np.array([-2, 3], np.int64)}),
    "pad_reflect": (X + 'Pad<mode="reflect">(x, p) }', {"p": np.array([0, 2, 1, 2, 0, 1, 3, 0], np.int64)}),
    "pad_negative": (X + "Pad(x, p, v) }", {"p": np.array([0, 0, -1, 2, 0, 1, 3, -1], np.int64),
                                            "v": np.array(1.5, np.float32)}),
    "pad_wrap": (X + 'Pad<mode="wrap">(x, p) }', {"p": np.array([0, 0, 2, 0, 0, 0, 0, 3], np.int64)}),
    "depth_to_space": (X + 'Sub(a, b) a = DepthToSpace<blocksize=2, mode="CRD">(x) b = DepthToSpace<blocksize=2>(x) }',
                       {}),
    "space_to_depth": ("g (float[1,2,4,6] x) => (float y) { y = SpaceToDepth<blocksize=2>(x) }", {}),
    "gather": (X + "Gather<axis=-2>(x, i) }", {"i": np.array([[0, -1], [3, 2]], np.int64)}),
    "gather_given": ("g (float[5,3] x, int64[2] i) => (float y) { y = Gather(x, i) }", {}),
    "gather_elements": ("g (float[5,3] x) => (float y) { y = GatherElements<axis=0>(x, i) }",
                        {"i": np.array([[0, -1], [4, 2]], np.int64)}),
    "scatter_elements": ("g (float[5,3] x, float[2,2] u) => (float y) "
                         '{ y = ScatterElements<axis=0, reduction="add">(x, i, u) }',
                         {"i": np.array([[0, -1], [0, 2]], np.int64)}),
    "scatter_nd": ("g (float[5,3] x, float[2,3] u) => (float y) { y = ScatterND(x, i, u) }",
                   {"i": np.array([[1], [-1]], np.int64)}),
    "one_hot": ("g (int64[2,3] x) => (float y) { y = OneHot<axis=1>(x, d, v) }",
                {"d": np.array(4, np.int64), "v": np.array([-1, 2], np.float32)}),
    "trilu": ("g (float[2,4,5] x) => (float y) { a = Trilu<upper=1>(x, k) b = Trilu<upper=0>(x) y = Sub(a, b) }",
              {"k": np.array(1, np.int64)}),
    "topk": ("g (float[3,8] x) => (float y, int64 i) { y, i = TopK<axis=-1, largest=0>(x, k) }",
             {"k": np.array([3], np.int64)}),
    "resize_half_pixel": (X + 'Resize<mode="linear">(x, , s) }', {"s": np.array([1, 1, 2, 3], np.float32)}),
    "resize_corners": (X + 'Resize<mode="linear", coordinate_transformation_mode="align_corners">(x, , , s) }',
                       {"s": np.array([1, 4, 13, 5], np.int64)}),
    "resize_cubic": (X + 'Resize<mode="cubic", cubic_coeff_a=-0.5>(x, , s) }',
                     {"s": np.array([1, 1, 1.6, 0.7], np.float32)}),
    "resize_nearest": (X + 'Resize<mode="nearest", nearest_mode="floor", '
                       'coordinate_transformation_mode="asymmetric">(x, , s) }',
                       {"s": np.array([1, 1, 2, 2], np.float32)}),
    "resize_nearest_down": (X + 'Resize<mode="nearest">(x, , s) }', {"s": np.array([1, 1, 0.6, 1.7], np.float32)}),
    "lstm": ("g (float[5,2,3] x, float[2,2,4] h, float[2,2,4] c) => (float y, float yh, float yc) "
             '{ y, yh, yc = LSTM<hidden_size=4, direction="bidirectional">(x, w, r, b, , h, c) }',
             {"w": floats(2, 16, 3), "r": floats(2, 16, 4), "b": floats(2, 32)}),
    "lstm_peephole": ("g (float[5,2,3] x) => (float y) { y = LSTM<hidden_size=4>(x, w, r, , , , , p) }",
                      {"w": floats(1, 16, 3), "r": floats(1, 16, 4), "p": floats(1, 12)}),
    "gru": ("g (float[5,2,3] x) => (float y, float yh) "
            '{ y, yh = GRU<hidden_size=4, direction="reverse", linear_before_reset=1>(x, w, r, b) }',
            {"w": floats(1, 12, 3), "r": floats(1, 12, 4), "b": floats(1, 24)}),
    "gru_before": ("g (float[5,2,3] x) => (float y) { y = GRU<hidden_size=4>(x, w, r, b) }",
                   {"w": floats(1, 12, 3), "r": floats(1, 12, 4), "b": floats(1, 24)}),
    "rnn": ("g (float[5,2,3] x) => (float y, float yh) "
            '{ y, yh = RNN<hidden_size=4, direction="bidirectional">(x, w, r, b) }',
            {"w": floats(2, 4, 3), "r": floats(2, 4, 4), "b": floats(2, 8)}),
    "attention": ("g (float[1,5,8] q, float[1,6,4] k, float[1,6,4] v, float[5,6] m) => (float y) "
                  "{ y = Attention<q_num_heads=4, kv_num_heads=2, scale=0.3>(q, k, v, m) }", {}),
    "attention_causal": ("g (float[1,2,5,4] q, float[1,2,5,4] k, float[1,2,5,4] v) => (float y) "
                         "{ y = Attention<is_causal=1, softcap=2.0>(q, k, v) }", {}),
    "rotary": ("g (float[1,2,5,8] x) => (float y) { y = RotaryEmbedding<interleaved=1>(x, c, s) }",
               {"c": floats(1, 5, 4), "s": floats(1, 5, 4)}),
    "bits": ("g (int32[4] x, int32[4] z) => (int32 y) { a = BitwiseAnd(x, k) b = BitwiseXor(a, z) y = BitwiseNot(b) }",
             {"k": np.array([-7, 12345, 2, -(2**31)], np.int32)}),
    "stft": ("g (float[1,64,1] x) => (float y) { y = STFT<onesided=1>(x, s, w) }",
             {"s": np.array(8, np.int64), "w": np.hanning(16).astype(np.float32)}),
    "windows": ("g (float[2,8,12,3] x) => (float y) { a = Reshape(x, s) b = Transpose<perm=[0,1,3,2,4,5]>(a) "
                "y = Reshape(b, t) }", {"s": np.array([2, 2, 4, 3, 4, 3]), "t": np.array([-1, 16, 3])}),
    "scan": ("g (float[2] a, float[5,2] x) => (float z, float y) { z, y = Scan<num_scan_inputs=1, "
             "scan_output_directions=[1], body = b (float[2] s, float[2] e) => (float[2] t, float[2] o) "
             "{ t = Add(s, e) o = Exp(t) }>(a, x) }", {}),
    "loop": ("g (float[2] a) => (float z, float y) { z, y = Loop<body = b (int64 i, bool c, float[2] s) => "
             "(bool k, float[2] t, float[2] o) { k = Identity(c) f = Cast<to=1>(i) t = Add(s, f) o = Sin(t) }>"
             "(n, , a) }", {"n": np.array(4)}),
    "if": ("g (bool[1] c, float[3] x) => (float y) { y = If(c) <then_branch = t () => (float[3] a) { a = Exp(x) }, "
           "else_branch = e () => (float[3] b) { b = Neg(x) }> }", {}),
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_computes_the_same_for_every_target(name: str, tmp_path: Path) -> None:
    """What each target's package computes is what onnxruntime computes."""
    text, weights = MODELS[name]
    for target in TARGETS:
        check(text, tmp_path / f"{target}.mlpackage", target, weights, tolerance=2e-5)


def test_every_family_is_here() -> None:
    """Each module of lowerings has at least one model above whose operators it lowers."""
    from edgec.backends.coreml.registry import lowerings

    known = lowerings()
    used = {n.op_type for text, weights in MODELS.values() for n in parse(text, weights).graph.all_nodes()}
    modules = {row.lower.__module__ for row in known.values()}
    seen = {known[op].lower.__module__ for op in used}
    # Quantised and packed weights have files of tests of their own; grids are covered by ONNX's own tests.
    assert {m.rpartition(".")[2] for m in modules - seen} <= {"ops_packed", "ops_quant", "ops_source", "ops_grid"}


def test_attention_is_fused_where_the_target_has_it(tmp_path: Path) -> None:
    text, _ = MODELS["attention"]
    assert "scaled_dot_product_attention" in check(text, tmp_path / "a.mlpackage", "ios18").ops
    assert "scaled_dot_product_attention" not in check(text, tmp_path / "b.mlpackage", "ios17").ops


def test_a_row_that_sees_nothing_gives_zeros(tmp_path: Path) -> None:
    """Attention-25: no NaN where a mask forbids every key."""
    text = "g (float[1,1,2,4] q, float[1,1,3,4] k, float[1,1,3,4] v, bool[2,3] m) => (float y) "
    text += "{ y = Attention(q, k, v, m) }"
    model = parse(text)
    feeds = {n: RNG.normal(size=s).astype(np.float32) for n, s in (("q", (1, 1, 2, 4)), ("k", (1, 1, 3, 4)))}
    feeds |= {"v": feeds["k"] * 2, "m": np.array([[True, False, True], [False, False, False]])}
    for target in ("ios17", "ios18"):
        package = check(model, tmp_path / f"{target}.mlpackage", target, feeds=feeds)
        assert not package.got["y"][0, 0, 1].any()


def test_everything_missing_is_listed_at_once() -> None:
    """Unknown operators, wrong forms and free dimensions: one list, with the nodes' names and the flag to pass."""
    model = parse(
        "g (float[N,4] x, float[2,4] z) => (float y, float w) { y = NonZeroLike(x) w = Unique2(z) }".replace(
            "NonZeroLike", "Relu").replace("Unique2", "Neg"))  # fmt: skip
    nodes = list(model.graph)
    nodes[0].op_type, nodes[0].name = "Unheard", "first"
    nodes[1].op_type, nodes[1].name = "Unknown", "second"
    missing = BACKEND.check(model, find_target("ios18"), EmitOptions())
    assert {m.node for m in missing} == {"", "first", "second"}
    assert any("--shape x:1,4" in m.why for m in missing)
    with pytest.raises(UnsupportedOp, match=r"(?s)first.*second"):
        BACKEND.emit(model, find_target("ios18"), Path("nowhere.mlpackage"), EmitOptions())
    assert not Path("nowhere.mlpackage").exists()


@pytest.mark.parametrize(
    ("text", "weights", "why"),
    [
        ("g (int32[2] x) => (int64 y) { a = Cast<to=7>(x) y = Add(a, w) }", {"w": np.array([2**40, 1])}, "32 bits"),
        ("g (int32[100] x) => (int64 y) { a = Cast<to=7>(x) y = Add(a, w) }", {"w": np.full(100, -(2**33))}, "32 bits"),
        ("g (float[1,1,1,1,1,2] x) => (float y) { y = Relu(x) }", {}, "5 dimensions"),
        ("g (float[4] x) => (float y) { b = Cast<to=16>(x) y = Cast<to=1>(b) }", {}, "bfloat16"),
        ("g (float[4] x, int64[1] n) => (float y) { y = Tile(x, n) }", {}, "must be constant"),
    ],
)
def test_what_cannot_be_exact_is_refused(text: str, weights: dict[str, np.ndarray], why: str) -> None:
    missing = BACKEND.check(parse(text, weights), find_target("ios18"), EmitOptions())
    assert missing and any(why in m.why for m in missing), missing
