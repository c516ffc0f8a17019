"""Export the networks of this folder to ONNX the ways torch users do, into the corpus cache.

Weights are random with a fixed seed, but the networks are not degenerate: constant parameters (zero heads and biases,
ConvNeXt's layer scale of 1e-6) become random, and batch-norm statistics are those of a seeded batch.

    python -m tests.corpus.exports vit_b_16 legacy --tiny      # from the repository root
"""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .fetch import cache_dir, locked, publishing
from .nets_cnn import MOBILENET_V3_SMALL, ConvNeXt, DenseNet, MobileNetV3, ResNet
from .nets_transformer import Bert, Gpt, VisionTransformer

MODES = ("dynamo", "dynamo_noopt", "legacy", "legacy_nofold", "dynamo_dyn", "legacy_dyn")
LEGACY_OPSET = 17


@dataclass(frozen=True)
class Net:
    """How to build a network, full-size and tiny. Images are [1,3,size,size]; tokens int64 [1,tokens]."""

    build: Callable[[], nn.Module]
    build_tiny: Callable[[], nn.Module]
    inputs: tuple[str, ...] = ("x",)
    sizes: tuple[int, int] = (224, 64)
    vocabularies: tuple[int, int] = (0, 0)

    def shapes(self, tiny: bool = False) -> dict[str, list[int]]:
        """The static shape of each input."""
        size = self.sizes[tiny]
        return {name: [1, size] if self.vocabularies[0] else [1, 3, size, size] for name in self.inputs}

    def example(self, tiny: bool = False, batch: int = 1) -> tuple[torch.Tensor, ...]:
        """Seeded inputs; a mask attends to everything."""
        generator = torch.Generator().manual_seed(1)
        made = []
        for name, (_, *rest) in self.shapes(tiny).items():
            if name == "mask":
                made.append(torch.ones(batch, *rest, dtype=torch.int64))
            elif self.vocabularies[0]:
                made.append(torch.randint(0, self.vocabularies[tiny], (batch, *rest), generator=generator))
            else:
                made.append(torch.randn(batch, *rest, generator=generator))
        return tuple(made)


_BERT: Any = {"inputs": ("ids", "mask"), "sizes": (128, 16), "vocabularies": (30522, 100)}
_GPT: Any = {"inputs": ("ids",), "sizes": (128, 16), "vocabularies": (50257, 100)}

NETS = {
    "resnet18": Net(lambda: ResNet((2, 2, 2, 2), False), lambda: ResNet((1, 2), False, width=16)),
    "resnet50": Net(lambda: ResNet((3, 4, 6, 3), True), lambda: ResNet((1, 2), True, width=16)),
    "mobilenet_v3_small": Net(
        lambda: MobileNetV3(MOBILENET_V3_SMALL), lambda: MobileNetV3(MOBILENET_V3_SMALL[:5], hidden=64)
    ),
    "densenet121": Net(lambda: DenseNet((6, 12, 24, 16), 32, 64), lambda: DenseNet((2, 3), 8, 16)),
    "convnext_tiny": Net(
        lambda: ConvNeXt((96, 192, 384, 768), (3, 3, 9, 3)), lambda: ConvNeXt((16, 32), (1, 2))
    ),
    "vit_b_16": Net(
        lambda: VisionTransformer(224, 16, 12, 12, 768, 3072),
        lambda: VisionTransformer(32, 8, 2, 4, 64, 128),
        sizes=(224, 32),
    ),
    "bert12": Net(
        lambda: Bert(12, 768, 12, 3072, 30522, 512), lambda: Bert(2, 64, 4, 128, 100, 64), **_BERT
    ),
    "gpt": Net(lambda: Gpt(12, 768, 12, 50257, 1024), lambda: Gpt(2, 64, 4, 100, 64), **_GPT),
    "gpt_sdpa": Net(
        lambda: Gpt(12, 768, 12, 50257, 1024, sdpa=True), lambda: Gpt(2, 64, 4, 100, 64, sdpa=True), **_GPT
    ),
}  # fmt: skip


def export(name: str, mode: str, tiny: bool = False) -> Path:
    """The ONNX file of a network, exported on first use; `mode` is one of MODES."""
    label = f"{name}.tiny" if tiny else name
    target = cache_dir() / "exports" / f"torch-{torch.__version__}" / f"{label}.{mode}.onnx"
    if not target.exists():
        with locked(target.parent):
            if not target.exists():
                with publishing(target) as scratch:
                    net = NETS[name]
                    model = prepare(net.build_tiny if tiny else net.build, net.example(tiny, batch=4))
                    write(model, net, mode, scratch, tiny)
    return target


def prepare(build: Callable[[], nn.Module], batch: tuple[torch.Tensor, ...]) -> nn.Module:
    """Build with seed 0, replace constant parameters, and take batch-norm statistics from `batch`; eval mode."""
    torch.manual_seed(0)
    model = build().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.numel() > 1 and bool((parameter == parameter.flatten()[0]).all()):
                _randomise(parameter, float(parameter.flatten()[0]))
        norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
        for norm in norms:
            norm.momentum = 1.0
            norm.train()
        if norms:
            model(*batch)
    return model.eval()


def _randomise(parameter: nn.Parameter, constant: float) -> None:
    if constant == 0:
        parameter.normal_(0, 0.05)
    else:
        parameter.uniform_(0.5, 1.5)


def write(model: nn.Module, net: Net, mode: str, path: Path, tiny: bool = False) -> None:
    """Export `model` to `path`. The *_dyn modes make the batch symbolic ("B"), and the tokens ("T").

    The example then has a batch of 2, since torch.export takes a dimension of 1 for a constant.
    """
    is_dynamic = mode.endswith("_dyn")
    example = net.example(tiny, batch=2 if is_dynamic else 1)
    options: dict[str, Any] = {"input_names": list(net.inputs)}
    axes = {0: "B", 1: "T"} if net.vocabularies[0] else {0: "B"}
    if mode.startswith("dynamo"):
        options |= {"dynamo": True, "external_data": False, "verbose": False, "optimize": mode != "dynamo_noopt"}
        if is_dynamic:
            limits = {"B": (1, 64), "T": (2, net.sizes[tiny])}
            dims = {axis: torch.export.Dim(n, min=limits[n][0], max=limits[n][1]) for axis, n in axes.items()}
            options["dynamic_shapes"] = tuple(dims for _ in net.inputs)
    else:
        options |= {"dynamo": False, "opset_version": LEGACY_OPSET, "do_constant_folding": mode != "legacy_nofold"}
        if is_dynamic:
            options["dynamic_axes"] = dict.fromkeys(net.inputs, axes)
    with _quiet():
        torch.onnx.export(model, example, str(path), **options)


@contextlib.contextmanager
def _quiet() -> Any:
    """Keep the exporters' warnings and progress out of test logs."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def main(arguments: Iterable[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Export a network and print the file's path.")
    parser.add_argument("name", choices=list(NETS))
    parser.add_argument("mode", choices=MODES)
    parser.add_argument("--tiny", action="store_true", help="the small variant, for tests")
    options = parser.parse_args(arguments)
    print(export(options.name, options.mode, options.tiny))


if __name__ == "__main__":
    main()
