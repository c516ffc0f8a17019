"""torchvision's networks, exported and pruned by torch-pruning: `python benchmarks/torchvision_nets.py NAME OUT.onnx`.

Runs in the environment of torch, torchvision and torch-pruning, so it imports nothing of edgec. Without arguments it
prints the names: all classifiers and segmenters, and the backbones of all detectors, as a JSON list. With them it
writes the network and prints two lines of JSON, one after the export and one after torch-pruning has taken half of the
channels of every group from the same network and run what is left.
"""

from __future__ import annotations

import json
import resource
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import nn
from torchvision import models

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.corpus.exports import Net, prepare, write

SIZES = {
    "alexnet": 224, "inception": 299, "maxvit": 224, "ssd300": 300, "ssdlite320": 320, "swin": 224,
    "vgg": 224, "vit": 224,
}  # fmt: skip
"""How large images must be for networks that take no smaller ones, or pool unevenly then, by how
their name starts."""
PATIENCE = 300
"""Seconds of processor time for torch-pruning."""
MEMORY = 8 << 30
"""Bytes for torch-pruning's own data: it takes 12 GB for Swin, and does not end."""
SMALL = 128
"""What all others get: ratios are the same as at 224, and there are many networks."""


def names() -> list[str]:
    """The small ones first."""
    found = models.list_models(module=models)
    for module in (models.segmentation, models.detection):
        found += models.list_models(module=module)
    return sorted(found, key=lambda name: int(next(iter(models.get_model_weights(name))).meta["num_params"]))


class Flat(nn.Module):
    """A network whose outputs are a tuple, whatever it collects them in."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> Any:
        found = self.inner(x)
        return tuple(found.values()) if isinstance(found, dict) else found


def builder(name: str) -> Callable[[], nn.Module]:
    """Without weights and auxiliary outputs; of a detector, its backbone."""
    options: dict[str, Any] = {"weights": None}
    if name in models.list_models(module=models.detection):
        return lambda: Flat(models.get_model(name, **options, weights_backbone=None).backbone)
    if name in models.list_models(module=models.segmentation):
        return lambda: Flat(models.get_model(name, **options, weights_backbone=None))
    if name in ("googlenet", "inception_v3"):
        options |= {"aux_logits": False, "init_weights": True}
    return lambda: models.get_model(name, **options)


def export(model: nn.Module, net: Net, out: Path) -> dict[str, Any]:
    """By the legacy exporter, or the new one where that fails."""
    failed = ""
    for mode in ("legacy", "dynamo"):
        start = time.perf_counter()
        try:
            write(model, net, mode, out)
        except Exception as e:  # whatever an exporter raises is a result
            failed += f"{mode}: {(str(e).strip() or type(e).__name__).splitlines()[0][:80]}; "
            continue
        return {"mode": mode, "export s": round(time.perf_counter() - start, 1)}
    return {"failed": failed}


def ends(model: nn.Module) -> list[nn.Module]:
    """What makes the outputs, whose size stays: classifiers, the pyramid of a detector."""
    found = [m for m in model.modules() if isinstance(m, nn.Linear) and m.out_features == 1000]
    found += [m for m in model.modules() if isinstance(m, nn.Conv2d) and m.out_channels in (1000, 21)]
    found += [m for m in model.modules() if isinstance(m, torchvision.ops.FeaturePyramidNetwork)]
    return found


def pruned(model: nn.Module, example: torch.Tensor) -> dict[str, Any]:
    """Half of the channels of every group by torch-pruning, as its own script for these networks is set up."""
    import torch_pruning

    def figures() -> tuple[float, float]:
        return torch_pruning.utils.count_ops_and_params(model, example)

    macs, parameters = figures()
    heads = {m: m.num_heads for m in model.modules() if isinstance(m, nn.MultiheadAttention)}
    start = time.perf_counter()
    importance = torch_pruning.importance.GroupMagnitudeImportance(p=2)
    pruner = torch_pruning.pruner.BasePruner(
        model, example, importance=importance, pruning_ratio=0.5, ignored_layers=ends(model), num_heads=heads
    )
    pruner.step()
    seconds = time.perf_counter() - start
    if isinstance(model, models.VisionTransformer):
        model.hidden_dim = model.conv_proj.out_channels
    with torch.no_grad():
        model(example)
    less, fewer = figures()
    return {"prune s": round(seconds, 2), "parameters": round(parameters / fewer, 2), "MACs": round(macs / less, 2)}


def give_up(*_: object) -> None:
    raise TimeoutError(f"no end in {PATIENCE} s of processor time")


def main(name: str, out: str) -> None:
    torch.set_num_threads(1)
    signal.signal(signal.SIGPROF, give_up)
    size = next((n for start, n in SIZES.items() if name.startswith(start)), SMALL)
    net = Net(builder(name), builder(name), sizes=(size, size))
    model = prepare(net.build, net.example(batch=2))
    print(json.dumps(export(model, net, Path(out))), flush=True)
    signal.setitimer(signal.ITIMER_PROF, PATIENCE)
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    try:
        found = pruned(model, net.example()[0])
    except Exception as e:  # whatever torch-pruning raises is its result
        found = {"failed": f"{type(e).__name__}: {(str(e).strip().splitlines() or [''])[0][:120]}"}
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:]) if len(sys.argv) > 1 else print(json.dumps(names()))
