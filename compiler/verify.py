"""Is it still the same model? Structure by onnx's full checker, numbers by running both sides."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx
import onnx_ir as ir

from .errors import Missing, ModelError, UnsupportedOp
from .graph import graphs, shape, users
from .numerics import CHUNK, Difference, compare
from .protos import bare_proto
from .rounding import has_rounding, strip_rounding
from .session import Session
from .weights import release

EXACT_TOLERANCE = 1e-5
"""Relative error allowed to exact passes, rounding stripped from both sides.

Equal graphs that associate sums differently agree to 1.3e-6, the wrong mode of one GELU in a ViT shows at 3e-4.
"""

WEIGHT_USERS = frozenset([
    "Conv", "ConvTranspose", "Gemm", "MatMul", "BatchNormalization", "InstanceNormalization", "LayerNormalization",
    "GroupNormalization", "RMSNormalization", "LSTM", "GRU", "RNN", "Gather", "DequantizeLinear", "PRelu",
])  # fmt: skip
"""Operators whose constants are trained numbers. Elsewhere an infinity may be meant: a mask, the bound of a Clip."""


@dataclass(frozen=True)
class Comparison:
    """How far all outputs of two models are apart. The figures are the worst over the outputs.

    Attributes:
        outputs: the figures of each output; see `numerics.Difference` for what they mean.
    """

    outputs: Mapping[str, Difference] = field(default_factory=dict)

    @property
    def max_abs(self) -> float:
        """Largest absolute error, in the output's unit."""
        return max((d.max_abs for d in self.outputs.values()), default=0.0)

    @property
    def max_rel(self) -> float:
        """Largest error relative to the largest value of its output."""
        return max((d.max_rel for d in self.outputs.values()), default=0.0)

    @property
    def snr_db(self) -> float:
        """Smallest signal-to-noise ratio, in decibels."""
        return min((d.snr_db for d in self.outputs.values()), default=math.inf)

    @property
    def cosine(self) -> float:
        """Smallest cosine between an output and its reference."""
        return min((d.cosine for d in self.outputs.values()), default=1.0)

    @property
    def top1(self) -> float | None:
        """Smallest share of rows with the same winner; None where no output looks like logits."""
        return min((d.top1 for d in self.outputs.values() if d.top1 is not None), default=None)

    @property
    def worst(self) -> str:
        """The name of the output with the largest relative error."""
        return max(self.outputs, key=lambda n: self.outputs[n].max_rel, default="")

    def within(self, max_rel: float) -> bool:
        """Whether no output is off by more than `max_rel` of its largest value, and all can be compared."""
        return all(d.mismatch is None and d.max_rel <= max_rel for d in self.outputs.values())

    def worst_line(self) -> str:
        """The worst output in a line, for a message."""
        if not self.outputs:
            return "there are no outputs"
        d = self.outputs[self.worst]
        what = d.mismatch or f"relative error {d.max_rel:.2g}, {d.snr_db:.1f} dB"
        return f"output '{self.worst}': {what}"

    def rows(self) -> Iterator[tuple[str, ...]]:
        """A table row per output: name, max abs, max rel, SNR in dB, cosine, top-1 agreement, any mismatch."""
        for name, d in self.outputs.items():
            figures = f"{d.max_abs:.3g}", f"{d.max_rel:.3g}", f"{d.snr_db:.1f}", f"{d.cosine:.6f}"
            yield name, *figures, "" if d.top1 is None else f"{d.top1:.1%}", d.mismatch or ""


def outputs_of(
    model: ir.Model, inputs: Mapping[str, np.ndarray], *others: Mapping[str, np.ndarray], exact: bool = False
) -> dict[str, np.ndarray]:
    """What `model` computes from `inputs`; with `exact`, as if nothing were rounded. Raises ModelError.

    What it computes from inputs of `others` sizes is in there as well, see `named_by_size`.
    """
    if exact and has_rounding(model):
        model = strip_rounding(model)
    session = Session(model)
    found = session.run(inputs)
    for feeds in others:
        found |= named_by_size(session.run(feeds), feeds)
    release(model)
    return found


