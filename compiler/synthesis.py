"""Inputs to measure with, made so that they don't break the model: sizes that it runs on, then values of sense."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from .errors import ModelError, UsageError
from .graph import shape
from .roles import RATE_NAME, Role, role
from .session import Session

Dims = tuple[int | str | None, ...]
Inputs = dict[str, np.ndarray]

IMAGES = (
    (224, 224), (320, 320), (48, 320), (32, 320), (64, 224), (416, 416), (640, 640), (160, 160), (512, 512), (32, 32),
)  # fmt: skip
"""Heights and widths to try for images of free size: classifiers, detectors, text lines."""

SEQUENCES = (16, 128, 512, 576, 1024, 16000, 44100, 64, 8, 1)
"""Lengths to try for sequences of free size: tokens, audio frames."""

SOUNDS = (16000, 512, 576, 1024, 44100, 4096, 8000, 1280, 80000, 160)
"""Lengths to try where a name says that the sequence is sound."""

SOUND_NAME = re.compile(r"audio|sample|wav|sound|speech|signal|pcm", re.I)

ACTIVATION_SCALE = 0.1
"""Standard deviation of synthesised recurrent states."""

MASKED = -1e4
"""What an additive mask holds where a key is masked: -inf would give NaN where a row is masked in whole."""


def synthesise(
    model: ir.Model, seed: int = 0, shapes: Mapping[str, Sequence[int]] | None = None, *, batch: int = 1
) -> Inputs:
    """Seeded inputs that the model can run on: indices in range, masks with a key left in every row, small states.

    `shapes` gives the shape of named inputs. Free dimensions get one value per symbol: `batch` for leading ones, 224
    for the sides of images, 16 for sequences; where onnxruntime can't run the model on these, others are tried.

    Raises UsageError when `shapes` contradicts the model, ModelError when no size was found that runs.
    """
    given = _checked(model, shapes or {})
    roles = {v.name or "": role(v) for v in model.graph.inputs}
    fixed = {n: [d for d in dims if isinstance(d, int)] for n, dims in given.items()}
    if all(len(fixed[n]) == len(dims) for n, dims in given.items()):
        return _values(model, roles, fixed, seed)
    return _first_that_runs(model, roles, given, seed, batch)


def _first_that_runs(
    model: ir.Model, roles: Mapping[str, Role], given: Mapping[str, Dims], seed: int, batch: int
) -> Inputs:
    session = Session(model)
    fallback, reasons = None, []
    for sizes in _ladder(given, roles, batch):
        inputs = _values(model, roles, sizes, seed)
        try:
            outputs = session.run(inputs)
        except ModelError as e:
            reasons.append(f"{_text(sizes)}: {e}")
            continue
        if all(o.size for o in outputs.values()):
            return inputs
        fallback = fallback or inputs
    if fallback is not None:
        return fallback
    flags = " ".join(
        f"--shape {n}:{','.join(str(d) if isinstance(d, int) else '?' for d in dims)}"
        for n, dims in given.items()
        if not all(isinstance(d, int) for d in dims)
    )
    raise ModelError(
        f"no input size was found that the model runs on; give it ({flags}, numbers for the question marks) or give "
        f"inputs with --inputs. The first of {len(reasons)} tries: {reasons[0]}"
    )


def _checked(model: ir.Model, shapes: Mapping[str, Sequence[int]]) -> dict[str, Dims]:
    """Each input's dimensions, those of `shapes` put in, symbols replaced wherever `shapes` fixes them."""
    declared = {v.name or "": declared_dims(v) for v in model.graph.inputs}
    if unknown := sorted(set(shapes) - set(declared)):
        raise UsageError(f"the model has no input '{unknown[0]}'; its inputs: {', '.join(declared)}")
    fixed: dict[str, int] = {}
    for name, wanted in shapes.items():
        dims = declared[name]
        if dims is not None and not fits(dims, wanted):
            raise UsageError(f"input '{name}' has shape {dims_text(dims)}; {dims_text(tuple(wanted))} does not fit it")
        fixed.update({d: w for d, w in zip(dims or (), wanted, strict=False) if isinstance(d, str)})
    result: dict[str, Dims] = {}
    for name, dims in declared.items():
        if name in shapes:
            result[name] = tuple(shapes[name])
        elif dims is None:
            raise UsageError(f"input '{name}' has no declared shape; give it with --shape {name}:… or --inputs")
        else:
            result[name] = tuple(fixed.get(d, d) if isinstance(d, str) else d for d in dims)
    return result


