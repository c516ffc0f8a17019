"""MIL's operators, each with the inputs that tests of the lifter try it on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from edgec.frontends.coreml.check import signatures

RNG = np.random.default_rng(7)


def f(*shape: int, low: float = -3.0, high: float = 3.0) -> np.ndarray[Any, Any]:
    """Float inputs that float16 holds exactly."""
    return RNG.uniform(low, high, shape).astype(np.float16).astype(np.float32)


def i(*shape: int, low: int = -9, high: int = 9) -> np.ndarray[Any, Any]:
    """Integers from `low` up to `high`, which is left out."""
    return RNG.integers(low, high, shape).astype(np.int32)


def distinct(*shape: int) -> np.ndarray[Any, Any]:
    """Values without ties, for sorting."""
    return RNG.permutation(int(np.prod(shape))).reshape(shape).astype(np.float32)


def b(*shape: int) -> np.ndarray[Any, Any]:
    """Booleans."""
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
        """Those at which the operator has another signature, and the last."""
        versions = [max(row["since"], self.since) for row in signatures()[self.kind]]
        return sorted({v for v in versions if v <= self.until} | ({9} if self.until == 9 else set()))


def unary(kind: str, x: Any, **fixed: Any) -> Case:
    """An operator with one input, tried in float16 as well."""
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
