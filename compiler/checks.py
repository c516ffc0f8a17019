"""What is checked without running a model: its structure, interface and operators, and that its weights are numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir

from .errors import Missing, ModelError, UnsupportedOp
from .graph import graphs, shape, users
from .numerics import CHUNK
from .protos import bare_proto

WEIGHT_USERS = frozenset([
    "Conv", "ConvTranspose", "Gemm", "MatMul", "BatchNormalization", "InstanceNormalization", "LayerNormalization",
    "GroupNormalization", "RMSNormalization", "LSTM", "GRU", "RNN", "Gather", "DequantizeLinear", "PRelu",
])  # fmt: skip
"""Operators whose constants are trained numbers. Elsewhere an infinity may be meant: a mask, the bound of a Clip."""


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
    _leave_out_unshaped(proto.graph)
    try:
        onnx.checker.check_model(proto, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, ValueError, RuntimeError) as e:
        raise ModelError(f"not a valid model: {_reason(e)}") from e
    if interface is not None and (changes := interface.changes(Interface.of(model))):
        raise ModelError("the model's interface changed: " + "; ".join(changes))


def _leave_out_unshaped(graph: onnx.GraphProto) -> None:
    """Drop outputs of unknown rank, as of a Loop: the checker demands a shape that nobody can state."""
    stated = [o for o in graph.output if not o.type.HasField("tensor_type") or o.type.tensor_type.HasField("shape")]
    del graph.output[:]
    graph.output.extend(stated)


RUNNABLE = frozenset({"", "ai.onnx", "ai.onnx.ml", "com.microsoft", "com.microsoft.nchwc"})
"""Domains whose operators onnxruntime brings along."""


def is_known(domain: str, op: str) -> bool:
    """Whether there is such an operator, as far as can be told: of onnxruntime's own domain all names are taken."""
    return domain in RUNNABLE and (domain not in ("", "ai.onnx") or onnx.defs.has(op, ""))


def check_operators(model: ir.Model) -> None:
    """Raise UnsupportedOp, listing all of them, when there are operators that nothing here can run."""
    missing = []
    for node in (n for graph in graphs(model) for n in graph):
        if node.op_identifier() in model.functions:
            continue
        if is_known(node.domain, node.op_type):
            continue
        if node.domain not in RUNNABLE:
            missing.append(Missing(node.name or "", node.op_type, f"nobody knows the domain '{node.domain}'"))
        else:
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
        constants = [n.outputs[0] for n in graph if n.op_type == "Constant"]
        for value in (*graph.initializers.values(), *constants):
            tensor = ir.convenience.get_const_tensor(value)
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
