"""The layers of an analysis by module: sums up a tree, and which of its rows are worth a line."""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..cost.polynomial import evaluate
from ..cost.records import Analysis, Layer
from ..cost.roofline import Roof

FIGURES = (
    "macs", "flops", "special", "int_ops", "read", "written", "parameters", "weight_bits", "effective_macs", "bops",
)  # fmt: skip
"""Counts that are sums over layers."""


@dataclass
class Module:
    """A module, or a layer: the leaves.

    Attributes:
        name: the part of the path that it adds; several parts where a module holds nothing but one other.
        figures: the sums over all layers in it, numbers. `bytes` is read + written, `time` seconds,
            `bound` the least seconds on a device, `rate` operations per measured second, `layers` how many.
        layer: the layer, for a leaf.
    """

    name: str
    figures: dict[str, float] = field(default_factory=dict)
    parts: dict[str, Module] = field(default_factory=dict)
    layer: Layer | None = None


def tree(analysis: Analysis, at: Mapping[str, int], roofs: Sequence[Roof] = ()) -> Module:
    """The modules of a model, figures at these sizes of its free dimensions. `roofs`: of each layer, on a device."""
    root = Module(Path(analysis.source).name)
    for index, layer in enumerate(analysis.layers):
        node = root
        for part in layer.path:
            node = node.parts.setdefault(part, Module(part))
        # Modules and layers are kept apart, and layers of one name, too.
        node.parts[f"\0{index}"] = Module(
            short_name(layer), layer_figures(layer, at, roofs[index] if roofs else None), layer=layer
        )
    _sum_up(root)
    stack = [root]
    while stack:
        node = stack.pop()
        rate(node.figures)
        stack += node.parts.values()
    _merge_chains(root)
    return root


def layer_figures(layer: Layer, at: Mapping[str, int], roof: Roof | None = None) -> dict[str, float]:
    """A layer's counts as numbers, at these sizes of the free dimensions."""
    found: dict[str, float] = {name: evaluate(getattr(layer, name), at) for name in FIGURES}
    found["bytes"] = found["read"] + found["written"]
    found["time"] = layer.seconds or 0.0
    found["bound"] = roof.seconds if roof else 0.0
    found["layers"] = 1
    return found


def rate(figures: dict[str, float]) -> None:
    """Add `rate`: operations per second of measured time, two per MAC and all other arithmetic; 0 without a time."""
    done = figures.get("flops", 0) + figures.get("special", 0) + figures.get("int_ops", 0)
    figures["rate"] = done / figures["time"] if figures.get("time") else 0.0


def short_name(layer: Layer) -> str:
    """A node's name without the module that it is in: `MatMul_3` of `/blocks.0/attn/MatMul_3`."""
    name = layer.name.strip("/")
    return (name.rpartition("/")[2] if layer.path else name) or layer.op


def _sum_up(node: Module) -> None:
    for child in node.parts.values():
        if child.layer is None:
            _sum_up(child)
        add(node.figures, child.figures)


def add(to: dict[str, float], figures: Mapping[str, float]) -> None:
    """Add figures to a sum, name by name."""
    for name, value in figures.items():
        to[name] = to.get(name, 0) + value


def _merge_chains(node: Module) -> None:
    """A module that holds one other module and nothing else is shown in one line with it: `encoder.layers`."""
    stack = [node]
    while stack:
        parent = stack.pop()
        for key, child in list(parent.parts.items()):
            while len(child.parts) == 1 and (only := next(iter(child.parts.values()))).layer is None:
                child.name, child.parts = f"{child.name}.{only.name}", only.parts
            parent.parts[key] = child
            stack.append(child)


@dataclass
class Row:
    """A line of the table: a module or layer, or (module None) what was left out at this place."""

    depth: int
    module: Module | None
    figures: Mapping[str, float]
    left_out: int = 0
    last: tuple[bool, ...] = ()


def rows(root: Module, by: str, top: int, depth: int | None = None) -> list[Row]:
    """The rows with the largest figure `by`, at most `top` besides the model's own and those that sum up the rest.

    A module is shown before what is in it; rows of one module are in order of the figure.
    """
    shown: set[int] = {id(root)}
    queue: list[tuple[float, int, int, Module]] = []
    ticket = 0

    def offer(node: Module, level: int) -> None:
        nonlocal ticket
        if depth is not None and level > depth:
            return
        for child in node.parts.values():
            ticket += 1
            heapq.heappush(queue, (-child.figures[by], ticket, level, child))

    offer(root, 1)
    for _ in range(top):
        if not queue or not queue[0][0]:
            break
        _, _, level, node = heapq.heappop(queue)
        shown.add(id(node))
        offer(node, level + 1)
    return list(_walk(root, by, shown, 0, ()))


def _walk(node: Module, by: str, shown: set[int], depth: int, last: tuple[bool, ...]) -> list[Row]:
    found = [Row(depth, node, node.figures, last=last)]
    ordered = sorted(node.parts.values(), key=lambda m: -m.figures[by])
    kept = [m for m in ordered if id(m) in shown]
    rest = [m for m in ordered if id(m) not in shown]
    if not kept:
        return found
    for i, child in enumerate(kept):
        found += _walk(child, by, shown, depth + 1, (*last, i == len(kept) - 1 and not rest))
    if rest:
        total: dict[str, float] = {}
        for m in rest:
            add(total, m.figures)
        rate(total)
        found.append(Row(depth + 1, None, total, len(rest), (*last, True)))
    return found
