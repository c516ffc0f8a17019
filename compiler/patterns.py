"""Patterns of expressions, as plain data; `matching` finds them.

    GELU = Product(0.5, Var("x"), Sum(1.0, Op("Erf", Product(2**-0.5, Var("x")))))
    for found in find(Index(model), GELU):
        replace(found, "Gelu", [found["x"]])

`Product` and `Sum` stand for every way of writing a product or a sum: any order and nesting, constants collected in one
number, division by a constant, powers of two and three.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import EllipsisType
from typing import Any

import onnx_ir as ir

DEPTH = 4
"""How deep a product or a sum is taken apart."""


@dataclass(frozen=True)
class Var:
    """Any value. The same name twice means the same value."""

    name: str


@dataclass(frozen=True)
class Const:
    """A one-element constant: this number, or (with a name) any number, kept in `Match.numbers[name]`."""

    number: float | None = None
    name: str = ""


class Op:
    """A node of the standard domain. `None` is an absent input; `...` at the end stands for whatever other inputs."""

    def __init__(self, op_type: str, *inputs: Pattern | EllipsisType | None, name: str = "", **attributes: Any) -> None:
        self.op_types = tuple(op_type.split("|"))
        self.rest = bool(inputs) and inputs[-1] is ...
        self.inputs: tuple[Any, ...] = inputs[:-1] if self.rest else inputs
        self.name, self.attributes = name, attributes


class Chain:
    """A product or a sum: one number and the other terms, in any order. A name instead of the number captures it."""

    roots: tuple[str, ...]
    neutral: float

    def __init__(self, number: float | str, *terms: Pattern) -> None:
        self.number = number
        self.terms = tuple(sorted(terms, key=vagueness))


class Product(Chain):
    """`number * term * term …`, with division by constants, Neg, and Pow(x, 2 or 3) as repeated terms."""

    roots, neutral = ("Mul", "Div", "Pow", "Neg"), 1.0


class Sum(Chain):
    """`number + term + term …`, with subtraction of constants."""

    roots, neutral = ("Add", "Sub"), 0.0


class OneOf:
    """The first of the alternatives that matches."""

    def __init__(self, *choices: Pattern) -> None:
        self.choices = choices


Pattern = Var | Const | Op | Product | Sum | OneOf


@dataclass(frozen=True)
class Match:
    """Where a pattern was found: its nodes, the root first. `why` is empty unless it is a near miss."""

    root: ir.Node
    values: Mapping[str, ir.Value] = field(default_factory=dict)
    numbers: Mapping[str, float] = field(default_factory=dict)
    named: Mapping[str, ir.Node] = field(default_factory=dict)
    nodes: tuple[ir.Node, ...] = ()
    why: tuple[str, ...] = ()

    def __getitem__(self, name: str) -> ir.Value:
        return self.values[name]

    @property
    def output(self) -> ir.Value:
        """The root's first output."""
        return self.root.outputs[0]


def vagueness(pattern: Any) -> int:
    """The order in which terms are tried: what can fail early comes first."""
    return 2 if isinstance(pattern, Var) else 1 if isinstance(pattern, Const) else 0


def root_types(pattern: Pattern) -> tuple[str, ...]:
    """The operators that a match's root can have."""
    if isinstance(pattern, Op):
        return pattern.op_types
    if isinstance(pattern, Chain):
        return pattern.roots
    if isinstance(pattern, OneOf):
        return tuple(dict.fromkeys(t for c in pattern.choices for t in root_types(c)))
    raise TypeError(f"a pattern's root is an operator, not {pattern!r}")


def needed(pattern: Any) -> dict[str, int]:
    """Operators without which the pattern can't occur, and how far above the root they are at most."""
    if isinstance(pattern, Op):
        own = {pattern.op_types[0]: 0} if len(pattern.op_types) == 1 else {}
        return _farthest([own, *(_further(needed(p), 1) for p in pattern.inputs)])
    if isinstance(pattern, Chain):
        return _farthest([_further(needed(p), DEPTH) for p in pattern.terms])
    if isinstance(pattern, OneOf):
        found = [needed(p) for p in pattern.choices]
        return {op: n for op, n in _farthest(found).items() if all(op in f for f in found)}
    return {}


def _further(found: dict[str, int], levels: int) -> dict[str, int]:
    return {op: n + levels for op, n in found.items()}


def _farthest(found: Iterable[dict[str, int]]) -> dict[str, int]:
    result: dict[str, int] = {}
    for one in found:
        for op, n in one.items():
            result[op] = max(n, result.get(op, 0))
    return result
