"""The MIL program while it is built: variables, constants, and which ONNX value they hold."""

from __future__ import annotations

import contextlib
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...compiler.targets import Target
from .constants import INLINE, Affine, Constant
from .mil import mil
from .packed import Packed

Var = Any
"""A variable of the builder."""

F16, F32, I32, BOOL = (np.dtype(t) for t in (np.float16, np.float32, np.int32, np.bool_))
MIL_NAME = {F16: "fp16", F32: "fp32", I32: "int32", BOOL: "bool"}
TINY = float(np.finfo(np.float16).smallest_subnormal)


@dataclass
class Slot:
    """What holds an ONNX value: a float16 or a float32 variable (equal when both are there), another one, a constant.

    An integer value may be held by `full`, as a float that is a whole number, or by `packed` in its own 8 bits as well.
    """

    half: Var = None
    full: Var = None
    other: Var = None
    packed: Var = None
    constant: Constant | None = None
    affine: Affine | Packed | None = None


class Builder:
    """Adds operators to the program and keeps what the builder's stand-ins for weights stand for."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self.version = target.version
        self.mil = mil()
        self.weights: dict[Var, Constant | Affine | Packed] = {}
        self.names: dict[Var, str] = {}
        self.warnings: list[str] = []
        self.memory: dict[Hashable, Any] = {}
        """What lowerings made for several nodes."""
        self._constants: dict[tuple[Any, ...], Var] = {}

    def op(self, name: str, /, **inputs: Any) -> Any:
        """Add an operator; its variable, or a list of them."""
        with np.errstate(all="ignore"):
            return getattr(self.mil.mb, name)(**{k: self._parameter(v) for k, v in inputs.items()})

    def _parameter(self, value: Any) -> Any:
        """A parameter as a constant of the program, one for each content and type: they are most of a program."""
        if value is None or isinstance(value, self.mil.Var) or callable(value):
            return value
        if isinstance(value, (list, tuple)):
            if any(isinstance(v, self.mil.Var) for v in value):
                return value
            value = np.array(value)
        if isinstance(value, str):
            key: tuple[Any, ...] = ("str", value)
        else:
            array = np.asarray(value)
            if array.dtype == np.int64:
                array = array.astype(np.int32)
            key = (array.dtype.name, array.shape, array.tobytes())
            value = array[()] if array.ndim == 0 else array
            value = bool(value) if array.dtype == np.bool_ and array.ndim == 0 else value
        var = self._constants.get(key)
        if var is None:
            var = self._constants[key] = self.mil.mb.const(val=value)
        return var

    @contextlib.contextmanager
    def inner_block(self) -> Iterator[None]:
        """Constants made inside are made again outside."""
        outer, memory = dict(self._constants), dict(self.memory)
        yield
        self._constants, self.memory = outer, memory

    def dtype(self, var: Var) -> np.dtype[Any]:
        """The element type of a variable."""
        found: np.dtype[Any] = np.dtype(self.mil.types.nptype_from_builtin(var.dtype))
        return found

    def cast(self, var: Var, dtype: np.dtype[Any]) -> Var:
        """The variable in another element type, itself when it already has it."""
        if self.dtype(var) == dtype:
            return var
        return self.op("cast", x=var, dtype=MIL_NAME.get(dtype) or dtype.name)

    def constant(self, constant: Constant, dtype: np.dtype[Any] | None = None, name: str | None = None) -> Var:
        """A variable for a constant, one for each content and type."""
        constant = constant if dtype is None else constant.cast(dtype)
        key = (*constant.key, constant.shape, constant.dtype.name)
        var = self._constants.get(key)
        if var is None:
            var = self._constants[key] = self._new_constant(constant)
            if name and var in self.weights:
                self.names[var] = name if constant.dtype != F16 else f"{name}_fp16"
        return var

    def _new_constant(self, constant: Constant) -> Var:
        if constant.size <= INLINE or constant.dtype.kind not in "fiub":
            return self._parameter(constant.numpy())
        if constant.dtype == I32:
            constant.numpy()  # An integer that doesn't fit must be found now, with its node at hand.
        var = self.mil.mb.const(val=np.broadcast_to(np.zeros((), constant.dtype), constant.shape))
        self.weights[var] = constant
        return var

    def affine(self, weight: Affine | Packed, dtype: np.dtype[Any], name: str | None = None) -> Var:
        """A variable for a packed weight, unpacked by Core ML to `dtype`."""
        key = (*weight.key, dtype.name)
        var = self._constants.get(key)
        if var is None:
            var = self.mil.mb.const(val=np.broadcast_to(np.zeros((), dtype), weight.shape))
            self._constants[key] = var
            self.weights[var] = weight
            if name:
                self.names[var] = name
        return var
