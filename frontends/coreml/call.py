"""What a lifting rule sees: one MIL operation with its arguments, and the graph to add ONNX nodes to."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
import onnx_ir as ir

from .graph import Builder
from .values import Array, Literal, TensorType


class Unsupported(Exception):
    """This use of the operator can't be lifted; the message says why. The lifter collects these."""


class Poisoned(Exception):
    """An argument comes from an operator that could not be lifted; that one is reported, not this."""


@dataclass(eq=False)
class Var:
    """A name of the MIL program: a constant until its ONNX value is needed, or the result of a lifted operator."""

    type: TensorType | None
    value: ir.Value | None = None
    literal: Literal | None = None
    poisoned: bool = False


Branch = Callable[[Builder, Any, Sequence[ir.Value]], list[ir.Value]]


@dataclass(eq=False)
class Call:
    """One operation of the program.

    Attributes:
        kind: the MIL operator.
        name: the operation's own name, for messages.
        opset: 5 for CoreML5 (iOS 15) … 9 for CoreML9 (iOS 26).
        arguments: parameter → the names or literals bound to it.
        outputs: the declared types of the results.
        blocks: nested blocks (cond, while_loop) as protobuf messages.
        b: the graph under construction.
        valued: turns a constant into an ONNX value.
        branch: lifts a nested block into a builder, given the values of its inputs.
    """

    kind: str
    name: str
    opset: int
    arguments: Mapping[str, Sequence[Var]]
    outputs: Sequence[TensorType | None]
    blocks: Sequence[Any]
    b: Builder
    valued: Callable[[Var], ir.Value]
    branch: Branch

    def has(self, name: str) -> bool:
        return bool(self.arguments.get(name))

    def var(self, name: str) -> Var:
        """The single argument `name`."""
        found = self.arguments.get(name)
        if not found:
            raise Unsupported(f"its required input '{name}' is missing")
        if found[0].poisoned:
            raise Poisoned
        return found[0]

    def type(self, name: str = "x") -> TensorType:
        found = self.var(name).type
        if found is None:
            raise Unsupported(f"its input '{name}' is not a tensor")
        return found

    def rank(self, name: str = "x") -> int:
        return self.type(name).rank

    def shape(self, name: str = "x") -> tuple[int, ...]:
        """The shape of an argument; Unsupported if a dimension is open."""
        dims = self.type(name).shape
        if any(d is None for d in dims):
            raise Unsupported(f"the shape of '{name}' must be fixed, but is {list(dims)}")
        return tuple(d for d in dims if d is not None)

    def output(self, index: int = 0) -> TensorType:
        found = self.outputs[index]
        if found is None:
            raise Unsupported("its result is not a tensor")
        return found

    def value(self, name: str = "x") -> ir.Value:
        """The argument as an ONNX value."""
        return self.valued(self.var(name))

    def optional(self, name: str) -> ir.Value | None:
        return self.value(name) if self.has(name) else None

    def values(self, name: str) -> list[ir.Value]:
        """All arguments of a variadic parameter."""
        if any(v.poisoned for v in self.arguments.get(name, ())):
            raise Poisoned
        return [self.valued(v) for v in self.arguments.get(name, ())]

    def literal(self, name: str) -> Literal | None:
        """The argument as a constant; None if it is omitted or computed."""
        found = self.arguments.get(name)
        return self.var(name).literal if found else None

    @overload
    def const(self, name: str) -> Array: ...
    @overload
    def const(self, name: str, default: Any) -> Array: ...
    def const(self, name: str, default: Any = None) -> Array:
        """The constant value of an argument, or the default when it is omitted (None: required)."""
        if not self.has(name):
            if default is None:
                raise Unsupported(f"its required input '{name}' is missing")
            return np.asarray(default)
        literal = self.literal(name)
        if literal is None:
            raise Unsupported(f"its input '{name}' must be a constant")
        return literal.numpy()

    def ints(self, name: str, default: Any = None) -> list[int]:
        return [int(v) for v in self.const(name, default).reshape(-1)]

    def integer(self, name: str, default: Any = None) -> int:
        return int(self.const(name, default).item())

    def number(self, name: str, default: Any = None) -> float:
        """A constant number. A default stands for a constant of x's type, so it is rounded to that type."""
        value = self.const(name, default)
        if not self.has(name) and self.type("x").dtype == "fp16":
            value = value.astype(np.float16)
        return float(value.item())

    def flag(self, name: str, default: bool = False) -> bool:
        return bool(self.const(name, np.bool_(default)).item())

    def text(self, name: str, default: str | None = None) -> str:
        return str(self.const(name, default).item())

    def axis(self, name: str = "axis", default: Any = None, of: str = "x") -> int:
        """A constant axis of `of`, counted from the front."""
        return self.integer(name, default) % max(self.rank(of), 1)


Result = ir.Value | Sequence[ir.Value]


@dataclass(frozen=True)
class Rule:
    """How an operator is lifted. `exact`: float16 inputs give results that are float16 already, so none is rounded."""

    lift: Callable[[Call], Result]
    exact: bool


RULES: dict[str, Rule] = {}


def rule(*kinds: str, exact: bool = False) -> Callable[[Callable[[Call], Result]], Callable[[Call], Result]]:
    """Register a function as the rule of the named operators."""

    def register(lift: Callable[[Call], Result]) -> Callable[[Call], Result]:
        for kind in kinds:
            if kind in RULES:
                raise ValueError(f"two rules for the MIL operator '{kind}'")
            RULES[kind] = Rule(lift, exact)
        return lift

    return register
