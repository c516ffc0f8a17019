"""MIL's compressed constants, each with the parameters that tests of the lifter try it on."""

from __future__ import annotations

from typing import Any

import numpy as np
from liftcases import RNG, f


def _spread(shape: tuple[int, ...], density: float) -> np.ndarray[Any, Any]:
    mask = (RNG.uniform(size=shape) < density).astype(np.uint8)
    mask.reshape(-1)[0] = 1
    return mask


MASK = _spread((4, 12), 0.4)

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
"""Operator, first and last opset, parameters; a type after a colon is a MIL type without a numpy one."""
