"""Floating-point and integer operations of one node: a row for every operator of the standard."""

from __future__ import annotations

from ..dims import Dim
from . import work_classical, work_elementwise, work_normalization, work_products, work_signals, work_windows
from .node import Op, Unknown
from .products import operator
from .work import Row, Work

_FAMILIES = (work_elementwise, work_products, work_normalization, work_windows, work_signals, work_classical)

ROWS: dict[str, Row] = {name: row for family in _FAMILIES for name, row in family.ROWS.items()}
"""Operator → what it costs; `domain::Name` outside the standard's own domain."""


def work(op: Op, macs: Dim) -> Work:
    """The operations of one run of a node that has so many MACs, without the graphs inside it.

    Raises Unknown, saying why, for an unknown operator, and for one whose work can't be told from sizes.
    """
    row = ROWS.get(operator(op.node))
    if row is None:
        raise Unknown("the operator is not known")
    if row.rule is None:
        raise Unknown(row.says)
    return row.rule(op, macs)


def described() -> list[tuple[str, list[str]]]:
    """Each cost in words, with the operators that have it, in alphabetical order: the table in docs/cost.md."""
    found: dict[str, list[str]] = {}
    for name, row in sorted(ROWS.items()):
        found.setdefault(row.says, []).append(name)
    return sorted(found.items(), key=lambda item: item[1])
