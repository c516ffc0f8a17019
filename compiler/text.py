"""A model as text: the same model gives the same text, whatever its values are called. For goldens, diffs and reading.

    graph mnist(%x: f32[1,1,28,28]) {
      %0: f32[1,8,28,28] = Conv(%x, f32[8,1,5,5], f32[8]) {pads=[2,2,2,2]}
      %y: f32[1,8,28,28] = Relu(%0)
      return %y
    }

Inputs and outputs of the model keep their names, all other values are numbered in order. Constants stand where they are
used: small ones with their elements, others as type and shape; those with several readers also as `&1`, `&2` …
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from .graph import shape

SMALL = 8
"""Elements up to which a constant is written out."""
HASHED = 1 << 16
"""Bytes up to which `hashes=None` hashes a constant: bigger ones would have to be read from disk."""
EFFORT = 20_000_000
"""Comparisons of lines that a diff may cost before it settles for a coarser one."""


def to_text(model: ir.Model, *, names: bool = False, hashes: bool | None = False) -> str:
    """`model` as text, in time linear in its nodes.

    Args:
        names: add each node's name behind it.
        hashes: add a digest of the content to each constant that isn't written out: all (reads every weight), none,
            or, with None, those up to `HASHED` bytes.
    """
    printer = _Printer(names, hashes)
    head = [f"opset {domain or 'ai.onnx'} {version}" for domain, version in sorted(model.opset_imports.items())]
    lines = ["# " + ", ".join(head), *printer.graph(f"graph {_name(model.graph.name or 'main')}", model.graph)]
    for _, function in sorted(model.functions.items()):
        body = _Printer(names, hashes)
        lines += ["", *body.graph(f"function {function.domain}::{function.name}", function.graph, function.attributes)]
    return "\n".join(lines) + "\n"


@dataclass
class _Printer:
    """Prints one graph and the graphs inside it; remembers the number of each value."""

    names: bool
    hashes: bool | None
    _called: dict[ir.Value, str] = field(default_factory=dict)
    _shared: dict[ir.Value, int] = field(default_factory=dict)
    _count: int = 0

    def graph(self, title: str, graph: ir.Graph, attributes: Iterable[str] = (), depth: int = 0) -> Iterator[str]:
        """The lines of a graph: head, nodes, `return`."""
        outer = depth == 0
        for value in [*graph.inputs, *(graph.outputs if outer else ())]:
            if value not in self._called and (value.is_graph_input() or value.producer() is not None):
                self._called[value] = f"%{_name(value.name or '')}" if outer else self._number()
        options = "".join(f", @{a}" for a in attributes)
        inputs = ", ".join(f"{self._called[v]}{_typed(v)}" for v in graph.inputs)
        pad = "  " * depth
        yield f"{title}({inputs}{options}) {{"
        for node in graph:
            yield from self._node(node, depth + 1)
        for unused in graph.initializers.values():
            if not unused.uses() and not unused.is_graph_output() and not unused.is_graph_input():
                yield f"{pad}  unused {self._constant(unused.const_value)}"
        yield f"{pad}  return {', '.join(map(self._read, graph.outputs))}"
        yield f"{pad}}}"

    def _node(self, node: ir.Node, depth: int) -> Iterator[str]:
        pad = "  " * depth
        for out in node.outputs:
            if out not in self._called:
                self._called[out] = self._number()
        outputs = ", ".join(f"{self._called[o]}{_typed(o)}" for o in node.outputs)
        op = f"{node.domain}::{node.op_type}" if node.domain else node.op_type
        inputs = ", ".join(map(self._read, node.inputs))
        plain, inner = [], []
        for name, a in sorted(node.attributes.items()):
            if a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) and not a.is_ref():
                graphs = [a.value] if a.type == ir.AttributeType.GRAPH else list(a.value)
                inner += [(name if len(graphs) == 1 else f"{name}[{i}]", g) for i, g in enumerate(graphs)]
            else:
                plain.append(f"{name}={self._attribute(a)}")
        options = f" {{{', '.join(plain)}}}" if plain else ""
        comment = f"  # {node.name}" if self.names and node.name else ""
        yield f"{pad}{outputs} = {op}({inputs}){options}{comment}"
        for name, graph in inner:
            yield from self.graph(f"{pad}  {name} = ", graph, depth=depth + 1)

    def _number(self) -> str:
        self._count += 1
        return f"%{self._count - 1}"

    def _read(self, value: ir.Value | None) -> str:
        if value is None:
            return "_"
        if value in self._called:
            return self._called[value]
        if value.const_value is None:
            return f"%{_name(value.name or '')}"
        text = self._constant(value.const_value)
        if len(value.uses()) > 1 and value.const_value.size > SMALL:
            text += f"&{self._shared.setdefault(value, len(self._shared) + 1)}"
        return text

    def _attribute(self, a: ir.Attr) -> str:
        if a.is_ref():
            return f"@{a.ref_attr_name}"
        if a.type == ir.AttributeType.TENSOR:
            return self._constant(a.value)
        if isinstance(a.value, list | tuple):
            return f"[{','.join(map(_scalar, a.value))}]"
        return _scalar(a.value)

    def _constant(self, tensor: ir.TensorProtocol | None) -> str:
        if tensor is None:
            return "?"
        kind = f"{tensor.dtype.short_name()}[{','.join(map(str, tensor.shape))}]"
        if tensor.size <= SMALL:
            elements = [_scalar(e) for e in np.asarray(tensor.numpy()).reshape(-1).tolist()]
            return f"{kind}{{{', '.join(elements)}}}"
        if self.hashes or (self.hashes is None and tensor.nbytes <= HASHED):
            return f"{kind}#{hashlib.sha256(tensor.tobytes()).hexdigest()[:8]}"
        return kind


def _typed(value: ir.Value) -> str:
    """`: f32[1,N,?]`; nothing where neither type nor shape is known."""
    dims = shape(value)
    if value.dtype is None and dims is None:
        return f": {value.type}" if value.type is not None else ""
    # onnx's inference makes up `unk__7` for a size that it doesn't know; the number says nothing.
    known = (d if isinstance(d, int) or (d and not d.startswith("unk__")) else "?" for d in dims or ())
    size = "*" if dims is None else ",".join(map(str, known))
    return f": {value.dtype.short_name() if value.dtype is not None else '?'}[{size}]"


def _scalar(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        # Attributes and most constants are float32: the shortest text that reads back as the same float32.
        short = np.float32(value)
        return str(short) if float(short) == value or value != value else repr(value)
    if isinstance(value, bytes):
        return json.dumps(value.decode("utf-8", "backslashreplace"))
    return json.dumps(value) if isinstance(value, str) else str(value)


def _name(name: str) -> str:
    """As it is, in quotes where it could be taken for something else."""
    return name if re.fullmatch(r"(?!\d+$)[^\s,(){}\[\]:#&\"]+", name) else json.dumps(name)


# --- diff ------------------------------------------------------------------------------------------------------------

_NUMBER = re.compile(r"%\d+\b")


def diff(a: str, b: str, *, context: int = 2) -> str:
    """What changed from text `a` to text `b`, in unified form; empty when they say the same.

    A value's number is no difference: where one node more shifts all numbers behind it, only that node is shown. Lines
    count as unchanged when they read values that correspond. Unchanged lines carry the numbers of `b`.
    """
    old, new = a.splitlines(), b.splitlines()
    pairs = _aligned([_NUMBER.sub("%", x) for x in old], [_NUMBER.sub("%", x) for x in new])
    same = _consistent(old, new, pairs)
    ops: list[str] = []
    i = j = 0
    for p, q in [*same, (len(old), len(new))]:
        ops += [f"-{x}" for x in old[i:p]] + [f"+{x}" for x in new[j:q]]
        if q < len(new):
            ops.append(f" {new[q]}")
        i, j = p + 1, q + 1
    return _hunks(ops, context)


def _aligned(old: list[str], new: list[str]) -> list[tuple[int, int]]:
    """Pairs of equal lines, in order. Equal heads and tails first; between them difflib's matching blocks."""
    head = 0
    while head < min(len(old), len(new)) and old[head] == new[head]:
        head += 1
    tail = 0
    while tail < min(len(old), len(new)) - head and old[-1 - tail] == new[-1 - tail]:
        tail += 1
    a, b = old[head : len(old) - tail], new[head : len(new) - tail]
    counts: dict[str, int] = {}
    for line in b:
        counts[line] = counts.get(line, 0) + 1
    # Lines that repeat all the time make the matcher quadratic: then it may leave them out as anchors.
    coarse = sum(counts.get(line, 0) for line in a) * max(1, len(a)) ** 0.5 > EFFORT
    blocks = difflib.SequenceMatcher(None, a, b, autojunk=coarse).get_matching_blocks()
    pairs = [(i, i) for i in range(head)]
    pairs += [(head + m.a + k, head + m.b + k) for m in blocks for k in range(m.size)]
    return pairs + [(len(old) - tail + k, len(new) - tail + k) for k in range(tail)]


