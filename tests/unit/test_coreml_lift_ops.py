"""The lifter against Apple's own Python reference: coremltools' value inference, operator by operator.

Each case builds one operator twice: once on constants, where coremltools computes the result itself, and once on model
inputs, saved as a package, lifted and run by onnxruntime. Every version of an operator (from signatures.json) is tried.

Run one:  pytest tests/unit/test_coreml_lift_ops.py -k "reshape"
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from edgec.formats.mlpackage import open_package
from edgec.frontends import coreml
from edgec.frontends.coreml.call import RULES
from edgec.frontends.coreml.check import signatures

RNG = np.random.default_rng(7)
TARGETS = {5: "iOS15", 6: "iOS16", 7: "iOS17", 8: "iOS18", 9: "iOS26"}


def f(*shape: int, low: float = -3.0, high: float = 3.0) -> np.ndarray[Any, Any]:
    """Float inputs that float16 holds exactly."""
    return RNG.uniform(low, high, shape).astype(np.float16).astype(np.float32)


def i(*shape: int, low: int = -9, high: int = 9) -> np.ndarray[Any, Any]:
    return RNG.integers(low, high, shape).astype(np.int32)


def distinct(*shape: int) -> np.ndarray[Any, Any]:
    """Values without ties, for sorting."""
    return RNG.permutation(int(np.prod(shape))).reshape(shape).astype(np.float32)


def b(*shape: int) -> np.ndarray[Any, Any]:
    return RNG.integers(0, 2, shape).astype(bool)


@dataclass(frozen=True)
class Case:
    """One use of an operator: model inputs, compile-time inputs, and from which opset on it is legal."""

    kind: str
    inputs: dict[str, Any] = field(default_factory=dict)
    fixed: dict[str, Any] = field(default_factory=dict)
    since: int = 5
    until: int = 9
    half: bool = False
    """Also as a float16 operator."""
    expected: Callable[..., Any] | None = None
    """Where coremltools' own inference is missing or raises: the definition in numpy."""

    def opsets(self) -> list[int]:
        versions = [max(row["since"], self.since) for row in signatures()[self.kind]]
        return sorted({v for v in versions if v <= self.until} | ({9} if self.until == 9 else set()))


def unary(kind: str, x: Any, **fixed: Any) -> Case:
    return Case(kind, {"x": x}, fixed, half=True)


