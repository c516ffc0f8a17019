"""Wide margins of convolutions, as an operator of their own."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx_ir as ir

from ...compiler import graph as g

WIDE = 16
"""Pads of one axis, both ends, from which it is tried."""


def wide(model: ir.Model) -> list[ir.Node]:
    """Convolutions with wide margins."""
    return [n for n in g.nodes(model, "Conv") if max(_sums(n), default=0) >= WIDE and n.graph is model.graph]


def _sums(node: ir.Node) -> list[int]:
    pads = list(g.attr(node, "pads", ()))
    half = len(pads) // 2
    return [a + b for a, b in zip(pads[:half], pads[half:], strict=True)]


def pad_before(model: ir.Model, integer: Collection[ir.Node]) -> None:
    """Pad what convolutions with wide margins read, but for those of `integer`.

    Before:  `y = Conv<pads = [254, 254]>(x, w)`

    After:   `y = Conv(Pad(x), w)`

    onnxruntime 1.32 computes each place of a result that reads a margin by itself: a network of pitches, with kernels
    of 64 and 512, takes 1.7 times as long as with its margins made before.
    """
    for node in wide(model):
        pads, x = list(g.attr(node, "pads")), node.inputs[0]
        if node in integer or x is None:
            continue
        half, graph = len(pads) // 2, node.graph
        assert isinstance(graph, ir.Graph)
        name = node.outputs[0].name
        sizes = g.initializer(graph, np.array(pads, np.int64), f"{name}_margins")
        # With axes given, onnxruntime doesn't move the pads back into the convolution.
        axes = g.initializer(graph, np.arange(2, 2 + half), f"{name}_axes")
        made = g.insert_before(node, "Pad", [x, sizes, None, axes], hint=f"{name}__padded").outputs[0]
        made.type = x.type
        node.replace_input_with(0, made)
        del node.attributes["pads"]