def declared_dims(value: ir.Value) -> Dims | None:
    """The dimensions of a model's input as its file has them: a number, a symbol, or None for a free one.

    None for all when the rank is unknown.
    """
    dims = shape(value)
    # Some exporters write -1 for a dimension that is free.
    return None if dims is None else tuple(None if isinstance(d, int) and d < 0 else d for d in dims)


def fits(dims: Dims, sizes: Sequence[int]) -> bool:
    """Whether an array of these sizes can be the input that has these dimensions."""
    pairs = zip(dims, sizes, strict=False)
    return len(dims) == len(sizes) and all(d == s or not isinstance(d, int) for d, s in pairs)


def _ladder(given: Mapping[str, Dims], roles: Mapping[str, Role], batch: int) -> Iterator[dict[str, list[int]]]:
    """Sizes for all inputs, the likeliest first, none twice."""
    tried = []
    sound = {n: bool(SOUND_NAME.search(f"{n} {dims}")) for n, dims in given.items()}
    for (height, width), frames, samples in zip(IMAGES, SEQUENCES, SOUNDS, strict=True):
        known: dict[str, int] = {}
        sizes = {}
        for name, dims in given.items():
            choice = _choice(dims, roles[name], batch, height, width, samples if sound[name] else frames)
            sizes[name] = [
                d if isinstance(d, int) else known.setdefault(d, c) if isinstance(d, str) and d != "?" else c
                for d, c in zip(dims, choice, strict=True)
            ]
        if sizes not in tried:
            tried.append(sizes)
            yield sizes


def _choice(dims: Dims, found: Role, batch: int, height: int, width: int, length: int) -> list[int]:
    """A size for every position of one input, used where the dimension is free."""
    n = len(dims)
    if found.state:
        # States are [layers, batch, …] or [batch, …, width]: nothing in them is long.
        return [batch] * n
    if n >= 4:
        last = dims[-1] in (1, 3, 4)
        image = [height, width, 1] if last else [3, height, width]
        return [batch] + [1] * (n - 4) + image
    return [length] if n == 1 and not found.length else ([batch] + [length] * (n - 1))[:n]


def _values(model: ir.Model, roles: Mapping[str, Role], sizes: Mapping[str, list[int]], seed: int) -> Inputs:
    longest = max((d for n, dims in sizes.items() if not roles[n].state for d in dims[1:]), default=1)
    return {
        v.name or "": _value(v, roles[v.name or ""], sizes[v.name or ""], longest, np.random.default_rng([seed, i]))
        for i, v in enumerate(model.graph.inputs)
    }


def _value(v: ir.Value, found: Role, dims: list[int], longest: int, rng: np.random.Generator) -> np.ndarray:
    kind, name = v.dtype, v.name or ""
    if kind is None or not isinstance(v.type, ir.TensorType):
        raise ModelError(f"input '{name}' is not a tensor ({v.type}); edgec compiles models of tensors")
    if kind == ir.DataType.STRING:
        return np.array([f"text {i}" for i in range(int(np.prod(dims)))], dtype=object).reshape(dims)
    if found.mask and found.bound is None:
        return _mask(found, dims, rng).astype(kind.numpy())
    if kind == ir.DataType.BOOL:
        return rng.random(dims) < 0.5
    if kind.is_integer():
        return _integers(name, found, dims, longest, kind, rng).astype(kind.numpy())
    if found.additive:
        return np.asarray(np.where(_mask(found, dims, rng), 0.0, MASKED), kind.numpy())
    if not dims and RATE_NAME.search(name):
        return np.array(found.compared[0] if found.compared else 16000, kind.numpy())
    return _floats(found, dims, rng).astype(kind.numpy())


