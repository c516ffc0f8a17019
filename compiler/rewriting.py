"""Rewriting by patterns: where an expression is found, one operator takes its place; what almost was one is told."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from . import functions
from . import graph as g
from .matching import match
from .passbase import Context
from .patterns import Match, Pattern, needed, root_types

FLOATS = frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16})
"""Types that every fused operator runs with in onnxruntime; most have no kernel for double."""


class NearMisses:
    """What almost matched. It is told once all patterns were tried, of the nodes that are then still there."""

    def __init__(self) -> None:
        self._found: list[tuple[ir.Node, str]] = []

    def add(self, root: ir.Node, what: str, why: str) -> None:
        """Remember that `root` looks like `what`, but is not for the reason `why`."""
        if why:
            self._found.append((root, f"looks like {what}, but {why}"))

    def tell(self, ctx: Context) -> None:
        """Note them in `ctx`."""
        for root, text in self._found:
            if root.graph is not None:
                ctx.note(f"{root.name or root.op_type}: {text}")


class Index:
    """The standard operators of a model by type, in order, kept up to date while nodes are replaced."""

    def __init__(self, model: ir.Model) -> None:
        self.model = model
        self._by_type: dict[str, list[ir.Node]] = {}
        self._order: dict[ir.Node, int] = {}
        for i, node in enumerate(g.nodes(model)):
            self._order[node] = i
            self._by_type.setdefault(node.op_type, []).append(node)

    def replaced(self, old: ir.Node, new: ir.Node) -> None:
        """Note that `new` is where `old` was."""
        self._order[new] = self._order[old]
        self._by_type.setdefault(new.op_type, []).append(new)

    def roots(self, pattern: Pattern) -> list[ir.Node]:
        """The nodes that can be the root of a match, in order: those of its type below the rarest operator it needs."""
        types = frozenset(root_types(pattern))
        rare = needed(pattern)
        counts = {op: len(self._by_type.get(op, ())) for op in rare}
        if rare and min(counts.values()) == 0:
            return []
        found = [n for op in types for n in self._by_type.get(op, ())]
        if rare:
            rarest = min(rare, key=lambda op: (counts[op], rare[op]))
            if rare[rarest] and counts[rarest] < len(found):
                found = [n for n in _below(self._by_type[rarest], rare[rarest]) if n.op_type in types and not n.domain]
        return sorted((n for n in found if n.graph is not None and n in self._order), key=self._order.__getitem__)


def _below(nodes: Iterable[ir.Node], levels: int) -> set[ir.Node]:
    """These nodes and the readers of their results, so many levels down."""
    seen, level = set(nodes), list(nodes)
    for _ in range(levels):
        level = [u for n in level for out in n.outputs for u, _ in out.uses() if u not in seen]
        level = list(dict.fromkeys(level))
        if not level:
            break
        seen.update(level)
    return seen


def find(index: Index, pattern: Pattern, near: NearMisses | None = None, what: str = "") -> Iterator[Match]:
    """All matches in all graphs, in node order; the model may be rewritten while they come.

    Matches of three nodes and more with one fault are added to `near`, as looking like `what`.
    """
    for node in index.roots(pattern):
        if node.graph is None:
            continue
        found = match(pattern, node)
        if found is not None and not found.why:
            yield found
        elif found is not None and near is not None and len(found.why) == 1 and len(found.nodes) > 2:
            near.add(node, what, found.why[0])


def replace(
    found: Match, op_type: str, inputs: Sequence[ir.Value | None], attributes: Mapping[str, Any] | None = None
) -> ir.Node:
    """Put one node in the place of a match's root; the inner nodes go with it. `domain::op` names a local function."""
    old = found.output
    domain, _, name = op_type.rpartition("::")
    new = g.insert_before(found.root, name, inputs, attributes, like=old, domain=domain)
    g.replace_value(old, new.outputs[0])
    g.remove(found.nodes, sources=True)
    return new


Made = tuple[str, Sequence[ir.Value | None], Mapping[str, Any]]
"""An operator, its inputs and its attributes."""


@dataclass(frozen=True)
class Rule:
    """An expression and the one standard node that computes it.

    `make` turns a match into what replaces it, or into the reason why it is not that operator after all
    ("" when it isn't worth a note). The node's output has the shape of the value called "x".
    """

    what: str
    pattern: Pattern
    make: Callable[[Match], Made | str]


def rewrite(model: ir.Model, rules: Iterable[Rule], ctx: Context) -> int:
    """Apply rules, in order, wherever they match on values of `FLOATS`; the number of matches replaced."""
    count, index, near = 0, Index(model), NearMisses()
    for rule in rules:
        for found in find(index, rule.pattern, near, rule.what):
            made = _checked(rule, found)
            if not isinstance(made, str):
                index.replaced(found.root, replace(found, *made))
                count += 1
                if "::" in made[0]:
                    functions.declare(model, made[0].rpartition("::")[2])
            else:
                near.add(found.root, rule.what, made)
    near.tell(ctx)
    return count


def _checked(rule: Rule, found: Match) -> Made | str:
    x, out = found["x"], found.output
    if x.dtype not in FLOATS:
        return ""
    if g.rank(x) is None or g.rank(x) != g.rank(out):
        return f"its result has rank {g.rank(out)}, its input rank {g.rank(x)}"
    return rule.make(found)
