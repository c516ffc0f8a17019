"""From the options of `round-weights` to the grid of a weight: what the target can store, or the nearest to it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import gcd

from ..compiler.quantization.gridfit import GridSpec
from ..compiler.quantization.points import FORMATS
from ..compiler.targets import TARGETS, Storage, Target

SCHEMES = ("affine", "table", "ternary", "binary", *FORMATS)
"""What may be chosen as `scheme`."""

PLAIN = ("float16", "bfloat16")
"""Formats that need no scale."""


@dataclass(frozen=True)
class Wish:
    """What the user asked for; None: what suits the bits and the target.

    Attributes:
        bits, scheme, symmetric, per, block, group, vector: as in `GridSpec`.
        search: whether scales are chosen for the least square error.
    """

    bits: int = 8
    scheme: str | None = None
    symmetric: bool = True
    per: str | None = None
    block: int | None = None
    group: int = 0
    vector: int = 1
    search: bool = True

    def __post_init__(self) -> None:
        """Raise ValueError for what no target has."""
        if not 1 <= self.bits <= 8:
            raise ValueError(f"bits={self.bits}: from 1 to 8; for 16 bits scheme=float16 or bfloat16")
        if self.scheme is not None and self.scheme not in SCHEMES:
            raise ValueError(f"scheme={self.scheme}: one of {', '.join(SCHEMES)}")
        if self.scheme == "affine" and self.bits == 1:
            raise ValueError("bits=1: integers of one bit have no sign; choose scheme=table or scheme=binary")
        if self.per not in (None, "tensor", "channel", "block"):
            raise ValueError(f"per={self.per}: tensor, channel or block")
        if self.block is not None and self.block < 2:
            raise ValueError(f"block={self.block}: at least 2 elements share a scale")
        if self.vector not in (1, 2, 4) or self.group < 0 or self.group % self.vector:
            raise ValueError(f"vector={self.vector}, group={self.group}: vectors of 1, 2 or 4, groups of whole vectors")
        if self.per == "block" and self.scheme in ("table", "binary"):
            raise ValueError(f"scheme={self.scheme} has no blocks: group=16 gives every 16 channels a table")
        if not self.symmetric and self.scheme not in (None, "affine"):
            raise ValueError(f"scheme={self.scheme} has no zero points: symmetric=false goes with affine")


def spec_for(wish: Wish, target: Target) -> tuple[GridSpec | None, list[str]]:
    """The kind of grid for all weights, None where the target stores none of that kind; and what became different."""
    storage = target.storage
    scheme = wish.scheme or ("affine" if wish.bits == 8 or not wish.symmetric or wish.per == "block" else "table")
    notes: list[str] = []
    bits = wish.bits
    if scheme == "affine" and bits not in storage.integers and storage.integers:
        whole, entry = (min((b for b in have if b >= bits), default=9) for have in (storage.integers, storage.tables))
        if entry < whole and wish.symmetric:
            notes.append(_instead(f"integers of {bits} bits", "a table", target, lambda s: bits in s.integers))
            scheme = "table"
        else:
            notes.append(f"{target.name} stores integers of {whole} bits, not {bits}: rounded to {whole} bits")
            bits = whole
    if scheme == "table" and bits not in storage.tables and any(b > bits for b in storage.tables):
        wider = min(b for b in storage.tables if b > bits)
        notes.append(f"{target.name} stores tables of {wider} bits, not {bits}: rounded to {wider} bits")
        bits = wider
    per = wish.per if wish.per and scheme not in PLAIN else _usual(scheme)
    spec = GridSpec(scheme, bits, wish.symmetric, per, wish.block or 32, 0, 1, wish.search)  # type: ignore[arg-type]
    if not _stored(spec, storage):
        what = f"{bits}-bit weights" if scheme in ("affine", "table") else f"{scheme} weights"
        first = _first(lambda s: _stored(spec, s))
        return None, [
            *notes,
            f"{target.name} stores no {what}: nothing is rounded" + (f"; {first} does" if first else ""),
        ]
    if scheme == "table":
        if spec.per != "tensor" and not storage.scaled:
            if wish.per == "channel":
                notes.append(_instead("scales on a table", "none", target, lambda s: s.scaled))
            spec = replace(spec, per="tensor")
        elif spec.per == "block":
            spec = replace(spec, per="channel")
        if storage.groups:
            spec = replace(spec, group=wish.group, vector=wish.vector)
        elif wish.group or wish.vector > 1:
            notes.append(_instead("groups of channels and vectors in tables", "one table", target, lambda s: s.groups))
    elif spec.per == "block" and not storage.blocks:
        notes.append(_instead("a scale for each block", "one for each channel", target, lambda s: s.blocks))
        spec = replace(spec, per="channel")
    return spec, notes


def spec_of_weight(
    spec: GridSpec, shape: tuple[int, ...], axis: int, inputs: tuple[int, ...], storage: Storage
) -> tuple[GridSpec, str]:
    """The same for a weight of this shape, and why it is different."""
    channels, why = shape[axis], ""
    if spec.per == "block":
        count = shape[inputs[0]] if inputs else 0
        block = spec.block if storage.remainders else _divisor(count, spec.block)
        if count <= spec.block or not block:
            why = "" if 0 < count <= spec.block else f"no block near {spec.block} divides its inputs"
            return replace(spec, per="channel"), why
        return replace(spec, block=block), "" if block == spec.block else f"its blocks are {block} long"
    vector = gcd(channels, spec.vector)
    if vector != spec.vector:
        why = f"its channels are no multiple of vectors of {spec.vector}"
    group = spec.group if storage.remainders else _divisor(channels, spec.group, vector)
    if spec.group and spec.group < channels and group != spec.group:
        why = f"its groups have {group} channels" if group else f"no groups of near {spec.group} channels divide it"
    return replace(spec, vector=vector, group=group), why


def spec_of_zeros(spec: GridSpec, share: float, storage: Storage) -> tuple[GridSpec, str]:
    """The same for a weight whose zeros are to stay, `share` of its elements; and why it is different.

    A mask takes a bit for each element, and saves the bits of those that are zero.
    """
    bits = bits_of(spec)
    pays = share * bits >= 1 or spec.scheme == "binary"
    why = "its zeros stay, and a vector would have to be zero as a whole" if spec.vector > 1 else ""
    return replace(spec, vector=1, zeros="apart" if storage.joint and pays else "within"), why


def bits_of(spec: GridSpec) -> int:
    """Bits of an index."""
    return (
        FORMATS[spec.scheme][0] if spec.scheme in FORMATS else {"ternary": 2, "binary": 1}.get(spec.scheme, spec.bits)
    )


def _divisor(count: int, most: int, multiple: int = 1) -> int:
    """The largest divisor of `count` from half of `most` to `most`, a multiple of `multiple`; 0 if there is none."""
    return next((d for d in range(most, max(1, most // 2 - 1), -1) if count % d == 0 and d % multiple == 0), 0)


def _usual(scheme: str) -> str:
    return "tensor" if scheme in PLAIN else "block" if scheme in ("float4", "nf4") else "channel"


def _stored(spec: GridSpec, storage: Storage) -> bool:
    """Whether there is such a form at all."""
    match spec.scheme:
        case "affine":
            return spec.bits in storage.integers
        case "table":
            return spec.bits in storage.tables
        case "ternary":
            return 2 in storage.integers
        case "binary":
            return 1 in storage.tables and storage.scaled
        case name if name in PLAIN:
            return name in storage.formats
        case name:
            return storage.scaled and (name in storage.formats or FORMATS[name][0] in storage.tables)


def _instead(what: str, other: str, target: Target, stores: Callable[[Storage], bool]) -> str:
    first = _first(stores)
    return f"{target.name} does not store {what}" + (f" ({first} does)" if first else "") + f": {other} instead"


def _first(stores: Callable[[Storage], bool]) -> str:
    """The first target that stores it."""
    return next((t.name for t in TARGETS.values() if stores(t.storage)), "")
