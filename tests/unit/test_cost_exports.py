"""Costs of exported networks are what torch itself says of them."""

from __future__ import annotations

import pytest
import torch
from corpus import exports
from torch.utils.flop_counter import FlopCounterMode

from edgec.compiler import cost, freeze
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


@pytest.mark.parametrize("name", list(exports.NETS))
def test_macs_equal_torch_s_counter(name: str) -> None:
    assert cost.macs(load(exports.export(name, "legacy", tiny=True))) == counted_by_torch(name)


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
