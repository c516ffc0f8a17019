"""Running a model in parts: what lies before a change is run once, and what it left is kept for what lies behind."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from .graph import remove, subgraphs
from .session import Session

Feeds = Mapping[str, np.ndarray]

KINDS = frozenset({
    ir.DataType.BOOL, ir.DataType.DOUBLE, ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.INT8, ir.DataType.INT16,
    ir.DataType.INT32, ir.DataType.INT64, ir.DataType.UINT8, ir.DataType.UINT16, ir.DataType.UINT32, ir.DataType.UINT64,
})  # fmt: skip
"""Types that numpy has a name for, so that a value can leave onnxruntime and enter it again unchanged."""
HELD = 1 << 29
"""Bytes of values that are kept between two parts."""


class Segments:
    """The nodes of a model's main graph in their order, and the values that live between them. The model must stay."""

    def __init__(self, model: ir.Model) -> None:
        self._model = model
        self._nodes = list(model.graph)
        self._made: dict[ir.Value, int] = {o: i for i, n in enumerate(self._nodes) for o in n.outputs}
        self._first: dict[ir.Value, int] = {}
        self._last: dict[ir.Value, int] = {}
        for i, node in enumerate(self._nodes):
            for value in _reads(node):
                self._first.setdefault(value, i)
                self._last[value] = i

    def __len__(self) -> int:
        return len(self._nodes)

    def reader(self, value: ir.Value) -> int:
        """The place of the first node that reads `value`, within a loop's body, too; the end where none does."""
        return self._first.get(value, len(self))

    def live(self, cut: int) -> list[ir.Value]:
        """What nodes before `cut` have made and others read."""
        return [v for v, i in self._made.items() if i < cut <= self._last.get(v, -1)]

    def divides(self, cut: int) -> bool:
        """Whether all that lives there can be kept."""
        return all(v.dtype in KINDS and isinstance(v.type, ir.TensorType) for v in self.live(cut))

    def part(self, start: int, end: int | None = None) -> ir.Model:
        """The nodes from `start` to before `end` as a model that shares the weights.

        What lives at `start` are further inputs; outputs are what is made there and lives at `end`, or, by default, the
        model's outputs that are made there.
        """
        made = self._model.clone()
        graph, nodes = made.graph, list(made.graph)
        places = {v: (i, k) for i, n in enumerate(self._nodes) for k, v in enumerate(n.outputs)}
        if end is not None:
            wanted = [places[v] for v in self.live(end) if self._made[v] >= start]
            graph.outputs.clear()
            graph.outputs.extend(nodes[i].outputs[k] for i, k in wanted)
        else:
            own = [o for o in graph.outputs if o.producer() in set(nodes[start:])]
            graph.outputs.clear()
            graph.outputs.extend(own)
        for value in self.live(start):
            i, k = places[value]
            old = nodes[i].outputs[k]
            new = ir.Value(name=value.name, type=value.type, shape=value.shape)
            ir.convenience.replace_all_uses_with(old, new)
            graph.inputs.append(new)
        if end is not None:
            remove(reversed(nodes[end:]))
        remove(reversed(nodes[:start]))
        for name in [n for n, v in graph.initializers.items() if not v.uses() and not v.is_graph_output()]:
            del graph.initializers[name]
        return made


class Ahead:
    """Walks through a model as it is, keeping what the rest of it needs, for several sets of inputs.

    Attributes:
        at: the place that was reached: nodes before it have been run.
    """

    def __init__(self, segments: Segments, runs: Sequence[Feeds], held: int = HELD) -> None:
        self.at = 0
        self._segments, self._held = segments, held
        self._runs: list[dict[str, np.ndarray]] = [dict(feeds) for feeds in runs]
        self._inputs = [set(feeds) for feeds in runs]

    def go(self, to: int) -> bool:
        """Run on to the place `to`, unless what lives there is too much to keep or can't be: False, all as before."""
        if to <= self.at:
            return True
        if not self._segments.divides(to):
            return False
        part = self._segments.part(self.at, to)
        session = Session(part) if part.graph.outputs else None
        living = {v.name or "" for v in self._segments.live(to)}
        ahead: list[dict[str, np.ndarray]] = []
        size = 0
        for feeds, inputs in zip(self._runs, self._inputs, strict=True):
            made = session.run(feeds) if session is not None else {}
            kept = {**{n: a for n, a in feeds.items() if n in living}, **made}
            size += sum(a.nbytes for a in kept.values())
            if size * len(self._runs) > self._held * (len(ahead) + 1):
                return False
            ahead.append({**{n: feeds[n] for n in inputs}, **kept})
        self._runs, self.at = ahead, to
        return True

    def __iter__(self) -> Iterator[Feeds]:
        """For each set of inputs, these and what lives at this place."""
        return iter(self._runs)


def _reads(node: ir.Node) -> Iterator[ir.Value]:
    """What a node reads, and what the graphs inside it do."""
    yield from (v for v in node.inputs if v is not None)
    for graph in subgraphs(node):
        for inner in graph:
            yield from _reads(inner)
        yield from (v for v in graph.outputs if v is not None)