def _consistent(old: list[str], new: list[str], pairs: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The pairs that say the same: what one line reads was made by a line that is paired with the other's."""
    forth: dict[str, str] = {}
    back: dict[str, str] = {}
    kept = []
    for i, j in pairs:
        if old[i].startswith(("graph ", "function ")):
            forth, back = {}, {}
        left, right = _NUMBER.findall(old[i]), _NUMBER.findall(new[j])
        # The head of a graph makes all the values that it names.
        made = left if old[i].endswith("{") else _NUMBER.findall(old[i].partition(" = ")[0]) if " = " in old[i] else []
        reads = list(zip(left, right, strict=True))[len(made) :]
        if all(forth.get(x) == y and back.get(y) == x for x, y in reads):
            kept.append((i, j))
        # A line that reads something else still makes the same value: only it is shown, not all that follows.
        for x, y in zip(left[: len(made)], right, strict=False):
            forth[x], back[y] = y, x
    return kept


def _hunks(ops: list[str], context: int) -> str:
    """Keep the changed lines and `context` lines around them; `…` stands for what was left out."""
    near = [False] * len(ops)
    for i, op in enumerate(ops):
        if not op.startswith(" "):
            for k in range(max(0, i - context), min(len(ops), i + context + 1)):
                near[k] = True
    lines: list[str] = []
    for op, keep in zip(ops, near, strict=True):
        if keep:
            lines.append(op)
        elif lines and lines[-1] != " …":
            lines.append(" …")
    if lines and lines[-1] == " …":
        lines.pop()
    return "".join(f"{line}\n" for line in lines)
