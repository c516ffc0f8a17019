"""Inner values of a model, streamed: run what leads to them, for a few samples at a time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from ..graph import attr, const, remove
from ..session import Session

Feeds = Mapping[str, np.ndarray]
"""Named inputs of one run."""
Runs = Sequence[Feeds]
"""Sets of named inputs."""


class Fetcher:
    """Runs the part of a model that leads to some values of its main graph. The model may change afterwards.

    Outputs that a node leaves out (the states of an LSTM) are made for it; the model itself stays as it is.
    """

    def __init__(self, model: ir.Model, values: Iterable[ir.Value]) -> None:
        self.values = tuple(dict.fromkeys(values))
        seen = model.clone()
        places = {o: (i, k) for i, node in enumerate(model.graph) for k, o in enumerate(node.outputs)}
        copies = list(seen.graph)
        self._names: dict[ir.Value, str] = {}
        seen.graph.outputs.clear()
        for value in self.values:
            if value in places:
                i, k = places[value]
                copy = copies[i].outputs[k]
                copy.name = copy.name or f"edgec.left_out.{i}.{k}"
                copy.dtype = copy.dtype or ir.DataType.FLOAT
                self._names[value] = copy.name
                seen.graph.outputs.append(copy)
        remove(_dead(seen.graph))
        self._inputs = [v.name or "" for v in seen.graph.inputs]
        self._session = Session(seen) if self._names else None

    def run(self, feeds: Feeds) -> dict[ir.Value, np.ndarray]:
        """The values for these inputs. What is an input or a constant needs no run."""
        ran = self._session.run(feeds, list(dict.fromkeys(self._names.values()))) if self._session else {}
        found = {}
        for value in self.values:
            fixed = feeds.get(value.name or "") if value.is_graph_input() else const(value)
            got = ran[self._names[value]] if value in self._names else fixed
            assert got is not None
            found[value] = got
        return found


def _dead(graph: ir.Graph) -> list[ir.Node]:
    """The nodes that no output needs, the last first."""
    needed: set[ir.Node] = set()
    stack = [v.producer() for v in graph.outputs]
    while stack:
        node = stack.pop()
        if node is None or node in needed:
            continue
        needed.add(node)
        stack += [v.producer() for v in node.inputs if v is not None]
        for a in node.attributes.data.values():
            inner = a.as_graphs() if a.type == ir.AttributeType.GRAPHS else ()
            for sub in (a.as_graph(),) if a.type == ir.AttributeType.GRAPH else inner:
                stack += [v.producer() for n in sub.all_nodes() for v in n.inputs if v is not None]
                stack += [v.producer() for v in sub.outputs]
    return [n for n in reversed(list(graph)) if n not in needed]


def places(total: int, count: int, seed: int | Sequence[int]) -> np.ndarray:
    """Up to `count` of so many places, sorted, the same for the same seed."""
    if total <= count:
        return np.arange(total)
    return np.sort(np.random.default_rng(seed).choice(total, count, replace=False))


def windows(node: ir.Node, x: np.ndarray, index: tuple[np.ndarray, ...], kernel: Sequence[int]) -> np.ndarray:
    """What a convolution's filters see at these places of its output: places x channels x kernel.

    `x` is batch x channels x spatial axes; `index` has one array for the batch and one for each spatial axis.
    """
    n = len(kernel)
    strides, dilations = attr(node, "strides", [1] * n), attr(node, "dilations", [1] * n)
    edges = pads(node, x.shape[2:], kernel)
    if any(any(e) for e in edges):
        x = np.pad(x, [(0, 0), (0, 0), *edges])
    sizes = x.shape[2:]
    taps = np.stack([t.reshape(-1) for t in np.indices(tuple(kernel))])
    flat = np.zeros((len(index[0]), taps.shape[1]), np.int64)
    for d in range(n):
        flat = flat * sizes[d] + index[1 + d][:, None] * strides[d] + taps[d] * dilations[d]
    # Channel by channel, as they lie in memory: gathering all channels of a place would miss the cache for each.
    found = np.empty((x.shape[1], *flat.shape), x.dtype)
    for b in np.unique(index[0]):
        mine = np.flatnonzero(index[0] == b)
        found[:, mine] = x[b].reshape(x.shape[1], -1)[:, flat[mine]]
    return found.transpose(1, 0, 2)


def pads(node: ir.Node, sizes: Sequence[int], kernel: Sequence[int]) -> list[tuple[int, int]]:
    """Zeros that a convolution puts before and behind each spatial axis of an input of these sizes."""
    n, auto = len(kernel), attr(node, "auto_pad", "NOTSET")
    if auto == "VALID":
        return [(0, 0)] * n
    if auto == "NOTSET":
        given = list(attr(node, "pads", [0] * 2 * n))
        return [(given[d], given[n + d]) for d in range(n)]
    strides, dilations = attr(node, "strides", [1] * n), attr(node, "dilations", [1] * n)
    found = []
    for size, k, stride, step in zip(sizes, kernel, strides, dilations, strict=True):
        total = max(0, (-(-size // stride) - 1) * stride + (k - 1) * step + 1 - size)
        less, more = total // 2, total - total // 2
        found.append((less, more) if auto == "SAME_UPPER" else (more, less))
    return found