def _mask(found: Role, dims: list[int], rng: np.random.Generator) -> np.ndarray:
    """True where a key is kept: a prefix of every row, as padding leaves it: a causal mask leaves a key as well."""
    if not dims:
        return np.array(not found.inverted)
    n = dims[-1]
    kept = rng.integers(max(1, n // 2), max(2, n), dims[:-1])
    return np.asarray((np.arange(n) < kept[..., None]) != found.inverted)


def _integers(
    name: str, found: Role, dims: list[int], longest: int, kind: ir.DataType, rng: np.random.Generator
) -> np.ndarray:
    single = int(np.prod(dims)) == 1 and len(dims) <= 1
    if found.bound is not None:
        return rng.integers(found.low, max(found.low + 1, found.bound), dims)
    if single and found.compared:
        rates = [c for c in found.compared if c == 16000] or found.compared
        return np.full(dims, int(rates[0]))
    if RATE_NAME.search(name) and single:
        return np.full(dims, 16000)
    if found.length:
        return np.full(dims, found.longest or longest)
    if found.size:
        return np.ones(dims, np.int64)
    if kind.bitwidth <= 8:
        top = 1 << (kind.bitwidth - kind.is_signed())
        return rng.integers(-top if kind.is_signed() else 0, top, dims)
    return rng.integers(0, 10, dims)


def _floats(found: Role, dims: list[int], rng: np.random.Generator) -> np.ndarray:
    """Unit variance; images look like pictures, since detectors see nothing at all in white noise."""
    values = rng.standard_normal(dims)
    if found.positive:
        return np.abs(values) + 0.01
    if found.state:
        return values * ACTIVATION_SCALE
    if len(dims) == 4 and min(dims) > 0:
        last = dims[-1] in (1, 3, 4) and dims[1] not in (1, 3, 4)
        return _pictures(values if not last else np.moveaxis(values, 3, 1), rng, last)
    return values


def _pictures(noise: np.ndarray, rng: np.random.Generator, last: bool) -> np.ndarray:
    """Coarse patches, rows of dark strokes as in writing, and fine noise; the lower half stays free of strokes."""
    n, c, h, w = noise.shape
    coarse = rng.standard_normal((n, c, -(-h // 8), -(-w // 8))).repeat(8, 2).repeat(8, 3)[:, :, :h, :w]
    picture = 0.5 * noise + 0.5 * coarse
    size = max(4, min(16, h // 8))
    thick = max(1, size // 8)
    for top in range(0, h // 2 - 2 * size + 1, 2 * size):
        band = picture[:, :, top : top + 2 * size]
        band[...] = 1.5 + 0.1 * noise[:, :, top : top + 2 * size]
        line = band[:, :, size // 4 : size // 4 + size]
        for left in range(0, max(1, w - size), max(1, size * 3 // 4)):
            for y, x in rng.integers(0, size, (4, 2)):
                tall = rng.random() < 0.5
                dy, dx = (size // 2, thick) if tall else (thick, size // 2)
                line[:, :, y : y + dy, left + x : left + x + dx] = -1.5
    return np.moveaxis(picture, 1, 3) if last else picture


def dims_text(dims: Sequence[int | str | None]) -> str:
    """Dimensions as a message shows them: [1, N, ?]."""
    return "[" + ", ".join("?" if d is None else str(d) for d in dims) + "]"


def _text(sizes: Mapping[str, Sequence[int]]) -> str:
    return ", ".join(f"{n} {dims_text(d)}" for n, d in sizes.items())
