"""MACs of torchvision's ViT-B/16 by other counters, in inference mode and with gradients on: the table in docs/cost.md.

    python -m venv COUNTERS && COUNTERS/bin/pip install torch torchvision fvcore thop ptflops torch-pruning
    COUNTERS/bin/python benchmarks/counters.py

Runs in the environment of those tools, so it imports nothing of edgec. Each is called as its documentation says.
"""

from __future__ import annotations

import importlib.metadata
import logging
from collections.abc import Callable
from typing import Any

import torch
from torchvision.models import vit_b_16

IMAGE = (3, 224, 224)


def flop_counter(net: Any) -> int:
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        net(torch.zeros(1, *IMAGE))
    return counter.get_total_flops() // 2


def flop_counter_math(net: Any) -> int:
    from torch.nn.attention import SDPBackend, sdpa_kernel

    with sdpa_kernel(SDPBackend.MATH):
        return flop_counter(net)


def fvcore(net: Any) -> int:
    from fvcore.nn import FlopCountAnalysis

    logging.getLogger("fvcore").setLevel(logging.ERROR)
    return round(FlopCountAnalysis(net, torch.zeros(1, *IMAGE)).unsupported_ops_warnings(False).total())


def thop(net: Any) -> int:
    from thop import profile

    return round(profile(net, (torch.zeros(1, *IMAGE),), verbose=False)[0])


def ptflops(backend: str) -> Callable[[Any], int]:
    def count(net: Any) -> int:
        from ptflops import get_model_complexity_info

        return int(
            get_model_complexity_info(net, IMAGE, as_strings=False, print_per_layer_stat=False, backend=backend)[0]
        )

    return count


def torch_pruning(net: Any) -> int:
    from torch_pruning.utils import count_ops_and_params

    return round(count_ops_and_params(net, torch.zeros(1, *IMAGE))[0])


COUNTERS: dict[str, tuple[str, Callable[[Any], int]]] = {
    "`torch.utils.flop_counter`, ÷ 2": ("torch", flop_counter),
    "the same under `sdpa_kernel(MATH)`": ("torch", flop_counter_math),
    "fvcore": ("fvcore", fvcore),
    "thop": ("thop", thop),
    "ptflops, aten backend": ("ptflops", ptflops("aten")),
    "ptflops, pytorch backend": ("ptflops", ptflops("pytorch")),
    "torch-pruning": ("torch-pruning", torch_pruning),
}


def counted(count: Callable[[Any], int], gradients: bool) -> str:
    """A fresh network for each: some counters leave hooks behind."""
    net = vit_b_16().eval()
    with torch.set_grad_enabled(gradients):
        return f"{count(net):,}"


def main() -> None:
    print("| counter | in inference mode | with gradients on |\n|---|---|---|")
    for name, (package, count) in COUNTERS.items():
        version = importlib.metadata.version(package).split("+")[0]
        print(f"| {name} ({package} {version}) | {counted(count, False)} | {counted(count, True)} |", flush=True)


if __name__ == "__main__":
    main()
