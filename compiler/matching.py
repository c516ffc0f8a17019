"""Matches a pattern at a node. Where the structure fits while a constant or a reader does not, it says so: a near miss.

The inner nodes of a match are read by the match alone, so that they can go with its root.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from . import graph as g
from .patterns import DEPTH, Chain, Const, Match, OneOf, Pattern, Sum, Var, vagueness
from .targets import OPSET

COMMUTATIVE = frozenset({"Add", "Mul", "Max", "Min", "And", "Or", "Equal"})
TOLERANCE = 1e-6
"""How far a constant may be off, relatively: a float32 rounding or two."""
WAYS = 256
"""How many ways of reading one root are tried."""


@dataclass(frozen=True, slots=True)
class _State:
    values: dict[str, ir.Value]
    numbers: dict[str, float]
    named: dict[str, ir.Node]
    nodes: tuple[ir.Node, ...]
    why: tuple[str, ...]

    def with_nodes(self, nodes: Sequence[ir.Node]) -> _State:
        new = tuple(n for n in nodes if n not in self.nodes)
        return _State(self.values, self.numbers, self.named, self.nodes + new, self.why)

    def but(self, why: str) -> _State:
        return _State(self.values, self.numbers, self.named, self.nodes, (*self.why, why))


def match(pattern: Pattern, root: ir.Node) -> Match | None:
    """Match `pattern` with `root` as its outermost node: an exact match, else a near miss (`why` is set), else None."""
    near: Match | None = None
    for state in itertools.islice(_node(pattern, root, _State({}, {}, {}, (), ())), WAYS):
        if root not in state.nodes:
            continue
        why = state.why + tuple(_readers_outside(root, state.nodes))
        found = Match(root, state.values, state.numbers, state.named, state.nodes, why)
        if not why:
            return found
        if near is None or len(why) < len(near.why):
            near = found
    return near


def _readers_outside(root: ir.Node, nodes: Sequence[ir.Node]) -> Iterator[str]:
    inside = set(nodes)
    for node in nodes:
        for out in node.outputs if node is not root else ():
            if out.is_graph_output():
                yield f"'{out.name}' inside it is an output of the model"
            else:
                yield from (
                    f"'{out.name}' inside it is also read by {u.op_type} '{u.name}'"
                    for u in g.users(out)
                    if u not in inside
                )


def _value(pattern: Any, value: ir.Value | None, s: _State) -> Iterator[_State]:
    if value is None or pattern is None:
        if value is None and pattern is None:
            yield s
    elif isinstance(pattern, Var):
        bound = s.values.get(pattern.name)
        if bound is None:
            yield _State({**s.values, pattern.name: value}, s.numbers, s.named, s.nodes, s.why)
        elif bound is value:
            yield s
    elif isinstance(pattern, Const):
        number = g.scalar(value)
        if number is not None:
            yield from _number(pattern.name or pattern.number, number, _precision(value), s)
    elif isinstance(pattern, OneOf):
        for choice in pattern.choices:
            yield from _value(choice, value, s)
    elif isinstance(pattern, Chain):
        yield from _chain(pattern, value, s)
    else:
        node = value.producer()
        if node is not None and value is node.outputs[0]:
            yield from _node(pattern, node, s)


def _node(pattern: Any, node: ir.Node, s: _State) -> Iterator[_State]:
    if isinstance(pattern, OneOf):
        for choice in pattern.choices:
            yield from _node(choice, node, s)
        return
    if isinstance(pattern, Chain):
        yield from _chain(pattern, node.outputs[0], s)
        return
    if node.op_type not in pattern.op_types or node.domain:
        return
    if any(g.attr(node, k, _default(node.op_type, k)) != v for k, v in pattern.attributes.items()):
        return
    s = s.with_nodes([node])
    if pattern.name:
        s = _State(s.values, s.numbers, {**s.named, pattern.name: node}, s.nodes, s.why)
    actual: list[ir.Value | None] = list(node.inputs)
    while actual and actual[-1] is None:
        actual.pop()
    wanted: tuple[Any, ...] = pattern.inputs
    if len(actual) != len(wanted) and not (pattern.rest and len(actual) > len(wanted)):
        return
    orders = [tuple(zip(wanted, actual, strict=False))]
    if len(wanted) == 2 and node.op_type in COMMUTATIVE:
        orders.append(tuple(zip(wanted, reversed(actual), strict=False)))
    for pairs in orders:
        yield from _all(sorted(pairs, key=lambda pair: vagueness(pair[0])), s)


def _all(pairs: Sequence[tuple[Any, ir.Value | None]], s: _State) -> Iterator[_State]:
    if not pairs:
        yield s
        return
    for state in _value(*pairs[0], s):
        yield from _all(pairs[1:], state)


def _number(wanted: float | str | None, number: float, tolerance: float, s: _State) -> Iterator[_State]:
    if isinstance(wanted, str):
        yield _State(s.values, {**s.numbers, wanted: number}, s.named, s.nodes, s.why)
    elif wanted is None or math.isclose(number, wanted, rel_tol=tolerance):
        yield s
    else:
        yield s.but(f"a constant is {number:.8g}, not {wanted:.8g}")


def _chain(pattern: Chain, value: ir.Value, s: _State) -> Iterator[_State]:
    for number, terms, nodes in _apart(pattern, value, len(pattern.terms), DEPTH, top=True):
        if len(terms) != len(pattern.terms):
            continue
        tolerance = max([TOLERANCE, *(_precision(n.outputs[0]) for n in nodes)])
        for state in _number(pattern.number, number, tolerance, s.with_nodes(nodes)):
            for order in dict.fromkeys(itertools.permutations(terms)):
                yield from _all(tuple(zip(pattern.terms, order, strict=True)), state)


_Parts = tuple[float, tuple[ir.Value, ...], tuple[ir.Node, ...]]


def _apart(pattern: Chain, value: ir.Value, most: int, depth: int, *, top: bool = False) -> Iterator[_Parts]:
    """Ways of taking `value` apart: a number, at most `most` terms, and the nodes that combine them.

    Below the top, values that several nodes read are not taken apart: they couldn't go.
    """
    node = g.producer(value, *pattern.roots) if depth and (top or g.used_once(value)) else None
    ways: Iterator[_Parts] = iter(())
    if node is not None:
        inputs = [v for v in node.inputs if v is not None]
        numbers = [g.scalar(v) if _keeps_rank(node, v) else None for v in inputs]
        ways = _step(pattern, node, inputs, numbers, most, depth - 1)
    yield from ways
    yield pattern.neutral, (value,), ()


def _step(
    pattern: Chain, node: ir.Node, inputs: list[ir.Value], numbers: list[float | None], most: int, depth: int
) -> Iterator[_Parts]:
    add = isinstance(pattern, Sum)
    if node.op_type in ("Mul", "Add") and numbers == [None, None]:
        for one, terms, nodes in _apart(pattern, inputs[0], most - 1, depth):
            for two, more, others in _apart(pattern, inputs[1], most - len(terms), depth):
                if len(terms) + len(more) <= most:
                    yield one + two if add else one * two, terms + more, (node, *nodes, *others)
        return
    if node.op_type == "Neg":
        rest, factor = inputs[0], -1.0
    elif node.op_type == "Pow":
        if numbers[1] in (2.0, 3.0) and numbers[1] <= most:
            yield 1.0, (inputs[0],) * int(numbers[1]), (node,)
        return
    elif numbers[0] is None and numbers[1] is not None:
        undo = node.op_type in ("Sub", "Div")
        if node.op_type == "Div" and numbers[1] == 0:
            return
        rest, factor = inputs[0], numbers[1] if not undo else -numbers[1] if add else 1 / numbers[1]
    elif numbers[1:] == [None] and numbers[0] is not None and node.op_type in ("Mul", "Add"):
        rest, factor = inputs[1], numbers[0]
    else:
        return
    for number, terms, nodes in _apart(pattern, rest, most, depth):
        yield number + factor if add else number * factor, terms, (node, *nodes)


@cache
def _default(op_type: str, attribute: str) -> Any:
    """What the standard says of an attribute that isn't given."""
    found = onnx.defs.get_schema(op_type, OPSET).attributes.get(attribute)
    if found is None or found.default_value is None or found.default_value.type == onnx.AttributeProto.UNDEFINED:
        return None
    return onnx.helper.get_attribute_value(found.default_value)


def _keeps_rank(node: ir.Node, constant: ir.Value) -> bool:
    """Whether a one-element constant leaves the other operand's rank alone."""
    if not constant.shape:
        return True
    ranks = {g.rank(v) for v in (*node.inputs, node.outputs[0]) if v is not constant}
    return len(ranks) == 1 and None not in ranks


def _precision(value: ir.Value) -> float:
    """The relative rounding of the value's type when it is coarser than float32."""
    return float(np.finfo(np.float16).eps) if value.dtype == ir.DataType.FLOAT16 else TOLERANCE
