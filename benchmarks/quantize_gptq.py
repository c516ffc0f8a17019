"""coremltools' own GPTQ, as rows of benchmarks.quantize, fed with the second moments that edgec's rows are fitted to.

`coremltools.optimize.torch.layerwise_compression` wants a `torch.nn.Sequential`, which no model here is. So its
algorithm (class `GPTQ`) is run on one weight at a time: on a `torch.nn.Linear` with that weight and the moments of its
inputs in the float model. That is what its `LayerwiseCompressor` does with all that lies in one module of the sequence.
It takes matrices: embeddings, LSTMs and convolutions in groups, whose moments it can't sum, are rounded to the nearest
of its grid. What comes of it is run in float32 as it is; kB are reckoned from the float16 package and the bits of
indices, scales and tables.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from coremltools.optimize.torch.layerwise_compression import _quant
from coremltools.optimize.torch.layerwise_compression.algorithms import GPTQ, ModuleGPTQConfig

from edgec.compiler.calibration.statistics import Moments
from edgec.passes import weight_grid

from .quantize_edgec import GIVEN, SMALL

BLOCK = 32
"""Channels of the inputs that share a scale."""
Known = Sequence[tuple[weight_grid.Weight, Moments | None]]


def ways(bits: int) -> dict[str, dict[str, Any]]:
    """Its options by the name of the row; the best of its own for each form. It has no integers of 3 or 6 bits."""
    kind = {"weight_dtype": f"uint{bits}"}
    found: dict[str, dict[str, Any]] = {}
    if bits in (4, 8):
        found["channel"] = {**kind, "granularity": "per_channel"}
        found["blocks of 32"] = {**kind, "granularity": "per_block", "block_size": BLOCK}
    if bits in (3, 4):
        found["normal floats"] = {**kind, "granularity": "per_channel", "enable_normal_float": True}
    return {f"coremltools, GPTQ, {name}, {GIVEN}": options for name, options in found.items()}


def rounded(known: Known, options: dict[str, Any]) -> tuple[dict[str, np.ndarray], float]:
    """The weights by name, and the seconds of processor time that rounding took."""
    start = time.process_time()
    found = {w.value.name or "": array for w, array in _each(known, options)}
    return found, time.process_time() - start


def _each(known: Known, options: dict[str, Any]) -> Iterator[tuple[weight_grid.Weight, np.ndarray]]:
    for weight, moments in known:
        tensor = weight.value.const_value
        assert tensor is not None
        array = tensor.numpy()
        usual = moments is not None and not moments.layer.counted and moments.whole.gram is not None
        if usual and moments is not None and moments.layer.sizes[0] == 1:
            yield weight, moments.layer.shaped(_gptq(moments, array, options)[None])
        else:
            yield weight, _nearest(array, weight.axis or 0, options)


def _config(options: dict[str, Any], inputs: int, size: int) -> ModuleGPTQConfig:
    """Blocks of 32 channels hold the whole of a kernel; where they don't divide the inputs, a channel has one scale."""
    block = options.get("block_size", 0) * size
    own = {k: v for k, v in options.items() if k != "block_size"}
    if not block:
        return ModuleGPTQConfig(**own)
    if inputs % block:
        return ModuleGPTQConfig(**{**own, "granularity": "per_channel"})
    return ModuleGPTQConfig(**own, block_size=block)


def _gptq(moments: Moments, array: np.ndarray, options: dict[str, Any]) -> np.ndarray:
    """A matrix, outputs x inputs, after coremltools' GPTQ."""
    layer, matrix = moments.layer, moments.layer.matrix(array)[0]
    size = int(np.prod(array.shape[2:])) if layer.node.op_type == "Conv" else 1
    module = torch.nn.Linear(matrix.shape[1], matrix.shape[0], bias=False)
    module.weight.data = torch.from_numpy(np.array(matrix, order="C"))
    gptq = GPTQ(module, _config(options, matrix.shape[1], size))
    assert moments.whole.gram is not None
    # What its add_batch would sum up, twice the mean product of inputs, without their rows.
    gptq._hessian = torch.from_numpy(2 * moments.whole.gram[0]).float()
    # What the last batch gave it only logs.
    gptq._inp1, gptq._out1 = torch.zeros(1, matrix.shape[1]), torch.zeros(1, matrix.shape[0])
    with torch.no_grad():
        gptq.compress()
    return np.asarray(module.weight.data.numpy())


def _nearest(array: np.ndarray, axis: int, options: dict[str, Any]) -> np.ndarray:
    """Rounded to the nearest with a scale for each channel that reaches its largest number.

    Not by coremltools' own class for this: it cuts channels without negative numbers at half of that.
    """
    others = tuple(a for a in range(array.ndim) if a != axis)
    largest = np.abs(array).max(others, keepdims=True)
    scale = np.where(largest > 0, largest, np.float32(1))
    if options.get("enable_normal_float"):
        points = _quant._normal_float_palette[_bits(options)].numpy()
        between = (points[1:] + points[:-1]) / 2
        return np.asarray(points[np.searchsorted(between, array / scale)] * scale)
    steps = np.float32((1 << (_bits(options) - 1)) - 1)
    return np.asarray(np.rint(array / scale * steps) * (scale / steps))


def _bits(options: dict[str, Any]) -> int:
    return int(options["weight_dtype"].removeprefix("uint"))


def kilobytes(model: ir.Model, whole: float, options: dict[str, Any]) -> float:
    """Of a package whose weights are rounded so, reckoned from the kB of that with float16 weights."""
    bits, total = _bits(options), 1e3 * whole
    for weight in weight_grid.weights(model, SMALL):
        tensor = weight.value.const_value
        assert tensor is not None
        channels = tensor.shape[weight.axis or 0]
        scales = max(channels, tensor.size // BLOCK if "block_size" in options else 0)
        table = 1 << bits if "enable_normal_float" in options else 0
        total += tensor.size * bits / 8 + 2 * (scales + table) - 2 * tensor.size
    return round(total / 1e3, 1)
