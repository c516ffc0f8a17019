"""Packed weights stay packed in the file, in the form that each target reads, and dequantise to the same numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from coremlpack import check, parse
from edgec.backends.coreml import BACKEND
from edgec.compiler.backend import EmitOptions
from edgec.compiler.targets import find_target

RNG = np.random.default_rng(11)
FORMS = {
    "ios16": "constexpr_affine_dequantize", "ios17": "constexpr_affine_dequantize",
    "ios18": "constexpr_blockwise_shift_scale", "ios26": "constexpr_blockwise_shift_scale",
}  # fmt: skip


def int8(*shape: int) -> np.ndarray:
    return RNG.integers(-127, 128, shape).astype(np.int8)


def scales(*shape: int) -> np.ndarray:
    return (RNG.random(shape) * 0.1 + 0.01).astype(np.float16).astype(np.float32)


def weight_bytes(path: Path) -> int:
    return (path / "Data/com.apple.CoreML/weights/weight.bin").stat().st_size


MODELS = {
    "conv": ("g (float[1,8,9,9] x) => (float y) { w = DequantizeLinear<axis=0>(q, s) y = Conv(x, w) }",
             {"q": int8(16, 8, 3, 3), "s": scales(16)}),
    "conv_transpose": ("g (float[1,8,9,9] x) => (float y) { w = DequantizeLinear<axis=1>(q, s) "
                       "y = ConvTranspose(x, w) }", {"q": int8(8, 16, 3, 3), "s": scales(16)}),
    "gemm": ("g (float[2,64] x) => (float y) { w = DequantizeLinear<axis=1>(q, s) y = Gemm(x, w, b) }",
             {"q": int8(64, 32), "s": scales(32), "b": scales(32)}),
    "gemm_rows": ("g (float[2,64] x) => (float y) { w = DequantizeLinear<axis=0>(q, s, z) "
                  "y = Gemm<transB=1>(x, w) }", {"q": int8(32, 64), "s": scales(32), "z": int8(32)}),
    "matmul": ("g (float[3,2,64] x) => (float y) { w = DequantizeLinear(q, s, z) y = MatMul(x, w) }",
               {"q": RNG.integers(0, 256, (64, 32)).astype(np.uint8), "s": scales(), "z": np.array(117, np.uint8)}),
    "transposed": ("g (float[2,64] x) => (float y) { w = DequantizeLinear<axis=0>(q, s) t = Transpose(w) "
                   "y = MatMul(x, t) }", {"q": int8(32, 64), "s": scales(32)}),
    "embedding": ("g (int64[3] x) => (float y) { w = DequantizeLinear<axis=0>(q, s) y = Gather(w, x) }",
                  {"q": int8(50, 32), "s": scales(50)}),
    "lstm": ("g (float[5,2,16] x) => (float y) { w = DequantizeLinear<axis=1>(q, s) "
             "y = LSTM<hidden_size=8>(x, w, r) }", {"q": int8(1, 32, 16), "s": scales(32), "r": scales(1, 32, 8)}),
}  # fmt: skip


@pytest.mark.parametrize("target", FORMS)
@pytest.mark.parametrize("name", MODELS)
def test_integers_stay_integers(name: str, target: str, tmp_path: Path) -> None:
    """The file holds one byte per element, in the target's own form, and computes the same."""
    text, weights = MODELS[name]
    path = tmp_path / "a.mlpackage"
    package = check(text, path, target, weights)
    assert package.ops[FORMS[target]] == 1
    dense = sum(a.nbytes for k, a in weights.items() if k in "rb")
    assert weight_bytes(path) < weights["q"].size + dense + 1500


@pytest.mark.parametrize("target", FORMS)
def test_a_rounded_product_is_a_float16_constant(target: str, tmp_path: Path) -> None:
    """With a rounding pair behind it the weight dequantises to float16, with a float16 scale."""
    text = (
        "g (float[1,8,9,9] x) => (float y) { xh = Cast<to=10>(x) a = Cast<to=1>(xh) w = DequantizeLinear<axis=0>(q, s) "
        "wh = Cast<to=10>(w) v = Cast<to=1>(wh) c = Conv(a, v) ch = Cast<to=10>(c) y = Cast<to=1>(ch) }"
    )
    package = check(text, tmp_path / "a.mlpackage", target, MODELS["conv"][1], tolerance=2e-3)
    assert package.types(FORMS[target]) == {"FLOAT16"} == package.types("conv")


