"""The main job on real models: each compiles at -O1 and -O2, is proven, and the fusions fire where they must."""

from __future__ import annotations

from collections import Counter

import pytest

import edgec
from corpus.exports import MODES, export
from corpus.fetch import entries, fetch

# Big ones are left to benchmarks/matrix.py.
LEFT_OUT = {"light:vgg19", "light:bvlc_alexnet", "light:zfnet512", "light:resnet50", "light:inception_v1"}
RUNNABLE = [n for n, e in entries().items() if e.run_shapes and (n.endswith(".onnx") or e.registry == "made")]
MODELS = [n for n in RUNNABLE if n not in LEFT_OUT]
OLDER = ("ios15", "ios16", "ios17")


@pytest.mark.parametrize("name", MODELS)
def test_a_real_model_compiles_and_is_proven(name: str) -> None:
    shapes = {k: v for k, v in entries()[name].run_shapes.items() if v}
    older = OLDER[MODELS.index(name) % len(OLDER)]
    for level, target, least in (("O2", "ios18", 20.0), ("O1", older, 80.0)):
        with edgec.compile(fetch(name), level=level, target=target, shapes=shapes, verify="end") as compiled:
            proof = compiled.proof
            assert proof is not None and proof.ok
            assert proof.exact is not None and proof.exact.snr_db > 70
            assert proof.loss is not None and proof.loss.snr_db > least
            if level == "O2":
                assert compiled.report.after.weight_bytes < compiled.report.before.weight_bytes * 1.01


# Network → how many attentions its tiny form has.
ATTENTIONS = {"vit_b_16": 2, "bert12": 2, "gpt": 2, "gpt_sdpa": 2}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ATTENTIONS)
def test_every_attention_is_fused_in_every_export(name: str, mode: str) -> None:
    with edgec.compile(export(name, mode, tiny=True), level="O1", target="onnx", verify="each") as compiled:
        kinds = Counter(n.op_type for n in compiled.model.graph)
        assert kinds["Attention"] == ATTENTIONS[name]
        assert not kinds["Softmax"] and not kinds["Erf"] and not kinds["ReduceMean"]
        assert not [r for r in compiled.report.passes if r.status == "undone"]
