"""Trained models with real inputs, some to calibrate with and others to measure on, and what the task makes of outputs.

Pictures, snippets, files and speech are real; lines of text are rendered and tones made. None is in both halves. Where
there are few (20 pictures of ImageNet), two folds take turns.
"""

from __future__ import annotations

import sys
import tarfile
import wave
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageDraw, ImageFont

from tests.corpus import minilm
from tests.corpus.fetch import fetch

Arrays = Mapping[str, np.ndarray]
Measure = Callable[[np.ndarray, np.ndarray, np.ndarray | None], float]
"""What the task makes of float outputs, of rounded outputs, and of labels."""


@dataclass(frozen=True)
class Fold:
    """Inputs to calibrate with, inputs to measure on, and the labels of these where there are any."""

    calibration: Arrays
    test: Arrays
    labels: np.ndarray | None = None


@dataclass(frozen=True)
class Task:
    """A model, its data, and what its outputs are good for.

    Attributes:
        shapes: sizes of one input, for compilers that want them fixed.
        unit: what `measure` counts.
        before: the last operator of this type, where a softmax begins, and all behind it but a Reshape are cut off.
    """

    name: str
    model: Path
    folds: Sequence[Fold]
    unit: str
    measure: Measure
    shapes: Mapping[str, Sequence[int]] = field(default_factory=dict)
    before: str = ""


def hits(_: np.ndarray, got: np.ndarray, labels: np.ndarray | None) -> float:
    """How many are classified rightly."""
    assert labels is not None
    return float((got.argmax(-1) == labels).sum())


def alike(reference: np.ndarray, got: np.ndarray, _: np.ndarray | None) -> float:
    """The share of the same decisions, of scores that are positive or not."""
    return float(((got > 0) == (reference > 0)).mean())


def agreement(reference: np.ndarray, got: np.ndarray, _: np.ndarray | None) -> float:
    """The share of the same classes."""
    return float((got.argmax(-1) == reference.argmax(-1)).mean())


def lines(reference: np.ndarray, got: np.ndarray, _: np.ndarray | None) -> float:
    """How alike lines are read: mean of 1 less the share of characters that must be changed (Levenshtein)."""
    return float(np.mean([_similar(_read(a), _read(b)) for a, b in zip(reference, got, strict=True)]))


def _read(steps: np.ndarray) -> list[int]:
    """The best classes, repetitions and blanks left out."""
    best = steps.argmax(-1)
    return [int(c) for i, c in enumerate(best) if c and (i == 0 or c != best[i - 1])]


def _similar(a: list[int], b: list[int]) -> float:
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        before, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (x != y))
    return 1 - row[-1] / max(1, len(a), len(b))


def cents(reference: np.ndarray, got: np.ndarray, _: np.ndarray | None) -> float:
    """The share of pitches within 50 cents of the float model's (20 cents a class)."""
    return float((np.abs(got.argmax(-1) - reference.argmax(-1)) <= 2).mean())


def pictures() -> Task:
    files = sorted(fetch("foolbox:data").glob("imagenet_*.jpg"))
    labels = np.array([int(f.stem.split("_")[2]) for f in files])
    images = [Image.open(f).convert("RGB") for f in files]
    folds = []
    for k in (0, 1):
        mine = [i for i in range(len(files)) if i % 2 == k]
        others = [i for i in range(len(files)) if i % 2 != k]
        # All crops of a picture in a row, so that what is held out at the end are other pictures.
        crops = np.concatenate([[_crop(images[i], share, at) for share, at in CROPS] for i in others])
        test = np.stack([_crop(images[i], 0.875, (0.5, 0.5)) for i in mine])
        folds.append(Fold({"image": crops}, {"image": test}, labels[mine]))
    path = fetch("efficientnet-lite0.onnx")
    return Task("EfficientNet-Lite0", path, folds, "of 20 right", hits, {"image": (1, 3, 224, 224)})


CROPS = ((0.875, (0.5, 0.5)), (0.7, (0.1, 0.2)), (0.6, (0.9, 0.5)), (0.5, (0.4, 0.9)))
"""Share of the shorter side, and where."""


