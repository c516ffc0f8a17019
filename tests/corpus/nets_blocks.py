"""Small networks whose channels are hard to prune: shuffled, windowed, gated, grouped, recurrent, routed.

Sizes are such that no two widths are equal by accident.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .nets_cnn import conv_norm


def conv(cin: int, cout: int, kernel: int, stride: int = 1, act: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    return conv_norm(cin, cout, kernel, stride=stride, act=act())


class ShuffleUnit(nn.Module):
    """ShuffleNet-v2: half of the channels pass, the other half is convolved, and both are interleaved."""

    def __init__(self, width: int) -> None:
        super().__init__()
        half = width // 2
        self.branch = nn.Sequential(
            conv(half, half, 1),
            conv_norm(half, half, 3, groups=half, act=None),
            conv(half, half, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        passed, convolved = x.chunk(2, 1)
        x = torch.cat((passed, self.branch(convolved)), 1)
        b, c, h, w = x.shape
        return x.view(b, 2, c // 2, h, w).transpose(1, 2).reshape(b, c, h, w)


class ShuffleNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 16, 3, 2)
        self.units = nn.Sequential(ShuffleUnit(16), ShuffleUnit(16))
        self.head = nn.Linear(16, 7)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.units(self.stem(x)).mean((2, 3)))


class WindowAttention(nn.Module):
    """Swin: attention inside windows, shifted by rolling, with a table of biases per head."""

    def __init__(self, width: int, heads: int, window: int, shift: int) -> None:
        super().__init__()
        self.heads, self.window, self.shift = heads, window, shift
        self.norm, self.qkv, self.out = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.norm2, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.table = nn.Parameter(torch.randn((2 * window - 1) ** 2, heads))
        at = torch.stack(torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")).flatten(1)
        delta = at[:, :, None] - at[:, None] + window - 1
        self.register_buffer("index", delta[0] * (2 * window - 1) + delta[1], persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        b, h, w, c = x.shape
        n, d = self.window, c // self.heads
        y = torch.roll(self.norm(x), (-self.shift, -self.shift), (1, 2))
        y = y.view(b, h // n, n, w // n, n, c).permute(0, 1, 3, 2, 4, 5).reshape(-1, n * n, c)
        q, k, v = self.qkv(y).reshape(-1, n * n, 3, self.heads, d).permute(2, 0, 3, 1, 4)
        bias = self.table[self.index.view(-1)].view(n * n, n * n, -1).permute(2, 0, 1)
        weights = (q * d**-0.5 @ k.transpose(-2, -1) + bias).softmax(-1)
        y = self.out((weights @ v).transpose(1, 2).reshape(-1, n * n, c))
        y = y.view(b, h // n, w // n, n, n, c).permute(0, 1, 3, 2, 4, 5).reshape(b, h, w, c)
        x = x + torch.roll(y, (self.shift, self.shift), (1, 2))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class Swin(nn.Module):
    """Two blocks, patch merging, one more."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 24, 4, 4)
        self.blocks = nn.Sequential(WindowAttention(24, 3, 4, 0), WindowAttention(24, 3, 4, 2))
        self.norm, self.merge = nn.LayerNorm(96), nn.Linear(96, 32, bias=False)
        self.last, self.head = WindowAttention(32, 4, 2, 0), nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.stem(x).permute(0, 2, 3, 1))
        x = torch.cat([x[:, 0::2, 0::2], x[:, 1::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 1::2]], -1)
        return self.head(self.last(self.merge(self.norm(x))).mean((1, 2)))


class RmsNorm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.weight