def test_four_bits_in_blocks(tmp_path: Path) -> None:
    text = "g (float[2,64] x) => (float y) { w = DequantizeLinear<axis=0, block_size=16>(q, s) y = MatMul(x, w) }"
    model = parse(text, {"s": scales(4, 32), "q": np.zeros((64, 32), np.int8)})
    numbers = RNG.integers(-8, 8, (64, 32))
    tensor = onnx.helper.make_tensor("q", onnx.TensorProto.INT4, (64, 32), numbers.reshape(-1).tolist())
    import onnx_ir as ir

    value = model.graph.initializers["q"]
    value.const_value = ir.from_proto(tensor)
    value.type = ir.TensorType(ir.DataType.INT4)
    package = check(model, tmp_path / "a.mlpackage", "ios18")
    assert package.ops["constexpr_blockwise_shift_scale"] == 1
    assert weight_bytes(tmp_path / "a.mlpackage") < 64 * 32 // 2 + 4 * 32 * 4 + 500
    missing = BACKEND.check(model, find_target("ios17"), EmitOptions())
    assert len(missing) == 1 and "iOS 18" in missing[0].why


def test_packed_weights_need_ios16() -> None:
    text, weights = MODELS["conv"]
    missing = BACKEND.check(parse(text, weights), find_target("ios15"), EmitOptions())
    assert len(missing) == 1 and missing[0].op == "DequantizeLinear"


@pytest.mark.parametrize("target", ["ios15", "ios16", "ios17", "ios18"])
def test_quantised_activations(target: str, tmp_path: Path) -> None:
    text = (
        "g (float[2,8] x) => (float y, uint8 q) "
        "{ q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) y = Relu(d) }"
    )
    weights = {"s": np.array(0.03, np.float32), "z": np.array(120, np.uint8)}
    package = check(text, tmp_path / "a.mlpackage", target, weights)
    assert ("quantize" in package.ops) == (target not in ("ios15", "ios16"))


@pytest.mark.parametrize("target", ["ios15", "ios16", "ios18"])
def test_dynamically_quantised_products_keep_their_weights(target: str, tmp_path: Path) -> None:
    """The int8 family of onnxruntime's quantiser: DynamicQuantizeLinear, MatMulInteger, then the scales."""
    text = (
        "g (float[4,96] x) => (float y) { q, s, z = DynamicQuantizeLinear(x) i = MatMulInteger(q, w, z, v) "
        "f = Cast<to=1>(i) k = Mul(s, t) y = Mul(f, k) }"
    )
    # Half the range, as quantisers choose it for x86: onnxruntime's kernel saturates in 16 bits without VNNI.
    weights = {"w": int8(96, 64) // 2, "v": np.array(3, np.int8), "t": np.array(0.02, np.float32)}
    path = tmp_path / "a.mlpackage"
    package = check(text, path, target, weights)
    if target != "ios15":
        assert weight_bytes(path) < 96 * 64 + 500
        assert package.ops[FORMS[target]] == 1


@pytest.mark.parametrize("target", ["ios15", "ios16", "ios18"])
def test_a_table_of_integers_stays_packed(target: str, tmp_path: Path) -> None:
    """An embedding stored as integers: gathered first, dequantised after."""
    text = "g (int64[3] x) => (float y) { i = Gather(q, x) y = DequantizeLinear(i, s, z) }"
    weights = {"q": int8(50, 32), "s": scales(), "z": np.array(3, np.int8)}
    check(text, tmp_path / "a.mlpackage", target, weights)
    assert weight_bytes(tmp_path / "a.mlpackage") < 50 * 32 * (4 if target == "ios15" else 1) + 500


def test_a_cast_weight_stays_packed(tmp_path: Path) -> None:
    """Integers cast to float and scaled by hand: one byte each all the same."""
    text = "g (float[2,64] x) => (float y) { f = Cast<to=1>(q) w = Mul(f, s) y = MatMul(x, w) }"
    check(text, tmp_path / "a.mlpackage", "ios17", {"q": int8(64, 32), "s": scales(32)})
    assert weight_bytes(tmp_path / "a.mlpackage") < 64 * 32 + 32 * 4 + 500


def test_one_initializer_is_stored_once(tmp_path: Path) -> None:
    """Two readers of one weight, and its transpose beside it: the same bytes once, others once."""
    text = "g (float[2,64] x) => (float y) { a = MatMul(x, w) b = MatMul(x, w) c = Gemm(x, w) y = Sum(a, b, c) }"
    check(text, tmp_path / "a.mlpackage", "ios17", {"w": scales(64, 64)})
    assert 2 * 64 * 64 * 4 <= weight_bytes(tmp_path / "a.mlpackage") < 2 * 64 * 64 * 4 + 1000
