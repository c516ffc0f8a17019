"""The samples that a model is measured on: the user's, or synthesised ones."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import onnx_ir as ir

from .errors import UsageError
from .synthesis import Dims, Inputs, declared_dims, dims_text, fits, synthesise

FREE_BATCH = 64
"""Samples that are run at once where the model leaves the number open: enough to be fast, few enough for memory."""

LABELS = "labels"
"""The array of an .npz that holds the right classes: not an input, it gives top-1 accuracy."""


@dataclass(frozen=True)
class Samples:
    """Inputs for a model, cut into runs.

    Attributes:
        runs: one set of named inputs per run.
        given: whether they are the user's.
        labels: the right class of each sample, shape [N], where the user gave any.
        count: how many samples there are; 1 where no axis counts samples.
    """

    runs: tuple[Mapping[str, np.ndarray], ...]
    given: bool = False
    labels: np.ndarray | None = None
    count: int = 1

    @property
    def first(self) -> Mapping[str, np.ndarray]:
        """The inputs of the first run: what passes measure with."""
        return self.runs[0]

    @classmethod
    def of(cls, model: ir.Model, inputs: str | Path | Mapping[str, np.ndarray] | None) -> Samples:
        """The user's inputs (named arrays or an .npz, `labels` apart), or synthesised ones. Raises UsageError."""
        if inputs is None:
            return cls((synthesise(model),))
        arrays = dict(load_inputs(inputs, model) if isinstance(inputs, str | Path) else fit_inputs(inputs, model))
        labels = arrays.pop(LABELS, None)
        runs = tuple(batches(arrays, model))
        count = max((a.shape[0] for a in arrays.values() if a.ndim), default=1)
        if labels is not None and (labels.shape != (count,) or labels.dtype.kind not in "iu"):
            raise UsageError(
                f"'{LABELS}' is {labels.dtype} of shape {dims_text(labels.shape)}; "
                f"it must hold a whole number for each of the {count} samples"
            )
        return cls(runs, True, labels, count)

    @classmethod
    def with_more(cls, model: ir.Model, data: Mapping[str, np.ndarray]) -> tuple[Samples, Mapping[str, np.ndarray]]:
        """The samples in `data`, and all of its arrays: labels and whatever else a metric wants. Raises UsageError."""
        ports = {v.name for v in model.graph.inputs}
        fitted = fit_inputs({n: a for n, a in data.items() if n in ports}, model, "data")
        count = max((a.shape[0] for a in fitted.values() if a.ndim), default=1)
        return cls(tuple(batches(fitted, model)), True, None, count), {**data, **fitted}

    def __iter__(self) -> Iterator[Mapping[str, np.ndarray]]:
        return iter(self.runs)


def load_inputs(path: str | Path, model: ir.Model) -> Inputs:
    """The arrays of an .npz for the model's inputs, and `labels` if it holds them, checked against the model.

    Arrays may hold more samples than a model of fixed batch takes (see `batches`). Types are cast where no value is
    lost.
    Raises UsageError: unreadable file, unknown or missing name, type, rank or shape that doesn't fit, NaN.
    """
    return fit_inputs(read_arrays(path), model, f"'{path}'")


def read_arrays(path: str | Path) -> Inputs:
    """The arrays of an .npz. Raises UsageError."""
    try:
        file = np.load(path, allow_pickle=False)
        if isinstance(file, np.ndarray):
            raise ValueError("one array without a name")
        with file:
            return {n: file[n] for n in file.files}
    except OSError as e:
        raise UsageError(f"can't read '{path}': {e.strerror or e}") from e
    except (ValueError, KeyError, AttributeError, RuntimeError, BadZipFile, EOFError, zlib.error) as e:
        raise UsageError(f"'{path}' is no .npz of plain arrays. Write it with numpy.savez(path, name=array, …)") from e


def fit_inputs(arrays: Mapping[str, np.ndarray], model: ir.Model, source: str = "inputs") -> Inputs:
    """`arrays` as the model's inputs, checked and cast as `load_inputs` says. `source` names them in errors."""
    values = {v.name or "": v for v in model.graph.inputs}
    names = ", ".join(values)
    if missing := [n for n in values if n not in arrays]:
        raise UsageError(f"{source}: no array '{missing[0]}'; the model's inputs: {names}")
    if unknown := [n for n in arrays if n not in values and n != LABELS]:
        raise UsageError(f"{source}: '{unknown[0]}' is no input of the model; its inputs: {names}")
    return {n: _fitted(np.asarray(a), values[n], source) if n in values else a for n, a in arrays.items()}


def _fitted(array: np.ndarray, value: ir.Value, source: str) -> np.ndarray:
    dims, what = declared_dims(value), f"{source}: array '{value.name}'"
    kind = (value.dtype or ir.DataType.FLOAT).numpy()
    if array.dtype != kind:
        # float64 to float32 loses digits that nobody measured; float to int, or a wrapped integer, is a mistake.
        floats = array.dtype.kind == "f" and kind.kind == "f"
        if not floats and not (np.can_cast(array.dtype, kind, "same_kind") and (array.astype(kind) == array).all()):
            raise UsageError(f"{what} is {array.dtype}, the model's input is {kind}")
        with np.errstate(over="ignore"):
            cast = array.astype(kind)
        if floats and (np.isinf(cast) & np.isfinite(array)).any():
            raise UsageError(f"{what} holds numbers that {kind} has no room for")
        array = cast
    if dims is not None and not fits(dims, array.shape) and not _holds_many(dims, array.shape):
        raise UsageError(f"{what} has shape {dims_text(array.shape)}, the model's input is {dims_text(dims)}")
    if array.dtype.kind == "f" and np.isnan(array).any():
        raise UsageError(f"{what} holds NaN in {int(np.isnan(array).sum())} places")
    return array


def _holds_many(dims: Dims, sizes: Sequence[int]) -> bool:
    """Whether an array of these sizes holds several runs' worth of an input whose leading dimension is fixed."""
    return bool(dims) and isinstance(dims[0], int) and fits((None, *dims[1:]), sizes) and _multiple(sizes[0], dims[0])


def _multiple(size: int, unit: int) -> bool:
    return unit > 0 and size > 0 and size % unit == 0


def batches(inputs: Mapping[str, np.ndarray], model: ir.Model) -> Iterator[Inputs]:
    """`inputs` cut along the first axis into what the model takes in one run, in order, without labels.

    A fixed leading dimension gives the size of a batch; of free ones, `FREE_BATCH` samples go into one.
    Raises UsageError when the inputs hold different numbers of samples.
    """
    ports = [(v.name or "", declared_dims(v) or ()) for v in model.graph.inputs]
    feeds = {n: inputs[n] for n, _ in ports}
    units = {n: d[0] for n, d in ports if d and isinstance(d[0], int) and len(feeds[n]) != d[0]}
    if not units:
        units = {n: FREE_BATCH for n, d in ports if d and not isinstance(d[0], int) and len(feeds[n]) > FREE_BATCH}
    counts = {n: -(-len(feeds[n]) // unit) for n, unit in units.items()}
    if len(set(counts.values())) > 1:
        found = ", ".join(f"{n} {len(feeds[n])}" for n in counts)
        raise UsageError(f"the inputs hold different numbers of samples: {found}")
    for i in range(next(iter(counts.values()), 1)):
        yield {n: a[units[n] * i : units[n] * (i + 1)] if n in units else a for n, a in feeds.items()}
