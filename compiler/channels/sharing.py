"""A copy of each small constant per reader: what two layers share by chance need not go from both."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import onnx_ir as ir

from ..graph import const_tensor, fresh_name, note_named

MOST = 1 << 16
"""Elements up to which a constant is copied: biases and scales, not a tied embedding."""


@contextmanager
def unshared(model: ir.Model) -> Iterator[None]:
    """While inside, every reader of a small constant of the main graph has its own; afterwards those left alike join.

    Exporters make one constant of all that are equal: 72 layers share a bias of zeros, which they only have by
    accident. Copies share the tensor. What was replaced inside stays by itself.
    """
    copies = [(value, _copied(model.graph, value)) for value in list(model.graph.initializers.values())]
    try:
        yield
    finally:
        for value, made in copies:
            _joined(model.graph, value, made)


def _copied(graph: ir.Graph, value: ir.Value) -> list[ir.Value]:
    """A copy for every use of a constant but the first."""
    tensor = const_tensor(value)
    uses = list(value.uses())
    if tensor is None or len(uses) < 2 or tensor.size > MOST or tensor.size < 2 or value.is_graph_output():
        return []
    if not tensor.dtype.is_floating_point() or any(use.node.graph is not graph for use in uses):
        return []
    made = []
    for use in uses[1:]:
        copy = ir.Value(
            name=fresh_name(graph, f"{value.name}_copy"), shape=value.shape, type=value.type, const_value=tensor
        )
        graph.register_initializer(copy)
        note_named(graph, 1)
        use.node.replace_input_with(use.idx, copy)
        made.append(copy)
    return made


def _joined(graph: ir.Graph, value: ir.Value, made: list[ir.Value]) -> None:
    """Let the readers of copies that hold the same tensor still share one of them again."""
    first: dict[int, ir.Value] = {}
    for copy in (value, *made):
        if graph.initializers.get(str(copy.name)) is not copy:
            continue  # its reader has got another
        kept = first.setdefault(id(copy.const_value), copy)
        if kept is not copy:
            for use in list(copy.uses()):
                use.node.replace_input_with(use.idx, kept)
            graph.initializers.pop(str(copy.name))