def _crop(image: Image.Image, share: float, at: tuple[float, float]) -> np.ndarray:
    side = round(min(image.size) * share)
    x, y = (round((size - side) * p) for size, p in zip(image.size, at, strict=True))
    part = image.crop((x, y, x + side, y + side)).resize((224, 224), Image.Resampling.BICUBIC)
    return np.asarray((np.asarray(part, np.float32) - 127) / 128).transpose(2, 0, 1)


def snippets() -> Task:
    with tarfile.open(fetch("vaderSentiment:hutto_ICWSM_2014.tar.gz")) as archive:
        file = archive.extractfile("hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt")
        assert file is not None
        rows = [row.split("\t") for row in file.read().decode("utf-8", "replace").splitlines()]
    order = np.random.default_rng(0).permutation(len(rows))
    calibration, test, others = ([rows[i][-1] for i in part] for part in (order[:192], order[192:448], order[448:1472]))
    liked = np.array([float(rows[i][1]) > 0 for i in order[448:1472]])
    path = fetch("minilm.onnx")
    head = _head(path, minilm.tokenize(others), liked)
    shapes = {"input_ids": (1, minilm.TOKENS), "attention_mask": (1, minilm.TOKENS)}
    folds = [Fold(minilm.tokenize(calibration), minilm.tokenize(test))]
    return Task("MiniLM", path, folds, "same sentiment", lambda a, b, _: alike(a @ head, b @ head, None), shapes)


def _head(path: Path, tokens: Arrays, liked: np.ndarray) -> np.ndarray:
    """What tells films that were liked from others by the float model's embeddings: a linear classifier."""
    session = onnxruntime.InferenceSession(path)
    known = {v.name for v in session.get_inputs()}
    x = session.run(None, {k: v for k, v in tokens.items() if k in known})[0]
    return np.asarray(np.linalg.solve(x.T @ x + np.eye(x.shape[1]), x.T @ np.where(liked, 1, -1)))


def rendered() -> Task:
    fonts = sorted(Path("/usr/share/fonts/truetype").rglob("*.ttf"))
    fonts = [f for f in fonts if "dejavu" in f.parent.name or "liberation" in f.parent.name]
    rng = np.random.default_rng(0)
    calibration = np.stack([_line(rng, fonts) for _ in range(96)])
    test = np.stack([_line(rng, fonts) for _ in range(96)])
    path = fetch("rapidocr-onnxruntime:ch_PP-OCRv4_rec_infer.onnx")
    folds = [Fold({"x": calibration}, {"x": test})]
    return Task("PP-OCRv4 rec", path, folds, "of the text", lines, {"x": (1, 3, 48, 320)}, "Softmax")


WORDS = (
    "invoice", "total", "amount", "date", "paid", "address", "street", "market", "north", "river", "water", "house",
    "number", "order", "customer", "price", "tax", "Quality", "Service", "Office", "Centre", "London", "Berlin",
    "Madrid", "January", "August", "Monday", "Friday", "open", "closed", "exit", "entrance",
)  # fmt: skip


def _line(rng: np.random.Generator, fonts: Sequence[Path]) -> np.ndarray:
    """A line of words and numbers, 48 x 320, of some font, colours and noise; -1 … 1."""
    parts = [str(rng.choice(WORDS)) if rng.random() < 0.65 else str(rng.integers(0, 10**5)) for _ in range(3)]
    font = ImageFont.truetype(str(fonts[rng.integers(len(fonts))]), int(rng.integers(22, 32)))
    back, ink = int(rng.integers(150, 256)), int(rng.integers(0, 90))
    image = Image.new("RGB", (320, 48), (back,) * 3)
    ImageDraw.Draw(image).text((6, int(rng.integers(4, 14))), " ".join(parts), fill=(ink,) * 3, font=font)
    pixels = np.asarray(image, np.float32) + rng.normal(0, 6, (48, 320, 1))
    return np.asarray((np.clip(pixels, 0, 255) / 127.5 - 1).transpose(2, 0, 1), np.float32)


