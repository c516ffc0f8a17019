"""Convolutional networks in plain torch, with torchvision's forward, so that exports have its node patterns.

torchvision pins another torch than the tests use. Only what an exporter sees matters here: operators, their order and
their sizes; parameter names are shorter than torchvision's. Images are [N,3,S,S], outputs logits [N,1000].
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional


def conv_norm(
    cin: int, cout: int, kernel: int, *, stride: int = 1, groups: int = 1, eps: float = 1e-5, act: nn.Module | None
) -> nn.Sequential:
    """Convolution without bias, batch norm, activation; padded to keep the size at stride 1."""
    conv = nn.Conv2d(cin, cout, kernel, stride, padding=(kernel - 1) // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(cout, eps=eps), *([act] if act else []))


class ResidualBlock(nn.Module):
    """ResNet's basic block (two 3x3) or bottleneck (1x1, 3x3, 1x1 with four times the width)."""

    def __init__(self, cin: int, width: int, stride: int, bottleneck: bool) -> None:
        super().__init__()
        cout = 4 * width if bottleneck else width
        if bottleneck:
            sizes = [(cin, width, 1, 1), (width, width, 3, stride), (width, cout, 1, 1)]
        else:
            sizes = [(cin, width, 3, stride), (width, cout, 3, 1)]
        self.layers = nn.Sequential(
            *[conv_norm(i, o, k, stride=s, act=nn.ReLU() if n + 1 < len(sizes) else None)
              for n, (i, o, k, s) in enumerate(sizes)]
        )  # fmt: skip
        has_projection = stride != 1 or cin != cout
        self.downsample = conv_norm(cin, cout, 1, stride=stride, act=None) if has_projection else None

    def forward(self, x: Tensor) -> Tensor:
        out = self.layers(x)
        out += x if self.downsample is None else self.downsample(x)
        return functional.relu(out)


class ResNet(nn.Module):
    """He et al. 2015, with torchvision's stride on the 3x3 convolution."""

    def __init__(self, depths: Sequence[int], bottleneck: bool, width: int = 64, classes: int = 1000) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, width, 7, 2, padding=3, bias=False), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(3, 2, 1)
        )
        blocks, cin = [], width
        for stage, depth in enumerate(depths):
            for index in range(depth):
                block_width = width * 2**stage
                blocks.append(ResidualBlock(cin, block_width, 2 if stage and index == 0 else 1, bottleneck))
                cin = block_width * (4 if bottleneck else 1)
        self.blocks = nn.Sequential(*blocks)
        self.pool, self.fc = nn.AdaptiveAvgPool2d((1, 1)), nn.Linear(cin, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.flatten(self.pool(self.blocks(self.stem(x))), 1))


class DenseLayer(nn.Module):
    """Norm, ReLU, 1x1, norm, ReLU, 3x3 on the concatenation of everything before it."""

    def __init__(self, cin: int, growth: int) -> None:
        super().__init__()
        self.bottleneck = nn.Sequential(nn.BatchNorm2d(cin), nn.ReLU(), nn.Conv2d(cin, 4 * growth, 1, bias=False))
        self.grow = nn.Sequential(
            nn.BatchNorm2d(4 * growth), nn.ReLU(), nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)
        )

    def forward(self, features: list[Tensor]) -> Tensor:
        return self.grow(self.bottleneck(torch.cat(features, 1)))


