"""Polynomials in the sizes of free dimensions, for people: evaluated, and written down."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ..dims import Atom, Dim, Monomial, Poly
from ..errors import UsageError


def _quotient(a: int, b: int) -> int:
    """a / b rounded towards zero, as ONNX divides integers."""
    return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


OPERATIONS: dict[str, Callable[..., int]] = {
    "div": _quotient,
    "floor": lambda a, b: a // b,
    "max": max,
    "min": min,
    "mod": lambda a, b: a % b,
}
"""What an atom that is not a symbol computes from its arguments."""


def evaluate(size: Dim, at: Mapping[str, int]) -> int:
    """The number that `size` is for these sizes of its symbols. Raises UsageError for a symbol that is not given."""
    if not isinstance(size, Poly):
        return int(size)
    total = 0
    for monomial, factor in size.terms:
        for atom in monomial:
            factor *= _value(atom, at)
        total += factor
    return total


def _value(atom: Atom, at: Mapping[str, int]) -> int:
    if isinstance(atom, str):
        if atom not in at:
            raise UsageError(f"the size of '{atom}' is not given; write --shape {atom}:<size>")
        return at[atom]
    name, *arguments = atom
    return OPERATIONS[str(name)](*(evaluate(_dim(a), at) for a in arguments))


def _dim(argument: Any) -> Dim:
    return argument if isinstance(argument, Poly) else int(argument)


def symbols(size: Dim) -> set[str]:
    """The symbols that `size` depends on."""
    found: set[str] = set()
    for monomial, _ in size.terms if isinstance(size, Poly) else ():
        for atom in monomial:
            if isinstance(atom, str):
                found.add(atom)
            else:
                for a in atom[1:]:
                    found |= symbols(_dim(a))
    return found


def degree(size: Dim, symbol: str) -> int:
    """The power of `symbol` that `size` grows with, in the end. A quotient by a number grows like what it divides."""
    if not isinstance(size, Poly):
        return 0
    return max(sum(_degree(atom, symbol) for atom in monomial) for monomial, _ in size.terms)


def _degree(atom: Atom, symbol: str) -> int:
    if isinstance(atom, str):
        return int(atom == symbol)
    name, *arguments = atom
    found = [degree(_dim(a), symbol) for a in arguments]
    if name in ("max", "min"):
        return max(found) if name == "max" else min(found)
    return 0 if name == "mod" else max(found[0] - found[1], 0)


# --- written down ----------------------------------------------------------------------------------------------------

_SUPERSCRIPTS = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True)
class _Style:
    """How products, powers and numbers are written, and the roundings of a quotient."""

    times: str
    power: Callable[[int], str]
    number: Callable[[int], str]
    floor: str
    ceil: str


_TEXT = _Style("·", lambda n: str(n).translate(_SUPERSCRIPTS), lambda n: f"{n:,}", "⌊{}⌋", "⌈{}⌉")
_ASCII = _Style("*", lambda n: f"^{n}", str, "floor({})", "ceil({})")


def text(size: Dim) -> str:
    """`B·(1,536·T² + 85,018,368·T)`, the highest degree first: for tables and pages."""
    return _written(size, _TEXT)


def ascii(size: Dim) -> str:
    """`B*(1536*T^2 + 85018368*T)`: for CSV and JSON; an expression that a spreadsheet reads but for ceil and floor."""
    return _written(size, _ASCII)


def _written(size: Dim, style: _Style) -> str:
    """The shortest of the sum as it is, with the common symbols in front, and with the common factor as well."""
    if not isinstance(size, Poly):
        return style.number(int(size))
    forms = [_sum(size, style)]
    if len(size.terms) > 1:
        common = _common(size)
        number = math.gcd(*(factor for _, factor in size.terms))
        for factor in dict.fromkeys((1, number)):
            if common or factor > 1:
                rest = _sum(Poly(tuple((_without(m, common), c // factor) for m, c in size.terms)), style)
                forms.append(f"{_product(common, factor, style)}{style.times}({rest})")
    return min(forms, key=len)


def _common(size: Poly) -> Monomial:
    """The atoms that all terms have in common."""
    first, *others = (list(m) for m, _ in size.terms)
    kept = []
    for atom in first:
        if all(atom in o for o in others):
            kept.append(atom)
            for o in others:
                o.remove(atom)
    return tuple(kept)


def _without(monomial: Monomial, common: Monomial) -> Monomial:
    rest = list(monomial)
    for atom in common:
        rest.remove(atom)
    return tuple(rest)


def _sum(size: Poly, style: _Style) -> str:
    parts: list[str] = []
    for monomial, factor in sorted(size.terms, key=_place):
        body = _product(monomial, abs(factor), style)
        parts.append((" - " if factor < 0 else " + ") + body if parts else ("-" if factor < 0 else "") + body)
    return "".join(parts)


def _place(term: tuple[Monomial, int]) -> tuple[int, bool, int, str]:
    """The highest degree first, symbols before quotients, then the largest coefficient."""
    monomial, factor = term
    return -len(monomial), not all(isinstance(a, str) for a in monomial), -abs(factor), repr(monomial)


def _product(monomial: Monomial, factor: int, style: _Style) -> str:
    powers: dict[Atom, int] = {}
    for atom in monomial:
        powers[atom] = powers.get(atom, 0) + 1
    names = [_atom(a, style) + (style.power(n) if n > 1 else "") for a, n in powers.items()]
    return style.times.join([style.number(factor)] * (factor != 1 or not names) + names)


def _atom(atom: Atom, style: _Style) -> str:
    if isinstance(atom, str):
        return atom
    name, *arguments = atom
    parts = [_dim(a) for a in arguments]
    if name == "div":
        return f"trunc({_quotient_text(parts[0], parts[1], style)})"
    if name != "floor":
        return f"{name}({', '.join(_plain_numbers(p, style) for p in parts)})"
    up = _rounded_up(parts[0], parts[1])
    form, above = (style.floor, parts[0]) if up is None else (style.ceil, up)
    return form.format(_quotient_text(above, parts[1], style))


def _rounded_up(a: Dim, by: Dim) -> Dim | None:
    """x where floor(a / by) is ceil(x / by) and x has no constant part."""
    if isinstance(a, Poly) and isinstance(by, int) and ((), by - 1) in a.terms:
        return Poly(tuple(t for t in a.terms if t[0]))
    return None


def _quotient_text(a: Dim, by: Dim, style: _Style) -> str:
    above, below = (_plain_numbers(x, style) for x in (a, by))
    simple = not isinstance(a, Poly) or len(a.terms) == 1
    return f"{above if simple else f'({above})'}/{below if isinstance(by, int) or by.symbol() else f'({below})'}"


def _plain_numbers(size: Dim, style: _Style) -> str:
    """Between the commas of max(1024, T), numbers have none of their own."""
    return _written(size, replace(style, number=str))