UNIT = f(2, 5, low=-0.9, high=0.9)
POSITIVE = f(2, 5, low=0.25, high=4.0)
IMAGE = f(2, 3, 4, 5)
CASES = [
    *(unary(k, f(2, 3, 4)) for k in (
        "atan", "ceil", "cos", "cosh", "erf", "exp", "exp2", "floor", "relu", "relu6", "round", "sigmoid", "sign",
        "sin", "sinh", "softplus", "softsign", "square", "tanh", "abs", "identity")),
    *(unary(k, UNIT) for k in ("acos", "asin", "atanh", "tan")),
    *(unary(k, POSITIVE) for k in ("log", "rsqrt", "sqrt", "inverse")),
    Case("log", {"x": POSITIVE}, {"epsilon": np.float32(0.125)}),
    Case("log", {"x": np.zeros(3, np.float32)}),
    Case("rsqrt", {"x": POSITIVE}, {"epsilon": np.float32(0.5)}),
    Case("inverse", {"x": POSITIVE}, {"epsilon": np.float32(0.5)}),
    *(Case(k, {"x": i(3, 4)}) for k in ("abs", "sign", "square")),
    Case("round", {"x": np.array([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5], np.float32)}),
    Case("logical_not", {"x": b(3, 4)}),
    unary("clip", f(3, 4), alpha=np.float32(-0.5), beta=np.float32(1.25)),
    unary("threshold", f(3, 4), alpha=np.float32(0.5)),
    Case("threshold", {"x": i(3, 4)}, {"alpha": np.int32(2)}),
    *(Case("cast", {"x": f(3, 4, low=0.0, high=100.0)}, {"dtype": d}) for d in ("int32", "bool", "fp16", "fp32")),
    *(Case("cast", {"x": i(3, 4, low=0, high=100)}, {"dtype": d}) for d in ("fp32", "bool")),
    *(Case("cast", {"x": i(3, 4, low=0, high=100)}, {"dtype": d}, since=7)
      for d in ("int8", "uint8", "int16", "uint16")),
    Case("cast", {"x": f(3, 4)}, {"dtype": "int32"}),
    # two inputs
    *(Case(k, {"x": f(2, 3, 4), "y": f(3, 1)}, half=True) for k in ("add", "sub", "mul", "maximum", "minimum")),
    *(Case(k, {"x": f(2, 4), "y": f(2, 4, low=0.5)}, half=True) for k in ("real_div", "floor_div", "mod")),
    *(Case(k, {"x": f(2, 4), "y": -f(2, 4, low=0.5)}) for k in ("floor_div", "mod")),
    *(Case(k, {"x": i(3, 4), "y": i(3, 4, low=1)}) for k in ("add", "mul", "floor_div", "mod", "maximum")),
    *(Case(k, {"x": i(3, 4), "y": -i(3, 4, low=1)}) for k in ("floor_div", "mod", "minimum", "sub")),
    Case("pow", {"x": POSITIVE, "y": f(2, 5)}, half=True),
    Case("pow", {"x": i(3, 4), "y": np.full((3, 4), 3, np.int32)}),
    *(Case(k, {"x": i(3, 4, low=0, high=3), "y": i(3, 4, low=0, high=3)}) for k in (
        "equal", "not_equal", "less", "less_equal", "greater", "greater_equal")),
    *(Case(k, {"x": f(3, 4), "y": f(4)})
      for k in ("less", "less_equal", "greater", "greater_equal", "equal", "not_equal")),
    *(Case(k, {"x": b(3, 4), "y": b(3, 4)}) for k in ("logical_and", "logical_or", "logical_xor")),
    Case("select", {"cond": b(3, 4), "a": f(3, 4), "b": f(3, 4)}),
    Case("select", {"cond": b(3, 4), "a": i(3, 4), "b": i(3, 4)}),
    Case("select", {"cond": b(3, 4), "a": b(3, 4), "b": b(3, 4)}),
    # activations
    unary("leaky_relu", f(3, 4), alpha=np.float32(0.125)),
    unary("elu", f(3, 4), alpha=np.float32(1.5)),
    unary("clamped_relu", f(3, 4), alpha=np.float32(0.25), beta=np.float32(1.5)),
    unary("linear_activation", f(3, 4), alpha=np.float32(1.5), beta=np.float32(-0.25)),
    unary("scaled_tanh", f(3, 4), alpha=np.float32(1.5), beta=np.float32(0.75)),
    unary("sigmoid_hard", f(3, 4), alpha=np.float32(0.25), beta=np.float32(0.375)),
    unary("thresholded_relu", np.array([-1, 0.5, 0.75, 1.0, 2.0], np.float32), alpha=np.float32(0.75)),
    unary("prelu", IMAGE, alpha=np.array([0.25, -0.5, 2.0], np.float32)),
    Case("prelu", {"x": f(2, 3, 4)}, {"alpha": np.full(3, 0.25, np.float32)}),
    unary("softplus_parametric", IMAGE, alpha=np.float32([1, 2, 0.5]), beta=np.float32([0.5, 1, 2])),
    unary("softmax", f(2, 3, 4)),
    unary("softmax", f(2, 3, 4), axis=1),
    unary("gelu", f(3, 4)),
    *(unary("gelu", f(3, 4), mode=m) for m in ("EXACT", "TANH_APPROXIMATION", "SIGMOID_APPROXIMATION")),
    # linear algebra and normalisation
    Case("linear", {"x": f(2, 4)}, {"weight": f(3, 4), "bias": f(3)}, half=True),
    Case("linear", {"x": f(4)}, {"weight": f(3, 4)}),
    Case("linear", {"x": f(2, 5, 4)}, {"weight": f(3, 4), "bias": f(3)}),
    Case("matmul", {"x": f(2, 3, 4), "y": f(4, 5)}, half=True),
    Case("matmul", {"x": f(2, 4, 3), "y": f(2, 5, 4)}, {"transpose_x": True, "transpose_y": True}),
    Case("matmul", {"x": f(4), "y": f(4, 5)}),
    Case("matmul", {"x": i(3, 4), "y": i(4, 2)}),
    Case("matmul", {"x": f(3, 4)}, {"y": i(4, 2)}, since=7, expected=lambda x, y: x @ y),
    Case("einsum", {"values": [f(2, 3, 4, 5), f(2, 5, 4, 6)]}, {"equation": "nchw,nwhu->nchu"}),
    Case("einsum", {"values": [f(1, 3, 4, 5), f(2, 5, 1, 6)]}, {"equation": "abcd,adce->abce"}),
    Case("einsum", {"values": [f(3, 4, 5), f(5, 4, 6)]}, {"equation": "chw,whr->chr"}),
    unary("l2_norm", IMAGE, epsilon=np.float32(1e-3)),
    Case("l2_norm", {"x": f(3, 4, 5)}),
    unary("layer_norm", f(2, 3, 4), axes=[2], gamma=f(4), beta=f(4), epsilon=np.float32(1e-3)),
    Case("layer_norm", {"x": f(2, 3, 4)}, {"axes": [-2, -1], "gamma": f(3, 4), "beta": f(3, 4)}),
    Case("layer_norm", {"x": f(2, 3, 4)}, {"axes": [1], "gamma": f(3), "beta": f(3), "epsilon": np.float32(1e-3)}),
    Case("layer_norm", {"x": f(2, 3, 4)}, {"axes": [0, 2]}),
    Case("scaled_dot_product_attention", {"query": f(2, 3, 4), "key": f(2, 5, 4), "value": f(2, 5, 6)}, half=True),
    Case("scaled_dot_product_attention",
         {"query": f(1, 2, 3, 4), "key": f(1, 2, 5, 4), "value": f(1, 2, 5, 6), "attn_mask": f(3, 5)}),
    Case("scaled_dot_product_attention",
         {"query": f(2, 3, 4), "key": f(2, 5, 4), "value": f(2, 5, 6),
          "attn_mask": np.array([[True, False, True, True, False]] * 3)}),
    # reductions and sorting
    *(unary(k, POSITIVE.reshape(5, 2)) for k in (
        "reduce_l1_norm", "reduce_l2_norm", "reduce_log_sum", "reduce_log_sum_exp", "reduce_max", "reduce_mean",
        "reduce_min", "reduce_prod", "reduce_sum", "reduce_sum_square")),
    *(Case(k, {"x": f(2, 3, 4)}, {"axes": [0, -1], "keep_dims": True}) for k in (
        "reduce_l1_norm", "reduce_l2_norm", "reduce_max", "reduce_mean", "reduce_min", "reduce_prod", "reduce_sum",
        "reduce_sum_square", "reduce_log_sum_exp")),
    *(Case(k, {"x": i(2, 3, low=1)}, {"axes": [1]}) for k in (
        "reduce_l1_norm", "reduce_l2_norm", "reduce_max", "reduce_mean", "reduce_min", "reduce_prod", "reduce_sum",
        "reduce_sum_square")),
    *(Case(k, {"x": distinct(3, 4)}, {"axis": a, "keep_dims": d})
      for k in ("reduce_argmax", "reduce_argmin") for a, d in ((0, True), (-1, False))),
    Case("reduce_argmax", {"x": distinct(3, 4)}, {"output_dtype": "uint16"}, since=7),
    Case("topk", {"x": distinct(3, 5)}, {"k": 2}),
    Case("topk", {"x": distinct(3, 5)}, {"k": 2, "axis": 0, "ascending": True}),
    Case("topk", {"x": distinct(3, 5)}, {"k": 3, "return_indices": False}, since=6),
    Case("topk", {"x": distinct(3, 5).astype(np.int32)}, {"k": 2}),
    Case("argsort", {"x": distinct(3, 5)}),
    Case("argsort", {"x": distinct(3, 5)}, {"axis": 0, "ascending": True}),
    Case("cumsum", {"x": f(3, 4)}, {"axis": 1}, half=True),
    Case("cumsum", {"x": i(3, 4)}, {"axis": 0, "reverse": True}),
    Case("cumsum", {"x": i(3, 4)}, {"axis": 1, "exclusive": True},
         expected=lambda x, axis, exclusive: np.cumsum(x, axis) - x),
    Case("non_zero", {"x": i(3, 4, low=0, high=2)}),
    # shapes
    Case("reshape", {"x": f(2, 3, 4)}, {"shape": [4, -1]}, half=True),
    Case("reshape", {"x": f(2, 3, 4)}, {"shape": [0, -1, 2]}),
    Case("reshape", {"x": f(2, 50)}, {"shape": [1, 0, -1, 0]}, since=7),
    Case("reshape", {"x": f(2, 3, 4)}, {"shape": [-1, 0]}, since=7),
    Case("reshape", {"x": i(2, 6), "shape": np.array([3, 4], np.int32)}),
    Case("flatten2d", {"x": f(2, 3, 4)}, {"axis": 2}),
    Case("flatten2d", {"x": f(2, 3, 4)}, {"axis": -1}),
    Case("flatten2d", {"x": f(2, 3, 4)}),
    Case("expand_dims", {"x": f(2, 3)}, {"axes": [0, -1]}),
    Case("squeeze", {"x": f(1, 3, 1)}),
    Case("squeeze", {"x": f(1, 3, 1)}, {"axes": [-1]}),
    Case("transpose", {"x": f(2, 3, 4)}, {"perm": [-1, 0, 1]}),
    Case("concat", {"values": [f(2, 3), f(2, 1)]}, {"axis": -1}),
    Case("concat", {"values": [f(2, 3), f(2, 3)]}, {"axis": 0, "interleave": True},
         expected=lambda values, axis, interleave: np.stack(values, 1).reshape(4, 3)),
    Case("stack", {"values": [f(2, 3), f(2, 3)]}, {"axis": -1}),
    Case("stack", {"values": [f(2, 3), f(2, 3)]}, {"axis": 0}),
    Case("split", {"x": f(6, 2)}, {"num_splits": 3, "axis": 0}),
    Case("split", {"x": f(2, 6)}, {"split_sizes": [1, 3, 2], "axis": -1}),
    Case("tile", {"x": f(2, 3)}, {"reps": [2, 3]}),
    Case("shape", {"x": f(2, 3)}),
    Case("fill", {"shape": np.array([2, 3], np.int32)}, {"value": np.float32(1.5)}),
    Case("fill", {"shape": np.array([2, 3], np.int32)}),
    Case("fill_like", {"ref_tensor": f(2, 3)}, {"value": np.int32(4)}),
    Case("range_1d", {"start": np.float32(1), "end": np.float32(5), "step": np.float32(1.5)}),
    Case("range_1d", {"start": np.int32(9), "end": np.int32(1), "step": np.int32(-3)}),
    *(Case("band_part", {"x": x}, {"lower": lo, "upper": up})
      for x, lo, up in ((f(4, 5), 1, 2), (f(2, 5, 4), -1, 0), (i(4, 4), 0, -1), (f(4, 4), 0, 0))),
    Case("reverse", {"x": f(2, 3, 4)}, {"axes": [0, -1]}),
    Case("reverse", {"x": f(2, 3)}),
    Case("reverse_sequence", {"x": f(3, 2, 4), "lengths": np.array([1, 3, 2, 0], np.int32)},
         {"seq_axis": 0, "batch_axis": 2},
         expected=lambda x, lengths, seq_axis, batch_axis: np.stack(
             [np.concatenate([x[:n, :, k][::-1], x[n:, :, k]]) for k, n in enumerate(lengths)], 2)),
    *(Case("pad", {"x": f(2, 3, 4)}, {"pad": [1, 2, 2, 1], "mode": m}, half=True) for m in ("reflect", "replicate")),
    Case("pad", {"x": f(2, 3)}, {"pad": [1, 0, 0, 2], "mode": "constant", "constant_val": np.float32(7)}),
    Case("pad", {"x": f(2, 3)}, {"pad": [0, 2]}),
    Case("pad", {"x": f(2, 3), "pad": np.array([1, 0, 0, 2], np.int32)}),
    # slices, gathers, scatters
    Case("slice_by_index", {"x": f(5, 6)}, {"begin": [1, 0], "end": [4, -1]}),
    Case("slice_by_index", {"x": f(5, 6)}, {"begin": [4, 5], "end": [0, 1], "stride": [-1, -2]}),
    Case("slice_by_index", {"x": f(5, 6)},
         {"begin": [1, 9], "end": [9, 3], "begin_mask": [False, True], "end_mask": [True, False]}),
    Case("slice_by_index", {"x": f(5, 6)},
         {"begin": [0, 0], "end": [0, 0], "stride": [-1, 2], "begin_mask": [True, True], "end_mask": [True, True]}),
    Case("slice_by_index", {"x": f(5, 6)}, {"begin": [-1, 2], "end": [0, 4], "squeeze_mask": [True, False]}),
    Case("slice_by_index", {"x": f(5, 6), "begin": np.array([1, 2], np.int32), "end": np.array([3, -1], np.int32)}),
    Case("slice_by_index", {"x": f(5, 6), "begin": np.array([-1, 2], np.int32), "end": np.array([3, 5], np.int32)},
         {"squeeze_mask": [True, False], "end_mask": [False, True]}),
    Case("slice_by_size", {"x": f(5, 6)}, {"begin": [1, 2], "size": [2, -1]}),
    Case("slice_by_size", {"x": f(5, 6)}, {"begin": [-2, 2], "size": [1, 3]}),
    Case("slice_by_size", {"x": f(5, 6), "begin": np.array([1, 2], np.int32)}, {"size": [2, 3]}),
    Case("slice_update", {"x": f(5, 6), "update": f(2, 3)}, {"begin": [1, 0], "end": [3, 5], "stride": [1, 2]}),
    Case("slice_update", {"x": f(5, 6), "update": f(2, 6)},
         {"begin": [4, 0], "end": [0, 0], "stride": [-2, 1], "end_mask": [False, True]}),
    Case("slice_update", {"x": f(5, 6), "update": f(6)},
         {"begin": [2, 0], "end": [0, 0], "squeeze_mask": [True, False], "end_mask": [False, True]}),
    Case("slice_update", {"x": f(5, 6), "update": f(2, 6), "begin": np.array([1, 0], np.int32)},
         {"end": [3, 6]}, expected=lambda x, update, begin, end: np.concatenate([x[:1], update, x[3:]])),
    Case("gather", {"x": f(4, 5), "indices": np.array([3, 0, 2], np.int32)}, {"axis": 1}),
    Case("gather", {"x": f(4, 5), "indices": np.array([[3, 0], [2, 1]], np.int32)}, half=True),
    Case("gather", {"x": f(4, 5), "indices": np.array([-1, 0], np.int32)}, until=6),
    Case("gather", {"x": f(2, 3, 4, 5), "indices": i(2, 2, low=0, high=4)}, {"axis": 2, "batch_dims": 1}, since=6),
    Case("gather", {"x": f(2, 3, 4), "indices": i(2, 3, 2, low=0, high=4)}, {"axis": 2, "batch_dims": 2}, since=6),
    Case("gather", {"x": f(4, 5)}, {"indices": np.array([3, 0], np.uint8)}, since=7),
    Case("gather", {"x": f(4, 5)}, {"indices": np.array([3, 0], np.uint16)}, since=6),
    Case("gather_along_axis", {"x": f(3, 4), "indices": i(3, 2, low=0, high=4)}, {"axis": 1}),
    Case("scatter_along_axis", {"data": f(3, 4), "indices": np.array([[2, 0, 1, 1]], np.int32), "updates": f(1, 4)},
         {"axis": 0, "mode": "update"}),
    # constants and quantisation
    Case("quantize", {"input": f(3, 4, low=-40, high=40)},
         {"scale": np.float32(0.5), "zero_point": np.uint8(100), "output_dtype": "uint8"}),
    Case("quantize", {"input": f(3, 4, low=-400, high=400)},
         {"scale": np.array([1, 2, 4], np.float32), "axis": 0, "output_dtype": "int8"}),
    Case("dequantize", {"input": RNG.integers(-99, 99, (3, 4)).astype(np.int8)},
         {"scale": np.array([0.5, 1, 2], np.float32), "zero_point": np.array([1, -2, 3], np.int8), "axis": 0}),
    Case("dequantize", {"input": RNG.integers(0, 200, (3, 4)).astype(np.uint8)}, {"scale": np.float32(0.25)}),
]