def files() -> Task:
    """Files of Python's own library and of this environment's packages, of all types that are there."""
    roots = [Path(np.__file__).parents[1], Path(sys.base_prefix) / "lib"]
    by_type: dict[str, list[Path]] = {}
    for root in roots:
        for path in sorted(root.rglob("*")):
            if path.is_file() and path.stat().st_size > 2048 and len(of := by_type.setdefault(path.suffix, [])) < 12:
                of.append(path)
    chosen = sorted(p for of in by_type.values() for p in of)
    rng = np.random.default_rng(0)
    order = [chosen[i] for i in rng.permutation(len(chosen))][:400]
    data = np.stack([_bytes(p) for p in order])
    half = len(data) // 2
    fold = Fold({"bytes": data[:half]}, {"bytes": data[half:]})
    return Task("magika", fetch("magika:model.onnx"), [fold], "same type", agreement, {"bytes": (1, 2048)}, "Sub")


def _bytes(path: Path) -> np.ndarray:
    """The first and last 1024 bytes without white space at the ends, as magika wants them."""
    data = path.read_bytes()
    first, last = data[:4096].lstrip()[:1024], data[-4096:].rstrip()[-1024:]
    found = np.full(2048, 256, np.int32)
    found[: len(first)] = np.frombuffer(first, np.uint8)
    found[2048 - len(last) :] = np.frombuffer(last, np.uint8)
    return found


def tones() -> Task:
    rng = np.random.default_rng(0)
    folds = [Fold({"sound": _tones(rng, 256)}, {"sound": _tones(rng, 256)})]
    return Task("CREPE tiny", fetch("crepe-tiny.onnx"), folds, "within 50 cents", cents, {"sound": (1, 1024)})


def _tones(rng: np.random.Generator, count: int) -> np.ndarray:
    """Tones of 60 … 1000 Hz with falling harmonics and noise, 64 ms at 16 kHz; each of mean 0 and deviation 1."""
    pitch = np.exp(rng.uniform(np.log(60), np.log(1000), (count, 1)))
    time = np.arange(1024) / 16000
    sound = rng.normal(0, 1, (count, 1024)) * 10 ** rng.uniform(-3, -0.7, (count, 1))
    for harmonic in range(1, 9):
        loud = rng.random((count, 1)) / harmonic
        sound += loud * np.sin(2 * np.pi * (pitch * harmonic * time + rng.random((count, 1))))
    sound -= sound.mean(1, keepdims=True)
    return np.asarray(sound / sound.std(1, keepdims=True), np.float32)


CHUNK, BEFORE, STEPS = 512, 64, 32
"""Samples of sound that silero reads at a time (32 ms), those before that it reads again, and chunks in a sequence."""


def speech() -> Task:
    """Sentences out of a book, read by one person, to calibrate with; names of cards, by another, to measure on."""
    folders = [fetch(f"pocketsphinx:{name}") for name in ("librivox", "cards")]
    calibration, test = (np.concatenate([_chunks(f) for f in sorted(folder.glob("*.wav"))]) for folder in folders)
    folds = [Fold(_sequences(calibration), _sequences(test))]
    path = fetch("silero-vad:silero_vad_16k_sequence.onnx")
    shapes = {"input": (STEPS, BEFORE + CHUNK), "h": (1, 1, 128), "c": (1, 1, 128)}
    return Task("silero", path, folds, "same decision", alike, shapes, "Sigmoid")


def _chunks(path: Path) -> np.ndarray:
    with wave.open(str(path)) as file:
        sound = np.frombuffer(file.readframes(file.getnframes()), np.int16).astype(np.float32) / 32768
    sound = np.concatenate([np.zeros(BEFORE, np.float32), sound])
    return np.stack([sound[i : i + BEFORE + CHUNK] for i in range(0, len(sound) - BEFORE - CHUNK + 1, CHUNK)])


def _sequences(chunks: np.ndarray) -> Arrays:
    count = len(chunks) // STEPS
    state = np.zeros((count, 1, 128), np.float32)
    return {"input": chunks[: count * STEPS], "h": state, "c": state}


TASKS: dict[str, Callable[[], Task]] = {
    "efficientnet": pictures,
    "minilm": snippets,
    "ppocr": rendered,
    "magika": files,
    "crepe": tones,
    "silero": speech,
}
