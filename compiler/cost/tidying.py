"""Sizes written as shortly as can be, and which are too long for that."""

from __future__ import annotations

from .. import dims as d
from ..dims import Atom, Dim, Monomial, Poly
from .bounds import argument, certain, floor_div, is_atom, of


def is_plain(a: object) -> bool:
    """Whether there is nothing to tidy: a number, or one product of symbols."""
    return not isinstance(a, Poly) or (len(a.terms) == 1 and all(type(x) is str for x in a.terms[0][0]))


def tidy(a: Dim) -> Dim:
    """The same size, halves put together: n - floor(n / 2) is ceil(n / 2), and both halves together are n."""
    if not isinstance(a, Poly):
        return a
    found = dict(a.terms)
    quotients = {x for m in found for x in m if isinstance(x, tuple) and x[0] == "floor"}
    changed = False
    for half in sorted(quotients, key=repr):
        whole, other = _halved(half)
        if whole is None or other is None:
            continue
        for monomial in [m for m in found if half in m]:
            rest = _divided(monomial, half)
            for gone, kept, sign in ((whole, other, -1), (other, whole, 1)):
                changed |= _merge(found, (rest, half, gone, kept), sign)
    return tidy(of(found)) if changed else a


def _halved(half: tuple[object, ...]) -> tuple[Atom | None, Atom | None]:
    """Of floor(n / 2) or floor((n + 1) / 2) n and the other half, where all three are single atoms."""
    above, by = map(argument, half[1:])
    if not isinstance(by, int) or by % 2:
        return None, None
    step = by // 2
    doubled = certain(floor_div(above, step))
    up = isinstance(doubled, Poly) and ((), 1) in doubled.terms
    whole = d.sub(doubled, int(up))
    other = certain(floor_div(d.add(above, -step if up else step), by))
    atoms = [x.terms[0][0][0] if isinstance(x, Poly) and is_atom(x) else None for x in (whole, other)]
    return atoms[0], atoms[1]


def _divided(monomial: Monomial, atom: Atom) -> Monomial:
    rest = list(monomial)
    rest.remove(atom)
    return tuple(rest)


def _times(rest: Monomial, last: Atom) -> Monomial:
    """The product, its factors in the order of the normal form."""
    return tuple(sorted((*rest, last), key=repr))


def _merge(found: dict[Monomial, int], atoms: tuple[Monomial, Atom, Atom, Atom], sign: int) -> bool:
    """Replace half + sign · gone by sign · kept (times the rest), as often as they are there; whether any was."""
    rest, half, gone, kept = atoms
    first, second, third = (_times(rest, last) for last in (half, gone, kept))
    a, b = found.get(first, 0), found.get(second, 0) * sign
    count = min(a, b) if a > 0 else max(a, b)
    if a * b <= 0:
        return False
    found[first] -= count
    found[second] -= count * sign
    found[third] = found.get(third, 0) + count * sign
    return True


MOST_PARTS = 150
"""Parts that a size may be written with. One that needs more would say nothing, and its products would never end."""


def is_intricate(a: Dim) -> bool:
    """Whether a size has too many parts to be worked with."""
    return isinstance(a, Poly) and _parts(a, MOST_PARTS) < 0


def _parts(a: Dim, left: int) -> int:
    """How many of so many parts are left over; negative when there are more."""
    for monomial, _ in a.terms if isinstance(a, Poly) else ():
        left -= 1
        for atom in monomial:
            for inner in atom[1:] if isinstance(atom, tuple) else ():
                left = _parts(argument(inner), left - 1)
                if left < 0:
                    return left
    return left