def _spread(shape: tuple[int, ...], density: float) -> np.ndarray[Any, Any]:
    mask = (RNG.uniform(size=shape) < density).astype(np.uint8)
    mask.reshape(-1)[0] = 1
    return mask


MASK = _spread((4, 12), 0.4)
"""Compressed constants: parameters per operator and opset; a type after a colon is a MIL type without a numpy one."""
CONSTANTS: list[tuple[str, int, int, dict[str, Any]]] = [
    ("constexpr_affine_dequantize", 6, 9, {"quantized_data": RNG.integers(-99, 99, (4, 12)).astype(np.int8),
     "zero_point": np.int8(3), "scale": np.float32(0.5), "axis": 0}),
    ("constexpr_affine_dequantize", 6, 9, {"quantized_data": RNG.integers(0, 200, (4, 12)).astype(np.uint8),
     "zero_point": np.array([3, 5, 0, 9], np.uint8), "scale": f(4, low=0.1), "axis": 0}),
    ("constexpr_affine_dequantize", 6, 9, {"quantized_data": RNG.integers(0, 200, (4, 12)).astype(np.uint8),
     "zero_point": np.uint8(7), "scale": f(12, low=0.1), "axis": -1}),
    ("constexpr_affine_dequantize", 6, 9, {"quantized_data": RNG.integers(-99, 99, (4, 12)).astype(np.int8),
     "zero_point": np.float32(0.5), "scale": f(4, low=0.1), "axis": 0}),
    ("constexpr_cast", 6, 9, {"source_val": f(4, 12).astype(np.float16), "output_dtype": "fp32"}),
    *(("constexpr_lut_to_dense", 6, 7, {"indices:packed": (RNG.integers(0, 1 << n, 48), n), "lut": f(1 << n),
       "shape": np.array([4, 12], np.uint32)}) for n in (1, 2, 4, 6, 8)),
    ("constexpr_sparse_to_dense", 6, 7, {"nonzero_data": f(int(MASK.sum())),
     "mask": np.packbits(MASK.reshape(-1), bitorder="little"), "shape": np.array([4, 12], np.uint32)}),
    *(("constexpr_lut_to_dense", 8, 9, {f"indices:uint{n}": RNG.integers(0, 1 << n, (4, 12)), "lut": f(*g, 1 << n, 1)})
      for n, g in ((1, (1, 1)), (2, (2, 1)), (3, (1, 1)), (4, (4, 1)), (6, (1, 1)), (8, (1, 3)))),
    *(("constexpr_lut_to_dense", 8, 9, {"indices:uint2": RNG.integers(0, 4, shape), "lut": f(1, 1, 4, v),
       "vector_axis": a}) for shape, a, v in (((4, 4), 1, 3), ((2, 12), 0, 2), ((2, 12), -2, 2))),
    ("constexpr_sparse_to_dense", 8, 9, {"nonzero_data": f(int(MASK.sum())), "mask:uint1": MASK}),
    *(("constexpr_blockwise_shift_scale", 8, 9,
       {f"data:{t}": RNG.integers(low, high, (4, 12)), "scale": f(*g, low=0.1)})
      for t, low, high in (("int4", -8, 8), ("uint4", 0, 16), ("int8", -99, 99))
      for g in ((1, 1), (4, 1), (4, 3), (2, 3), (1, 12))),
    ("constexpr_blockwise_shift_scale", 8, 9, {"data:uint4": RNG.integers(0, 16, (4, 12)), "scale": f(4, 3, low=0.1),
     "offset:uint4": RNG.integers(0, 16, (4, 3))}),
    ("constexpr_blockwise_shift_scale", 8, 9, {"data:int4": RNG.integers(-8, 8, (4, 12)), "scale": f(4, 1, low=0.1),
     "offset": f(4, 1)}),
    *(("constexpr_lut_to_sparse", 8, 9, {"indices_mask:uint1": MASK,
       "indices_nonzero_data:uint2": RNG.integers(0, 4, int(MASK.sum())), "lut": f(*g, 4, 1)})
      for g in ((1, 1), (2, 1))),
    ("constexpr_lut_to_sparse", 8, 9, {"indices_mask:uint1": MASK[:, :4],
     "indices_nonzero_data:uint2": RNG.integers(0, 4, int(MASK[:, :4].sum())), "lut": f(1, 1, 4, 3), "vector_axis": 1}),
    ("constexpr_sparse_blockwise_shift_scale", 8, 9, {"data_mask:uint1": MASK,
     "nonzero_data:int4": RNG.integers(-8, 8, int(MASK.sum())), "scale": f(4, 3, low=0.1)}),
]


