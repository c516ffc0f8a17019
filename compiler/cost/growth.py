"""How the cost of a model grows with its free dimensions: an analysis at given sizes, and over a range of one size."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

from ..dims import Dim, Poly
from ..errors import UsageError
from ..freeze import Shapes
from . import bounds
from .polynomial import degree, evaluate, symbols
from .records import Analysis, Layer, Shape, Totals

_KINDS = ("constant", "linear", "quadratic", "cubic")
_FAR = 1 << 40
"""Sizes up to which it is looked for where one part of a cost overtakes the others."""


# --- one size --------------------------------------------------------------------------------------------------------


def bind(analysis: Analysis, given: Shapes) -> dict[str, int]:
    """Symbol → size, from what `--shape` gives: input → dimensions, or symbol → size.

    Raises UsageError for an unknown name, a wrong rank, or a size that contradicts another or the model.
    """
    found: dict[str, int] = {}
    for name, size in given.items():
        sizes = [size] if isinstance(size, int) else list(size)
        if name in analysis.inputs:
            _, dims = analysis.inputs[name]
            if dims is not None and len(dims) != len(sizes):
                raise UsageError(f"--shape {name}: {len(sizes)} dimensions given, the model has {len(dims)}")
            for dim, n in zip(dims or (), sizes, strict=False):
                _settle(found, name, dim, n)
        elif name in analysis.symbols and len(sizes) == 1:
            _settle(found, name, Poly((((name,), 1),)), sizes[0])
        else:
            known = ", ".join([*analysis.inputs, *analysis.symbols])
            raise UsageError(f"--shape {name}: no such input or free dimension; there are {known}")
    return found


def _settle(found: dict[str, int], who: str, dim: Dim | None, size: int) -> None:
    if size < 1:
        raise UsageError(f"--shape {who}: a dimension must be at least 1, not {size}")
    symbol = dim.symbol() if isinstance(dim, Poly) else None
    if symbol is not None and found.setdefault(symbol, size) != size:
        raise UsageError(f"--shape {who}: dimension '{symbol}' can't be both {found[symbol]} and {size}")
    if isinstance(dim, int) and dim != size:
        raise UsageError(f"--shape {who}: {size} contradicts the model's {dim}")


def at(analysis: Analysis, given: Shapes) -> Analysis:
    """The analysis with all that depends on free dimensions as numbers. `given`: as for `bind`.

    What only a run can tell is taken at its limit, with a warning. Raises UsageError where a size is missing.
    """
    sizes = bind(analysis, given)
    warnings = [*analysis.warnings, *_assume(analysis, sizes)]
    missing = [s for s in analysis.symbols if s not in sizes]
    if missing:
        raise UsageError(f"sizes are missing: {', '.join(f'--shape {s}:<size>' for s in missing)}")
    memory = replace(
        analysis.memory,
        peak=_peak(analysis, sizes),
        peak_given=evaluate(analysis.memory.peak_given, sizes),
        live=[evaluate(x, sizes) for x in analysis.memory.live],
    )
    return replace(
        analysis,
        symbols={},
        limits={},
        inputs={n: (kind, _shape(s, sizes)) for n, (kind, s) in analysis.inputs.items()},
        outputs={n: (kind, _shape(s, sizes)) for n, (kind, s) in analysis.outputs.items()},
        layers=[_layer(layer, sizes) for layer in analysis.layers],
        totals=totals_at(analysis, sizes),
        memory=memory,
        warnings=warnings,
    )


def _assume(analysis: Analysis, sizes: dict[str, int]) -> list[str]:
    """Set what only a run can tell to its limit, in place; say so."""
    found = []
    for name, why in analysis.symbols.items():
        limit = analysis.limits.get(name)
        if name.startswith(bounds.COUNTED) and name not in sizes and limit is not None and symbols(limit) <= set(sizes):
            sizes[name] = evaluate(limit, sizes)
            found.append(f"{name} ({why}) is taken to be {sizes[name]:,}, the most that it can be")
    return found


def _shape(shape: Shape, sizes: Mapping[str, int]) -> Shape:
    return None if shape is None else [None if dim is None else evaluate(dim, sizes) for dim in shape]


def _layer(layer: Layer, sizes: Mapping[str, int]) -> Layer:
    shapes = {name: [_shape(s, sizes) for s in getattr(layer, name)] for name in ("inputs", "outputs")}
    numbers = {f.name: evaluate(v, sizes) for f in fields(layer) if isinstance(v := getattr(layer, f.name), Poly)}
    changed: dict[str, Any] = {**shapes, **numbers}
    return replace(layer, **changed)


def totals_at(analysis: Analysis, sizes: Mapping[str, int]) -> Totals:
    """The totals as numbers. Raises UsageError for a size that is not given."""
    totals = analysis.totals
    numbers = {f.name: evaluate(v, sizes) for f in fields(totals) if isinstance(v := getattr(totals, f.name), Poly)}
    return replace(totals, **(numbers | {"peak_activation_bytes": _peak(analysis, sizes)}))


def _peak(analysis: Analysis, sizes: Mapping[str, int]) -> int:
    """Of the order that was chosen: at other sizes another step may need the most."""
    steps = set(analysis.memory.live)
    return max((evaluate(x, sizes) for x in steps), default=evaluate(analysis.memory.peak, sizes))


# --- a range ---------------------------------------------------------------------------------------------------------


def parse_range(text: str) -> tuple[str, list[int]]:
    """`T=16:512` doubles from 16 to 512, `T=16:512:16` goes in steps, `T=16,100` is a list. Raises UsageError."""
    name, equals, values = text.partition("=")
    try:
        if not name or not equals:
            raise ValueError
        if "," in values or ":" not in values:
            found = [int(v) for v in values.split(",")]
        else:
            first, last, *step = (int(v) for v in values.split(":"))
            found = list(range(first, last + 1, step[0])) if step else _doubled(first, last)
        if not found or min(found) < 1 or len(values.split(":")) > 3:
            raise ValueError
    except ValueError:
        raise UsageError(f"'{text}' is not a range; write --range T=16:512, T=16:512:16 or T=16,100") from None
    return name, found


def _doubled(first: int, last: int) -> list[int]:
    if not 1 <= first <= last:
        raise ValueError
    found = [first]
    while found[-1] * 2 < last:
        found.append(found[-1] * 2)
    return found + [last] * (found[-1] < last)


def growth(
    analysis: Analysis, symbol: str, values: Iterable[int], sizes: Mapping[str, int] | None = None
) -> list[tuple[int, Totals]]:
    """The totals at each size of one free dimension; `sizes` gives the others. Raises UsageError for an unknown one."""
    if symbol not in analysis.symbols:
        known = ", ".join(analysis.symbols) or "none"
        raise UsageError(f"there is no free dimension '{symbol}'; free dimensions are {known}")
    found = []
    for value in values:
        here = {**(sizes or {}), symbol: value}
        _assume(analysis, here)
        found.append((value, totals_at(analysis, here)))
    return found


def tendency(size: Dim, symbol: str, sizes: Mapping[str, int] | None = None) -> str:
    """`quadratic in T from T = 3,072 on, linear before`: which part of a cost is the largest. `sizes`: of the others.

    The part of the highest degree overtakes the sum of the others where it is said to. A size that is not given is 1.
    """
    top = degree(size, symbol)
    if top < 1 or not isinstance(size, Poly):
        return f"{_kind(top)} in {symbol}"
    others = dict.fromkeys(symbols(size), 1) | dict(sizes or {})
    parts = _parts(size, symbol)
    start = _overtakes(parts, top, symbol, others)
    if start is not None and start <= 1:
        return f"{_kind(top)} in {symbol}"
    here = {**others, symbol: start or _FAR}
    below = max((p for p in parts if p != top), key=lambda p: evaluate(parts[p], here))
    if start is None:
        return f"{_kind(below)} in {symbol}"
    return f"{_kind(top)} in {symbol} from {symbol} = {start:,} on, {_kind(below)} before"


def _kind(power: int) -> str:
    return _KINDS[power] if power < len(_KINDS) else f"of degree {power}"


def _parts(size: Poly, symbol: str) -> dict[int, Dim]:
    """The terms of a polynomial by their degree in a symbol."""
    found: dict[int, list[tuple[tuple[object, ...], int]]] = {}
    for term in size.terms:
        found.setdefault(degree(Poly((term,)) if term[0] else term[1], symbol), []).append(term)
    return {power: bounds.of(dict(terms)) for power, terms in found.items()}  # type: ignore[arg-type]


def _overtakes(parts: Mapping[int, Dim], top: int, symbol: str, others: Mapping[str, int]) -> int | None:
    """The least size from which the part of degree `top` is no smaller than the sum of the others."""

    def leads(n: int) -> bool:
        here = {**others, symbol: n}
        return evaluate(parts[top], here) >= sum(evaluate(p, here) for power, p in parts.items() if power != top)

    low, high = 0, 1
    while not leads(high):
        low, high = high, high * 2
        if high > _FAR:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if leads(middle) else (middle, high)
    return high


def columns(rows: Sequence[tuple[int, Totals]]) -> dict[str, list[int]]:
    """The figures of a range by name, each as long as the range: what a plot needs."""
    names = ("macs", "flops", "special", "int_ops", "read", "written", "peak_activation_bytes")
    return {name: [evaluate(getattr(totals, name), {}) for _, totals in rows] for name in names}
