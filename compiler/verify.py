"""Is it still the same model? Structure by onnx's full checker, numbers by running both sides."""

from __future__ import annotations

from dataclasses import dataclass

import onnx
import onnx_ir as ir

from .errors import ModelError
from .graph import shape
from .session import slim_proto


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
    proto, big = slim_proto(model)
    for name in big:
        value = model.graph.initializers[name]
        proto.graph.input.append(ir.to_proto(value))
    kept = [t for t in proto.graph.initializer if t.name not in big]
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(kept)
    try:
        onnx.checker.check_model(proto, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, ValueError, RuntimeError) as e:
        raise ModelError(f"not a valid model: {_reason(e)}") from e
    if interface is not None and (changes := interface.changes(Interface.of(model))):
        raise ModelError("the model's interface changed: " + "; ".join(changes))


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:3])
