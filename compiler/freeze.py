"""Fixing the free dimensions of a model's inputs: `--shape NAME:1,3,224,224`, or `--shape N:1` for a symbol."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx_ir as ir

from . import shapes
from .errors import UsageError
from .graph import shape, static_shape

Shapes = Mapping[str, int | Sequence[int]]
"""Input → dimensions, or symbol → size."""


def parse_shape(text: str) -> tuple[str, tuple[int, ...]]:
    """`x:1,3,224,224` → ("x", (1, 3, 224, 224)). Raises UsageError."""
    name, colon, dims = text.rpartition(":")
    try:
        if not colon or not name:
            raise ValueError
        return name, tuple(int(d) for d in dims.replace("x", ",").split(",") if d.strip())
    except ValueError:
        raise UsageError(f"'{text}' is not a shape; write --shape NAME:1,3,224,224") from None


def fix(model: ir.Model, given: Shapes) -> None:
    """Give inputs (or symbols, by name) these dimensions and re-infer all shapes.

    A symbol that is fixed in one input is fixed everywhere. Raises UsageError for an unknown name, a wrong rank or a
    dimension that contradicts the model; ModelError when the model does not work with these shapes.
    """
    if not given:
        return
    inputs = {v.name: v for v in model.graph.inputs}
    symbols: dict[str, int] = {}
    names = {d for v in inputs.values() for d in shape(v) or () if isinstance(d, str)}
    for name, size in given.items():
        dims = (size,) if isinstance(size, int) else tuple(size)
        if bad := [d for d in dims if d < 1]:
            raise UsageError(f"--shape {name}: a dimension must be at least 1, not {bad[0]}")
        if name in inputs:
            _take(name, inputs[name], dims, symbols)
        elif name in names and len(dims) == 1:
            _settle(symbols, name, dims[0], name)
        else:
            raise UsageError(f"--shape {name}: no such input or free dimension. {_offer(model)}")
    for value in inputs.values():
        old = shape(value)
        if old is not None and value.name not in given:
            value.shape = ir.Shape([symbols.get(d, d) if isinstance(d, str) else d for d in old])
    shapes.infer(model)


def _take(name: str, value: ir.Value, dims: Sequence[int], symbols: dict[str, int]) -> None:
    old = shape(value)
    if old is not None and len(old) != len(dims):
        raise UsageError(f"--shape {name}: {len(dims)} dimensions given, the model has {len(old)}: {_show(old)}")
    for given, declared in zip(dims, old or (), strict=False):
        if isinstance(declared, str):
            _settle(symbols, declared, given, name)
        elif isinstance(declared, int) and declared != given:
            raise UsageError(f"--shape {name}: {list(dims)} contradicts the model's {_show(old)}")
    value.shape = ir.Shape(list(dims))


def _settle(symbols: dict[str, int], symbol: str, size: int, who: str) -> None:
    if symbols.setdefault(symbol, size) != size:
        raise UsageError(f"--shape {who}: dimension '{symbol}' can't be both {symbols[symbol]} and {size}")


def free(model: ir.Model) -> list[ir.Value]:
    """The inputs that have a dimension which is not a number."""
    return [v for v in model.graph.inputs if static_shape(v) is None]


def require_fixed(model: ir.Model, target: str) -> None:
    """Raise UsageError, with the flags to use, when a target that needs numbers meets free dimensions."""
    if found := free(model):
        flags = " ".join(flag(v) for v in found)
        names = "; ".join(f"input '{v.name}' is {_show(shape(v))}" for v in found)
        raise UsageError(f"{target} needs every dimension as a number: {names}.\nFor example: {flags}")


def flag(value: ir.Value) -> str:
    """The flag that fixes an input's free dimensions, to be filled in."""
    return f"--shape {value.name}:{_example(shape(value))}"


def _example(dims: Sequence[int | str | None] | None) -> str:
    if dims is None:
        return "<size>,…"
    return ",".join(str(d) if isinstance(d, int) else "1" if i == 0 else "<size>" for i, d in enumerate(dims))


def _show(dims: Sequence[int | str | None] | None) -> str:
    if dims is None:
        return "of unknown rank"
    return "[" + ", ".join("?" if d is None else str(d) for d in dims) + "]"


def _offer(model: ir.Model) -> str:
    return "Inputs: " + ", ".join(f"{v.name} {_show(shape(v))}" for v in model.graph.inputs)