@pytest.fixture(scope="module")
def ct() -> Iterator[Any]:
    """coremltools, with the garbage collector (which `convert` runs every time) spared what is alive already."""
    import coremltools

    gc.collect()
    gc.freeze()
    yield coremltools
    gc.unfreeze()


def run(path: Path, feeds: dict[str, Any]) -> list[np.ndarray[Any, Any]]:
    """The outputs of a package, lifted and run without onnxruntime's own optimisations."""
    model = coreml.load(path)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    folder = str(open_package(path).spec_path.parent)
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", folder)
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), options)
    return [np.asarray(v) for v in session.run(None, feeds)]


def save(ct: Any, program: Any, opset: int, path: Path) -> Path:
    pipeline = ct.PassPipeline.EMPTY
    model = ct.convert(
        program, source="milinternal", pass_pipeline=pipeline, compute_units=ct.ComputeUnit.CPU_ONLY,
        minimum_deployment_target=ct.target[TARGETS[opset]], skip_model_load=True,
    )
    model.save(str(path))
    return path


def as_half(value: Any) -> Any:
    """Every float in a structure as float16."""
    if isinstance(value, dict):
        return {k: as_half(v) for k, v in value.items()}
    if isinstance(value, list):
        return [as_half(v) for v in value]
    floating = isinstance(value, np.ndarray | np.generic) and value.dtype.kind == "f"
    return value.astype(np.float16) if floating else value


