"""Polynomials in the sizes of free dimensions, for people: evaluated, and written down."""

from __future__ import annotations

from collections.abc import Callable, Mapping
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


# --- written down ----------------------------------------------------------------------------------------------------

_SUPERSCRIPTS = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")


def text(size: Dim) -> str:
    """`2·B·T²·768 + 5·T`, the highest degree first: for tables and pages."""
    return _sum(size, "·", lambda n: str(n).translate(_SUPERSCRIPTS))


def ascii(size: Dim) -> str:
    """`2*B*T^2*768 + 5*T`: for CSV and JSON."""
    return _sum(size, "*", lambda n: f"^{n}")


def _sum(size: Dim, times: str, power: Callable[[int], str]) -> str:
    if not isinstance(size, Poly):
        return str(int(size))
    parts: list[str] = []
    for monomial, factor in sorted(size.terms, key=lambda t: (-len(t[0]), repr(t[0]))):
        body = _product(monomial, abs(factor), times, power)
        parts.append((" - " if factor < 0 else " + ") + body if parts else ("-" if factor < 0 else "") + body)
    return "".join(parts)


def _product(monomial: Monomial, factor: int, times: str, power: Callable[[int], str]) -> str:
    powers: dict[Atom, int] = {}
    for atom in monomial:
        powers[atom] = powers.get(atom, 0) + 1
    names = [_atom(a, times, power) + (power(n) if n > 1 else "") for a, n in powers.items()]
    return times.join([str(factor)] * (factor != 1 or not names) + names)


def _atom(atom: Atom, times: str, power: Callable[[int], str]) -> str:
    if isinstance(atom, str):
        return atom
    return f"{atom[0]}({', '.join(_sum(_dim(a), times, power) for a in atom[1:])})"
