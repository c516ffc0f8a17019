"""Prune with another tool: `python benchmarks/prune_peers.py torch-pruning NET OUT.onnx` or `onnxsim IN.onnx OUT.onnx`.

Runs in the peers' environments, so it imports nothing of edgec. Half of the channels of every group go, by L2 norm.
Prints one line of JSON: the seconds that pruning itself took, without loading and writing.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any


def torch_pruning(name: str, out: str) -> float:
    """The network by that name, as PyTorch code: no ONNX file can be given to it.

    It is told what has to be known of each: which layers make the outputs, which have heads, and afterwards the sizes
    that the code keeps in attributes. (Its other switches take less: whole heads instead of dimensions, rounding.)
    """
    import torch
    import torch_pruning

    sys.path.insert(0, str(Path(__file__).parents[1]))
    from benchmarks.networks import NETS, made

    net, model = NETS[name], made(name)
    example = net.example()
    start = time.perf_counter()
    pruner = torch_pruning.pruner.BasePruner(
        model, example, importance=torch_pruning.importance.GroupMagnitudeImportance(p=2), pruning_ratio=0.5,
        ignored_layers=_ends(model), num_heads=_heads(model),
    )  # fmt: skip
    pruner.step()
    seconds = time.perf_counter() - start
    for module in model.modules():
        _resized(module)
    torch.onnx.export(model.eval(), example, out, dynamo=False, opset_version=17, input_names=list(net.inputs))
    return seconds


def _ends(model: Any) -> list[Any]:
    """The layers that make the outputs: their size stays."""
    from torch import nn

    lists = [getattr(model, name, None) for name in ("boxes", "kinds")]
    if heads := [h for found in lists if isinstance(found, nn.ModuleList) for h in found]:
        return [h[-1] for h in heads]
    if getattr(model, "out", None) is not None:
        return [model.out]
    layers = [m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d | nn.Embedding)]
    # A tied embedding is its own classifier, a sentence embedding has none.
    return [m for m in layers if isinstance(m, nn.Linear | nn.Conv2d)][-1:] if hasattr(model, "head") or not hasattr(
        model, "tokens"
    ) or hasattr(model, "classify") else []


def _heads(model: Any) -> dict[Any, int]:
    """How many heads there are in what a layer makes. Told those of MultiheadAttention, it keeps the width of a ViT."""
    from torch import nn

    found: dict[Any, int] = {}
    for m in model.modules():
        heads = getattr(m, "heads", getattr(m, "num_heads", None))
        for name in ("query", "key", "value", "q", "k", "v", "qkv"):
            layer = getattr(m, name, None)
            if isinstance(layer, nn.Linear) and isinstance(heads, int):
                found[layer] = getattr(m, "kv", heads) if name in ("k", "v") else heads
    return found


def _resized(module: Any) -> None:
    """Sizes that the code keeps beside its weights."""
    from torch import nn

    for name, source in (("hidden_dim", "conv_proj"), ("dim", "project")):
        layer = getattr(module, source, None)
        if hasattr(module, name) and isinstance(layer, nn.Conv2d):
            setattr(module, name, layer.out_channels)
    if hasattr(module, "qkv") and hasattr(module, "dim"):
        module.dim = module.qkv.out_features // 3
    if hasattr(module, "kv") and hasattr(module, "q"):
        module.size = module.q.out_features // module.heads


def onnxsim(source: str, out: str) -> float:
    import onnx
    import onnxsim as tool

    model = onnx.load(source)
    start = time.perf_counter()
    pruned = tool.apply_structured_pruning(model, sparsity=0.5)
    seconds = time.perf_counter() - start
    onnx.save(pruned, out)
    return seconds


if __name__ == "__main__":
    print(json.dumps({"seconds": {"torch-pruning": torch_pruning, "onnxsim": onnxsim}[sys.argv[1]](*sys.argv[2:])}))
