"""Prune with another tool: `python benchmarks/prune_peers.py torch-pruning NET OUT.onnx` or `onnxsim IN.onnx OUT.onnx`.

Runs in the peers' environments, so it imports nothing of edgec. Half of the channels of every group go, by L2 norm.
Prints one line of JSON: the seconds that pruning itself took, without loading and writing.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path


def torch_pruning(name: str, out: str) -> float:
    """The network of the test corpus by that name, as PyTorch code: no ONNX file can be given to it."""
    import torch
    import torch_pruning
    from torch import nn

    sys.path.insert(0, str(Path(__file__).parents[1]))
    from tests.corpus.exports import NETS, prepare

    net = NETS[name]
    model = prepare(net.build, net.example(batch=4))
    example = net.example()
    heads = {m: m.num_heads for m in model.modules() if isinstance(m, nn.MultiheadAttention)}
    last = [m for m in model.modules() if isinstance(m, nn.Linear)][-1]
    start = time.perf_counter()
    pruner = torch_pruning.pruner.BasePruner(
        model, example, importance=torch_pruning.importance.GroupMagnitudeImportance(p=2), pruning_ratio=0.5,
        ignored_layers=[last], num_heads=heads,
    )  # fmt: skip
    pruner.step()
    seconds = time.perf_counter() - start
    torch.onnx.export(model.eval(), example, out, dynamo=False, opset_version=17, input_names=list(net.inputs))
    return seconds


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