class DenseBlock(nn.Module):
    def __init__(self, depth: int, cin: int, growth: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(DenseLayer(cin + i * growth, growth) for i in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        features = [x]
        for layer in self.layers:
            features.append(layer(features))
        return torch.cat(features, 1)


class DenseNet(nn.Module):
    """Huang et al. 2016."""

    def __init__(self, depths: Sequence[int], growth: int, stem: int, classes: int = 1000) -> None:
        super().__init__()
        layers: list[nn.Module] = [
            nn.Conv2d(3, stem, 7, 2, padding=3, bias=False), nn.BatchNorm2d(stem), nn.ReLU(), nn.MaxPool2d(3, 2, 1)
        ]  # fmt: skip
        width = stem
        for index, depth in enumerate(depths):
            layers.append(DenseBlock(depth, width, growth))
            width += depth * growth
            layers.append(nn.BatchNorm2d(width))
            if index + 1 < len(depths):
                layers += [nn.ReLU(), nn.Conv2d(width, width // 2, 1, bias=False), nn.AvgPool2d(2, 2)]
                width //= 2
        self.features, self.classifier = nn.Sequential(*layers), nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        out = functional.relu(self.features(x))
        return self.classifier(torch.flatten(functional.adaptive_avg_pool2d(out, (1, 1)), 1))


class SqueezeExcite(nn.Module):
    """Channel gates from the pooled input, [N,C,H,W] to the same."""

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc1, self.fc2 = nn.Conv2d(channels, squeezed, 1), nn.Conv2d(squeezed, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return functional.hardsigmoid(self.fc2(functional.relu(self.fc1(self.pool(x))))) * x


def _make_divisible(value: float) -> int:
    """The nearest multiple of 8, at least 8 and not under 90% of the value (as the MobileNet papers' code has it)."""
    rounded = max(8, int(value + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * value else rounded


class InvertedResidual(nn.Module):
    """MobileNetV3's block: expand, depthwise, squeeze-and-excite, project."""

    def __init__(self, cin: int, kernel: int, width: int, cout: int, se: bool, hs: bool, stride: int) -> None:
        super().__init__()
        act = nn.Hardswish if hs else nn.ReLU
        layers: list[nn.Module] = []
        if width != cin:
            layers.append(conv_norm(cin, width, 1, eps=1e-3, act=act()))
        layers.append(conv_norm(width, width, kernel, stride=stride, groups=width, eps=1e-3, act=act()))
        if se:
            layers.append(SqueezeExcite(width, _make_divisible(width // 4)))
        layers.append(conv_norm(width, cout, 1, eps=1e-3, act=None))
        self.block, self.has_shortcut = nn.Sequential(*layers), stride == 1 and cin == cout

    def forward(self, x: Tensor) -> Tensor:
        out = self.block(x)
        if self.has_shortcut:
            out += x
        return out


# (input channels, kernel, expanded, output, squeeze-and-excite, hard swish, stride): Howard et al. 2019, table 2
MOBILENET_V3_SMALL = (
    (16, 3, 16, 16, True, False, 2),
    (16, 3, 72, 24, False, False, 2),
    (24, 3, 88, 24, False, False, 1),
    (24, 5, 96, 40, True, True, 2),
    (40, 5, 240, 40, True, True, 1),
    (40, 5, 240, 40, True, True, 1),
    (40, 5, 120, 48, True, True, 1),
    (48, 5, 144, 48, True, True, 1),
    (48, 5, 288, 96, True, True, 2),
    (96, 5, 576, 96, True, True, 1),
    (96, 5, 576, 96, True, True, 1),
)


class MobileNetV3(nn.Module):
    def __init__(self, rows: Sequence[tuple[int, int, int, int, bool, bool, int]], hidden: int = 1024) -> None:
        super().__init__()
        last = rows[-1][3]
        self.features = nn.Sequential(
            conv_norm(3, rows[0][0], 3, stride=2, eps=1e-3, act=nn.Hardswish()),
            *[InvertedResidual(*row) for row in rows],
            conv_norm(last, 6 * last, 1, eps=1e-3, act=nn.Hardswish()),
        )
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(
            nn.Linear(6 * last, hidden), nn.Hardswish(), nn.Dropout(0.2), nn.Linear(hidden, 1000)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(torch.flatten(self.pool(self.features(x)), 1))


class ChannelsNorm(nn.LayerNorm):
    """LayerNorm over the channels of [N,C,H,W]."""

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 1)
        return functional.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps).permute(0, 3, 1, 2)


class ConvNeXtBlock(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(dim, dim, 7, padding=3, groups=dim)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.expand, self.project = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)
        self.layer_scale = nn.Parameter(torch.full((dim, 1, 1), 1e-6))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        y = self.project(functional.gelu(self.expand(y))).permute(0, 3, 1, 2)
        out = self.layer_scale * y
        out += x
        return out


class ConvNeXt(nn.Module):
    """Liu et al. 2022."""

    def __init__(self, dims: Sequence[int], depths: Sequence[int]) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, dims[0], 4, 4), ChannelsNorm(dims[0], eps=1e-6)]
        for stage, (dim, depth) in enumerate(zip(dims, depths, strict=True)):
            if stage:
                layers += [ChannelsNorm(dims[stage - 1], eps=1e-6), nn.Conv2d(dims[stage - 1], dim, 2, 2)]
            layers += [ConvNeXtBlock(dim) for _ in range(depth)]
        self.features, self.pool = nn.Sequential(*layers), nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(ChannelsNorm(dims[-1], eps=1e-6), nn.Flatten(1), nn.Linear(dims[-1], 1000))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.pool(self.features(x)))
