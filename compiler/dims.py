"""Sizes that are not numbers yet: integer polynomials in the symbols of symbolic dimensions, in normal form.

A `Dim` is an int, or a Poly that is not constant; equal sizes have equal normal forms, so `==` is proof enough.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache

CACHED = 1 << 16
"""Sums and products of polynomials that are kept: a network has few sizes, and computes with them again and again."""

Atom = str | tuple[object, ...]
"""A symbol's name, or an operation that polynomials can't express, such as ("div", a, b)."""
Monomial = tuple[Atom, ...]


@dataclass(frozen=True)
class Poly:
    """A sum of coefficients times products of atoms, ordered; never a plain number."""

    terms: tuple[tuple[Monomial, int], ...]

    def symbol(self) -> str | None:
        """The name, if this is nothing but one symbol."""
        (monomial, factor), *more = self.terms
        name = monomial[0] if len(monomial) == 1 and factor == 1 and not more else None
        return name if isinstance(name, str) else None


Dim = int | Poly


def atom(name: Atom) -> Poly:
    """The size that this atom stands for."""
    return Poly((((name,), 1),))


def _terms(d: Dim) -> dict[Monomial, int]:
    return dict(d.terms) if isinstance(d, Poly) else {(): int(d)}


def _poly(terms: Mapping[Monomial, int]) -> Dim:
    kept = {m: c for m, c in terms.items() if c}
    if not kept.keys() - {()}:
        return kept.get((), 0)
    return Poly(tuple(sorted(kept.items(), key=repr)))


def add(a: Dim, b: Dim) -> Dim:
    """a + b"""
    if isinstance(a, int) and isinstance(b, int):
        return a + b
    return _add(a, b)


@lru_cache(CACHED)
def _add(a: Dim, b: Dim) -> Dim:
    terms = _terms(a)
    for m, c in _terms(b).items():
        terms[m] = terms.get(m, 0) + c
    return _poly(terms)


def total(sizes: Iterable[Dim]) -> Dim:
    """The sum of many."""
    terms: dict[Monomial, int] = {}
    plain = 0
    for size in sizes:
        if isinstance(size, int):
            plain += size
        else:
            for m, c in size.terms:
                terms[m] = terms.get(m, 0) + c
    terms[()] = terms.get((), 0) + plain
    return _poly(terms)


def mul(a: Dim, b: Dim) -> Dim:
    """a · b"""
    if isinstance(a, int) and isinstance(b, int):
        return a * b
    return _mul(a, b)


@lru_cache(CACHED)
def _mul(a: Dim, b: Dim) -> Dim:
    if a == 1 or b == 1:
        return b if a == 1 else a
    terms: dict[Monomial, int] = {}
    for m, c in _terms(a).items():
        for n, d in _terms(b).items():
            key = tuple(sorted((*m, *n), key=repr))
            terms[key] = terms.get(key, 0) + c * d
    return _poly(terms)


def sub(a: Dim, b: Dim) -> Dim:
    """a - b"""
    return add(a, mul(b, -1))


def product(factors: Iterable[Dim]) -> Dim:
    """The number of elements of a tensor of this shape."""
    result: Dim = 1
    for factor in factors:
        result = mul(result, factor)
    return result


def exact_div(a: Dim, b: Dim) -> Dim | None:
    """a / b if that is a polynomial with integer coefficients and b is one term, else None."""
    if isinstance(a, int) and isinstance(b, int):
        return a // b if b and a % b == 0 else None
    return _exact_div(a, b)


@lru_cache(CACHED)
def _exact_div(a: Dim, b: Dim) -> Dim | None:
    divisor = _terms(b)
    if len(divisor) != 1:
        return 1 if a == b else None
    ((n, d),) = divisor.items()
    if d == 0:
        return None
    terms: dict[Monomial, int] = {}
    for m, c in _terms(a).items():
        rest = list(m)
        for x in n:
            if x not in rest:
                return None
            rest.remove(x)
        if c % d:
            return None
        terms[tuple(rest)] = c // d
    return _poly(terms)


def div(a: Dim, b: Dim) -> Dim | None:
    """a / b rounded towards zero; None for a division by zero."""
    if b == 0:
        return None
    exact = exact_div(a, b)
    if exact is not None:
        return exact
    if isinstance(a, int) and isinstance(b, int):
        return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)
    return atom(("div", a, b))


def mod(a: Dim, b: Dim) -> Dim | None:
    """a modulo b, with the sign of b; None for a division by zero."""
    if b == 0:
        return None
    if isinstance(a, int) and isinstance(b, int):
        return a % b
    return 0 if exact_div(a, b) is not None else atom(("mod", a, b))


def sign(d: Dim) -> tuple[bool, bool]:
    """(certainly ≥ 0, certainly ≤ 0), from symbols being sizes, which are not negative."""
    terms = _terms(d)
    plain = all(isinstance(x, str) for m in terms for x in m)
    return plain and all(c >= 0 for c in terms.values()), plain and all(c <= 0 for c in terms.values())


def less(a: Dim, b: Dim) -> bool | None:
    """Whether a < b; None where that depends."""
    positive, _ = sign(sub(sub(b, a), 1))
    if positive:
        return True
    _, negative = sign(sub(b, a))
    return False if negative else None


def equal(a: Dim, b: Dim) -> bool | None:
    """Whether a == b; None where that depends."""
    if a == b:
        return True
    return False if less(a, b) or less(b, a) else None
