"""How others round weights without training, as rows of benchmarks.quantize.

coremltools' rows start from the package that edgec writes without rounding; onnxruntime's from the float ONNX model.
What coremltools can do with data runs on a Mac only, or needs the model in torch (`benchmarks.quantize_gptq`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import coremltools as ct
import coremltools.optimize as cto
import numpy as np
import onnx
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer
from onnxruntime.quantization.shape_inference import quant_pre_process

SMALL = 2048
"""Elements below which nobody rounds a weight."""
SAMPLES = 40
"""Samples that onnxruntime calibrates activations with."""
Feeds = Iterator[dict[str, np.ndarray]]
Job = Callable[[], float]
"""Writes a file; returns the seconds of processor time that rounding took."""


def coreml(base: Path, bits: int, out: Path) -> dict[str, Job]:
    """coremltools' ways at these bits. Tables for few channels take many more bytes at 6 and 8 bits: left out there.

    It leaves weights alone whose channels the size of a group doesn't divide: 8 divides most, 16 doesn't.
    """
    grouped = {"tables for 8": {"granularity": "per_grouped_channel", "group_size": 8}}
    tables: dict[str, dict[str, Any]] = {
        "table": {"granularity": "per_tensor"},
        "table, scales": {"granularity": "per_tensor", "enable_per_channel_scale": True},
        **(grouped if bits <= 4 else {}),
    }
    linear = {"channel": {"granularity": "per_channel"}, "blocks of 32": {"granularity": "per_block", "block_size": 32}}
    jobs: dict[str, Job] = {}
    for what, options in tables.items():
        palette = cto.coreml.OpPalettizerConfig(nbits=bits, mode="kmeans", weight_threshold=SMALL, **options)
        jobs[f"coremltools, {what}"] = _job(base, out, cto.coreml.palettize_weights, palette)
    for what, options in linear.items() if bits in (4, 8) else ():
        config = cto.coreml.OpLinearQuantizerConfig(
            weight_threshold=SMALL, mode="linear_symmetric", dtype=f"int{bits}", **options
        )
        jobs[f"coremltools, {what}"] = _job(base, out, cto.coreml.linear_quantize_weights, config)
    return jobs


def _job(base: Path, out: Path, how: Callable[..., Any], config: Any) -> Job:
    def run() -> float:
        model = ct.models.MLModel(str(base), skip_model_load=True)
        start = time.process_time()
        rounded = how(model, cto.coreml.OptimizationConfig(global_config=config))
        spent = time.process_time() - start
        rounded.save(str(out))
        return spent

    return run


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, feeds: Feeds) -> None:
        self._feeds = feeds

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The next inputs, or None."""
        return next(self._feeds, None)


def runtime(source: Path, bits: int, feeds: Callable[[], Feeds], out: Path) -> dict[str, Job]:
    """onnxruntime's ways at these bits: int8 with activations, and weights of matrix products alone."""
    ready = out.with_name("ready.onnx")

    def timed(work: Callable[[], None]) -> Job:
        def run() -> float:
            quant_pre_process(str(source), str(ready), skip_symbolic_shape=True)
            start = time.process_time()
            work()
            return time.process_time() - start

        return run

    def static() -> None:
        quantize_static(
            ready, out, _Reader(feeds()), QuantFormat.QDQ, per_channel=True,
            activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
        )  # fmt: skip

    def products() -> None:
        model = MatMulNBitsQuantizer(onnx.load(ready), bits=bits, block_size=32, is_symmetric=True)
        model.process()
        model.model.save_model_to_file(str(out))

    jobs: dict[str, Job] = {}
    if bits == 8:
        jobs["onnxruntime, dynamic int8, activations too"] = timed(
            lambda: quantize_dynamic(ready, out, per_channel=True, weight_type=QuantType.QInt8)
        )
        jobs["onnxruntime, static int8, activations too"] = timed(static)
    if bits in (4, 8) and any(n.op_type == "MatMul" for n in onnx.load(source).graph.node):
        jobs["onnxruntime, MatMulNBits, blocks of 32"] = timed(products)
    return jobs