def named_by_size(outputs: Mapping[str, np.ndarray], inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Outputs under names that say for inputs of which sizes they are."""
    sizes = ", ".join(f"{n} {'×'.join(map(str, a.shape)) or 'scalar'}" for n, a in inputs.items())
    return {f"{n} (for {sizes})": a for n, a in outputs.items()}


@dataclass(frozen=True)
class OtherSizes:
    """A second set of inputs of a model with free dimensions, of other sizes, and what the original makes of them."""

    inputs: Mapping[str, np.ndarray]
    outputs: Mapping[str, np.ndarray]

    def named(self) -> dict[str, np.ndarray]:
        """The outputs as `outputs_of` names them."""
        return named_by_size(self.outputs, self.inputs)

    def check(self, found: Mapping[str, np.ndarray]) -> None:
        """Raise ModelError where `found`, outputs of a rewritten model, lacks one or has another shape."""
        for name, wanted in self.named().items():
            if found[name].shape != wanted.shape:
                raise ModelError(
                    f"a free dimension is fixed: output '{name}' has shape {list(found[name].shape)} "
                    f"instead of {list(wanted.shape)}"
                )


ORIGINAL = "edgec.original"
"""Key of `Model.meta` under which a frontend keeps the model as its file has it, before it was brought to our opset."""

PERTURBATION = 1e-6
"""Relative change of the inputs by which sensitivity is measured: a few times float32's own precision."""
MOST_TOLERANCE = 0.02
"""However sensitive a model is on its inputs, two runs that are further apart than this prove nothing."""


def tolerance(
    model: ir.Model, runs: Sequence[Mapping[str, np.ndarray]], reference: Mapping[str, np.ndarray], base: float
) -> float:
    """The relative error to allow between two exact forms of `model`: `base`, or more where the model itself is shaky.

    Some outputs hang on the last bits of the inputs (the far tail of a sigmoid, a difference of almost equal numbers).
    Re-association can't do better than four times the error that a change of the inputs by 1e-6 makes.
    """
    changed = [
        {
            n: a * a.dtype.type(1 + PERTURBATION) if isinstance(a, np.ndarray) and a.dtype.kind == "f" else a
            for n, a in inputs.items()
        }
        for inputs in runs
    ]
    moved = compare_outputs(reference, outputs_of(model, *changed, exact=True)).max_rel
    return min(max(base, 4 * moved), max(base, MOST_TOLERANCE)) if math.isfinite(moved) else base


def compare_outputs(ref: Mapping[str, np.ndarray], got: Mapping[str, np.ndarray]) -> Comparison:
    """How far the outputs `got` are from `ref`; names and types must agree."""
    return Comparison(compare(ref, got))


@dataclass(frozen=True)
class Port:
    """One input or output of a model: what a caller relies on."""

    name: str
    dtype: str
    shape: tuple[int | str | None, ...] | None

    def accepts(self, other: Port) -> bool:
        """Whether `other` is the same port: name, type, rank, and every dimension that both know as a number."""
        if (self.name, self.dtype) != (other.name, other.dtype):
            return False
        if self.shape is None or other.shape is None:
            return True
        pairs = zip(self.shape, other.shape, strict=False)
        return len(self.shape) == len(other.shape) and all(
            a == b or not (isinstance(a, int) and isinstance(b, int)) for a, b in pairs
        )

    def __str__(self) -> str:
        dims = "?" if self.shape is None else "×".join(map(str, self.shape)) or "scalar"
        return f"{self.name} {self.dtype} {dims}"


@dataclass(frozen=True)
class Interface:
    """The inputs and outputs of a model, in order."""

    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]

    @classmethod
    def of(cls, model: ir.Model) -> Interface:
        """The interface of `model`."""
        return cls(tuple(map(_port, model.graph.inputs)), tuple(map(_port, model.graph.outputs)))

    def changes(self, other: Interface) -> list[str]:
        """What `other` does differently, a line each; empty when callers of this one can't tell."""
        found = []
        for kind, old, new in (("input", self.inputs, other.inputs), ("output", self.outputs, other.outputs)):
            if len(old) != len(new):
                found.append(f"{len(new)} {kind}s instead of {len(old)}")
            found += [f"{kind} '{b}' instead of '{a}'" for a, b in zip(old, new, strict=False) if not a.accepts(b)]
        return found


