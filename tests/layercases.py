"""Models of linear layers, for statistics of their inputs and for rounding by them."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir

from edgec.compiler.shapes import infer


def build(text: str, **weights: np.ndarray) -> ir.Model:
    """A model of the body `text`: inputs and outputs in onnx's text form, weights given as arrays."""
    proto = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 25]> net {text}')
    for name, array in weights.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array.astype(np.float32), name))
    model = ir.from_proto(proto)
    infer(model)
    return model


def chain(layers: int, width: int) -> ir.Model:
    """Products with random matrices, h0 … y, a Relu behind each."""
    body = [f"h{k + 1} = Relu(z{k + 1})" for k in range(layers - 1)]
    lines = [f"z{k + 1} = MatMul(h{k}, w{k})" for k in range(layers)]
    mixed = [line for pair in zip(lines, [*body, f"y = Relu(z{layers})"], strict=True) for line in pair]
    text = "(float[N,W] h0) => (float[N,W] y) { " + " ".join(mixed) + " }"
    rng = np.random.default_rng(layers)
    return build(text, **{f"w{k}": rng.normal(size=(width, width)) * width**-0.5 for k in range(layers)})


LAYERS = {
    "conv": ("(float[N,4,9,8] x) => (float[N,a,b,c] y) { y = Conv(x, w) }", (6, 4, 3, 2), (5, 4, 9, 8)),
    "strided": (
        "(float[N,4,9,8] x) => (float[N,a,b,c] y) { y = Conv<strides=[2,1],dilations=[1,2],pads=[1,0,2,3]>(x, w) }",
        (6, 4, 3, 2),
        (5, 4, 9, 8),
    ),
    "grouped": ("(float[N,4,9] x) => (float[N,a,b] y) { y = Conv<group=2,pads=[1,1]>(x, w) }", (6, 2, 3), (5, 4, 9)),
    "depthwise": (
        '(float[N,4,9,9] x) => (float[N,a,b,c] y) { y = Conv<group=4,auto_pad="SAME_UPPER",strides=[2,2]>(x, w) }',
        (8, 1, 3, 3),
        (5, 4, 9, 9),
    ),
    "transposed": ("(float[N,4,5,6] x) => (float[N,a,b,c] y) { y = ConvTranspose(x, w) }", (4, 6, 3, 2), (5, 4, 5, 6)),
    "transposed strides": (
        "(float[N,4,5] x) => (float[N,a,b] y) "
        "{ y = ConvTranspose<strides=[2],group=2,pads=[1,2],output_padding=[1],dilations=[2]>(x, w) }",
        (4, 3, 3),
        (5, 4, 5),
    ),
    "transposed, cut": (
        "(float[N,4,5] x) => (float[N,a,b] y) { y = ConvTranspose<strides=[3],pads=[2,2]>(x, w) }",
        (4, 3, 2),
        (5, 4, 5),
    ),
    "matmul": ("(float[N,7,5] x) => (float[N,7,3] y) { y = MatMul(x, w) }", (5, 3), (4, 7, 5)),
    "batched": ("(float[N,2,7,5] x) => (float[N,2,7,3] y) { y = MatMul(x, w) }", (2, 5, 3), (4, 2, 7, 5)),
    "one for each": ("(float[N,1,7,5] x) => (float[N,2,7,3] y) { y = MatMul(x, w) }", (2, 5, 3), (4, 1, 7, 5)),
    "left": ("(float[N,5,7] x) => (float[N,3,7] y) { y = MatMul(w, x) }", (3, 5), (4, 5, 7)),
    "left, batched": ("(float[N,2,5,7] x) => (float[N,2,3,7] y) { y = MatMul(w, x) }", (2, 3, 5), (4, 2, 5, 7)),
    "gemm": ("(float[N,5] x) => (float[N,3] y) { y = Gemm<alpha=2.0>(x, w) }", (5, 3), (9, 5)),
    "gemm, turned": ("(float[N,5] x) => (float[N,3] y) { y = Gemm<transB=1>(x, w) }", (3, 5), (9, 5)),
    "gemm, input turned": ("(float[5,9] x) => (float[9,3] y) { y = Gemm<transA=1>(x, w) }", (5, 3), (5, 9)),
    "gemm, left": ("(float[5,9] x) => (float[3,9] y) { y = Gemm(w, x) }", (3, 5), (5, 9)),
    "gemm, both": ("(float[9,5] x) => (float[3,9] y) { y = Gemm<transA=1,transB=1>(w, x) }", (5, 3), (9, 5)),
    "through a transpose": (
        "(float[N,5] x) => (float[N,3] y) { t = Transpose<perm=[1,0]>(w) y = MatMul(x, t) }",
        (3, 5),
        (9, 5),
    ),
}
"""A layer of input x, output y and weight w; the sizes of w; sizes of an input."""
