"""Arithmetic of sizes beyond polynomials: quotients rounded down or up, the larger and the smaller of two.

Everything is brought to one normal form, so that equal sizes are found to be equal: ceil(ceil(H / 2) / 2) is
floor((H + 3) / 4), and T modulo 16 is T - 16 · floor(T / 16). Symbols stand for at least 1, but those whose name begins
with '#', which are counted while a model runs, for at least 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

from .. import dims as d
from ..dims import Atom, Dim, Monomial, Poly

COUNTED = "#"
"""What the name of a size begins with that depends on the data, not on the sizes of the inputs."""

Interval = tuple[int | None, int | None]
"""The least and the greatest value; None: not bounded."""


def terms(a: Dim) -> dict[Monomial, int]:
    """Monomial → coefficient."""
    return dict(a.terms) if isinstance(a, Poly) else {(): int(a)}


def of(found: dict[Monomial, int]) -> Dim:
    """The polynomial of these terms."""
    total: Dim = 0
    for monomial, factor in found.items():
        if factor:
            total = d.add(total, Poly(((monomial, factor),)) if monomial else factor)
    return total


def interval(a: Dim) -> Interval:
    """Between which numbers `a` lies for all sizes of its symbols."""
    if not isinstance(a, Poly):
        return int(a), int(a)
    low: int | None = 0
    high: int | None = 0
    for monomial, factor in a.terms:
        lo, hi = _scaled(_product(monomial), factor)
        low = None if low is None or lo is None else low + lo
        high = None if high is None or hi is None else high + hi
    return low, high


def _scaled(bounds: Interval, factor: int) -> Interval:
    lo, hi = (None if b is None else b * factor for b in bounds)
    return (lo, hi) if factor >= 0 else (hi, lo)


def _product(monomial: Monomial) -> Interval:
    low, high = 1, 1
    unbounded = False
    for atom in monomial:
        lo, hi = _atom(atom)
        if lo is None or lo < 0:
            return None, None
        low *= lo
        unbounded = unbounded or hi is None
        high *= hi or 0
    return low, None if unbounded else high


def _atom(atom: Atom) -> Interval:
    if isinstance(atom, str):
        return 0 if atom.startswith(COUNTED) else 1, None
    name, *arguments = atom
    found = [interval(argument(a)) for a in arguments]
    if name in ("max", "min"):
        pick = max if name == "max" else min
        lows, highs = [lo for lo, _ in found if lo is not None], [hi for _, hi in found if hi is not None]
        any_or_all = (bool, len(found).__eq__)
        low_known, high_known = any_or_all if name == "max" else any_or_all[::-1]
        return (
            pick(lows) if lows and low_known(len(lows)) else None,
            pick(highs) if highs and high_known(len(highs)) else None,
        )
    if name in ("floor", "div"):
        (lo, hi), (least, _) = found
        if least is None or least < 1 or (name == "div" and (lo is None or lo < 0)):
            return None, None
        number = argument(arguments[1])
        low = None if lo is None or lo < 0 else lo // number if isinstance(number, int) else 0
        return low, None if hi is None else hi // least
    return None, None


def argument(x: Any) -> Dim:
    """What an operation is applied to, as a size."""
    return x if isinstance(x, Poly) else int(x)


CASES = 32
"""Cases that are looked at to tell which of two sizes is larger: each maximum in them doubles these, at least."""


def at_least(a: Dim, number: int, cases: int = CASES) -> bool:
    """Whether `a` is certainly no smaller than `number`; False when that takes more than so many cases."""
    low, _ = interval(a)
    if low is not None and low >= number:
        return True
    rest = d.sub(a, number)
    if not isinstance(rest, Poly):
        return False
    choice = _choice(rest)
    if choice is not None:
        enough, found = choice
        return cases >= len(found) and enough(at_least(case, 0, cases // len(found)) for case in found)
    return _all_positive(rest) or _all_positive(_without_quotients(rest))


def _choice(a: Poly) -> tuple[Callable[[Iterable[bool]], bool], list[Dim]] | None:
    """`a` with each argument of a maximum or minimum in its place, and whether all or any of them must be positive."""
    for monomial, factor in a.terms:
        for i, atom in enumerate(monomial):
            if isinstance(atom, tuple) and atom[0] in ("max", "min"):
                # a + c·max(x, y) is no less than a + c·x; with a minimum it is one of both, and it isn't known which.
                enough = any if (atom[0] == "max") == (factor > 0) and _product(monomial)[0] is not None else all
                rest = monomial[:i] + monomial[i + 1 :]
                other = d.sub(a, Poly(((monomial, factor),)))
                scale: Dim = Poly(((rest, factor),)) if rest else factor
                return enough, [d.add(other, d.mul(scale, argument(x))) for x in atom[1:]]
    return None


def _all_positive(a: Dim) -> bool:
    """Whether no coefficient of `a` is negative, once each atom is written as its least value and what is above it."""
    if not isinstance(a, Poly):
        return a >= 0
    total: Dim = 0
    for monomial, factor in a.terms:
        part: Dim = factor
        for atom in monomial:
            low, _ = _atom(atom)
            if low is None or low < 0:
                return False
            part = d.mul(part, d.add(d.atom(atom), low))
        total = d.add(total, part)
    return all(factor >= 0 for factor in terms(total).values())


def _without_quotients(a: Poly) -> Dim:
    """Something that is not above a multiple of `a`: floor(x / m) lies between (x - m + 1) / m and x / m."""
    found = [(m, c, [x for x in m if isinstance(x, tuple) and x[0] == "floor" and isinstance(x[2], int)])
             for m, c in a.terms]  # fmt: skip
    common = math.lcm(*(q[0][2] for _, _, q in found if len(q) == 1 and isinstance(q[0][2], int)))
    total: Dim = 0
    for monomial, factor, quotients in found:
        part: Dim = Poly(((monomial, factor * common),)) if monomial else factor * common
        if len(quotients) == 1:
            inner, by = map(argument, quotients[0][1:])
            assert isinstance(by, int)
            rest = list(monomial)
            rest.remove(quotients[0])
            other: Dim = Poly(((tuple(rest), 1),)) if rest else 1
            bound = inner if factor < 0 else d.sub(inner, by - 1)
            part = d.product([factor * common // by, bound, other])
        total = d.add(total, part)
    return total


def covers(a: Dim, b: Dim) -> bool:
    """Whether a ≥ b for all sizes of the symbols; False where that is not certain."""
    return at_least(d.sub(a, b), 0)


# --- quotients -------------------------------------------------------------------------------------------------------


def floor_div(a: Dim, b: Dim) -> Dim | None:
    """floor(a / b), None for a division by zero."""
    if b == 0:
        return None
    exact = quotient(a, b)
    if exact is not None:
        return exact
    if not isinstance(b, int):
        return d.atom(("floor", a, b))
    if b < 0:
        return floor_div(d.mul(a, -1), -b)
    if isinstance(a, int):
        return a // b
    whole, rest = _split(a, b)
    return d.add(whole, _floor(rest, b))


def _split(a: Dim, b: int) -> tuple[Dim, Dim]:
    """a = b · whole + rest, with the coefficients of `rest` from 0 to b - 1."""
    whole, rest = {}, {}
    for monomial, factor in terms(a).items():
        whole[monomial], rest[monomial] = divmod(factor, b)
    return of(whole), of(rest)


def _floor(a: Dim, b: int) -> Dim:
    """floor(a / b) where all coefficients of `a` are from 0 to b - 1."""
    if not isinstance(a, Poly):
        return a // b
    if 2 * max(a.terms, key=_order)[1] > b:
        # floor(6·T / 7) is T - ceil(T / 7): one of the two must be the normal form, and this one reads better.
        whole, rest = _split(d.sub(b - 1, a), b)
        return d.mul(d.add(whole, _floor(rest, b)), -1)
    for monomial, factor in a.terms:
        inner = monomial[0] if len(monomial) == 1 and factor == 1 else None
        if isinstance(inner, tuple) and inner[0] == "floor" and isinstance(inner[2], int):
            # floor((floor(x / m) + p) / b) = floor((x + m·p) / (m·b))
            others = d.sub(a, d.atom(inner))
            return certain(floor_div(d.add(argument(inner[1]), d.mul(others, inner[2])), inner[2] * b))
    common = math.gcd(b, *(factor for monomial, factor in a.terms if monomial))
    if common > 1:
        shared = {m: factor // common for m, factor in a.terms}
        return certain(floor_div(of(shared), b // common))
    return d.atom(("floor", a, b))


def certain(a: Dim | None) -> Dim:
    """A quotient whose divisor is not zero."""
    assert a is not None
    return a


def ceil_div(a: Dim, b: int) -> Dim:
    """ceil(a / b) for b > 0."""
    return certain(floor_div(d.add(a, b - 1), b))


def quotient(a: Dim, b: Dim) -> Dim | None:
    """a / b if that is a polynomial with integer coefficients, else None. By long division."""
    exact = d.exact_div(a, b)
    if exact is not None or isinstance(a, int) or isinstance(b, int):
        return exact
    result: Dim = 0
    lead = max(b.terms, key=_order)
    for _ in range(len(a.terms) * len(b.terms) + 1):
        if not isinstance(a, Poly):
            return result if a == 0 else None
        part = d.exact_div(Poly((max(a.terms, key=_order),)), Poly((lead,)))
        if part is None:
            return None
        result, a = d.add(result, part), d.sub(a, d.mul(part, b))
    return None


def _order(term: tuple[Monomial, int]) -> tuple[int, str]:
    return len(term[0]), repr(term[0])


def truncated(a: Dim, b: Dim) -> Dim | None:
    """a / b rounded towards zero, as ONNX divides integers; None for a division by zero."""
    return floor_div(a, b) if at_least(a, 0) and at_least(b, 1) else d.div(a, b)


def modulo(a: Dim, b: Dim) -> Dim | None:
    """a modulo b, with the sign of b; None for a division by zero."""
    whole = floor_div(a, b)
    return None if whole is None else d.sub(a, d.mul(b, whole))


# --- the larger and the smaller --------------------------------------------------------------------------------------


def maximum(sizes: Iterable[Dim]) -> Dim:
    """The largest; those that another one covers for all sizes of the symbols are left out."""
    return _extreme("max", sizes, covers)


def minimum(sizes: Iterable[Dim]) -> Dim:
    """The smallest; those that are never below another one are left out."""
    return _extreme("min", sizes, lambda a, b: covers(b, a))


def _extreme(name: str, sizes: Iterable[Dim], beats: Any) -> Dim:
    flat: list[Dim] = []
    for size in sizes:
        inner = size.terms[0][0][0] if isinstance(size, Poly) and is_atom(size) else None
        flat += map(argument, inner[1:]) if isinstance(inner, tuple) and inner[0] == name else [size]
    kept: list[Dim] = []
    for size in flat:
        if not any(beats(k, size) for k in kept):
            kept = [k for k in kept if not beats(size, k)] + [size]
    return kept[0] if len(kept) == 1 else d.atom((name, *sorted(kept, key=repr)))


def is_atom(size: Poly) -> bool:
    """Whether a size is nothing but one symbol or operation."""
    return len(size.terms) == 1 and size.terms[0][1] == 1 and len(size.terms[0][0]) == 1