def flat(inputs: dict[str, Any]) -> list[np.ndarray[Any, Any]]:
    return [np.asarray(v) for value in inputs.values() for v in (value if isinstance(value, list) else [value])]


def regroup(inputs: dict[str, Any], values: list[Any]) -> dict[str, Any]:
    """Put a flat list of values back under the parameter names."""
    rest = iter(values)
    return {k: [next(rest) for _ in v] if isinstance(v, list) else next(rest) for k, v in inputs.items()}


def reference(ct: Any, case: Case, opset: int) -> list[np.ndarray[Any, Any]]:
    """What coremltools infers on constants, or the definition given in numpy."""
    from coremltools.converters.mil.mil import Builder as mb

    if case.expected is not None:
        result = case.expected(**case.inputs, **case.fixed)
        return list(result) if isinstance(result, list | tuple) else [np.asarray(result)]
    found: list[Any] = []

    @mb.program(input_specs=[mb.TensorSpec((1,))], opset_version=ct.target[TARGETS[opset]])
    def program(unused: Any) -> Any:
        outputs = getattr(mb, case.kind)(**case.inputs, **case.fixed)
        for var in outputs if isinstance(outputs, list | tuple) else [outputs]:
            compressed = var.val is None
            found.append(var.op.materialized_val_inference() if compressed else var.val)
        return unused

    return [np.asarray(v) for v in found]


