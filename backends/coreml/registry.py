"""The table of lowerings: one row for each ONNX operator that Core ML expresses, filled by the `ops_*` modules."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeAlias

Lower: TypeAlias = Callable[..., Any]
"""Takes a Call (and the row's `args`), returns one MIL variable, or a list with one (or None) for each output."""


@dataclass(frozen=True)
class Row:
    """How one ONNX operator is lowered.

    Attributes:
        lower: the function.
        args: passed to it after the call: what makes a family's members differ.
        exact: whether float16 inputs give results that float16 holds exactly (moving, selecting, comparing data).
        floats: the inputs that decide the precision; None means all float inputs.
        half: the first iOS version whose operator computes in float16.
    """

    lower: Lower
    args: tuple[Any, ...] = ()
    exact: bool = False
    floats: tuple[int, ...] | None = None
    half: int = 15


LOWERINGS: dict[str, Row] = {}


def lowers(
    *names: str, exact: bool = False, floats: tuple[int, ...] | None = None, half: int = 15
) -> Callable[[Lower], Lower]:
    """Put the function into the table under these operators' names."""

    def add(function: Lower) -> Lower:
        for name in names:
            _add(name, Row(function, (), exact, floats, half))
        return function

    return add


def family(
    function: Lower, members: dict[str, Any], exact: bool = False, floats: tuple[int, ...] | None = None
) -> None:
    """Put one function into the table under many names, each with its own arguments."""
    for name, args in members.items():
        _add(name, Row(function, args if isinstance(args, tuple) else (args,), exact, floats))


def _add(name: str, row: Row) -> None:
    if name in LOWERINGS:
        raise ValueError(f"two lowerings for {name}")
    LOWERINGS[name] = row


_FAMILIES = (
    "activation", "attention", "bitwise", "cast", "control", "conv", "elementwise", "grid", "index", "matmul", "norm",
    "packed", "pool", "quant", "reduce", "resize", "rnn", "rotary", "shape", "signal", "sort", "source",
)


@cache
def lowerings() -> dict[str, Row]:
    """The whole table. Imports the operator families; none of them imports coremltools."""
    for name in _FAMILIES:
        importlib.import_module(f".ops_{name}", __package__)
    return LOWERINGS