def _port(value: ir.Value) -> Port:
    return Port(value.name or "", value.dtype.name if value.dtype is not None else str(value.type), shape(value))


def check_structure(model: ir.Model, interface: Interface | None = None) -> None:
    """Raise ModelError unless onnx's full checker, strict shape inference included, accepts `model`.

    With `interface`, inputs and outputs must be those as well. Declared shapes that inference contradicts are errors.
    No weight is read: the checker sees big initializers as inputs.
    """
    proto, big = bare_proto(model, lambda _: True)
    for name in big:
        value = model.graph.initializers[name]
        proto.graph.input.append(ir.serde.serialize_value(value))
    kept = [t for t in proto.graph.initializer if t.name not in big]
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(kept)
    try:
        onnx.checker.check_model(proto, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, ValueError, RuntimeError) as e:
        raise ModelError(f"not a valid model: {_reason(e)}") from e
    if interface is not None and (changes := interface.changes(Interface.of(model))):
        raise ModelError("the model's interface changed: " + "; ".join(changes))


RUNNABLE = frozenset({"", "ai.onnx", "ai.onnx.ml", "com.microsoft", "com.microsoft.nchwc"})
"""Domains whose operators onnxruntime brings along."""


def check_operators(model: ir.Model) -> None:
    """Raise UnsupportedOp, listing all of them, when there are operators that nothing here can run."""
    missing = []
    for node in (n for graph in graphs(model) for n in graph):
        if node.op_identifier() in model.functions:
            continue
        if node.domain not in RUNNABLE:
            missing.append(Missing(node.name or "", node.op_type, f"nobody knows the domain '{node.domain}'"))
        elif node.domain in ("", "ai.onnx") and not onnx.defs.has(node.op_type, ""):
            missing.append(Missing(node.name or "", node.op_type, "ONNX has no such operator"))
    if missing:
        raise unknown_operators(missing)


def unknown_operators(missing: Sequence[Missing], source: object = "") -> UnsupportedOp:
    """The error that lists operators which nothing here can run; `source` is the file, where it is known."""
    kinds = len({m.op for m in missing})
    count = f"{len(missing)} node{'s' if len(missing) > 1 else ''} of {kinds} kind{'s' if kinds > 1 else ''}"
    return UnsupportedOp(
        f"{f'{source}: ' if source else ''}{count} {'are' if len(missing) > 1 else 'is'} unknown:",
        missing,
        "Define them as model-local functions, or export the model with standard operators only.",
    )


def check_weights(model: ir.Model) -> None:
    """Raise ModelError, naming initializer and user, where a weight holds NaN or infinity. Reads every weight once."""
    for graph in graphs(model):
        for value in graph.initializers.values():
            tensor = value.const_value
            if tensor is None or not tensor.dtype.is_floating_point() or tensor.dtype.bitwidth < 16:
                continue
            nans, infs = _non_finite(tensor.numpy())
            if not nans and not infs:
                continue
            reader = next((n for n in users(value) if n.op_type in WEIGHT_USERS), None)
            if reader is None and (not nans or tensor.size == 1):
                continue
            where = f" of {reader.op_type} '{reader.name}'" if reader else ""
            raise ModelError(
                f"weight '{value.name}'{where} holds {nans} NaN and {infs} infinite of {tensor.size} values. "
                "The file is damaged or the training diverged; export the model again."
            )


def _non_finite(array: np.ndarray) -> tuple[int, int]:
    """How many NaN and how many infinite values there are."""
    nans = infs = 0
    flat = array.reshape(-1)
    for i in range(0, flat.size, CHUNK):
        part = flat[i : i + CHUNK]
        with np.errstate(all="ignore"):
            # A sum is the fastest way to see that all is well; it may overflow on sound numbers as well.
            if np.isfinite(part.sum()):
                continue
        nans += int(np.isnan(part).sum())
        infs += int(np.isinf(part).sum())
    return nans, infs


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:3])
