"""Polynomials that fit a line: short names for free dimensions, the first terms of many."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from string import ascii_uppercase

from ..cost import polynomial
from ..cost.records import Analysis, Shape
from ..dims import Atom, Dim, Poly

TERMS = 8
"""Terms of a polynomial that are shown; the JSON document has all."""

LONG = 8
"""A longer name gets a letter instead, where formulas are shown."""


def letters(analysis: Analysis, names: Iterable[str]) -> dict[str, str]:
    """Free dimension → what formulas call it: itself, or where it is long N, H, W or another letter that is free."""
    names = list(names)
    found = {name: name for name in names if len(name) <= LONG}
    usual = _usual(analysis)
    for name in names:
        if name not in found:
            free = (x for x in (usual.get(name, ""), *"TSKLMN", *ascii_uppercase) if x and x not in found.values())
            found[name] = next(free, name)
    return {name: found[name] for name in names}


def _usual(analysis: Analysis) -> dict[str, str]:
    """N for the first axis of an input, H and W for the last two of an image."""
    found: dict[str, str] = {}
    for _, dims in analysis.inputs.values():
        for axis, dim in enumerate(dims or ()):
            name = dim.symbol() if isinstance(dim, Poly) else None
            if name is not None:
                found.setdefault(name, "NCHW"[axis] if len(dims or ()) == 4 else "N" if axis == 0 else "T")
    return found


def renamed(size: Dim, names: Mapping[str, str]) -> Dim:
    """The same size in other names of the free dimensions."""
    if not isinstance(size, Poly):
        return size
    return Poly(tuple((tuple(_renamed(a, names) for a in monomial), factor) for monomial, factor in size.terms))


def _renamed(atom: Atom, names: Mapping[str, str]) -> Atom:
    if isinstance(atom, str):
        return names.get(atom, atom)
    return (atom[0], *(renamed(a, names) if isinstance(a, Poly) else a for a in atom[1:]))


def readable(size: Dim, names: Mapping[str, str], plain: bool = False) -> str:
    """A polynomial, its first terms where it has many. `plain`: in ASCII."""
    size, more = renamed(size, names), ""
    if isinstance(size, Poly) and len(size.terms) > TERMS:
        left = len(size.terms) - TERMS
        more = f" and {left} term{'s' * (left > 1)} more"
        ordered = sorted(size.terms, key=lambda t: (-len(t[0]), -abs(t[1]), repr(t[0])))
        size = Poly(tuple(ordered[:TERMS]))
    return (polynomial.ascii(size) if plain else polynomial.text(size)) + more


def shape_text(shape: Shape, names: Mapping[str, str] | None = None) -> str:
    """`1, 3, T, ?`"""
    if shape is None:
        return "unknown rank"
    return ", ".join("?" if d is None else readable(d, names or {}) for d in shape)