CASTS = {"bool": "bool", "int8": "int8", "uint8": "uint8", "float16": "fp16"}


def build(ct: Any, case: Case, opset: int, path: Path) -> Path:
    """Save the operator on model inputs; those of types that a model can't take are cast inside."""
    from coremltools.converters.mil.mil import Builder as mb
    from coremltools.converters.mil.mil import types

    arrays = flat(case.inputs)
    specs = [
        mb.TensorSpec(a.shape or (1,), dtype=types.fp32 if a.dtype.kind == "f" else types.int32) for a in arrays
    ]

    def body(*placeholders: Any) -> Any:
        values = []
        for array, value in zip(arrays, placeholders, strict=True):
            value = mb.squeeze(x=value) if not array.shape else value
            values.append(mb.cast(x=value, dtype=CASTS[str(array.dtype)]) if str(array.dtype) in CASTS else value)
        outputs = getattr(mb, case.kind)(**regroup(case.inputs, values), **case.fixed)
        outputs = list(outputs) if isinstance(outputs, list | tuple) else [outputs]
        wide = [mb.cast(x=v, dtype="int32") if v.dtype in (types.int8, types.uint8, types.uint16, types.int16) else v
                for v in outputs]
        wide = [mb.expand_dims(x=v, axes=[0]) if v.rank == 0 else v for v in wide]
        return tuple(mb.cast(x=v, dtype="fp32") if v.dtype == types.fp16 else v for v in wide)

    names = [f"in{n}" for n in range(len(arrays))]
    scope: dict[str, Any] = {"body": body}
    # coremltools names the inputs after the parameters of the function.
    exec(f"def program({', '.join(names)}): return body({', '.join(names)})", scope)
    wrapped = mb.program(input_specs=specs, opset_version=ct.target[TARGETS[opset]])(scope["program"])
    return save(ct, wrapped, opset, path)


