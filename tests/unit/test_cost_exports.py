"""Costs of exported networks are what torch itself says of them."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from corpus import exports
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from edgec.compiler import cost, dims, freeze
from edgec.compiler.cost.analyze import analyze
from edgec.compiler.cost.polynomial import evaluate
from edgec.frontends.onnx import load


def counted_by_torch(name: str) -> int:
    """MACs by torch.utils.flop_counter, which counts two FLOPs for each."""
    model, example = network(name), exports.NETS[name].example(tiny=True)
    # The fused attention of a float32 transformer layer is no operator that the counter knows: written out, it is.
    with FlopCounterMode(display=False) as counter, torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        model(*example)
    return int(counter.get_total_flops()) // 2


def network(name: str) -> torch.nn.Module:
    net = exports.NETS[name]
    return exports.prepare(net.build_tiny, net.example(tiny=True, batch=4))


@pytest.mark.parametrize("mode", ["dynamo", "legacy"])
@pytest.mark.parametrize("name", list(exports.NETS))
def test_macs_equal_torch_s_counter(name: str, mode: str) -> None:
    model = load(exports.export(name, mode, tiny=True))
    found = analyze(model)
    assert found.totals.macs == cost.macs(model) == counted_by_torch(name)
    assert found.unknown == found.warnings == []


PUBLISHED = {"resnet18": 1_814_073_344, "mobilenet_v3_small": 56_510_400}


@pytest.mark.parametrize("name", list(PUBLISHED))
def test_the_full_size_networks_that_everybody_counts(name: str) -> None:
    found = analyze(load(exports.export(name, "legacy")))
    assert found.totals.macs == PUBLISHED[name] == full_size_by_torch(name)
    # Two FLOPs for each, and what is added to them: biases, shortcuts, activations, pooling.
    assert 2 * PUBLISHED[name] < evaluate(found.totals.flops, {}) < 2.2 * PUBLISHED[name]


def full_size_by_torch(name: str) -> int:
    """MACs of the full-size network by torch's counter, on tensors that hold no numbers."""
    net = exports.NETS[name]
    with torch.device("meta"):
        model = net.build().eval()
    example = tuple(x.to("meta") for x in net.example())
    with FlopCounterMode(display=False) as counter, torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        model(*example)
    return int(counter.get_total_flops()) // 2