def rotated(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    """RoPE written out: pairs are halves of a head, or neighbours."""
    if interleaved:
        even, odd = x[..., ::2], x[..., 1::2]
        cos, sin = cos[..., : even.shape[-1]], sin[..., : even.shape[-1]]
        return torch.stack((even * cos - odd * sin, even * sin + odd * cos), -1).flatten(-2)
    half = x.shape[-1] // 2
    return x * cos + torch.cat((-x[..., half:], x[..., :half]), -1) * sin


class LlamaBlock(nn.Module):
    """Grouped queries, rotary embeddings, RMSNorm, a gated MLP."""

    def __init__(self, width: int, heads: int, kv: int, size: int, hidden: int, interleaved: bool) -> None:
        super().__init__()
        self.heads, self.kv, self.size, self.interleaved = heads, kv, size, interleaved
        self.norm, self.norm2 = RmsNorm(width), RmsNorm(width)
        self.q, self.o = nn.Linear(width, heads * size, bias=False), nn.Linear(heads * size, width, bias=False)
        self.k, self.v = (nn.Linear(width, kv * size, bias=False) for _ in range(2))
        self.gate, self.up = (nn.Linear(width, hidden, bias=False) for _ in range(2))
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        b, t, _ = x.shape
        y = self.norm(x)
        q = self.q(y).view(b, t, self.heads, self.size).transpose(1, 2)
        k, v = (p(y).view(b, t, self.kv, self.size).transpose(1, 2) for p in (self.k, self.v))
        q, k = (rotated(z, cos, sin, self.interleaved) for z in (q, k))
        repeats = self.heads // self.kv
        k, v = (
            z[:, :, None].expand(b, self.kv, repeats, t, self.size).reshape(b, self.heads, t, self.size) for z in (k, v)
        )
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.o(y.transpose(1, 2).reshape(b, t, -1))
        y = self.norm2(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


class Llama(nn.Module):
    """A decoder of at most `most` tokens; small unless it is told otherwise."""

    def __init__(
        self, interleaved: bool = False, depth: int = 2, width: int = 40, heads: int = 6, kv: int = 3, size: int = 8,
        hidden: int = 56, vocabulary: int = 50, most: int = 16,
    ) -> None:  # fmt: skip
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.blocks = nn.ModuleList(LlamaBlock(width, heads, kv, size, hidden, interleaved) for _ in range(depth))
        self.norm, self.head = RmsNorm(width), nn.Linear(width, vocabulary, bias=False)
        angles = torch.outer(torch.arange(float(most)), 100 ** (-torch.arange(0, size, 2) / size)).repeat(1, 2)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        cos, sin = self.cos[: ids.shape[1]], self.sin[: ids.shape[1]]
        for block in self.blocks:
            x = block(x, cos, sin)
        return self.head(self.norm(x))


class UNet(nn.Module):
    """Down, across, and up again by a transposed convolution; GroupNorm in the middle."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.down = conv(3, 8, 3), conv(8, 12, 3, 2)
        self.middle, self.norm = nn.Conv2d(12, 16, 3, padding=1), nn.GroupNorm(4, 16)
        self.up, self.join = nn.ConvTranspose2d(16, 10, 2, 2), conv(18, 8, 3)
        self.wide, self.out = nn.Conv2d(8, 24, 3, padding=1), nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        y = F.silu(self.norm(self.middle(self.down(x))))
        y = self.join(torch.cat((self.up(y), x), 1))
        return self.out(F.relu(F.pixel_shuffle(self.wide(y), 2)))


class Detector(nn.Module):
    """As YOLOv8: split and concatenated bottlenecks, pooled pyramids, upsampling, boxes as a softmax over bins."""

    def __init__(self) -> None:
        super().__init__()
        silu = nn.SiLU
        self.stem, self.down = conv(3, 8, 3, 2, act=silu), conv(8, 16, 3, 2, act=silu)
        self.split = conv(16, 16, 1, act=silu)
        self.bottleneck = nn.Sequential(conv(8, 6, 3, act=silu), conv(6, 8, 3, act=silu))
        self.join, self.deep = conv(24, 16, 1, act=silu), conv(16, 20, 3, 2, act=silu)
        self.squeeze, self.pyramid = conv(20, 10, 1, act=silu), conv(40, 20, 1, act=silu)
        self.neck = conv(36, 12, 1, act=silu)
        self.box, self.kind = nn.Conv2d(12, 4 * 8, 1), nn.Conv2d(12, 5, 1)
        self.register_buffer("bins", torch.arange(8.0).view(1, 8, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.split(self.down(self.stem(x)))
        left, right = x.chunk(2, 1)
        x = self.join(torch.cat((left, right, right + self.bottleneck(right)), 1))
        pooled = [self.squeeze(self.deep(x))]
        for _ in range(3):
            pooled.append(F.max_pool2d(pooled[-1], 5, 1, 2))
        deep = F.interpolate(self.pyramid(torch.cat(pooled, 1)), scale_factor=2.0, mode="nearest")
        y = self.neck(torch.cat((x, deep), 1))
        box, kind = self.box(y), self.kind(y).sigmoid()
        b, _, h, w = box.shape
        box = (box.view(b, 4, 8, h * w).transpose(1, 2).softmax(1) * self.bins).sum(1)
        return torch.cat((box, kind.flatten(2)), 1)


class Experts(nn.Module):
    """A mixture of experts whose weights are one tensor, all of them run, and weighed by a softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.route, self.head = nn.Embedding(50, 20), nn.Linear(20, 4), nn.Linear(20, 6)
        self.up, self.down = nn.Parameter(torch.randn(4, 20, 24) * 0.2), nn.Parameter(torch.randn(4, 24, 20) * 0.2)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        hidden = F.relu(torch.einsum("btd,edh->ebth", x, self.up))
        each = torch.einsum("ebth,ehd->ebtd", hidden, self.down)
        return self.head(torch.einsum("bte,ebtd->btd", self.route(x).softmax(-1), each))


class Recurrent(nn.Module):
    """A bidirectional LSTM of two layers, then a GRU whose last state is classified."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 12)
        self.lstm = nn.LSTM(12, 16, 2, batch_first=True, bidirectional=True)
        self.gru, self.head = nn.GRU(32, 20, batch_first=True), nn.Linear(20, 6)

    def forward(self, ids: Tensor) -> Tensor:
        x, _ = self.lstm(self.embed(ids))
        _, last = self.gru(x)
        return self.head(last[0])