def feeds(case: Case) -> dict[str, Any]:
    return {
        f"in{n}": a.astype(np.float32 if a.dtype.kind == "f" else np.int32).reshape(a.shape or (1,))
        for n, a in enumerate(flat(case.inputs))
    }


IDS = [f"{n}-{c.kind}" for n, c in enumerate(CASES)]


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_against_value_inference(ct: Any, case: Case, tmp_path: Path) -> None:
    for opset in case.opsets():
        expected = reference(ct, case, opset)
        package = build(ct, case, opset, tmp_path / f"m{opset}.mlpackage")
        actual = run(package, feeds(case))
        assert len(actual) == len(expected)
        for a, e in zip(actual, expected, strict=True):
            assert a.size == e.size, f"shape {a.shape}, expected {e.shape} at CoreML{opset}"
            a, e = a.reshape(e.shape).astype(np.float64), e.astype(np.float64)
            np.testing.assert_allclose(a, e, rtol=2e-5, atol=2e-6, err_msg=f"CoreML{opset}")


HALF = [(c, n) for c, n in zip(CASES, IDS, strict=True) if c.half]


@pytest.mark.parametrize("case", [c for c, _ in HALF], ids=[n for _, n in HALF])
def test_float16_operators_round_their_result(ct: Any, case: Case, tmp_path: Path) -> None:
    """A float16 operator gives the float32 result rounded once, whatever it computes in."""
    opset = max(case.opsets()[0], 7)
    half = Case(case.kind, as_half(case.inputs), as_half(case.fixed), expected=case.expected)
    exact = reference(ct, Case(case.kind, as_full(half.inputs), as_full(half.fixed), expected=case.expected), opset)
    actual = run(build(ct, half, opset, tmp_path / "m.mlpackage"), feeds(half))
    for a, e in zip(actual, exact, strict=True):
        assert np.array_equal(a, a.astype(np.float16).astype(np.float32)), "a result is not a float16 value"
        ulp = np.spacing(np.abs(e).astype(np.float16)).astype(np.float64)
        assert np.all(np.abs(a.reshape(e.shape) - e) <= 0.51 * ulp + 2e-6 * np.abs(e))