def vision_transformer(size: int, patch: int, depth: int, dim: int, hidden: int, classes: int = 1000) -> int:
    """The derivation in docs/cost.md."""
    patches = (size // patch) ** 2
    tokens = patches + 1
    projections = 4 * tokens * dim * dim
    attention = 2 * tokens * tokens * dim
    mlp = 2 * tokens * dim * hidden
    return patches * 3 * patch * patch * dim + depth * (projections + attention + mlp) + dim * classes


def test_a_vision_transformer_is_what_is_derived_by_hand() -> None:
    tiny = vision_transformer(32, 8, 2, 64, 128)
    for mode in ("dynamo", "legacy"):
        assert analyze(load(exports.export("vit_b_16", mode, tiny=True))).totals.macs == tiny
    full = vision_transformer(224, 16, 12, 768, 3072)
    assert full == full_size_by_torch("vit_b_16") == 17_563_828_224


def encoder(depth: int, width: int, hidden: int) -> dims.Dim:
    """A BERT with a pooler and two classes, as a polynomial in batch and tokens."""
    b, t = dims.atom("B"), dims.atom("T")
    per_token = depth * (4 * width * width + 2 * width * hidden)
    per_pair = depth * 2 * width
    once = width * width + 2 * width
    each = dims.add(dims.mul(t, per_token), dims.add(dims.mul(dims.mul(t, t), per_pair), once))
    return dims.mul(b, each)


@pytest.mark.parametrize("mode", ["dynamo_dyn", "legacy_dyn"])
def test_a_transformer_of_free_batch_and_length_costs_a_polynomial(mode: str) -> None:
    found = analyze(load(exports.export("bert12", mode, tiny=True)))
    assert found.totals.macs == encoder(2, 64, 128)
    assert evaluate(found.totals.macs, {"B": 1, "T": 16}) == counted_by_torch("bert12")
    assert list(found.symbols) == ["B", "T"]
    assert found.unknown == []


def test_a_bert_of_full_size() -> None:
    at_128 = evaluate(encoder(12, 768, 3072), {"B": 1, "T": 128})
    assert at_128 == full_size_by_torch("bert12") == 11_174_217_216


class Recurrent(nn.Module):
    def __init__(self, kind: str, layers: int, bidirectional: bool) -> None:
        super().__init__()
        self.cell = getattr(nn, kind)(16, 24, num_layers=layers, bidirectional=bidirectional)
        self.head = nn.Linear(24 * (1 + bidirectional), 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.cell(x)[0])


@pytest.mark.parametrize(
    ("kind", "layers", "bidirectional", "dynamo"),
    [
        ("LSTM", 1, False, True),
        ("LSTM", 2, True, False),
        ("GRU", 2, True, False),
        ("RNN", 2, True, False),
    ],
)
def test_recurrent_layers(kind: str, layers: int, bidirectional: bool, dynamo: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x, path = Recurrent(kind, layers, bidirectional).eval(), torch.randn(7, 3, 16), tmp_path / "m.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        options = {} if dynamo else {"opset_version": 17}
        torch.onnx.export(model, (x,), str(path), dynamo=dynamo, verbose=False, **options)
    gates, directions = {"LSTM": 4, "GRU": 3, "RNN": 1}[kind], 1 + bidirectional
    sizes = [16] + [24 * directions] * (layers - 1)
    by_hand = 7 * 3 * (sum(directions * gates * 24 * (i + 24) for i in sizes) + 24 * directions * 5)
    # The counter does not know the fused kernel of oneDNN: without it, the products are seen.
    with torch.no_grad(), torch.backends.mkldnn.flags(enabled=False), FlopCounterMode(display=False) as counter:
        model(x)
    assert analyze(load(path)).totals.macs == by_hand == counter.get_total_flops() // 2


def test_modules_are_the_network_s_own_whoever_exported_it() -> None:
    found = {
        mode: {x.path for x in analyze(load(exports.export("resnet18", mode, tiny=True))).layers if x.op == "Conv"}
        for mode in ("dynamo", "legacy")
    }
    names = {name for name, m in network("resnet18").named_modules() if isinstance(m, torch.nn.Conv2d)}
    assert {".".join(path) for path in found["dynamo"]} == names
    assert {".".join(path) for path in found["legacy"]} == names


def test_the_layers_parameters_are_the_model_s() -> None:
    for name in ("vit_b_16", "gpt", "mobilenet_v3_small"):
        found = analyze(load(exports.export(name, "dynamo", tiny=True)))
        assert sum(x.parameters for x in found.layers) == found.totals.parameters


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "mobilenet_v3_small"])
def test_parameters_after_the_exporter_folded_each_batch_norm_into_a_bias(name: str) -> None:
    model = network(name)
    folded = sum(m.num_features for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d))
    learned = sum(p.numel() for p in model.parameters())
    assert cost.parameters(load(exports.export(name, "legacy", tiny=True))) == learned - folded


@pytest.mark.parametrize("name", ["vit_b_16", "convnext_tiny"])
def test_parameters_are_those_of_the_network(name: str) -> None:
    learned = sum(p.numel() for p in network(name).parameters())
    # The exporter writes a few scalars as tensors of one element.
    assert 0 <= cost.parameters(load(exports.export(name, "legacy", tiny=True))) - learned <= 16


def test_macs_of_a_free_batch_are_unknown_and_known_once_it_is_fixed() -> None:
    model = load(exports.export("mobilenet_v3_small", "legacy_dyn", tiny=True))
    assert cost.macs(model) is None
    size = exports.NETS["mobilenet_v3_small"].sizes[1]
    freeze.fix(model, {"x": (3, 3, size, size)})
    assert cost.macs(model) == 3 * counted_by_torch("mobilenet_v3_small")