def as_full(value: Any) -> Any:
    """Every float16 in a structure as float32."""
    if isinstance(value, dict):
        return {k: as_full(v) for k, v in value.items()}
    if isinstance(value, list):
        return [as_full(v) for v in value]
    half = isinstance(value, np.ndarray | np.generic) and value.dtype == np.float16
    return value.astype(np.float32) if half else value


def typed(parameters: dict[str, Any]) -> dict[str, Any]:
    """Parameters of a compressed constant with their MIL types."""
    from coremltools.converters.mil.mil import types
    from coremltools.optimize import _utils

    result = {}
    for key, value in parameters.items():
        name, _, kind = key.partition(":")
        if kind == "packed":
            value = _utils.pack_elements_into_bits(value[0].astype(np.uint8), value[1])
        elif kind:
            value = value.astype(types.nptype_from_builtin(types.string_to_builtin(kind)))
        result[name] = value
    return result


@pytest.mark.parametrize("half", [False, True], ids=["fp32", "fp16"])
@pytest.mark.parametrize(
    ("kind", "first", "last", "parameters"), CONSTANTS, ids=[f"{n}-{c[0]}" for n, c in enumerate(CONSTANTS)]
)
def test_compressed_constants(
    ct: Any, kind: str, first: int, last: int, parameters: dict[str, Any], half: bool, tmp_path: Path
) -> None:
    from coremltools.converters.mil.mil import Builder as mb
    from coremltools.converters.mil.mil import types

    if half and kind == "constexpr_cast":
        parameters = {**parameters, "source_val": parameters["source_val"] * 2}
    for opset in sorted({first, last}):
        arguments = typed({k: as_half(v) if half and k != "zero_point" else v for k, v in parameters.items()})
        found: list[Any] = []

        def body(x: Any, arguments: dict[str, Any] = arguments, found: list[Any] = found) -> Any:
            outputs = getattr(mb, kind)(**arguments)
            value = outputs[1] if isinstance(outputs, tuple | list) else outputs
            inferred = value.op.materialized_val_inference()
            if isinstance(outputs, tuple | list):
                value = mb.constexpr_sparse_to_dense(nonzero_data=outputs[1], mask=outputs[0])
                inferred = value.op.decompress(inferred[1], inferred[0])
            found.append(inferred)
            return mb.add(x=x, y=mb.cast(x=value, dtype="fp32") if value.dtype == types.fp16 else value)

        spec = mb.TensorSpec((4, 12))
        program = mb.program(input_specs=[spec], opset_version=ct.target[TARGETS[opset]])(lambda x: body(x))
        path = save(ct, program, opset, tmp_path / f"m{opset}.mlpackage")
        (actual,) = run(path, {"x": np.zeros((4, 12), np.float32)})
        np.testing.assert_allclose(actual, found[0].astype(np.float32), rtol=1e-3 if half else 1e-6, atol=1e-6)


def test_every_operator_with_a_reference_is_covered(ct: Any) -> None:
    """Every operator that has a lifting rule and a value inference of Apple's is in the tables above."""
    from coremltools.converters.mil.mil import Operation
    from coremltools.converters.mil.mil.ops.registry import SSAOpRegistry

    inferred = {
        kind for kind, versions in SSAOpRegistry.core_ops.items() for c in versions.values()
        if c.value_inference is not Operation.value_inference or hasattr(c, "materialized_val_inference")
    }
    covered = {c.kind for c in CASES} | {c[0] for c in CONSTANTS} | {"cond"}  # cond: test_coreml_lift_apple.py
    missing = sorted((inferred & set(RULES)) - covered)
    assert not missing, f"no case for {missing}"
    assert len(covered & inferred) >= 110
